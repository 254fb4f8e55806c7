package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %q: %v", path, err)
	}
	return st
}

func TestRename(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path
	for _, d := range []string{"dir", "dir/sub", "full", "full/x", "empty"} {
		if err := os.Mkdir(p(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, p("a"), []byte("a"))
	write(t, p("b"), []byte("b"))
	rename2 := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, p(from), unix.AT_FDCWD, p(to), flags)
	}
	wantErrno(t, "NOREPLACE onto a file", rename2("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	wantErrno(t, "EXCHANGE with nothing", rename2("a", "none", unix.RENAME_EXCHANGE), unix.ENOENT)
	wantErrno(t, "WHITEOUT", rename2("a", "b", unix.RENAME_WHITEOUT), unix.EINVAL)
	wantErrno(t, "directory into itself", rename2("dir", "dir/sub/x", 0), unix.EINVAL)
	wantErrno(t, "directory onto a full one", rename2("dir", "full", 0), unix.ENOTEMPTY)
	wantErrno(t, "directory onto a file", rename2("dir", "a", 0), unix.ENOTDIR)
	wantErrno(t, "file onto a directory", rename2("a", "empty", 0), unix.EISDIR)
	wantErrno(t, "a name too long", rename2("a", strings.Repeat("x", 256), 0), unix.ENAMETOOLONG)

	inoA, inoB := inoOf(t, p("a")), inoOf(t, p("b"))
	if err := rename2("a", "b", unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	wantContent(t, p("a"), []byte("b"))
	if inoOf(t, p("a")) != inoB || inoOf(t, p("b")) != inoA {
		t.Error("EXCHANGE did not exchange the inodes")
	}
	if err := rename2("a", "full", unix.RENAME_EXCHANGE); err != nil {
		t.Errorf("EXCHANGE of a file with a directory: %v", err)
	}
	if _, err := os.Stat(p("a", "x")); err != nil {
		t.Errorf("after EXCHANGE with a directory: %v", err)
	}
	if err := rename2("dir", "empty", 0); err != nil {
		t.Errorf("directory onto an empty one: %v", err)
	}
	if err := rename2("b", "new", unix.RENAME_NOREPLACE); err != nil {
		t.Errorf("NOREPLACE onto nothing: %v", err)
	}
	if n := stat(t, p()).Nlink; n != 4 { // ., .., empty, a
		t.Errorf("link count of the directory is %d, want 4", n)
	}
	if n := stat(t, p("empty")).Nlink; n != 3 {
		t.Errorf("link count of the moved directory is %d, want 3", n)
	}
	// Onto another link of the same file nothing happens.
	if err := os.Link(p("new"), p("link")); err != nil {
		t.Fatal(err)
	}
	if err := rename2("new", "link", 0); err != nil {
		t.Error(err)
	}
	if st := stat(t, p("new")); st.Nlink != 2 {
		t.Errorf("rename onto its own link left %d links, want 2", st.Nlink)
	}
	x.remount()
	wantContent(t, p("link"), []byte("a"))
}

func TestHardLinks(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("a"), []byte("one"))
	if err := os.Mkdir(x.path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(x.path("a"), x.path("d", "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", x.path("s")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(x.path("s"), x.path("s2")); err != nil {
		t.Errorf("link of a symlink: %v", err)
	}
	wantErrno(t, "link of a directory", os.Link(x.path("d"), x.path("e")), unix.EPERM)
	wantErrno(t, "link onto a name", os.Link(x.path("a"), x.path("d", "b")), unix.EEXIST)
	check := func() {
		t.Helper()
		a, b := stat(t, x.path("a")), stat(t, x.path("d", "b"))
		if a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
			t.Fatalf("links %d and %d of inodes %d and %d", a.Nlink, b.Nlink, a.Ino, b.Ino)
		}
	}
	check()
	write(t, x.path("d", "b"), []byte("two"))
	wantContent(t, x.path("a"), []byte("two"))
	x.cold(x.path("a"))
	x.remount()
	check()
	wantContent(t, x.path("d", "b"), []byte("two"))
	if err := os.Remove(x.path("a")); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, x.path("d", "b")); st.Nlink != 1 {
		t.Errorf("%d links left, want 1", st.Nlink)
	}
	wantContent(t, x.path("d", "b"), []byte("two"))
}

// TestRenameOverReader: a reader racing a rename-over sees the old file or the
// new one, whole.
func TestRenameOverReader(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	const rounds = 300
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, 100+i%7*1000) }
	write(t, x.path("f"), content(0))
	if err := os.Symlink("target0", x.path("l")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				b, err := os.ReadFile(x.path("f"))
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				if len(b) < 100 || len(bytes.Trim(b, string(b[:1]))) != 0 || (len(b)-100)%1000 != 0 {
					t.Errorf("a mixture: %d bytes, %q…", len(b), b[:min(8, len(b))])
					return
				}
			}
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			if s, err := os.Readlink(x.path("l")); err != nil || !strings.HasPrefix(s, "target") {
				t.Errorf("readlink: %q, %v", s, err)
				return
			}
			if _, err := os.Stat(x.path("f")); err != nil {
				t.Errorf("stat: %v", err)
				return
			}
		}
	})
	for i := range rounds {
		write(t, x.path("tmp"), content(i))
		if err := os.Rename(x.path("tmp"), x.path("f")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprint("target", i), x.path("ltmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(x.path("ltmp"), x.path("l")); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestUnlinkedOpen(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	f, err := os.Create(x.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("hello")
	if err := os.Remove(x.path("f")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(" world"); err != nil {
		t.Error(err)
	}
	if err := f.Chmod(0o600); err != nil {
		t.Error(err)
	}
	if err := f.Truncate(8); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 || st.Size != 8 || st.Mode&0o777 != 0o600 {
		t.Errorf("fstat: %v, %d links, size %d, mode %o", err, st.Nlink, st.Size, st.Mode)
	}
	// Through /proc, as programs reopen what they hold.
	g, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(g)
	g.Close()
	if err != nil || string(b) != "hello wo" {
		t.Errorf("reopened: %q, %v", b, err)
	}

	// A directory that is gone while somebody is in it.
	if err := os.Mkdir(x.path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(x.path("d"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Remove(x.path("d")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(int(d.Fd()), &st); err != nil || st.Nlink != 0 {
		t.Errorf("fstat of a removed directory: %v, %d links", err, st.Nlink)
	}
	if err := unix.Mkdirat(int(d.Fd()), "x", 0o755); err != unix.ENOENT {
		t.Errorf("mkdir in a removed directory: %v, want ENOENT", err)
	}
}

func TestTimes(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	write(t, p, []byte("x"))
	set := func(a, m unix.Timespec) unix.Stat_t {
		t.Helper()
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, m}, 0); err != nil {
			t.Fatal(err)
		}
		return stat(t, p)
	}
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	st := set(unix.Timespec{Sec: 1000000000, Nsec: 123456789}, unix.Timespec{Sec: -1000, Nsec: 987654321})
	if st.Atim.Sec != 1000000000 || st.Atim.Nsec != 123456789 || st.Mtim.Sec != -1000 || st.Mtim.Nsec != 987654321 {
		t.Errorf("got atime %v, mtime %v", st.Atim, st.Mtim)
	}
	ctime := st.Ctim
	st2 := set(omit, unix.Timespec{Sec: 5, Nsec: 6})
	if st2.Atim != st.Atim || st2.Mtim.Sec != 5 || st2.Mtim.Nsec != 6 {
		t.Errorf("UTIME_OMIT: got %v, %v", st2.Atim, st2.Mtim)
	}
	if st2.Ctim == ctime {
		t.Error("ctime did not move")
	}
	st3 := set(now, omit)
	if time.Since(time.Unix(st3.Atim.Unix())).Abs() > time.Minute || st3.Mtim != st2.Mtim {
		t.Errorf("UTIME_NOW: got %v, %v", st3.Atim, st3.Mtim)
	}
	// In every state, and over a remount.
	want := set(unix.Timespec{Sec: 7, Nsec: 8}, unix.Timespec{Sec: 9, Nsec: 10})
	x.cold(p)
	x.remount()
	if got := stat(t, p); got.Mtim != want.Mtim || got.Ctim != want.Ctim {
		t.Errorf("after eviction and remount: mtime %v ctime %v, want %v %v", got.Mtim, got.Ctim, want.Mtim, want.Ctim)
	}
	wantContent(t, p, []byte("x"))
	if got := stat(t, p); got.Mtim != want.Mtim || got.Ctim != want.Ctim {
		t.Errorf("after a recall: mtime %v ctime %v, want %v %v", got.Mtim, got.Ctim, want.Mtim, want.Ctim)
	}
}

func TestXattrs(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	write(t, p, []byte("x"))
	if err := unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_CREATE); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "CREATE again", unix.Setxattr(p, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
	wantErrno(t, "REPLACE of nothing", unix.Setxattr(p, "user.b", nil, unix.XATTR_REPLACE), unix.ENODATA)
	if err := unix.Setxattr(p, "user.a", []byte{}, unix.XATTR_REPLACE); err != nil {
		t.Error(err)
	}
	if got := x.attr(p, "user.a"); got != "" {
		t.Errorf("got %q, want an empty value", got)
	}
	big := fill(64<<10, 3)
	if err := unix.Setxattr(p, "user.big", big, 0); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	wantErrno(t, "more than 64 KiB", unix.Setxattr(p, "user.big", append(big, 0), 0), unix.E2BIG)
	buf := make([]byte, 64<<10)
	if n, err := unix.Getxattr(p, "user.big", buf); err != nil || !bytes.Equal(buf[:n], big) {
		t.Errorf("read back %d bytes, %v", n, err)
	}
	if n, err := unix.Getxattr(p, "user.big", nil); err != nil || n != len(big) {
		t.Errorf("size query: %d, %v", n, err)
	}
	if _, err := unix.Getxattr(p, "user.big", buf[:10]); err != unix.ERANGE {
		t.Errorf("a buffer too small: %v, want ERANGE", err)
	}
	list := func() []string {
		t.Helper()
		n, err := unix.Listxattr(p, buf)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		return names
	}
	if got := list(); !slices.Equal(got, []string{"user.a", "user.big"}) {
		t.Errorf("list %q; casfs's own must not be in it", got)
	}
	_, err := unix.Getxattr(p, "security.capability", buf)
	wantErrno(t, "security.capability", err, unix.EOPNOTSUPP)
	_, err = unix.Getxattr(p, "system.posix_acl_access", buf)
	wantErrno(t, "reading an ACL", err, unix.EOPNOTSUPP)
	wantErrno(t, "setting a capability", unix.Setxattr(p, "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0), unix.EOPNOTSUPP)
	wantErrno(t, "removing nothing", unix.Removexattr(p, "user.none"), unix.ENODATA)
	if err := unix.Removexattr(p, "user.a"); err != nil {
		t.Error(err)
	}
	if got := x.attr(p, controlAttr); got != x.opts.Control {
		t.Errorf("%s = %q", controlAttr, got)
	}
	if got := x.attr(x.dir, controlAttr); got != x.opts.Control {
		t.Errorf("%s of the root = %q", controlAttr, got)
	}
	if err := unix.Setxattr(x.path(), "user.dir", []byte("d"), 0); err != nil {
		t.Errorf("of a directory: %v", err)
	}
	x.cold(p)
	x.remount()
	if got := list(); !slices.Equal(got, []string{"user.big"}) {
		t.Errorf("after eviction and remount: %q", got)
	}

	// The verbs.
	if got := x.attr(p, "user.cas.state"); got != "cold" {
		t.Errorf("state %q", got)
	}
	if err := unix.Setxattr(p, "user.cas.recall", []byte("standard"), 0); err != nil {
		t.Error(err)
	}
	eventually(t, "recalled", func() bool { return x.attr(p, "user.cas.state") == "resident" })
	evict := func() error { return unix.Setxattr(p, "user.cas.evict", []byte("1"), 0) }
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "evict of an open file", evict(), unix.EBUSY)
	f.Close()
	eventually(t, "nothing holds it", func() bool {
		err := evict()
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatalf("evict: %v", err)
		}
		return err == nil
	})
	if got := x.attr(p, "user.cas.state"); got != "cold" {
		t.Errorf("state %q after user.cas.evict, want cold", got)
	}
	if err := unix.Setxattr(p, "user.cas.pin", []byte("1"), 0); err != nil {
		t.Error(err)
	}
	if err := unix.Setxattr(p, "user.cas.state", []byte("resident"), 0); err == nil {
		t.Error("user.cas.state could be set")
	}
}

func TestNames(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	long := strings.Repeat("x", 256)
	write(t, x.path("f"), nil)
	p := x.path(long)
	_, err := os.Lstat(p)
	wantErrno(t, "lstat", err, unix.ENAMETOOLONG)
	wantErrno(t, "create", os.WriteFile(p, nil, 0o644), unix.ENAMETOOLONG)
	wantErrno(t, "mkdir", os.Mkdir(p, 0o755), unix.ENAMETOOLONG)
	wantErrno(t, "mknod", unix.Mknod(p, unix.S_IFIFO|0o644, 0), unix.ENAMETOOLONG)
	wantErrno(t, "symlink", os.Symlink("x", p), unix.ENAMETOOLONG)
	wantErrno(t, "link", os.Link(x.path("f"), p), unix.ENAMETOOLONG)
	wantErrno(t, "unlink", unix.Unlink(p), unix.ENAMETOOLONG)
	wantErrno(t, "rmdir", unix.Rmdir(p), unix.ENAMETOOLONG)
	wantErrno(t, "rename to", unix.Rename(x.path("f"), p), unix.ENAMETOOLONG)
	wantErrno(t, "rename from", unix.Rename(p, x.path("f")), unix.ENAMETOOLONG)

	names := []string{strings.Repeat("n", 255), "new\nline", "\xff\xfe", " ", "名", "-rf", "\\", "a\tb", "*", ".hidden"}
	for _, n := range names {
		write(t, x.path(n), []byte(n))
	}
	x.remount()
	got := []string{}
	list, err := os.ReadDir(x.path())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		got = append(got, e.Name())
		if e.Name() != "f" {
			wantContent(t, x.path(e.Name()), []byte(e.Name()))
		}
	}
	want := append(names, "f")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
}

func TestTmpfile(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	for range 2 {
		_, err := unix.Open(x.path(), unix.O_TMPFILE|unix.O_RDWR, 0o600)
		wantErrno(t, "O_TMPFILE", err, unix.EOPNOTSUPP)
	}
}

func TestUmask(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	old := unix.Umask(0o77) // the daemon's, too: it is this process
	defer unix.Umask(old)
	sh(t, x.path(), "umask 0; touch a; mkdir b; mkfifo c; chmod 4755 a; umask 027; touch d; mkdir e")
	for name, want := range map[string]uint32{"a": 0o4755, "b": 0o777, "c": 0o666, "d": 0o640, "e": 0o750} {
		if got := stat(t, x.path(name)).Mode & 0o7777; got != want {
			t.Errorf("mode of %s is %o, want %o", name, got, want)
		}
	}
}

func TestSpecialFiles(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "chr": unix.S_IFCHR, "blk": unix.S_IFBLK, "reg": unix.S_IFREG} {
		if err := unix.Mknod(x.path(name), mode|0o640, int(unix.Mkdev(7, 300))); err != nil {
			t.Errorf("mknod %s: %v", name, err)
		}
	}
	sh(t, x.path(), "(echo through >fifo &) ; test \"$(cat fifo)\" = through")
	x.remount()
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "chr": unix.S_IFCHR, "blk": unix.S_IFBLK, "reg": unix.S_IFREG} {
		st := stat(t, x.path(name))
		if st.Mode != mode|0o640 {
			t.Errorf("mode of %s is %o", name, st.Mode)
		}
		if (name == "chr" || name == "blk") && st.Rdev != unix.Mkdev(7, 300) {
			t.Errorf("rdev of %s is %x", name, st.Rdev)
		}
	}
	write(t, x.path("reg"), []byte("data"))
}

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

// TestSetuid: a write, truncation or change of owner by somebody without the privilege takes setuid and setgid away.
func TestSetuid(t *testing.T) {
	x := mountForTest(t, local.Delays{}, func(_ *jobs.Options, o *Options) { o.AllowOther = true })
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	if err := os.Chmod(filepath.Dir(x.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for d := x.dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.Chmod(x.path(), 0o777); err != nil {
		t.Fatal(err)
	}
	nobody := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", `cd "$1"; shift; eval "$1"`, "sh", x.path(), script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
	for i, tt := range []struct {
		what string
		do   func(p string)
		want uint32
	}{
		{"write", func(string) { nobody("echo x >>f") }, 0o777},
		{"open with O_TRUNC", func(string) { nobody(": >f") }, 0o777},
		{"truncate", func(string) { nobody("truncate -s 3 f") }, 0o777},
		{"write by root", func(p string) { write(t, p, []byte("x")) }, 0o6777},
		{"chown by root", func(p string) { os.Chown(p, 1, 1) }, 0o777},
		{"reading", func(string) { nobody("cat f >/dev/null") }, 0o6777},
	} {
		p := x.path("f")
		os.Remove(p)
		write(t, p, []byte("content"))
		if i%2 == 1 {
			x.archive()
		}
		if err := unix.Chmod(p, 0o6777); err != nil {
			t.Fatal(err)
		}
		if got := stat(t, p).Mode & 0o7777; got != 0o6777 {
			t.Fatalf("mode %o", got)
		}
		tt.do(p)
		if got := stat(t, p).Mode & 0o7777; got != tt.want {
			t.Errorf("%s: mode %o, want %o", tt.what, got, tt.want)
		}
	}
	// Permissions are checked for everybody, by the kernel.
	write(t, x.path("secret"), []byte("x"))
	if err := os.Chmod(x.path("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody("! cat secret 2>/dev/null")
	nobody("touch mine && chmod 600 mine && ! chown 0 mine 2>/dev/null")
	if st := stat(t, x.path("mine")); st.Uid != 65534 || st.Gid != 65534 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	// A setgid directory passes its group on.
	sh(t, x.path(), "mkdir g; chown 0:1234 g; chmod 2777 g")
	nobody("touch g/f; mkdir g/d")
	if st := stat(t, x.path("g", "f")); st.Gid != 1234 {
		t.Errorf("group %d, want 1234", st.Gid)
	}
	if st := stat(t, x.path("g", "d")); st.Gid != 1234 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("group %d mode %o, want 1234 and setgid", st.Gid, st.Mode)
	}
	// Sticky.
	sh(t, x.path(), "mkdir -m 1777 s; touch s/root")
	nobody("! rm -f s/root 2>/dev/null")
}

func TestHoles(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("sparse")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := fill(4096, 9)
	if _, err := f.WriteAt(data, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	seek := func(off int64, whence int) int64 {
		t.Helper()
		n, err := unix.Seek(int(f.Fd()), off, whence)
		if err != nil {
			t.Errorf("lseek %d %d: %v", off, whence, err)
		}
		return n
	}
	if got := seek(0, unix.SEEK_DATA); got != 1<<20 {
		t.Errorf("first data at %d", got)
	}
	if got := seek(1<<20, unix.SEEK_HOLE); got != 1<<20+4096 {
		t.Errorf("hole at %d", got)
	}
	if _, err := unix.Seek(int(f.Fd()), 3<<20, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA at the end: %v, want ENXIO", err)
	}
	if b := stat(t, p).Blocks; b == 0 || b > 64 {
		t.Errorf("%d blocks, want what is really there", b)
	}
	f.Close()

	// Cold: everything is data, nothing is a hole, and the blocks are never 0.
	x.cold(p)
	if f, err = os.Open(p); err != nil {
		t.Fatal(err)
	}
	before := x.recalls()
	if got := seek(0, unix.SEEK_DATA); got != 0 {
		t.Errorf("cold: first data at %d, want 0", got)
	}
	if got := seek(0, unix.SEEK_HOLE); got != 3<<20 {
		t.Errorf("cold: hole at %d, want the end", got)
	}
	if n := x.recalls() - before; n != 0 {
		t.Errorf("SEEK_HOLE asked for %d retrievals", n)
	}
	if b := stat(t, p).Blocks; b == 0 {
		t.Error("a cold file has 0 blocks: tar -S would store zeros")
	}
	f.Close()
	out := filepath.Join(t.TempDir(), "copy")
	sh(t, x.path(), fmt.Sprintf("cp --sparse=always sparse '%s'; cmp sparse '%s'", out, out))
	want := make([]byte, 3<<20)
	copy(want[1<<20:], data)
	wantContent(t, out, want)
	x.cold(p)
	sh(t, x.path(), fmt.Sprintf("tar -cSf '%s.tar' sparse; tar -df '%s.tar'", out, out))
}

func TestAllocate(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	for _, state := range []string{"staged", "cold"} {
		data := fill(100<<10, 5)
		write(t, p, data)
		if state == "cold" {
			x.cold(p)
		}
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(f.Fd())
		want := append(bytes.Clone(data), make([]byte, 100<<10)...)
		for _, step := range []struct {
			mode   uint32
			off, n int64
			size   int
		}{
			{0, 50 << 10, 150 << 10, 200 << 10},
			{unix.FALLOC_FL_KEEP_SIZE, 0, 1 << 20, 200 << 10},
			{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 4096, 8192, 200 << 10},
			{unix.FALLOC_FL_ZERO_RANGE, 20 << 10, 1000, 200 << 10},
		} {
			if err := unix.Fallocate(fd, step.mode, step.off, step.n); err != nil {
				t.Errorf("%s: fallocate %#x: %v", state, step.mode, err)
			}
			if step.mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
				clear(want[step.off : step.off+step.n])
			}
			if st := stat(t, p); st.Size != int64(step.size) {
				t.Errorf("%s: fallocate %#x: size %d, want %d", state, step.mode, st.Size, step.size)
			}
		}
		f.Close()
		wantContent(t, p, want)
		x.cold(p)
		wantContent(t, p, want)
	}
}

func TestCopyFileRange(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	data := fill(20<<20+123, 6) // more than one request moves
	write(t, x.path("from"), data)
	for _, state := range []string{"resident", "cold"} {
		if state == "cold" {
			x.cold(x.path("from"))
		} else {
			x.archive()
		}
		in, err := os.Open(x.path("from"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(x.path("to"))
		if err != nil {
			t.Fatal(err)
		}
		var done int64
		for done < int64(len(data)) {
			off := done
			n, err := unix.CopyFileRange(int(in.Fd()), &off, int(out.Fd()), nil, len(data), 0)
			if err != nil || n == 0 {
				t.Fatalf("%s: copied %d at %d: %v", state, n, done, err)
			}
			done += int64(n)
		}
		in.Close()
		out.Close()
		wantContent(t, x.path("to"), data)
		sh(t, x.path(), "rm -f copy; cp from copy; cmp from copy")
	}
	// Inside one file.
	f, err := os.OpenFile(x.path("to"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in, out := int64(0), int64(10<<20)
	n, err := unix.CopyFileRange(int(f.Fd()), &in, int(f.Fd()), &out, 1<<20, 0)
	if err != nil || n != 1<<20 {
		t.Fatalf("copied %d: %v", n, err)
	}
	copy(data[10<<20:], data[:1<<20])
	wantContent(t, x.path("to"), data)
}

func TestMmap(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	model := filepath.Join(t.TempDir(), "model")
	write(t, model, make([]byte, 3<<20))
	store := func(how string) {
		t.Helper()
		out, err := programCmd("mmap", p, model, how).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	want := func() []byte {
		b, err := os.ReadFile(model)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := func() { t.Helper(); wantContent(t, p, want()) }
	store("create")
	same()
	store("staged")
	same()
	x.archive()
	store("resident")
	same()
	x.cold(p)
	same() // what the stores left is what was archived
	x.cold(p)
	store("cold")
	same()

	// While a reader has the local file from the kernel.
	x.archive()
	same()
	r, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	before := stat(t, p)
	store("read meanwhile")
	b, err := io.ReadAll(r)
	r.Close()
	if err != nil || !bytes.Equal(b, want()) {
		t.Errorf("a reader with an open handle: %v, first difference %d", err, firstDiff(b, want()))
	}
	if after := stat(t, p); after.Mtim == before.Mtim {
		t.Error("mtime did not move")
	}
	same()
	x.cold(p)
	same()
}

func TestPassthrough(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	data := fill(1<<20, 1)
	write(t, p, data)
	x.archive()
	wantContent(t, p, data)
	if os.Geteuid() == 0 && x.m.PassthroughState() != "in use" {
		t.Errorf("passthrough is %s", x.m.PassthroughState())
	}
	// Opens of every kind at the same time, while the file becomes cold and local again.
	var wg sync.WaitGroup
	var stop atomic.Bool
	for i := range 4 {
		wg.Go(func() {
			buf := make([]byte, 8192)
			for n := 0; !stop.Load(); n++ {
				flags := []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY}[(n+i)%3]
				f, err := os.OpenFile(p, flags, 0)
				if err != nil {
					t.Errorf("open %d: %v", flags, err)
					return
				}
				if flags != os.O_WRONLY {
					if _, err := f.ReadAt(buf, int64(n%100*4096)); err != nil {
						t.Errorf("read: %v", err)
					}
				}
				if flags != os.O_RDONLY && n%5 == 0 {
					off := int64(n % 200 * 4096)
					if _, err := f.WriteAt(data[off:off+4096], off); err != nil {
						t.Errorf("write: %v", err)
					}
				}
				f.Close()
			}
		})
	}
	root, _ := x.e.RootIno()
	for range 20 {
		x.archive()
		x.e.Evict(t.Context(), []uint64{root}, true)
	}
	stop.Store(true)
	wg.Wait()
	wantContent(t, p, data)
	x.evict()
	wantContent(t, p, data)

	x.stop()
	x.opts.Passthrough = false
	x.start()
	wantContent(t, p, data)
	wantContent(t, p, data)
	if got := x.m.PassthroughState(); got != "switched off" {
		t.Errorf("passthrough is %s", got)
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("changed"), 100)
	copy(data[100:], "changed")
	b, err := io.ReadAll(r)
	f.Close()
	r.Close()
	if err != nil || !bytes.Equal(b, data) {
		t.Errorf("cached reader: %v, first difference %d", err, firstDiff(b, data))
	}
	wantContent(t, p, data)
}

// TestLargeDirectory lists many names while the directory changes.
func TestLargeDirectory(t *testing.T) {
	if testing.Short() {
		t.Skip("200 000 entries")
	}
	x := mountForTest(t, local.Delays{}, nil)
	const n = 200_000
	dir := inoOf(t, x.path())
	t0 := time.Now()
	const makers = 64 // whose changes the catalog commits together
	var wg sync.WaitGroup
	for k := range makers {
		wg.Go(func() {
			for i := k; i < n; i += makers {
				if _, err := x.e.Mknod(t.Context(), jobs.Caller{}, dir, fmt.Sprintf("file %06d", i), unix.S_IFIFO|0o644, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Log("made", time.Since(t0))
	for _, how := range []string{"ls -U", "ls -lU", "ls -U"} {
		if got := strings.Count(sh(t, x.path(), how), "file "); got != n {
			t.Errorf("%s: %d names, want %d", how, got, n)
		}
		t.Log("listed", time.Since(t0))
	}
	// Names that stay are listed exactly once, whatever happens to others meanwhile.
	d, err := os.Open(x.path())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	seen := map[string]int{}
	for i := 0; ; i++ {
		names, err := d.Readdirnames(5000)
		for _, name := range names {
			seen[name]++
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for k := range 20 {
			os.Remove(x.path(fmt.Sprintf("file %06d", 1000*k+i))) // behind and ahead
			write(t, x.path(fmt.Sprintf("new %d %d", i, k)), nil)
		}
	}
	for i := range n {
		name := fmt.Sprintf("file %06d", i)
		if i%1000 < 50 {
			if seen[name] > 1 {
				t.Errorf("%q listed %d times", name, seen[name])
			}
			continue
		}
		if seen[name] != 1 {
			t.Fatalf("%q listed %d times", name, seen[name])
		}
	}
	if seen["."]+seen[".."] != 0 { // Go leaves them out
		t.Error("dots")
	}
	out := strings.Fields(sh(t, x.path(), "ls -aU | head -2"))
	if !slices.Equal(out, []string{".", ".."}) {
		t.Errorf("the listing begins with %q", out)
	}
}

// TestNotify: what the engine changes by itself is seen at once, although the kernel caches for minutes.
func TestNotify(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	if _, err := os.Stat(x.path("new")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err) // and cached as absent
	}
	list := func() []string {
		t.Helper()
		return strings.Fields(sh(t, x.path(), "ls"))
	}
	list()
	list() // cached
	dir := inoOf(t, x.path())
	a, err := x.e.Mknod(t.Context(), jobs.Caller{}, dir, "new", unix.S_IFIFO|0o600, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.m.notify.EntryChanged(dir, "new")
	eventually(t, "the new name is seen", func() bool { _, err := os.Stat(x.path("new")); return err == nil })
	if got := list(); !slices.Equal(got, []string{"new"}) {
		t.Errorf("list %q", got)
	}
	mode := uint32(0o644)
	if _, err := x.e.Setattr(t.Context(), jobs.Caller{}, a.Ino, nil, jobs.SetAttr{Mode: &mode}); err != nil {
		t.Fatal(err)
	}
	x.m.notify.AttrChanged(a.Ino)
	eventually(t, "the new mode is seen", func() bool { return stat(t, x.path("new")).Mode&0o777 == 0o644 })
	if err := x.e.Unlink(t.Context(), dir, "new"); err != nil {
		t.Fatal(err)
	}
	x.m.notify.EntryChanged(dir, "new")
	eventually(t, "the name is gone", func() bool { _, err := os.Stat(x.path("new")); return errors.Is(err, os.ErrNotExist) })
	if got := list(); len(got) != 0 {
		t.Errorf("list %q", got)
	}
	// What the kernel does not know is no trouble.
	x.m.notify.ContentChanged(1 << 40)
	x.m.notify.AttrChanged(1 << 40)
	x.m.notify.EntryChanged(1<<40, "x")

	// The footprint after eviction and recall, without waiting for the cache to expire.
	write(t, x.path("f"), fill(1<<20, 1))
	full := stat(t, x.path("f")).Blocks
	x.cold(x.path("f"))
	eventually(t, "the footprint shrinks", func() bool { b := stat(t, x.path("f")).Blocks; return b > 0 && b < full })
	wantContent(t, x.path("f"), fill(1<<20, 1))
	eventually(t, "the footprint grows", func() bool { return stat(t, x.path("f")).Blocks >= 2048 })
	if lines := x.logs.grep("kernel cache not invalidated"); len(lines) > 0 {
		t.Errorf("%v", lines)
	}
}

func TestStatfs(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	var st unix.Statfs_t
	if err := unix.Statfs(x.dir, &st); err != nil {
		t.Fatal(err)
	}
	if total := st.Blocks * uint64(st.Bsize); total < 1<<49 || st.Bavail == 0 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
	if st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("flags %x, want nosuid and nodev", st.Flags)
	}
}

func TestLocks(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("f"), nil)
	f, err := os.OpenFile(x.path("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if out := sh(t, x.path(), "flock -n f true && echo got || echo busy"); strings.TrimSpace(out) != "busy" {
		t.Errorf("flock: %s", out)
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Errorf("fcntl: %v", err)
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
