package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func open(t testing.TB, dir string) *Journal {
	t.Helper()
	j, err := Open(Options{Dir: dir, SegmentSize: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func closed(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// ops is what record seq of the tests holds.
func ops(seq uint64) []Op {
	return []Op{
		{Key: fmt.Appendf(nil, "key%d", seq%10), Value: bytes.Repeat([]byte{byte(seq)}, int(seq%50))},
		{Key: fmt.Appendf(nil, "gone%d", seq%10)},
	}
}

// appendN appends n records one by one.
func appendN(t testing.TB, j *Journal, n int) {
	t.Helper()
	for range n {
		if _, err := j.Append([][]Op{ops(j.Last() + 1)}); err != nil {
			t.Fatal(err)
		}
	}
}

// check replays everything after a number and compares it with what appendN wrote.
func check(t testing.TB, j *Journal, after, last uint64) {
	t.Helper()
	next := after + 1
	for rec, err := range j.Replay(after) {
		if err != nil {
			t.Fatal(err)
		}
		want := ops(rec.Seq)
		same := func(a, b Op) bool {
			return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
		}
		if rec.Seq != next || !slices.EqualFunc(rec.Ops, want, same) {
			t.Fatalf("record %d: %v, want %d: %v", rec.Seq, rec.Ops, next, want)
		}
		next++
	}
	if next != last+1 || j.Last() != last {
		t.Fatalf("replay ended before %d, Last() = %d, want %d", next, j.Last(), last)
	}
}

// segments returns the paths of the segment files, oldest first.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	segs, err := filepath.Glob(filepath.Join(dir, "seg-*.log"))
	if err != nil || len(segs) == 0 {
		t.Fatal("no segments", err)
	}
	return segs
}

func edit(t testing.TB, path string, fn func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fn(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// offsets returns where the records of a segment begin, and its end.
func offsets(t testing.TB, path string) []int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	off := []int{headerSize}
	for at := headerSize; at < len(b); {
		at += recordSize + int(binary.LittleEndian.Uint32(b[at:]))
		off = append(off, at)
	}
	return off
}

func pairs(from, to int) iter.Seq2[Op, error] {
	return func(yield func(Op, error) bool) {
		for i := from; i < to; i++ {
			if !yield(Op{Key: fmt.Appendf(nil, "k%05d", i), Value: bytes.Repeat([]byte("v"), i%300)}, nil) {
				return
			}
		}
	}
}

func TestAppendReplayReopen(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	id := j.ID()
	if j.Last() != 0 {
		t.Fatalf("Last() = %d", j.Last())
	}
	check(t, j, 0, 0)
	appendN(t, j, 300)
	if last, err := j.Append([][]Op{ops(301), ops(302), ops(303)}); err != nil || last != 303 {
		t.Fatal(last, err)
	}
	check(t, j, 0, 303)
	check(t, j, 200, 303)
	size := j.Size()
	closed(t, j)
	if len(segments(t, dir)) < 3 {
		t.Fatal("segments were not rotated")
	}
	j = open(t, dir)
	check(t, j, 0, 303)
	if j.ID() != id || j.Size() != size {
		t.Errorf("after reopening id %s, size %d; want %s, %d", j.ID(), j.Size(), id, size)
	}
	appendN(t, j, 10)
	closed(t, j)
	check(t, open(t, dir), 300, 313)
}

// A journal that is opened and closed often without records leaves no files behind.
func TestOpenWithoutAppendLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		closed(t, open(t, dir))
	}
	if ok, err := Exists(dir); ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestDiskFullLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 5)
	write := j.write
	full := errors.New("no space left on device")
	for part := range 60 {
		j.write = func(f *os.File, b []byte, off int64) (int, error) {
			n, _ := write(f, b[:min(part, len(b)-1)], off)
			return n, full
		}
		if _, err := j.Append([][]Op{ops(6), ops(7)}); !errors.Is(err, full) {
			t.Fatal(err)
		}
		if j.Last() != 5 {
			t.Fatalf("Last() = %d", j.Last())
		}
	}
	j.write = write
	appendN(t, j, 3)
	check(t, j, 0, 8)
	closed(t, j)
	check(t, open(t, dir), 0, 8)
}

// When the disk is full at the moment a segment is begun, the next attempt begins it again.
func TestDiskFullAtRotation(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	full := errors.New("no space left on device")
	write := j.write
	j.write = func(f *os.File, b []byte, off int64) (int, error) { return 0, full }
	if _, err := j.Append([][]Op{ops(1)}); !errors.Is(err, full) {
		t.Fatal(err)
	}
	j.write = write
	appendN(t, j, 300)
	check(t, j, 0, 300)
}

func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	const id = "000102030405060708090a0b0c0d0e0f"
	if err := Create(Options{Dir: dir}, id, 77, pairs(0, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := Create(Options{Dir: dir}, id, 77, pairs(0, 1000)); err == nil {
		t.Error("created over another one")
	}
	j := open(t, dir)
	n := 0
	seq, err := j.LoadSnapshot(func(Op) error { n++; return nil })
	if seq != 77 || err != nil || n != 1000 || j.ID() != id {
		t.Fatalf("%d, %v, %d pairs, id %s", seq, err, n, j.ID())
	}
	appendN(t, j, 5)
	check(t, j, 77, 82)
}
