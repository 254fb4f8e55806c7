package content

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A staging file against a byte slice: random writes, truncations, allocations, drops,
// moves between staging and content, closing and reopening of file and store.
func TestFileModel(t *testing.T) {
	t.Run("disk", func(t *testing.T) { testFileModel(t, t.TempDir()) })
	t.Run("memory", func(t *testing.T) { testFileModel(t, memDir(t)) })
}

func testFileModel(t *testing.T, base string) {
	tb := t
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o := Options{StateDir: dir, MinFree: -1, StagingLimit: 1 << 30, CacheLimit: 1 << 30}
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		f, err := s.CreateStaging(5)
		check(err)
		defer func() { f.Close() }()
		const limit = 3 * mib
		var model []byte
		var dropped ranges
		kind := Staging
		grow := func(n int64) {
			if n > int64(len(model)) {
				model = append(model, make([]byte, n-int64(len(model)))...)
			}
		}
		draw := func() (int64, int64) {
			off := rapid.Int64Range(0, limit-1).Draw(t, "off")
			return off, rapid.Int64Range(1, min(limit-off, mib)).Draw(t, "n")
		}
		expect := func(err error, off, n int64) bool {
			t.Helper()
			switch {
			case kind == Content:
				if !errors.Is(err, ErrWrongKind) {
					t.Fatalf("change of content: %v", err)
				}
				return false
			case dropped.overlaps(off, n):
				if !errors.Is(err, ErrPunched) {
					t.Fatalf("change of dropped bytes: %v", err)
				}
				return false
			}
			if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EOPNOTSUPP) {
				return false
			}
			check(err)
			return true
		}
		for i := range rapid.IntRange(1, 25).Draw(t, "ops") {
			switch op := rapid.SampledFrom([]string{"write", "write", "truncate", "allocate", "keep", "punch", "zero", "drop", "close", "reopen", "move", "sync"}).Draw(t, "op"); op {
			case "write":
				off, n := draw()
				p := bytes.Repeat([]byte{byte(i + 1)}, int(n))
				k, err := f.WriteAt(bg, p, off)
				if expect(err, off, n) {
					if int64(k) != n {
						t.Fatalf("wrote %d of %d", k, n)
					}
					grow(off + n)
					copy(model[off:], p)
				}
			case "truncate":
				n := rapid.Int64Range(0, limit).Draw(t, "size")
				err := f.Truncate(n)
				if kind == Content {
					if !errors.Is(err, ErrWrongKind) {
						t.Fatalf("truncate of content: %v", err)
					}
					break
				}
				check(err)
				grow(n)
				model = model[:n:n]
				dropped = dropped.clip(n)
			case "allocate":
				off, n := draw()
				if expect(f.Allocate(bg, 0, off, n), off, n) {
					grow(off + n)
				}
			case "keep":
				off, n := draw()
				expect(f.Allocate(bg, unix.FALLOC_FL_KEEP_SIZE, off, n), off, n)
			case "punch", "zero":
				off, n := draw()
				mode := uint32(punchMode)
				if op == "zero" {
					mode = unix.FALLOC_FL_ZERO_RANGE
				}
				if expect(f.Allocate(bg, mode, off, n), off, n) {
					if op == "zero" {
						grow(off + n)
					}
					if off < int64(len(model)) {
						clear(model[off:min(off+n, int64(len(model)))])
					}
				}
			case "drop":
				off, n := draw()
				err := f.DropUploaded(off, n)
				n = min(n, int64(len(model))-off)
				if n <= 0 && err == nil {
					break
				}
				if kind == Content {
					if !errors.Is(err, ErrWrongKind) {
						t.Fatalf("drop of content: %v", err)
					}
					break
				}
				check(err)
				dropped = dropped.add(Range{off, n})
			case "sync":
				check(f.Sync())
			case "close", "reopen":
				check(f.Close())
				e, err := s.Stat(5)
				check(err)
				var st unix.Stat_t
				check(unix.Lstat(s.dataPath(s.nodes[5]), &st))
				if e.Size != st.Size || e.Size != int64(len(model)) {
					t.Fatalf("size %d, on disk %d, want %d", e.Size, st.Size, len(model))
				}
				u := s.Usage()
				sameFootprint(tb, dir, st.Blocks*512, u.StagingBytes+u.CacheBytes)
				if tb.Failed() {
					t.Fatal("see there")
				}
				if e.Allocated != u.StagingBytes+u.CacheBytes {
					t.Fatalf("%+v, %+v", e, u)
				}
				if op == "reopen" {
					check(s.Close())
					s, err = Open(o)
					check(err)
				}
				f, err = s.Open(5)
				check(err)
			case "move":
				if kind == Staging {
					check(s.Promote(5))
					kind = Content
				} else {
					err := s.Demote(5)
					if len(dropped) > 0 {
						if !errors.Is(err, ErrNotVerified) {
							t.Fatalf("demote of an incomplete file: %v", err)
						}
						break
					}
					check(err)
					kind = Staging
				}
			}
			if f.Kind() != kind {
				t.Fatalf("kind %v, want %v", f.Kind(), kind)
			}
			off, n := draw()
			p := make([]byte, n)
			k, err := f.ReadVerified(p, off)
			switch {
			case dropped.overlaps(off, n):
				if err == nil || k != 0 {
					t.Fatalf("read of dropped bytes: %d, %v", k, err)
				}
			case off >= int64(len(model)):
				if err != io.EOF || k != 0 {
					t.Fatalf("read at the end: %d, %v", k, err)
				}
			default:
				want := model[off:min(off+n, int64(len(model)))]
				if err != nil && err != io.EOF || !bytes.Equal(p[:k], want) {
					t.Fatalf("read %d+%d: %d bytes, %v; wrong", off, n, k, err)
				}
			}
		}
	})
}
