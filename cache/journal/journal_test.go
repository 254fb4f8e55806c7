package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// Whatever part of the last record reached the disk, the records before it stand.
func TestTornTailIsCut(t *testing.T) {
	src := t.TempDir()
	j := open(t, src)
	appendN(t, j, 20)
	closed(t, j)
	path := segments(t, src)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	off := offsets(t, path)
	begin := off[19]
	for cut := begin; cut < len(whole); cut++ {
		for _, zeros := range []bool{false, true} {
			dir := t.TempDir()
			b := slices.Clone(whole[:cut])
			if zeros { // the size was recorded, the bytes were not
				b = append(b, make([]byte, len(whole)-cut)...)
				if bytes.Equal(b, whole) {
					continue
				}
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600); err != nil {
				t.Fatal(err)
			}
			j := open(t, dir)
			check(t, j, 0, 19)
			appendN(t, j, 5)
			closed(t, j)
			j = open(t, dir)
			check(t, j, 0, 24)
			closed(t, j)
		}
	}
}

// The owner may know better than the file.
func TestEndBeforeStableIsDamage(t *testing.T) {
	for name, damage := range map[string]func([]byte, int) []byte{
		"torn":    func(b []byte, last int) []byte { return b[:len(b)-3] },
		"missing": func(b []byte, last int) []byte { return b[:last] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			appendN(t, j, 20)
			closed(t, j)
			path := segments(t, dir)[0]
			off := offsets(t, path)
			edit(t, path, func(b []byte) []byte { return damage(b, off[19]) })
			before, _ := os.ReadFile(path)
			if _, err := Open(Options{Dir: dir, Stable: 20}); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%v, want ErrDamaged", err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("a damaged journal was changed")
			}
			j, err := Open(Options{Dir: dir, Stable: 19})
			if err != nil {
				t.Fatal(err)
			}
			check(t, j, 0, 19)
			closed(t, j)
		})
	}
}

func TestFlippedBitInTheMiddleIsDamage(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 20)
	closed(t, j)
	path := segments(t, dir)[0]
	off := offsets(t, path)
	whole, _ := os.ReadFile(path)
	for at := headerSize; at < off[19]; at++ { // any byte of any record but the last
		edit(t, path, func([]byte) []byte {
			b := slices.Clone(whole)
			b[at] ^= 0x10
			return b
		})
		n, found := slices.BinarySearch(off, at)
		if !found {
			n--
		}
		_, err := Open(Options{Dir: dir})
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v, want ErrDamaged", at, err)
		}
		for _, want := range []string{filepath.Base(path), fmt.Sprintf("offset %d,", off[n]), fmt.Sprintf("sequence %d:", n+1)} {
			if !strings.Contains(err.Error(), want) {
				t.Fatalf("byte %d: %q does not name %q", at, err, want)
			}
		}
		if got, _ := os.ReadFile(path); len(got) != len(whole) {
			t.Fatal("a damaged journal was changed")
		}
	}
}

func TestFlippedBitInTheLastRecordIsTorn(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 20)
	closed(t, j)
	path := segments(t, dir)[0]
	edit(t, path, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	check(t, open(t, dir), 0, 19)
}

func TestFlippedBitInAnOlderSegmentIsDamage(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 300)
	closed(t, j)
	path := segments(t, dir)[0]
	edit(t, path, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, want ErrDamaged", err)
	}
}

// Pages of a file may reach the disk in any order: after a power loss intact
// records may follow a hole. That is no damage if none of them was promised, and cannot be told from it before a reboot.
func TestHoleOfPowerLoss(t *testing.T) {
	for _, test := range []struct {
		name    string
		reboot  bool
		barrier uint64 // synced up to here before record 20 was written
		want    uint64 // last record kept; 0: ErrDamaged
	}{
		{"never synced", true, 0, 9},
		{"synced before the hole", true, 9, 9},
		{"synced after the hole", true, 15, 0},
		{"same boot", false, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			for j.Last() < 20 {
				appendN(t, j, 1)
				if j.Last() == test.barrier {
					if err := j.Barrier(context.Background(), j.Last()); err != nil {
						t.Fatal(err)
					}
				}
			}
			closed(t, j)
			path := segments(t, dir)[0]
			off := offsets(t, path)
			edit(t, path, func(b []byte) []byte {
				clear(b[off[9]:off[10]]) // record 10
				if test.reboot {
					h, _ := decodeHeader(b, segMagic)
					h.boot[0] ^= 1
					copy(b, h.encode(segMagic))
				}
				return b
			})
			j, err := Open(Options{Dir: dir})
			if test.want == 0 {
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("%v, want ErrDamaged", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			check(t, j, 0, test.want)
		})
	}
}

func TestMissingSegment(t *testing.T) {
	for name, snapshot := range map[string]bool{"uncovered": false, "covered by a snapshot": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			appendN(t, j, 300)
			if snapshot {
				if err := j.WriteSnapshot(300, pairs(0, 10)); err != nil {
					t.Fatal(err)
				}
			}
			closed(t, j)
			segs := segments(t, dir)
			if err := os.Remove(segs[1]); err != nil {
				t.Fatal(err)
			}
			j, err := Open(Options{Dir: dir})
			if !snapshot {
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "missing") {
					t.Fatalf("%v, want ErrDamaged", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			for _, err = range j.Replay(0) {
			}
			if !errors.Is(err, ErrGap) {
				t.Errorf("Replay(0): %v, want ErrGap", err)
			}
			check(t, j, 300, 300)
		})
	}
}

// The oldest segment gone: the journal opens, but does not pretend to begin at 1.
func TestMissingFirstSegmentIsAGap(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 300)
	closed(t, j)
	if err := os.Remove(segments(t, dir)[0]); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	var got error
	for _, err := range j.Replay(0) {
		got = err
	}
	if !errors.Is(got, ErrGap) {
		t.Errorf("%v, want ErrGap", got)
	}
	check(t, j, j.Oldest(), 300)
}

func TestForeignAndNewerFilesAreRefused(t *testing.T) {
	other := t.TempDir()
	o := open(t, other)
	appendN(t, o, 300)
	closed(t, o)
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 300)
	closed(t, j)
	segs := segments(t, dir)
	mine, _ := os.ReadFile(segs[1])
	foreign, _ := os.ReadFile(segments(t, other)[1])
	for _, test := range []struct {
		name string
		b    []byte
		want error
	}{
		{"foreign", foreign, ErrDamaged},
		{"header flipped", func() []byte { b := slices.Clone(mine); b[20] ^= 1; return b }(), ErrDamaged},
		{"empty", nil, ErrDamaged},
		{"newer", func() []byte {
			b := slices.Clone(mine)
			binary.LittleEndian.PutUint32(b[8:], version+1)
			return b
		}(), ErrFormat},
	} {
		if err := os.WriteFile(segs[1], test.b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

// What a newer snapshot covers is needed only if that snapshot is damaged too.
func TestDamagedSegmentCoveredBySnapshot(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 300)
	if err := j.WriteSnapshot(300, pairs(0, 10)); err != nil {
		t.Fatal(err)
	}
	appendN(t, j, 10)
	closed(t, j)
	edit(t, segments(t, dir)[0], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	j = open(t, dir)
	check(t, j, 300, 310)
	var got error
	for _, err := range j.Replay(0) {
		got = err
	}
	if !errors.Is(got, ErrDamaged) {
		t.Errorf("Replay(0): %v, want ErrDamaged", got)
	}
	appendN(t, j, 10)
	for _, seq := range []uint64{315, 320} { // in the end it goes like any other
		if err := j.WriteSnapshot(seq, pairs(0, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if j.Oldest() < 300 {
		t.Errorf("Oldest() = %d", j.Oldest())
	}
}

// A segment whose header never became durable was never used.
func TestSegmentBegunAndNotUsed(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 10), make([]byte, headerSize)} {
		dir := t.TempDir()
		j := open(t, dir)
		appendN(t, j, 5)
		closed(t, j)
		if err := os.WriteFile(filepath.Join(dir, segName(6)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j = open(t, dir)
		appendN(t, j, 1)
		check(t, j, 0, 6)
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

func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	load := func(want uint64, n int) {
		t.Helper()
		var got []Op
		seq, err := j.LoadSnapshot(func(op Op) error { got = append(got, op); return nil })
		if err != nil || seq != want {
			t.Fatalf("LoadSnapshot = %d, %v; want %d", seq, err, want)
		}
		i := 0
		for op := range pairs(0, n) {
			if i >= len(got) || !bytes.Equal(got[i].Key, op.Key) || !bytes.Equal(got[i].Value, op.Value) {
				t.Fatalf("pair %d differs", i)
			}
			i++
		}
		if i != len(got) {
			t.Fatalf("%d pairs, want %d", len(got), i)
		}
	}
	load(0, 0)
	appendN(t, j, 300)
	if err := j.WriteSnapshot(250, pairs(0, 5000)); err != nil {
		t.Fatal(err)
	}
	if j.Oldest() != 0 {
		t.Error("the first snapshot removed what a second would need")
	}
	load(250, 5000)
	appendN(t, j, 300)
	if err := j.WriteSnapshot(600, pairs(0, 100)); err != nil {
		t.Fatal(err)
	}
	load(600, 100)
	if got := j.Oldest(); got == 0 || got > 250 {
		t.Errorf("Oldest() = %d, want something up to 250", got)
	}
	appendN(t, j, 300)
	if err := j.WriteSnapshot(900, pairs(0, 0)); err != nil {
		t.Fatal(err)
	}
	load(900, 0)
	if got, want := j.Snapshots(), []uint64{600, 900}; !slices.Equal(got, want) {
		t.Errorf("Snapshots() = %v, want %v", got, want)
	}
	if j.Size() != 0 {
		t.Errorf("Size() = %d after a snapshot of everything", j.Size())
	}
	appendN(t, j, 1)
	size := j.Size()
	closed(t, j)
	j = open(t, dir)
	if j.Size() != size || size == 0 {
		t.Errorf("Size() = %d, want %d", j.Size(), size)
	}
	load(900, 0)
	check(t, j, 600, 901)
}

// A damaged snapshot is passed over, and everything the older one needs is still there.
func TestDamagedSnapshotFallsBack(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped header": func(b []byte) []byte { b[17] ^= 1; return b },
		"flipped":        func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"flipped count":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":            func(b []byte) []byte { return b[:len(b)-blockSize] },
		"cut in a block": func(b []byte) []byte { return b[:len(b)/2] },
		"longer":         func(b []byte) []byte { return append(b, 0) },
		"empty":          func(b []byte) []byte { return nil },
		"missing":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			for _, seq := range []int{300, 600} {
				appendN(t, j, 300)
				if err := j.WriteSnapshot(uint64(seq), pairs(0, seq)); err != nil {
					t.Fatal(err)
				}
			}
			appendN(t, j, 10)
			closed(t, j)
			path := filepath.Join(dir, snapName(600))
			if damage == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				edit(t, path, damage)
			}
			j = open(t, dir)
			n := 0
			seq, err := j.LoadSnapshot(func(Op) error { n++; return nil })
			if err != nil || seq != 300 || n != 300 {
				t.Fatalf("LoadSnapshot = %d, %v with %d pairs; want 300 with 300", seq, err, n)
			}
			check(t, j, 300, 610)
			// Once set aside the damaged one does not count.
			for _, seq := range j.Snapshots()[1:] {
				if err := j.DropSnapshot(seq); err != nil {
					t.Fatal(err)
				}
			}
			if got := j.Snapshots(); !slices.Equal(got, []uint64{300}) || j.Size() == 0 {
				t.Errorf("Snapshots() = %v, Size() = %d", got, j.Size())
			}
			if err := j.WriteSnapshot(610, pairs(0, 610)); err != nil {
				t.Fatal(err)
			}
			if j.Oldest() > 300 {
				t.Errorf("Oldest() = %d: the older snapshot cannot be used any more", j.Oldest())
			}
		})
	}
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

func TestSnapshotThatFailsChangesNothing(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 20)
	boom := errors.New("boom")
	err := j.WriteSnapshot(20, func(yield func(Op, error) bool) { yield(Op{}, boom) })
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if len(j.Snapshots()) != 0 {
		t.Error("a failed snapshot is listed")
	}
	names, _ := filepath.Glob(filepath.Join(dir, "snap-*"))
	if len(names) > 0 {
		t.Error("left behind:", names)
	}
	check(t, j, 0, 20)
}

// Whatever happens to a journal's files, opening it neither panics nor invents records.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	j := open(f, dir)
	appendN(f, j, 30)
	closed(f, j)
	path := segments(f, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(100, byte(1), len(whole))
	f.Add(headerSize, byte(255), len(whole)-1)
	f.Add(len(whole)-1, byte(0), len(whole)/2)
	f.Fuzz(func(t *testing.T, at int, flip byte, cut int) {
		b := slices.Clone(whole)
		if at >= 0 && at < len(b) {
			b[at] ^= flip
		}
		if cut >= 0 && cut < len(b) {
			b = b[:cut]
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		defer j.Close()
		check(t, j, 0, j.Last())
	})
}

func FuzzDecodeOps(f *testing.F) {
	b, _ := appendRecord(nil, 0, 0, 1, 0, ops(7))
	f.Add(b[recordSize:])
	f.Fuzz(func(t *testing.T, b []byte) {
		ops, err := decodeOps(b)
		if err != nil {
			return
		}
		again, err := appendRecord(nil, 0, 0, 1, 0, ops)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeOps(again[recordSize:])
		if err != nil || len(back) != len(ops) {
			t.Fatal(back, err)
		}
	})
}
