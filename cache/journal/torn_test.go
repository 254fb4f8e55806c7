package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

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
