package fs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

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

// TestInventoryIsSeen: what an inventory finds appears at once, although the kernel has cached listings, attributes and absence.
func TestInventoryIsSeen(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	ctx := t.Context()
	inventory := func() {
		t.Helper()
		if err := x.e.Inventory(ctx, vault, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the inventory of the first mount is over", func() bool { return len(x.logs.grep("inventory merged")) > 0 })
	if err := os.Mkdir(x.path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	upload := func(name string, data []byte) {
		t.Helper()
		if _, err := x.client.Upload(ctx, vault, bytes.NewReader(data), int64(len(data)), cas.UploadOptions{Description: name}); err != nil {
			t.Fatal(err)
		}
	}
	look := func(want int, names ...string) {
		t.Helper()
		for _, name := range names {
			_, err := os.Stat(x.path(name))
			if (err == nil) != (want > 0) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for range 2 {
			list, err := os.ReadDir(x.path("dir"))
			if err != nil || len(list) != want {
				t.Errorf("%d names, want %d (%v)", len(list), want, err)
			}
		}
	}
	names := []string{"dir/a", "dir/b", "dir/sub", "dir/sub/c", "top/d"}
	look(0, names...)
	before := stat(t, x.path("dir"))
	for i, name := range []string{"dir/a", "dir/b", "dir/sub/c", "top/d"} {
		upload(name, fill(1000+i, uint64(i)))
	}
	inventory()
	for _, name := range names {
		eventually(t, name+" is seen", func() bool { _, err := os.Stat(x.path(name)); return err == nil })
	}
	look(3, names...)
	eventually(t, "the directory's attributes are seen", func() bool {
		after := stat(t, x.path("dir"))
		return after.Nlink == before.Nlink+1 && after.Mtim != before.Mtim
	})
	wantContent(t, x.path("dir/sub/c"), fill(1002, 2))
	// A vault that somebody else makes is found by the next look at the service.
	if _, err := os.Stat(filepath.Join(x.dir, "other")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := x.client.CreateVault(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	if err := x.e.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the vault is seen", func() bool { _, err := os.Stat(filepath.Join(x.dir, "other")); return err == nil })
	if lines := x.logs.grep("kernel cache not invalidated"); len(lines) > 0 {
		t.Errorf("%v", lines)
	}
}

// TestChangedWhileLookedUp: a change that the engine tells of while an answer is made, or is on
// its way to the kernel, is not lost.
func TestChangedWhileLookedUp(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	dir := inoOf(t, x.path())
	a, err := x.e.Mknod(t.Context(), jobs.Caller{}, dir, "f", unix.S_IFREG|0o600, 0)
	if err != nil {
		t.Fatal(err)
	}
	chmod := func(mode uint32) {
		t.Helper()
		if _, err := x.e.Setattr(t.Context(), jobs.Caller{}, a.Ino, nil, jobs.SetAttr{Mode: &mode}); err != nil {
			t.Fatal(err)
		}
	}
	// After the attributes were read: they are read again.
	told := x.m.notify.told.Load()
	chmod(0o640)
	x.m.notify.AttrChanged(a.Ino)
	var out fuse.EntryOut
	x.m.tree.found(begin(&fuse.InHeader{}, nil), told, a, &out)
	if out.Mode&0o777 != 0o640 || out.NodeId != a.Ino {
		t.Errorf("the answer says mode %o of inode %d", out.Mode, out.NodeId)
	}
	// After the answer was made, before the kernel has it: it is told again, until the kernel knows the inode.
	before := x.m.notify.told.Load()
	chmod(0o644)
	x.m.notify.AttrChanged(a.Ino)
	eventually(t, "it is told again", func() bool { return x.m.notify.told.Load() >= before+3 })
	if st := stat(t, x.path("f")); st.Mode&0o777 != 0o644 {
		t.Errorf("mode %o", st.Mode)
	}
	// It ends with the reference.
	x.m.tree.Forget(a.Ino, 1)
}
