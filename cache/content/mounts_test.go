package content

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// cannot ends a test for which this machine, or who runs it, lacks something: it is skipped, but fails where mounts are
// required (CI).
func cannot(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// smallDisk returns a file system of its own, of size bytes.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size="+size); err != nil {
		cannot(t, "mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// loopFS is an ext4 file system in a file.
type loopFS struct {
	image, dir string
}

func newLoopFS(t testing.TB, size int64) *loopFS {
	t.Helper()
	l := &loopFS{image: filepath.Join(t.TempDir(), "image"), dir: t.TempDir()}
	must(t, os.WriteFile(l.image, nil, 0o600))
	must(t, os.Truncate(l.image, size))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", l.image).CombinedOutput(); err != nil {
		cannot(t, "mkfs.ext4: %v %s", err, out)
	}
	if err := l.mount(); err != nil {
		cannot(t, "%v", err)
	}
	t.Cleanup(func() { unix.Unmount(l.dir, unix.MNT_DETACH) })
	if err := l.cutPower(); err != nil {
		cannot(t, "EXT4_IOC_SHUTDOWN: %v", err)
	}
	l.remount(t)
	return l
}

func (l *loopFS) mount() error {
	if out, err := exec.Command("mount", "-o", "loop", l.image, l.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %v %s", err, out)
	}
	return nil
}

// cutPower makes the file system forget everything that is not on stable storage.
func (l *loopFS) cutPower() error {
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	return unix.IoctlSetPointerInt(int(d.Fd()), ext4Shutdown, noLogFlush)
}

// commitNames has the journal written, with whatever names it holds; data of other files stays in memory.
func (l *loopFS) commitNames() error {
	f, err := os.Create(filepath.Join(l.dir, "commit"))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (l *loopFS) remount(t testing.TB) {
	t.Helper()
	if err := unix.Unmount(l.dir, 0); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	must(t, l.mount())
	err := l.commitNames()
	if errors.Is(err, unix.EIO) {
		// Another mount namespace, cloned meanwhile, keeps the dead file system; what is on its disk is what counts.
		must(t, unix.Unmount(l.dir, 0))
		image := l.image + "x"
		if out, err := exec.Command("cp", "--sparse=always", l.image, image).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v %s", err, out)
		}
		l.image = image
		must(t, l.mount())
		err = l.commitNames()
	}
	must(t, err)
}
