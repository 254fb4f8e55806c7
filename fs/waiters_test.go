package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// manyWaiters has n programs, threads of this one, wait each for a cold file of its own, and returns
// what each read. The service's clock is ahead of time by what is stored in ahead.
func manyWaiters(t *testing.T, n int) (x *mounted, ahead *atomic.Int64, done chan error) {
	t.Helper()
	ahead = new(atomic.Int64)
	x = mountStore(t, local.Options{
		Delays: local.Delays{Standard: time.Hour},
		Now:    func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	}, func(j *jobs.Options, _ *Options) { j.GuardFiles = -1 })
	for i := range n {
		write(t, x.path(fmt.Sprint("cold", i)), fill(5000+i, uint64(i)))
	}
	x.evictAll()
	done = make(chan error, n)
	for i := range n {
		fd, err := unix.Open(x.path(fmt.Sprint("cold", i)), unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			b := make([]byte, 8192)
			m, err := unix.Read(fd, b)
			unix.Close(fd) // before anybody hears of it: an open file keeps the mount busy
			if err == nil && !bytes.Equal(b[:m], fill(5000+i, uint64(i))) {
				err = fmt.Errorf("file %d: wrong bytes", i)
			}
			done <- err
		}()
	}
	eventually(t, "all of them wait", func() bool {
		s, err := x.e.Status(t.Context())
		return err == nil && len(s.Waiters) == n
	})
	return x, ahead, done
}

// TestManyWaiters: 300 programs wait for cold files, and everything else of the mount goes on. Then their bytes come.
func TestManyWaiters(t *testing.T) {
	const n = 300
	x, ahead, done := manyWaiters(t, n)
	s, err := x.e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range s.Waiters {
		if w.PID == 0 || w.Command == "" || !strings.Contains(w.Path, "/cold") || w.Since.IsZero() || w.ETA == nil {
			t.Fatalf("a waiter is described as %+v", w)
		}
	}
	warm := x.path("warm")
	write(t, warm, fill(1<<20, 7))
	worked := make(chan error, 1)
	go func() {
		worked <- func() error {
			for i := range 50 {
				if b, err := os.ReadFile(warm); err != nil || !bytes.Equal(b, fill(1<<20, 7)) {
					return fmt.Errorf("reading a warm file: %v", err)
				}
				name := x.path(fmt.Sprint("new", i))
				_, err := os.ReadDir(x.path())
				err = errors.Join(err, os.Mkdir(name, 0o755), os.WriteFile(name+"/f", fill(10_000, uint64(i)), 0o644),
					os.Rename(name+"/f", name+"/g"), os.Chmod(x.path(fmt.Sprint("cold", i)), 0o600), os.RemoveAll(name))
				if err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	select {
	case err := <-worked:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the mount stands still")
	}
	select {
	case err := <-done:
		t.Fatalf("a waiter ended early: %v", err)
	default:
	}
	ahead.Store(int64(2 * time.Hour))
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := x.recalls(); got != n {
		t.Errorf("%d retrievals, want %d", got, n)
	}
}

// TestUnmountWithManyWaiters: the way out when 300 programs wait.
func TestUnmountWithManyWaiters(t *testing.T) {
	const n = 300
	x, _, done := manyWaiters(t, n)
	began := time.Now()
	x.e.StopAdmitting()
	for range n {
		if err := <-done; err == nil {
			t.Error("a read without its bytes succeeded")
		}
	}
	if err := x.m.Unmount(false); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > promptly {
		t.Errorf("it took %v", d)
	}
}

// TestCtrlC ends a copy of a cold file, as a terminal does: by SIGINT to the group.
func TestCtrlC(t *testing.T) {
	x, cold, _ := waitingMount(t, nil)
	// In the background of a shell SIGINT is ignored, by what is started from there as well. What is caught here is not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT)
	defer signal.Stop(caught)
	for _, argv := range [][]string{{"cp"}, {"rsync", "-a"}, {"dd", "bs=64k"}} {
		argv = append(argv, cold, t.TempDir()+"/copy")
		if argv[0] == "dd" {
			argv[len(argv)-2], argv[len(argv)-1] = "if="+argv[len(argv)-2], "of="+argv[len(argv)-1]
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, argv[0]+" waits", func() bool {
			s, err := x.e.Status(t.Context())
			return err == nil && len(s.Waiters) == 1
		})
		began := time.Now()
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if d := time.Since(began); d > promptly { // the recall takes an hour
			t.Errorf("%s ended %v after Ctrl-C", argv[0], d)
		}
		if err == nil {
			t.Errorf("%s succeeded", argv[0])
		}
		eventually(t, "nobody waits", func() bool {
			s, err := x.e.Status(t.Context())
			return err == nil && len(s.Waiters) == 0
		})
	}
	x.wantRecalls(1)
}

// TestUrgentSignals: a Go program under a hail of SIGURG reads cold files to the end, without an error.
func TestUrgentSignals(t *testing.T) {
	x := mountForTest(t, local.Delays{Standard: 150 * time.Millisecond}, nil)
	var names []string
	for i := range 10 {
		names = append(names, x.path(fmt.Sprint("f", i)))
		write(t, names[i], fill(200_000, uint64(i)))
	}
	x.cold(names...)
	out, err := programCmd("urgent", names...).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "read 2000000" {
		t.Errorf("%v: %s", err, out)
	}
	if n := x.recalls(); n != len(names) {
		t.Errorf("%d retrievals, want %d", n, len(names))
	}
}
