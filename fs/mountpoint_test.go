package fs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

func TestCheck(t *testing.T) {
	requireFuse(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, nil)
	full := filepath.Join(dir, "full dir")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("empty", link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir, says string
		is        error
	}{
		{"", "no mount point", nil},
		{filepath.Join(dir, "none"), "mkdir -p", nil},
		{filepath.Join(dir, "none", "deeper"), "does not exist", nil},
		{file, "not a directory", nil},
		{full, "not empty", ErrBusyMount},
		{"/proc", "proc", ErrBusyMount},
	} {
		err := Check(Options{Mountpoint: tt.dir})
		if err == nil || !strings.Contains(err.Error(), tt.says) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("Check(%q) = %v, want %q (%v)", tt.dir, err, tt.says, tt.is)
		}
	}
	for _, ok := range []string{empty, link, empty + "/", filepath.Join(empty, "..", "empty")} {
		if err := Check(Options{Mountpoint: ok}); err != nil {
			t.Errorf("Check(%q) = %v", ok, err)
		}
	}
}

func TestCheckMounted(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	if err := Check(Options{Mountpoint: x.dir}); !errors.Is(err, ErrBusyMount) {
		t.Errorf("Check of a mounted directory: %v, want ErrBusyMount", err)
	}
	if err := CleanStale(x.dir); !errors.Is(err, ErrBusyMount) {
		t.Errorf("CleanStale of a living mount: %v, want ErrBusyMount", err)
	}
	if _, err := New(x.e, x.opts); !errors.Is(err, ErrBusyMount) {
		t.Errorf("a second mount: %v, want ErrBusyMount", err)
	}
	e, mounted, err := mountAt(x.m.dir)
	if err != nil || !mounted || e.fsType != "fuse.casfs" {
		t.Errorf("mount table: %+v %v %v", e, mounted, err)
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "casfs-test "+x.m.dir) && !strings.Contains(line, "default_permissions") {
			t.Errorf("mounted without default_permissions: %s", line)
		}
	}
}

// TestStale kills a mount as a dying daemon does: the connection ends, the mount stays.
func TestStale(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("file"), []byte("precious"))
	// MNT_FORCE aborts the connection; with a file open the mount itself stays.
	f, err := os.Open(x.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(x.m.dir, unix.MNT_FORCE); err == nil {
		t.Fatal("unmounted in spite of an open file")
	}
	err = Check(Options{Mountpoint: x.dir})
	if !errors.Is(err, ErrStaleMount) {
		t.Errorf("Check of a dead mount: %v, want ErrStaleMount", err)
	}
	if _, _, err := Find(t.Context(), x.path("file")); !errors.Is(err, ErrStaleMount) {
		t.Errorf("Find in a dead mount: %v, want ErrStaleMount", err)
	}
	if err := CleanStale(x.dir); err != nil {
		t.Fatal(err)
	}
	f.Close()
	x.m.Wait()
	if err := Check(Options{Mountpoint: x.dir}); err != nil {
		t.Errorf("Check after the cleaning: %v", err)
	}
	x.remount()
	wantContent(t, x.path("file"), []byte("precious"))
}

func TestFind(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("file"), nil)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(x.path(), link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{x.dir, x.path(), x.path("file"), x.path("not there"), link, filepath.Join(link, "file")} {
		dir, control, err := Find(t.Context(), p)
		if err != nil || dir != x.m.dir || control != x.opts.Control {
			t.Errorf("Find(%q) = %q, %q, %v", p, dir, control, err)
		}
	}
	for _, p := range []string{"/", t.TempDir(), x.dir + "x", filepath.Dir(x.dir)} {
		if _, _, err := Find(t.Context(), p); !errors.Is(err, ErrNotMounted) {
			t.Errorf("Find(%q) = %v, want ErrNotMounted", p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Find(ctx, x.dir); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Find with an ended context: %v", err)
	}
	// A relative path, from inside.
	out := sh(t, x.path(), "pwd -P")
	if strings.TrimSpace(out) != filepath.Join(x.m.dir, vault) {
		t.Errorf("pwd says %q", out)
	}
}

func TestUnmount(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("file"), []byte("hello"))
	f, err := os.OpenFile(x.path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.m.Unmount(false); !errors.Is(err, ErrBusyMount) {
		t.Errorf("unmount with an open file: %v, want ErrBusyMount", err)
	}
	if _, err := os.Stat(x.path("file")); err != nil {
		t.Errorf("after the refusal: %v", err)
	}
	if err := x.m.Unmount(true); err != nil {
		t.Fatal(err)
	}
	if _, mounted, _ := mountAt(x.m.dir); mounted {
		t.Error("still in the mount table")
	}
	// What is open works on.
	if _, err := f.WriteAt([]byte("J"), 0); err != nil {
		t.Error(err)
	}
	waited := make(chan struct{})
	go func() { x.m.Wait(); close(waited) }()
	select {
	case <-waited:
		t.Fatal("Wait returned although a file is open")
	case <-time.After(50 * time.Millisecond):
	}
	f.Close()
	select {
	case <-waited:
	case <-time.After(promptly):
		t.Fatal("Wait did not return after the last close")
	}
	x.remount()
	wantContent(t, x.path("file"), []byte("Jello"))

	// Unmounted by somebody else.
	if err := exec.Command("umount", x.m.dir).Run(); err != nil {
		t.Fatal(err)
	}
	x.m.Wait()
	if err := x.m.Unmount(false); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	write(t, x.path("file"), []byte("data"))
	write(t, x.path("cold"), []byte("far away"))
	x.cold(x.path("cold"))
	wantContent(t, x.path("file"), []byte("data"))
	x.stop()
	x.jobs.ReadOnly, x.opts.ReadOnly = true, true
	x.start()
	wantContent(t, x.path("file"), []byte("data"))
	wantContent(t, x.path("cold"), []byte("far away")) // recalling changes nothing
	for what, err := range map[string]error{
		"write":  os.WriteFile(x.path("file"), nil, 0o644),
		"create": os.WriteFile(x.path("new"), nil, 0o644),
		"mkdir":  os.Mkdir(x.path("dir"), 0o755),
		"remove": os.Remove(x.path("file")),
		"chmod":  os.Chmod(x.path("file"), 0o600),
		"rename": os.Rename(x.path("file"), x.path("other")),

		"open for writing": withFile(x.path("file"), os.O_RDWR, func(*os.File) error { return nil }),
		"truncate":         os.Truncate(x.path("file"), 0),
		"utimens":          os.Chtimes(x.path("file"), time.Now(), time.Now()),
		"chown":            os.Chown(x.path("file"), 1, 1),
		"link":             os.Link(x.path("file"), x.path("other")),
		"symlink":          os.Symlink("x", x.path("link")),
		"mknod":            unix.Mkfifo(x.path("fifo"), 0o600),
		"setxattr":         unix.Setxattr(x.path("file"), "user.a", nil, 0),
		"rmdir":            unix.Rmdir(x.path()),
		"a vault":          os.Mkdir(filepath.Join(x.dir, "new"), 0o755),
	} {
		wantErrno(t, what, err, unix.EROFS)
	}
	// What wants no writing still works.
	sh(t, x.path(), "flock -s file true; test -r file; ls -l >/dev/null; getfattr -n user.cas.state file >/dev/null")
}

// TestVaultRoot mounts one vault as the root.
func TestVaultRoot(t *testing.T) {
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) { j.Vault = vault })
	write(t, x.path("file"), []byte("data"))
	var root, dot, dotdot unix.Stat_t
	if err := errors.Join(unix.Stat(x.dir, &root), unix.Stat(x.path("."), &dot), unix.Stat(filepath.Dir(x.dir), &dotdot)); err != nil {
		t.Fatal(err)
	}
	if want, _ := x.e.RootIno(); root.Ino != want || dot.Ino != want {
		t.Errorf("the root has inode %d, want %d", root.Ino, want)
	}
	ino := inoOf(t, x.path("file"))
	x.evict()
	x.remount()
	if got := inoOf(t, x.path("file")); got != ino {
		t.Errorf("inode %d after a remount, had %d", got, ino)
	}
	wantContent(t, x.path("file"), []byte("data"))
	if got := x.attr(x.dir, "user.cas.name"); got != vault {
		t.Errorf("user.cas.name = %q", got)
	}
}

// TestAccountRoot: vaults are directories, and nothing else lives beside them.
func TestAccountRoot(t *testing.T) {
	// Nothing is archived while this runs: a vault with archives cannot be removed.
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) { j.Settle = time.Hour })
	wantErrno(t, "a file beside vaults", os.WriteFile(filepath.Join(x.dir, "file"), nil, 0o644), unix.EPERM)
	wantErrno(t, "a symlink beside vaults", os.Symlink("x", filepath.Join(x.dir, "link")), unix.EPERM)
	second := filepath.Join(x.dir, "second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := x.client.DescribeVault(t.Context(), "second"); err != nil {
		t.Errorf("mkdir made no vault: %v", err)
	}
	wantErrno(t, "renaming a vault", os.Rename(second, filepath.Join(x.dir, "third")), unix.EPERM)
	write(t, x.path("file"), []byte("data"))
	wantErrno(t, "rename between vaults", os.Rename(x.path("file"), filepath.Join(second, "file")), unix.EXDEV)
	wantErrno(t, "link between vaults", os.Link(x.path("file"), filepath.Join(second, "file")), unix.EXDEV)
	sh(t, x.dir, "mv vault/file second/ && test -f second/file && rm second/file")
	if err := os.Remove(second); err != nil {
		t.Errorf("rmdir of an empty vault: %v", err)
	}
	if _, err := x.client.DescribeVault(t.Context(), "second"); err == nil {
		t.Error("rmdir left the vault")
	}
	wantErrno(t, "a name that is no vault name", os.Mkdir(filepath.Join(x.dir, "no vault!"), 0o755), unix.EINVAL)
}
