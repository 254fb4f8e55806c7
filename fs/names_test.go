package fs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
)

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
	const rounds = 100
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

// TestLongPaths: paths up to PATH_MAX, and trees deeper than that, which only relative names reach.
func TestLongPaths(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	data := fill(5000, 1)
	p := x.path()
	for unix.PathMax-1-len(p) > 256 {
		p += "/" + strings.Repeat("d", 255)
		if err := unix.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	longest := p + "/" + strings.Repeat("f", unix.PathMax-1-len(p)-1)
	if len(longest) != unix.PathMax-1 {
		t.Fatalf("%d bytes", len(longest))
	}
	write(t, longest, data)
	_, err := os.Lstat(longest + "x")
	wantErrno(t, "a path of PATH_MAX bytes", err, unix.ENAMETOOLONG)
	// Three times as deep, name by name.
	const more = 32
	deep := strings.Repeat("e", 255)
	descend := func(enter func(fd int) error) (bottom int) {
		t.Helper()
		fd, err := unix.Open(p, unix.O_DIRECTORY, 0)
		for range more {
			if err == nil {
				err = enter(fd)
			}
			if err != nil {
				t.Fatal(err)
			}
			var next int
			next, err = unix.Openat(fd, deep, unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	dir := descend(func(fd int) error { return unix.Mkdirat(fd, deep, 0o755) })
	f, err := unix.Openat(dir, "bottom", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(f, data); err != nil {
		t.Error(err)
	}
	unix.Close(f)
	unix.Close(dir)
	x.cold(longest)
	x.remount()
	wantContent(t, longest, data)
	dir = descend(func(int) error { return nil })
	if f, err = unix.Openat(dir, "bottom", unix.O_RDONLY, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2*len(data))
	n, err := unix.Read(f, got)
	if err != nil || !bytes.Equal(got[:n], data) {
		t.Errorf("read %d bytes of the deepest file: %v", n, err)
	}
	unix.Close(f)
	unix.Close(dir)
	sh(t, x.path(), "find . >/dev/null; du -s . >/dev/null; rm -r d*; test -z \"$(ls)\"")
}
