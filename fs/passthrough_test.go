package fs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

func TestPassthrough(t *testing.T) { testPassthrough(t, nil) }

func testPassthrough(t *testing.T, change func(*jobs.Options, *Options)) {
	x := mountForTest(t, local.Delays{}, change)
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

// TestCoherence: what one handle writes every other one reads, whichever way the kernel does
// the I/O of each, in whatever order they were opened.
func TestCoherence(t *testing.T) {
	for _, through := range []bool{true, false} {
		x := mountForTest(t, local.Delays{}, func(j *jobs.Options, o *Options) {
			j.Settle = time.Hour
			o.Passthrough = through
		})
		for _, state := range []string{"staged", "resident", "cold"} {
			for _, first := range []int{os.O_RDONLY, os.O_RDWR} {
				for _, second := range []int{os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | unix.O_SYNC} {
					what := fmt.Sprintf("passthrough %v, %s, opened with %#o, then %#o", through, state, first, second)
					p := x.path("f")
					os.Remove(p)
					data := fill(300_000, 1)
					write(t, p, data)
					switch state {
					case "resident":
						x.archive()
					case "cold":
						x.cold(p)
					}
					coherent(t, what, p, first, second, data)
				}
			}
		}
	}
}

// coherent opens p twice and a third time, and looks through the first handle at what the second does.
func coherent(t *testing.T, what, p string, first, second int, data []byte) {
	t.Helper()
	open := func(flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(p, flags, 0)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	check := func(step string, f *os.File) {
		t.Helper()
		got := make([]byte, len(data)+1)
		n, err := f.ReadAt(got, 0)
		if err != io.EOF || !bytes.Equal(got[:n], data) {
			t.Errorf("%s: %s: %d bytes, want %d; first difference at %d (%v)", what, step, n, len(data), firstDiff(got[:n], data), err)
		}
		if fi, err := f.Stat(); err != nil || fi.Size() != int64(len(data)) {
			t.Errorf("%s: %s: size %d, want %d (%v)", what, step, fi.Size(), len(data), err)
		}
	}
	a := open(first)
	check("before", a)
	b := open(second)
	if second&os.O_TRUNC != 0 {
		data = data[:0]
		check("after O_TRUNC", a)
		data = fill(200_000, 2)
		if _, err := b.Write(data); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		check("after writing anew", a)
	}
	put := func(step string, to, look *os.File, off int, more []byte) {
		t.Helper()
		if _, err := to.WriteAt(more, int64(off)); err != nil {
			t.Errorf("%s: %s: %v", what, step, err)
		}
		next := make([]byte, max(len(data), off+len(more)))
		copy(next, data)
		copy(next[off:], more)
		data = next
		check(step, look)
	}
	put("a write", b, a, 4090, []byte("across a page"))
	put("a write at the end", b, a, len(data), fill(5000, 3))
	put("a write beyond the end", b, a, len(data)+10_000, []byte("far"))
	if first != os.O_RDONLY {
		put("its own write", a, a, 70_000, []byte("own"))
	}
	if err := b.Truncate(100_001); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	data = data[:100_001]
	check("a truncation", a)
	if err := unix.Fallocate(int(b.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 20_000); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	clear(data[8192:28192])
	check("a hole", a)
	c := open(os.O_RDONLY)
	check("a third handle", c)
	a.Close()
	put("a third handle, after the first has gone", b, c, 50_000, []byte("after the first"))
	b.Close()
	check("a third handle alone", c)
	c.Close()
	wantContent(t, p, data)
}

// TestMappedWhileArchived: what is stored into a shared mapping after casfs sync has archived the file under the
// program's hands is part of the file, here and in the vault.
func TestMappedWhileArchived(t *testing.T) {
	for _, through := range []bool{true, false} {
		for _, args := range [][]string{nil, {"closed"}} { // the descriptor, as soon as the file is mapped
			t.Run(fmt.Sprint(through, args), func(t *testing.T) { testMappedWhileArchived(t, through, args) })
		}
	}
}

func testMappedWhileArchived(t *testing.T, through bool, args []string) {
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, o *Options) {
		j.Settle = time.Hour
		o.Passthrough = through
	})
	p := x.path("f")
	data := fill(300_000, 1)
	write(t, p, data)
	x.archive()
	reader, err := os.Open(p) // first, so that the kernel uses the local file itself
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	store := storesIn(t, p, args...)
	for i, off := range []int{5000, 100_000, 200_000} {
		text := fmt.Sprintf("stored %d", i)
		store(off, text)
		copy(data[off:], text)
		switch i {
		case 0:
			if through && len(args) > 0 {
				// Its release does not wait for the end of the mapping; only the reader's handle stays.
				eventually(t, "the release", func() bool { return x.m.tree.files.len() == 1 })
			}
			x.archive()
		case 1:
			reader.Close()
			x.archive()
		}
		if got := x.attr(p, "user.cas.state"); i < 2 && got != "resident" {
			t.Errorf("after store %d it is %s", i, got)
		}
	}
	store(0, "") // the end
	wantContent(t, p, data)
	x.cold(p)
	wantContent(t, p, data)
}
