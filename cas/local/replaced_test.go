package local

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDirectoryTaken: a store whose directory was removed, moved away or replaced below it acknowledges nothing and calls nothing
// lost: it is not there. It goes on when the directory is back.
func TestDirectoryTaken(t *testing.T) {
	for _, x := range []struct {
		name string
		take func(t *testing.T, dir, aside string)
	}{
		{"moved away", func(t *testing.T, dir, aside string) {}},
		{"a copy in its place", func(t *testing.T, dir, aside string) {
			if err := os.CopyFS(dir, os.DirFS(aside)); err != nil {
				t.Fatal(err)
			}
		}},
		{"an empty directory in its place", func(t *testing.T, dir, aside string) {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			c := open(t, Options{Dir: dir})
			c.create("v")
			b := pattern(1 << 20)
			id := c.upload("v", b, "")
			job := c.retrieve("v", id)
			upload := c.initiate("v", 1<<20)
			aside := dir + ".aside"
			if err := os.Rename(dir, aside); err != nil {
				t.Fatal(err)
			}
			x.take(t, dir, aside)
			for what, do := range map[string]func() response{
				"upload": func() response { return c.do("POST", "/-/vaults/v/archives", b, hashes(b)) },
				"delete": func() response { return c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil) },
				"twice":  func() response { return c.do("DELETE", "/-/vaults/v/archives/x", nil, nil) },
				"retrieve": func() response {
					return c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+id+`"}`), nil)
				},
				"output": func() response { return c.output("v", job, "") },
				"inventory": func() response {
					return c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"inventory-retrieval"}`), nil)
				},
				"policy": func() response { return c.do("PUT", "/-/vaults/v/access-policy", []byte(`{"policy":"p"}`), nil) },
				"part":   func() response { return c.part("v", upload, 0, b) },
				"create": func() response { return c.do("PUT", "/-/vaults/w", nil, nil) },
				"again":  func() response { return c.do("PUT", "/-/vaults/v", nil, nil) },
				"list":   func() response { return c.do("GET", "/-/vaults", nil, nil) },
			} {
				r := do()
				c.refused(500, "ServiceUnavailableException", r)
				if !strings.Contains(string(r.body), "directory") {
					t.Errorf("%s: %s", what, r.body)
				}
			}
			os.RemoveAll(dir)
			if err := os.Rename(aside, dir); err != nil {
				t.Fatal(err)
			}
			if r := c.must(200, c.output("v", job, "")); len(r.body) != len(b) {
				t.Error("differs")
			}
			c.upload("v", b, "")
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			c = reopen(t, c.c, Options{Dir: dir})
			if v, err := c.s.vault("v"); err != nil || v.count != 2 {
				t.Error(err)
			}
		})
	}
}

// TestLockRemoved: without its lock file the store may be opened by another process, so it does nothing any more.
func TestLockRemoved(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	other := reopen(t, c.c, Options{Dir: dir})
	c.refused(500, "ServiceUnavailableException", c.do("POST", "/-/vaults/v/archives", []byte("x"), hashes([]byte("x"))))
	other.upload("v", []byte("y"), "")
	before, err := os.ReadFile(filepath.Join(dir, "mark"))
	if err != nil {
		t.Fatal(err)
	}
	c.s.Close()
	if after, err := os.ReadFile(filepath.Join(dir, "mark")); err != nil || string(after) != string(before) {
		t.Errorf("Close changed the other's mark: %q, was %q, %v", after, before, err)
	}
}

// TestVaultTaken: a vault's directory that was replaced while the store was open is left alone.
func TestVaultTaken(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	c.create("w")
	v, _ := c.s.vault("v")
	if err := os.Rename(v.dir, v.dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(v.dir, os.DirFS(v.dir+".old")); err != nil {
		t.Fatal(err)
	}
	c.refused(500, "ServiceUnavailableException", c.do("POST", "/-/vaults/v/archives", []byte("x"), hashes([]byte("x"))))
	c.refused(500, "ServiceUnavailableException", c.do("DELETE", "/-/vaults/v", nil, nil))
	c.upload("w", []byte("x"), "")
	// Replaced between the look at it and the record: that is not acknowledged either.
	w, _ := c.s.vault("w")
	if err := os.Rename(w.dir, w.dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := w.update(&record{Type: "policy", Text: "p"}); err == nil {
		t.Error("acknowledged, and in no log")
	}
}

// TestJobWhileTheDirectoryIsAway: a job that is due meanwhile has not failed, and leaves nothing in what is there instead.
func TestJobWhileTheDirectoryIsAway(t *testing.T) {
	for _, instead := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "store")
		c := open(t, Options{Dir: dir, Delays: Delays{Inventory: time.Hour}})
		c.create("v")
		id := c.upload("v", []byte("x"), "")
		job := c.job("v", `{"Type":"inventory-retrieval"}`)
		aside := dir + ".aside"
		if err := os.Rename(dir, aside); err != nil {
			t.Fatal(err)
		}
		if instead {
			if err := os.CopyFS(dir, os.DirFS(aside)); err != nil {
				t.Fatal(err)
			}
		}
		c.c.advance(time.Hour)
		v := c.s.vaults["v"]
		if settled := v.begin(v.jobs[job]); settled != nil { // as the timer does
			<-settled
		}
		if _, err := os.Stat(v.outputPath(job)); err == nil {
			t.Error("its output is in another store's directory")
		}
		os.RemoveAll(dir)
		if err := os.Rename(aside, dir); err != nil {
			t.Fatal(err)
		}
		if r := c.must(200, c.output("v", job, "")); !strings.Contains(string(r.body), id) {
			t.Errorf("%s", r.body)
		}
	}
}

// hangingDisk mounts on dir a disk that never answers. asked returns when the first question was put to it; end takes it away.
func hangingDisk(t *testing.T, dir string) (asked, end func()) {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err == nil {
		err = syscall.Mount("hanging", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}
	if err != nil {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	end = sync.OnceFunc(func() {
		syscall.Close(fd)
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	read := func() []byte {
		b := make([]byte, 64<<10)
		n, err := syscall.Read(fd, b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
	hello := make([]byte, 80) // the reply to FUSE_INIT: length, error, which request, and the protocol's version
	binary.NativeEndian.PutUint32(hello, uint32(len(hello)))
	copy(hello[8:16], read()[8:16])
	binary.NativeEndian.PutUint32(hello[16:], 7)
	binary.NativeEndian.PutUint32(hello[20:], 23)
	if _, err := syscall.Write(fd, hello); err != nil {
		t.Fatal(err)
	}
	return func() { read() }, end
}

// TestVaultThatDoesNotAnswer: who waits for one vault's disk keeps nobody from the others.
func TestVaultThatDoesNotAnswer(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	c.create("w")
	v, _ := c.s.vault("v")
	for what, wait := range map[string]func(){
		"a request": func() { c.do("GET", "/-/vaults/v", nil, nil) },
		"the mark":  c.s.follow,
	} {
		asked, end := hangingDisk(t, v.dir)
		var waiting sync.WaitGroup
		waiting.Go(wait)
		asked()
		done := make(chan struct{})
		waiting.Go(func() {
			defer close(done)
			c.do("PUT", "/-/vaults/x", nil, nil)
			c.do("GET", "/-/vaults/w", nil, nil)
			c.do("DELETE", "/-/vaults/x", nil, nil)
		})
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Errorf("they wait for %s", what)
		}
		end()
		waiting.Wait()
	}
	if mark, err := os.ReadFile(filepath.Join(c.s.dir, "mark")); err != nil || strings.Contains(string(mark), vaultDir("x")) {
		t.Errorf("%s, %v", mark, err)
	}
}
