package fs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
)

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
		for what, mode := range map[string]uint32{
			"COLLAPSE_RANGE": unix.FALLOC_FL_COLLAPSE_RANGE, "INSERT_RANGE": unix.FALLOC_FL_INSERT_RANGE,
			"UNSHARE_RANGE": unix.FALLOC_FL_UNSHARE_RANGE, "PUNCH_HOLE alone": unix.FALLOC_FL_PUNCH_HOLE,
		} {
			wantErrno(t, what, unix.Fallocate(fd, mode, 0, 4096), unix.EOPNOTSUPP)
		}
		wantErrno(t, "a length of 0", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
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
