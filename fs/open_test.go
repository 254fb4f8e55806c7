package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
)

func TestModesOfOpen(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	write(t, p, []byte("0123456789"))
	_, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	wantErrno(t, "O_EXCL", err, unix.EEXIST)
	f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	g, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("a")
	g.WriteString("b")
	f.WriteString("c")
	f.Close()
	g.Close()
	wantContent(t, p, []byte("0123456789abc"))
	x.cold(p)
	if f, err = os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("d"); err != nil {
		t.Errorf("append to a cold file: %v", err)
	}
	f.Close()
	wantContent(t, p, []byte("0123456789abcd"))
	x.cold(p)
	before := x.recalls()
	if f, err = os.OpenFile(p, os.O_TRUNC|os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	f.WriteString("new")
	f.Close()
	wantContent(t, p, []byte("new"))
	if n := x.recalls() - before; n != 0 {
		t.Errorf("O_TRUNC of a cold file asked for %d retrievals", n)
	}
	// O_SYNC, O_DIRECT, O_NONBLOCK on local files.
	for _, flags := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_NONBLOCK} {
		f, err := os.OpenFile(p, os.O_RDWR|flags, 0)
		if err != nil {
			t.Errorf("flags %#o: %v", flags, err)
			continue
		}
		if _, err := f.WriteAt([]byte("N"), 0); err != nil {
			t.Errorf("flags %#o: %v", flags, err)
		}
		f.Close()
	}
	wantContent(t, p, []byte("New"))
	_, err = os.OpenFile(x.path("f", "x"), os.O_RDONLY, 0)
	wantErrno(t, "a file as a directory", err, unix.ENOTDIR)
	_, err = os.OpenFile(x.path(), os.O_WRONLY, 0)
	wantErrno(t, "writing a directory", err, unix.EISDIR)
}

// TestLocks: flock, POSIX and open file description locks hold between processes and,
// where they should, between descriptors; they end with a close, and need no bytes of the file.
func TestLocks(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("f"), make([]byte, 100))
	x.cold(x.path("f"))
	before := x.recalls()
	open := func() *os.File {
		t.Helper()
		f, err := os.OpenFile(x.path("f"), os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	f, g := open(), open()
	// flock belongs to the open file.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "flock of another descriptor", unix.Flock(int(g.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	if out := sh(t, x.path(), "flock -n f true && echo got || echo busy"); strings.TrimSpace(out) != "busy" {
		t.Errorf("flock: %s", out)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Error(err)
	}
	if out := sh(t, x.path(), "flock -n f true && echo got || echo busy"); strings.TrimSpace(out) != "got" {
		t.Errorf("flock after the unlock: %s", out)
	}
	// Open file description locks, by ranges.
	ofd := func(f *os.File, typ int16, start, n int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
	}
	if err := errors.Join(ofd(f, unix.F_WRLCK, 0, 10), ofd(g, unix.F_WRLCK, 10, 10), ofd(f, unix.F_RDLCK, 50, 10), ofd(g, unix.F_RDLCK, 55, 10)); err != nil {
		t.Errorf("OFD locks of different ranges, and shared ones: %v", err)
	}
	wantErrno(t, "OFD lock of a locked range", ofd(g, unix.F_RDLCK, 9, 1), unix.EAGAIN)
	g.Close()
	if err := ofd(f, unix.F_WRLCK, 0, 100); err != nil {
		t.Errorf("OFD lock after the other's close: %v", err)
	}
	f.Close()
	// POSIX locks belong to the process: ours do not meet each other, another's do.
	f, g = open(), open()
	posix := func(f *os.File) error {
		return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err := errors.Join(posix(f), posix(g)); err != nil {
		t.Errorf("POSIX locks of one process: %v", err)
	}
	if out, err := programCmd("lock", x.path("f")).CombinedOutput(); err != nil || string(out) != "resource temporarily unavailable\n" {
		t.Errorf("POSIX lock of another process: %q, %v", out, err)
	}
	g.Close() // any close of the file by the process ends its locks
	if out, err := programCmd("lock", x.path("f")).CombinedOutput(); err != nil || string(out) != "locked\n" {
		t.Errorf("POSIX lock of another process after a close: %q, %v", out, err)
	}
	if n := x.recalls() - before; n != 0 {
		t.Errorf("locking asked for %d retrievals", n)
	}
}

// TestFsync: durability is asked for on files and directories, and answered.
func TestFsync(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	f, err := os.Create(x.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("x")
	if err := errors.Join(f.Sync(), unix.Fdatasync(int(f.Fd()))); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{x.path(), x.dir} {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			t.Errorf("fsync of %s: %v", dir, err)
		}
		d.Close()
	}
}

// TestFailedCallsAreLogged: one line with path and reason, and no noise.
func TestFailedCallsAreLogged(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	os.Stat(x.path("none"))
	os.Mkdir(x.path(), 0o755)
	unix.Getxattr(x.path(), "user.none", nil)
	os.Link(x.path(), x.path("hard"))
	if got := x.logs.grep("call failed"); len(got) > 1 {
		t.Errorf("%d lines, want 1 or fewer: %v", len(got), got)
	}
	write(t, x.path("f"), nil)
	if err := os.WriteFile(filepath.Join(x.dir, "beside"), nil, 0o644); err == nil {
		t.Fatal("created")
	}
	if got := x.logs.grep("call failed", "op=create", "errno=EPERM", filepath.Join(x.m.dir, "beside"), "reason="); len(got) != 1 {
		t.Errorf("got %v, want one line", x.logs.grep("call failed"))
	}
}
