package local

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPowerLoss: what the store has acknowledged is there after a power loss at any moment, and nothing else.
func TestPowerLoss(t *testing.T) {
	if _, err := os.Stat("/dev/loop-control"); err != nil && os.Getenv("CASFS_REQUIRE_FUSE") == "" {
		t.Skip(err)
	}
	d := &thinDisk{t: t, image: filepath.Join(t.TempDir(), "image"), path: t.TempDir()}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 1<<30); err != nil {
		t.Fatal(err)
	}
	d.system("mkfs.ext4", "-q", "-F", d.image)
	mount := func() { // nothing is written but what fsync asks for
		d.system("mount", "-o", "loop,commit=600,noauto_da_alloc", d.image, d.path)
	}
	mount()
	t.Cleanup(func() { syscall.Unmount(d.path, syscall.MNT_DETACH) })

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := filepath.Join(d.path, "new", "store")
	l := &ledger{archives: map[string][]byte{}, deleted: map[string]bool{}, asked: map[string]bool{}, uploads: map[string]map[int][]byte{}, vague: map[string]bool{}}
	var creds Credentials
	for life := range 6 {
		if life == 0 {
			s, err := Open(Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			(&client{t: t, s: s}).create("v")
			creds = s.Credentials()
			d.pull() // right after the first acknowledgement
			s.Close()
		} else {
			cmd, k, wg := startLife(t, dir, creds, l, seed, life)
			time.Sleep(time.Duration(50+rng.IntN(1000)) * time.Millisecond)
			cmd.Process.Kill() // first: a call that is under way while the file system shuts down may return anything
			wg.Wait()
			cmd.Wait()
			d.pull()
			k.http.CloseIdleConnections()
		}
		d.unmount()
		mount()
	}
	l.check(t, dir)
}

// pull pulls the plug: what has not been written to the disk is gone, and nothing is written any more.
func (d *thinDisk) pull() {
	d.t.Helper()
	f, err := os.Open(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush); err != nil {
		d.t.Fatalf("EXT4_IOC_SHUTDOWN: %v", err)
	}
}
