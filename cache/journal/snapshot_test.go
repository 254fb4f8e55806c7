package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

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
