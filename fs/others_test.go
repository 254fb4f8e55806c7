package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// inventory waits for an inventory of the vault.
func (x *mounted) inventory() {
	x.t.Helper()
	if err := x.e.Inventory(x.t.Context(), vault, true, nil); err != nil {
		x.t.Fatal(err)
	}
}

// TestArchivesOfOthers: what others add to a mounted vault, and delete from it, is seen after the next
// inventory although the kernel keeps names, listings and attributes for minutes.
func TestArchivesOfOthers(t *testing.T) {
	var ahead atomic.Int64 // of the service's clock
	x := mountStore(t, local.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}, nil)
	upload := func(description string) string {
		t.Helper()
		id, err := x.client.UploadArchive(t.Context(), vault, description, strings.NewReader(description), cas.PartHash{})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	absent := func(name string) {
		t.Helper()
		for range 2 { // the second time the kernel knows
			if _, err := os.Lstat(x.path(name)); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	list := func(dir string) []string {
		t.Helper()
		return strings.Fields(sh(t, x.path(dir), "ls -A; ls -A >/dev/null"))
	}
	x.inventory()
	absent("old")
	if got := list("."); len(got) != 0 {
		t.Fatalf("files %q", got)
	}
	first := upload("old/a.txt")
	x.inventory()
	eventually(t, "the file is seen", func() bool { _, err := os.Lstat(x.path("old", "a.txt")); return err == nil })
	eventually(t, "the listing has it", func() bool { return slices.Equal(list("."), []string{"old"}) })
	absent("old/b.txt")
	if got := list("old"); !slices.Equal(got, []string{"a.txt"}) {
		t.Fatalf("files %q", got)
	}

	// Another comes, the first goes.
	upload("old/b.txt")
	if err := x.client.DeleteArchive(t.Context(), vault, first); err != nil {
		t.Fatal(err)
	}
	x.inventory()
	eventually(t, "the second file is seen", func() bool { _, err := os.Lstat(x.path("old", "b.txt")); return err == nil })
	eventually(t, "the listing has both", func() bool { return slices.Equal(list("old"), []string{"a.txt", "b.txt"}) })
	wantContent(t, x.path("old", "b.txt"), []byte("old/b.txt"))
	if got := x.attr(x.path("old", "a.txt"), "user.cas.state"); got != "cold" {
		t.Errorf("state %s after an inventory too soon to tell", got)
	}
	ahead.Store(int64(72 * time.Hour))
	x.inventory()
	if got := x.attr(x.path("old", "a.txt"), "user.cas.state"); got != "cold" {
		t.Errorf("state %s after one inventory without it", got)
	}
	x.inventory()
	if got := x.attr(x.path("old", "a.txt"), "user.cas.state"); got != "damaged" {
		t.Errorf("state %s after two inventories without it", got)
	}
	_, err := os.ReadFile(x.path("old", "a.txt"))
	if !errors.Is(err, unix.EIO) {
		t.Errorf("reading what is gone: %v", err)
	}
	if why := x.attr(x.path("old", "a.txt"), "user.cas.error"); !strings.Contains(why, "no longer list") {
		t.Errorf("user.cas.error %q", why)
	}
	if got := list("old"); !slices.Equal(got, []string{"a.txt", "b.txt"}) {
		t.Errorf("files %q: none is dropped silently", got)
	}
}

// look is what a description carries of a file.
type look struct {
	size, mtime int64
	mode        uint32
	uid, gid    uint32
}

func looks(t *testing.T, root string) map[string]look {
	t.Helper()
	all := make(map[string]look)
	err := filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		all[path[len(root):]] = look{st.Size, st.Mtim.Nano(), st.Mode, st.Uid, st.Gid}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestNewMachine writes a tree of 500 files, 2 000 with CASFS_TEST_BIG, throws the state directory away, and has
// it back from the vault alone.
func TestNewMachine(t *testing.T) {
	n := 500
	if os.Getenv("CASFS_TEST_BIG") != "" {
		n = 2000
	}
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) {
		j.Settle = time.Hour // modes and times are set before the descriptions are written
		j.PartSize, j.SingleBelow, j.SegmentSize = 1<<20, 1<<20, 2<<20
	})
	rng := rand.New(rand.NewPCG(7, 7))
	dirs := []string{"a", "a/b c", "照片/2019 夏", "with\nnewline", "bad\xffbyte", strings.Repeat("long-", 51), "d/e/e/p/e/r", "%41%zz"}
	for _, d := range dirs {
		if err := os.MkdirAll(x.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	size := func(i int) int {
		switch {
		case i == 0:
			return 7<<20 + 5 // four segments
		case i == 1:
			return 4 << 20 // two, exactly
		case i%400 == 2:
			return 1<<20 + i // parts
		}
		return 1 + i%3000
	}
	content := func(i int) []byte { return fill(size(i), uint64(i)) }
	name := func(i int) string {
		return filepath.Join(dirs[i%len(dirs)], []string{"f%d", "第%d个", " %d ", "-%d'\"\\", "%d=x path=y", ".%d"}[i%6])
	}
	path := func(i int) string { return x.path(fmt.Sprintf(strings.ReplaceAll(name(i), "%41%zz", "%%41%%zz"), i)) }
	for i := range n {
		p := path(i)
		write(t, p, content(i))
		at := time.Unix(rng.Int64N(2e9)-1e8, rng.Int64N(1e9))
		if err := errors.Join(os.Chown(p, i%5, i%7), os.Chmod(p, os.FileMode(0o400+i%0o400)), os.Chtimes(p, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Chmod(path(5), 0o6755); err != nil {
		t.Fatal(err)
	}
	x.archive()
	// One is rewritten in place, one is deleted.
	write(t, path(17), content(18)[:10])
	if err := os.Remove(path(18)); err != nil {
		t.Fatal(err)
	}
	x.archive()
	before := looks(t, x.path())

	x.stop()
	x.jobs.StateDir = t.TempDir()
	x.start()
	x.inventory()
	after := looks(t, x.path())
	// The one deleted is in the vault still, for 90 days, and comes back: only the catalog knew.
	deleted := path(18)[len(x.path()):]
	if _, ok := after[deleted]; !ok {
		t.Error("the vault has the deleted file's archive, and no file shows it")
	}
	delete(after, deleted)
	if len(after) != len(before) || len(before) != n-1 {
		t.Errorf("%d files, want %d", len(after), len(before))
	}
	for p, want := range before {
		if got, ok := after[p]; !ok {
			t.Errorf("%q is not back", p)
		} else if got != want {
			t.Errorf("%q: got %+v, want %+v", p, got, want)
		}
	}
	if n := x.recalls(); n != 0 {
		t.Errorf("%d archives were recalled for it", n)
	}
	// A sample, and all that have segments or parts.
	wantContent(t, path(17), content(18)[:10])
	for i := range n {
		if i < 2 || i%400 == 2 || i%101 == 0 {
			wantContent(t, path(i), content(i))
		}
	}
	// The new machine goes on where the old one stopped.
	write(t, path(3), []byte("changed on the new machine"))
	x.archive()
	x.evictAll()
	x.remount()
	wantContent(t, path(3), []byte("changed on the new machine"))
	var problems []string
	if err := x.e.Check(context.Background(), true, false, func(p string) { problems = append(problems, p) }); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %d problems, %q", err, len(problems), problems[:min(3, len(problems))])
	}
	if got, err := os.ReadFile(path(0)); err != nil || !bytes.Equal(got, content(0)) {
		t.Errorf("the segmented file: %d bytes, %v", len(got), err)
	}
}
