package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/jobs"
)

// smallDisk mounts a file system of its own, of some MiB, on dir.
func smallDisk(t *testing.T, dir string, mib int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("mode=700,size=%dm", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// filler is somebody else's file that takes the room of a disk.
type filler struct {
	t    *testing.T
	name string
}

// dots are what names grow by.
var dots = strings.Repeat(".", 200)

// fill leaves nothing of the disk.
func fill(t *testing.T, dir string) filler {
	t.Helper()
	out, err := os.CreateTemp(dir, "filler")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	f := filler{t, out.Name()}
	for _, piece := range []int{1 << 20, 4096} {
		for b := make([]byte, piece); ; {
			if _, err = out.Write(b); err != nil {
				break
			}
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return f
}

func (f filler) remove() {
	f.t.Helper()
	if err := os.Remove(f.name); err != nil {
		f.t.Fatal(err)
	}
}

// full is a mount whose disk will be too small.
type full struct {
	*machine
	d    *daemon
	rng  *rand.Rand
	have map[string][]byte // what was acknowledged
}

func newFull(t *testing.T, flags ...string) *full {
	m := newMachine(t, true, append([]string{"--standard", "20ms", "--inventory", "20ms", "--staging-size", "10G", "--cache-size", "10G", "--min-free", "4K",
		"--staging-wait", "100ms", "--recall-guard-files", "0", "--recall-wait", "1s"}, flags...)...)
	return &full{machine: m, rng: rand.New(rand.NewPCG(1, 2)), have: map[string][]byte{}}
}

func (f *full) start() {
	f.t.Helper()
	if f.d = f.launch("", nil); f.d == nil {
		f.t.Fatal("the mount died")
	}
}

func (f *full) v(name string) string { return filepath.Join(f.mnt, "v", name) }

// put writes a file and returns what the program that writes is told.
func (f *full) put(name string, n int, sync bool) error {
	data := make([]byte, n)
	for i := 0; i < n; i += 8 {
		x := f.rng.Uint64()
		for k := i; k < min(i+8, n); k++ {
			data[k] = byte(x)
			x >>= 8
		}
	}
	out, err := os.OpenFile(f.v(name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	if err == nil && sync {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		f.have[name] = data
	}
	return err
}

// intact holds everything acknowledged against what is there.
func (f *full) intact(when string) {
	f.t.Helper()
	for name, want := range f.have {
		got, err := os.ReadFile(f.v(name))
		for end := time.Now().Add(30 * time.Second); errors.Is(err, syscall.ETIMEDOUT) && time.Now().Before(end); {
			got, err = os.ReadFile(f.v(name)) // the recall goes on: --recall-wait is short
		}
		if errors.Is(err, syscall.ENOSPC) && state(f.v(name)) != "staged" && strings.Contains(when, "on a full disk") {
			continue // it has gone to the vault, to make room, and there is none to bring it back
		}
		if err != nil || !bytes.Equal(got, want) {
			f.t.Fatalf("%s: %s has %d bytes (%v), not the %d acknowledged", when, name, len(got), err, len(want))
		}
	}
}

// wantFull fails unless err is the disk's, and the mount lives.
func (f *full) wantFull(what string, err error) {
	f.t.Helper()
	if f.d.awaitDeath(0) {
		f.t.Fatalf("%s: the mount is dead: %v", what, f.d.cmd.ProcessState)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		f.t.Fatalf("%s on a full disk: %v, want ENOSPC", what, err)
	}
}

// fills tries something anew until the disk is found full: it is not asked before every write.
func (f *full) fills(what string, try func(i int) error) {
	f.t.Helper()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = try(i)
	}
	f.wantFull(what, err)
}

// until waits for a condition.
func (f *full) until(what string, cond func() error) {
	f.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if err = cond(); err == nil {
			return
		}
		if f.d.awaitDeath(20 * time.Millisecond) {
			f.t.Fatalf("%s: the mount is dead: %v", what, f.d.cmd.ProcessState)
		}
	}
	f.t.Fatalf("%s: %v", what, err)
}

func (f *full) status() jobs.Status {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := f.d.control.Status(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}

// explained waits until status says that there is no room.
func (f *full) explained() {
	f.t.Helper()
	f.until("status on a full disk", func() error {
		st := f.status()
		for _, p := range st.Problems {
			if strings.Contains(p, "room") || strings.Contains(p, "free") || strings.Contains(p, "full") {
				return nil
			}
		}
		return fmt.Errorf("problems are %q", st.Problems)
	})
}

// well waits until status has nothing to say, and ends the mount with everything in the vault.
func (f *full) well() {
	f.t.Helper()
	f.until("status with room again", func() error {
		if st := f.status(); len(st.Problems) > 0 {
			return fmt.Errorf("problems are %q", st.Problems)
		}
		return nil
	})
	f.intact("with room again")
	f.casfs("sync", f.v(""))
	f.evict(f.v(""))
	f.casfs("recall", "-r", "--wait", f.v(""))
	f.intact("from the vault")
	f.casfs("umount", f.mnt)
	if !f.d.awaitDeath(time.Minute) {
		f.t.Fatal("the mount does not end")
	}
}

// TestFullDisk runs a mount out of disk: where it keeps staged bytes, its catalog, its cache.
func TestFullDisk(t *testing.T) {
	built.Require(t)
	// Everything of the mount on one disk, which the mount's own writers fill while the service hangs.
	t.Run("staging", func(t *testing.T) {
		f := newFull(t, "--settle", "0")
		smallDisk(t, f.path("state"), 300)
		f.start()
		if err := os.Mkdir(f.v(""), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := f.put("early", 1<<20, true); err != nil {
			t.Fatal(err)
		}
		f.serve.Process.Signal(syscall.SIGSTOP)
		defer f.serve.Process.Signal(syscall.SIGCONT)
		f.fills("writing", func(i int) error { return f.put(fmt.Sprintf("file%d", i), 1<<20+i, i%2 == 0) })
		f.explained()
		f.intact("on a full disk")
		// What is deleted makes room.
		if err := os.Remove(f.v("file0")); err != nil {
			t.Errorf("rm on a full disk: %v", err)
		}
		delete(f.have, "file0")
		f.until("writing after rm", func() error { return f.put("after", 500<<10, true) })
		if len(f.have) < 50 {
			t.Errorf("only %d MiB of 300 were usable", len(f.have))
		}
		// A program that goes on regardless changes nothing.
		for i := range 5 {
			f.wantFull("writing", f.put(fmt.Sprintf("more%d", i), 4<<20, false))
		}
		// Neither does a kill, and a mount on the full disk. (It asks the service first.)
		f.d.kill()
		f.serve.Process.Signal(syscall.SIGCONT)
		f.start()
		f.intact("after a kill on a full disk")
		f.until("writing with the service back", func() error { return f.put("late", 4<<20, true) })
		f.well()
	})
	// Somebody else takes all room: the catalog, which is on the same disk, takes no changes.
	t.Run("catalog", func(t *testing.T) {
		f := newFull(t, "--settle", "1h")
		smallDisk(t, f.path("state"), 300)
		f.start()
		if err := os.Mkdir(f.v(""), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if err := f.put(fmt.Sprintf("file%d", i), 1<<20, i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
		open, err := os.OpenFile(f.v("file0"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		takes := []filler{fill(t, f.path("state"))}
		f.fills("create", func(i int) error { return f.put(fmt.Sprintf("new%d", i), 1000, false) })
		f.fills("writing to an open file", func(i int) error {
			_, err := open.WriteAt(f.have["file1"], int64(len(f.have["file0"])))
			if err == nil {
				f.have["file0"] = append(f.have["file0"], f.have["file1"]...)
			}
			return err
		})
		// As much of the last write as went through is there.
		if st, err := open.Stat(); err != nil || st.Size() < int64(len(f.have["file0"])) {
			t.Errorf("file0: %v, %v", st.Size(), err)
		} else {
			f.have["file0"] = append(f.have["file0"], f.have["file1"][:st.Size()-int64(len(f.have["file0"]))]...)
		}
		f.fills("rename", func(i int) error {
			from, to := fmt.Sprintf("file1%.*s", i, dots), fmt.Sprintf("file1%.*s", i+1, dots)
			if err := os.Rename(f.v(from), f.v(to)); err != nil {
				return err
			}
			f.have[to] = f.have[from]
			delete(f.have, from)
			return nil
		})
		f.wantFull("mkdir", os.Mkdir(f.v("dir"), 0o755))
		f.wantFull("chmod", os.Chmod(f.v("file2"), 0o600))
		f.explained()
		f.intact("on a full disk")
		// A kill, and a mount on the full disk, on what the catalog has kept for that.
		f.d.kill()
		open.Close()
		f.start()
		f.intact("after a kill on a full disk")
		// That is gone, too: then there is no mount, and it says why.
		takes = append(takes, fill(t, f.path("state")))
		f.fills("create", func(i int) error { return f.put(fmt.Sprintf("more%d", i), 1000, false) })
		f.d.kill()
		c := f.command(append(append([]string{"mount", "--force", "--local", f.path("store")}, f.flags...), f.mnt)...)
		c.Stderr = nil
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "free") {
			t.Errorf("a mount with nothing free: %v\n%s", err, out)
		}
		for _, x := range takes {
			x.remove()
		}
		f.start()
		f.intact("with room again")
		f.until("writing with room again", func() error { return f.put("new", 1<<20, true) })
		f.well()
	})
	// The cache: recalls wait or fail, everything else goes on.
	t.Run("cache", func(t *testing.T) {
		f := newFull(t, "--settle", "0")
		cache := f.path("cache")
		smallDisk(t, cache, 24)
		f.flags = append(f.flags, "--cache-dir", cache)
		f.start()
		if err := os.Mkdir(f.v(""), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if err := f.put(fmt.Sprintf("file%d", i), 2<<20, false); err != nil {
				t.Fatal(err)
			}
		}
		f.casfs("sync", f.v(""))
		f.evict(f.v(""))
		filler := fill(t, cache)
		if _, err := os.ReadFile(f.v("file0")); err == nil {
			t.Error("2 MiB were recalled into a full cache")
		} else if f.d.awaitDeath(0) {
			t.Fatal("the mount is dead")
		} else {
			t.Logf("reading with a full cache: %v", err)
		}
		f.explained()
		// Writing, archiving and metadata go on.
		if err := f.put("new", 3<<20, true); err != nil {
			t.Error(err)
		}
		f.casfs("sync", f.v("new"))
		if got, err := os.ReadFile(f.v("new")); err != nil || !bytes.Equal(got, f.have["new"]) {
			t.Errorf("what was just archived: %d bytes, %v", len(got), err)
		}
		filler.remove()
		f.until("reading with room again", func() error { _, err := os.ReadFile(f.v("file0")); return err })
		f.well()
	})
}
