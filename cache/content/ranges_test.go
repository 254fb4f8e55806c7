package content

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// The range set against one bool per byte.
func TestRangesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64
		var model [size]bool
		var set ranges
		draw := func(name string) (int64, int64) {
			off := rapid.Int64Range(0, size-1).Draw(t, name+" off")
			return off, rapid.Int64Range(0, size-off).Draw(t, name+" len")
		}
		for range rapid.IntRange(1, 40).Draw(t, "ops") {
			off, n := draw("op")
			before := append(ranges(nil), set...)
			old := set
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				set = set.add(Range{off, n})
				for i := off; i < off+n; i++ {
					model[i] = true
				}
			case 1:
				set = set.sub(Range{off, n})
				for i := off; i < off+n; i++ {
					model[i] = false
				}
			case 2:
				set = set.clip(off)
				for i := off; i < size; i++ {
					model[i] = false
				}
			}
			for i := range before {
				if old[i] != before[i] {
					t.Fatal("a published set was changed")
				}
			}
			end := int64(-1)
			for _, r := range set {
				if r.Off <= end || r.Len <= 0 {
					t.Fatalf("not normal: %v", set)
				}
				end = r.End()
			}
			var comp [size]bool
			for _, r := range set.complement(size) {
				for i := r.Off; i < r.End(); i++ {
					comp[i] = true
				}
			}
			for i := range model {
				if comp[i] == model[i] {
					t.Fatalf("complement of %v at %d", set, i)
				}
			}
			off, n = draw("probe")
			all, some, first := true, false, int64(-1)
			for i := off; i < off+n; i++ {
				all = all && model[i]
				if model[i] && !some {
					some, first = true, i
				}
			}
			if got := set.covers(off, n); got != all {
				t.Fatalf("%v.covers(%d, %d) = %v", set, off, n, got)
			}
			if got := set.overlaps(off, n); got != some {
				t.Fatalf("%v.overlaps(%d, %d) = %v", set, off, n, got)
			}
			if got := set.next(off, n); got != first {
				t.Fatalf("%v.next(%d, %d) = %d, want %d", set, off, n, got, first)
			}
		}
	})
}

// The chunk arithmetic against one bool per block.
func TestBlockMapModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := blockMap{chunks: map[int64]*chunk{0: new(chunk), 1: new(chunk), 2: new(chunk)}}
		const size = 3 * chunkSize
		var model [size / blockSize]bool
		for range rapid.IntRange(1, 30).Draw(t, "ops") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := rapid.Int64Range(0, min(size-off, 9<<20)).Draw(t, "n")
			want := int64(0)
			for b := off / blockSize; n > 0 && b*blockSize < off+n; b++ {
				if !model[b] {
					want += blockSize
				}
				model[b] = true
			}
			if got := m.missing(-1, off, n); got != want {
				t.Fatalf("missing(%d, %d) = %d, want %d", off, n, got, want)
			}
			m.mark(-1, off, n)
			if got := m.missing(-1, off, n); got != 0 {
				t.Fatalf("%d missing after mark", got)
			}
		}
	})
}

func TestSidecar(t *testing.T) {
	set := ranges{{0, 1 << 20}, {3 << 20, 5}}
	b := encodeSidecar(77, 4<<20, set)
	size, got, err := decodeSidecar(b, 77)
	must(t, err)
	if size != 4<<20 || len(got) != 2 || got[0] != set[0] || got[1] != set[1] {
		t.Fatal(size, got)
	}
	if _, _, err := decodeSidecar(b, 78); err == nil {
		t.Error("another file's record was taken")
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 4
		if _, _, err := decodeSidecar(c, 77); err == nil {
			t.Errorf("flip in byte %d not noticed", i)
		}
		if _, _, err := decodeSidecar(b[:i], 77); err == nil {
			t.Errorf("cut at byte %d not noticed", i)
		}
	}
	newer := bytes.Clone(b[:len(b)-4])
	newer[8] = 2
	if _, _, err := decodeSidecar(binary.LittleEndian.AppendUint32(newer, crc32.Checksum(newer, castagnoli)), 77); err == nil {
		t.Error("a newer version was guessed at")
	}
}

func FuzzSidecar(f *testing.F) {
	f.Add(encodeSidecar(1, 100, ranges{{0, 10}, {20, 80}}))
	f.Add(encodeSidecar(1, 0, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A valid checksum, so that the rest is looked at.
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
		size, set, err := decodeSidecar(b, 1)
		if err != nil {
			return
		}
		end := int64(-1)
		for _, r := range set {
			if r.Off <= end || r.Len <= 0 || r.End() > size {
				t.Fatalf("%v of %d", set, size)
			}
			end = r.End()
		}
	})
}
