package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// TestListingAttributes: what a listing brought along is what stat(2) would have
// said, for names of every length and files of every kind, and stays right when things change.
func TestListingAttributes(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	const n = 300
	name := func(i int) string { return fmt.Sprintf("%03d%s", i, strings.Repeat("x", i*7%252)) }
	for i := range n {
		p := x.path(name(i))
		var err error
		switch i % 5 {
		case 0:
			err = os.Mkdir(p, 0o700)
		case 1:
			err = os.Symlink(strings.Repeat("t", i), p)
		case 2:
			err = unix.Mkfifo(p, 0o640)
		case 3:
			err = os.WriteFile(p, fill(i, 1), 0o600)
		case 4:
			err = os.Link(x.path(name(i-1)), p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	x.cold(x.path(name(3)))
	x.remount() // the kernel knows nothing
	dir := inoOf(t, x.path())
	check := func() {
		t.Helper()
		list, _, err := x.e.ReadDirPlus(t.Context(), dir, 0, 2*n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadDir(x.path())
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(list) {
			t.Fatalf("%d names, want %d", len(got), len(list))
		}
		for _, e := range list {
			st := stat(t, x.path(e.Name)) // from what the kernel was told with the listing
			a, err := x.e.Getattr(t.Context(), e.Ino)
			if err != nil {
				t.Fatal(err)
			}
			if st.Ino != a.Ino || st.Mode != a.Mode || uint32(st.Nlink) != a.Nlink || st.Size != a.Size || st.Blocks != a.Blocks ||
				st.Mtim.Nano() != a.Mtime || st.Ctim.Nano() != a.Ctime {
				t.Errorf("%s: the kernel says %+v, the engine %+v", e.Name, st, a)
			}
		}
	}
	check()
	// Changed by a program and by the engine while a listing is under way.
	d, err := os.Open(x.path())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := 0; ; i++ {
		names, err := d.Readdirnames(50)
		if err != nil {
			break
		}
		for _, name := range names[:min(3, len(names))] {
			if err := unix.Chmod(x.path(name), 0o444); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENAMETOOLONG) {
				t.Error(err) // symlinks lead to nothing
			}
		}
		if i == 3 {
			write(t, x.path(name(8)), fill(10_000, 2))
			if err := unix.Rename(x.path(name(5)), x.path(name(10))); err != nil {
				t.Fatal(err)
			}
			mode := uint32(0o4755)
			a, err := x.e.Lookup(t.Context(), dir, name(n-2))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x.e.Setattr(t.Context(), jobs.Caller{}, a.Ino, nil, jobs.SetAttr{Mode: &mode}); err != nil {
				t.Fatal(err)
			}
			x.m.notify.AttrChanged(a.Ino)
		}
	}
	eventually(t, "the engine's change is seen", func() bool { return stat(t, x.path(name(n-2))).Mode&0o7777 == 0o4755 })
	check()
}

// TestSeekdir: an offset means the same entry in every handle, and a listing goes on from it.
func TestSeekdir(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	const n = 300
	for i := range n {
		write(t, x.path(fmt.Sprint("file ", i)), nil)
	}
	type entry struct {
		name string
		off  int64
	}
	read := func(fd int, size int) (list []entry) {
		t.Helper()
		buf := make([]byte, size)
		m, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:m]; len(b) > 0; {
			// struct linux_dirent64: inode, offset, length, type, name.
			length := int(b[16]) | int(b[17])<<8
			off := int64(0)
			for i := range 8 {
				off |= int64(b[8+i]) << (8 * i)
			}
			name, _, _ := strings.Cut(string(b[19:length]), "\x00")
			list = append(list, entry{name, off})
			b = b[length:]
		}
		return list
	}
	open := func() int {
		t.Helper()
		fd, err := unix.Open(x.path(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	fd := open()
	var all []entry
	for {
		list := read(fd, 300) // a few at a time
		if len(list) == 0 {
			break
		}
		all = append(all, list...)
	}
	if len(all) != n+2 || all[0].name != "." || all[1].name != ".." {
		t.Fatalf("%d entries, beginning with %v", len(all), all[:2])
	}
	if err := unix.Unlink(x.path(all[100].name)); err != nil {
		t.Fatal(err)
	}
	// Whoever begins a listing from now on does not find it; the kernel drops its own copy then.
	if got := read(open(), 300); len(got) == 0 || got[0].name != "." {
		t.Errorf("a listing begins with %v", got)
	}
	for _, k := range []int{0, 1, 2, 50, 99, 100, 101, n, n + 1} {
		for _, fd := range []int{fd, open()} {
			if _, err := unix.Seek(fd, all[k].off, 0); err != nil {
				t.Fatal(err)
			}
			got := read(fd, 4096)
			want := ""
			switch {
			case k == 99:
				want = all[101].name
			case k < n+1:
				want = all[k+1].name
			}
			if want == "" && len(got) != 0 || want != "" && (len(got) == 0 || got[0].name != want) {
				t.Errorf("after %q comes %v, want %q", all[k].name, got[:min(1, len(got))], want)
			}
		}
	}
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := read(fd, 4096); len(got) == 0 || got[0].name != "." {
		t.Error("rewinddir does not begin again")
	}
}

// A program that makes a file for each name it is told comes to an end.
func TestListingEnds(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	dir := x.m.nodeID(inoOf(t, x.path()))
	const n = 300
	for i := range n {
		if err := unix.Mknod(x.path(fmt.Sprint(i)), unix.S_IFIFO|0o644, 0); err != nil {
			t.Fatal(err)
		}
	}
	d, err := os.Open(x.path())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, want := range []int{n, 2 * n} {
		told := 0
		for {
			names, err := d.Readdirnames(7)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := unix.Mknod(x.path(fmt.Sprintf("%s of %d", name, want)), unix.S_IFIFO|0o644, 0); err != nil {
					t.Fatal(err)
				}
			}
			// As an inventory does: the kernel cannot go on with what it has kept of the listing.
			if status := x.m.server.InodeNotify(dir, 0, 0); !status.Ok() {
				t.Fatal(status)
			}
			if told += len(names); told > want {
				t.Fatal("a listing that makes a name for each one told has no end")
			}
		}
		if told != want {
			t.Errorf("%d names, want %d", told, want)
		}
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLargeDirectory lists many names while the directory changes.
func TestLargeDirectory(t *testing.T) {
	n := 20_000
	if os.Getenv("CASFS_TEST_BIG") != "" {
		n = 200_000
	}
	x := mountForTest(t, local.Delays{}, nil)
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
