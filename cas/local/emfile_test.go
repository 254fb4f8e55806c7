package local

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
)

// onlyDescriptors leaves n file descriptors to open until the returned function is called.
func onlyDescriptors(t *testing.T, n uint64) func() {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	free := uint64(f.Fd())
	f.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: free + n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLogNeedsNoDescriptor: a record that was taken is written also when no more files can be opened, and the log does not break of one
// that was not taken.
func TestLogNeedsNoDescriptor(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	c.upload("v", []byte("x"), "")
	v, _ := c.s.vault("v")
	dir := v.shardDir(0)
	ticket, err := v.log.enqueue((&record{Type: "policy"}).encode(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	restore := onlyDescriptors(t, 0)
	_, err2 := v.log.enqueue((&record{Type: "policy"}).encode(), dir+"/", 0) // by another name: to be opened
	err = v.log.wait(ticket)
	restore()
	if err != nil || err2 == nil {
		t.Errorf("%v, %v", err, err2)
	}
	c.upload("v", []byte("y"), "")
}

// TestCreateWithoutDescriptors: a vault that could not be made for want of descriptors, at whichever step, can be made later.
func TestCreateWithoutDescriptors(t *testing.T) {
	c := open(t, Options{NoSync: true})
	refused := 0
	for i := range 200 {
		name := fmt.Sprintf("v%d", i)
		restore := onlyDescriptors(t, 1)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // takes it now and then
			for {
				select {
				case <-stop:
					return
				default:
					if f, err := os.Open(os.DevNull); err == nil {
						f.Close()
					}
				}
			}
		})
		r := c.do("PUT", "/-/vaults/"+name, nil, nil)
		close(stop)
		wg.Wait()
		restore()
		if r.StatusCode != 201 {
			refused++
			c.create(name)
		}
	}
	t.Logf("%d of 200 refused at first", refused)
}

// TestOpenWithoutDescriptors: a vault that could not be opened for want of descriptors is as good as before when it can be.
func TestOpenWithoutDescriptors(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	for i := range 8 {
		c.create(fmt.Sprintf("v%d", i))
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n := range uint64(12) {
		restore := onlyDescriptors(t, n)
		s, err := Open(Options{Dir: dir, Now: c.c.now})
		restore()
		if err != nil {
			continue
		}
		refused += len(s.broken)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("no vault was refused")
	}
	c = reopen(t, c.c, Options{Dir: dir})
	for i := range 8 {
		if v, err := c.s.vault(fmt.Sprintf("v%d", i)); err != nil || v.damaged {
			t.Errorf("v%d: %v, or its log counts as damaged", i, err)
		}
	}
}
