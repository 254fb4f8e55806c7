package cas

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const mib = 1 << 20

func pattern(n int64) []byte {
	b := make([]byte, n)
	for i := range min(len(b), 251) {
		b[i] = byte(i)
	}
	for k := 251; k < len(b); k *= 2 {
		copy(b[k:], b[:k])
	}
	return b
}

// naiveTree is the tree hash by its recursive definition: the left subtree is
// the largest full one that leaves something for the right.
func naiveTree(b []byte) Hash {
	if len(b) == 0 {
		return Hash{}
	}
	if len(b) <= ChunkSize {
		return sha256.Sum256(b)
	}
	left := ChunkSize
	for left*2 < len(b) {
		left *= 2
	}
	l, r := naiveTree(b[:left]), naiveTree(b[left:])
	return sha256.Sum256(append(l[:], r[:]...))
}

type treeVectors struct {
	Vectors []struct {
		Length       int64
		Linear, Tree Hash
	}
	Parts []struct {
		Length, Part int64
		Parts        []Hash
		Combined     Hash
	}
	Ranges struct {
		Length             int64
		Tree               Hash
		Aligned, Unaligned []struct {
			Off, End int64
			Tree     Hash
		}
	}
}

func TestTreeHashVectors(t *testing.T) {
	var v treeVectors
	readJSON(t, "../testdata/treehash/vectors.json", &v)
	for _, x := range v.Vectors {
		b := pattern(x.Length)
		want := PartHash{x.Linear, x.Tree}
		if got := HashPart(b); got != want {
			t.Errorf("HashPart(%d bytes) = %v, want %v", x.Length, got, want)
		}
		var h TreeHasher
		io.CopyBuffer(struct{ io.Writer }{&h}, struct{ io.Reader }{bytes.NewReader(b)}, make([]byte, 100_003))
		if got := h.Sum(); got != want || h.Size() != x.Length {
			t.Errorf("TreeHasher of %d bytes = %v, %d, want %v", x.Length, got, h.Size(), want)
		}
		for _, workers := range []int{0, 1, 3} {
			got, err := TreeHashReaderAt(t.Context(), bytes.NewReader(b), x.Length, workers)
			if err != nil || got != x.Tree {
				t.Errorf("TreeHashReaderAt(%d bytes, %d workers) = %v, %v, want %v", x.Length, workers, got, err, x.Tree)
			}
		}
		if got := naiveTree(b); got != x.Tree {
			t.Errorf("the naive twin is wrong at %d bytes: %v", x.Length, got)
		}
	}
	for _, x := range v.Parts {
		b := pattern(x.Length)
		var hs []Hash
		for p := range slices.Chunk(b, int(x.Part)) {
			hs = append(hs, TreeHash(p))
		}
		if x.Parts != nil && !slices.Equal(hs, x.Parts) {
			t.Errorf("parts of %d: %v, want %v", x.Part, hs, x.Parts)
		}
		before := slices.Clone(hs)
		if got := CombineTreeHashes(hs); got != x.Combined {
			t.Errorf("%d in parts of %d = %v, want %v", x.Length, x.Part, got, x.Combined)
		}
		if !slices.Equal(hs, before) {
			t.Error("CombineTreeHashes changed its argument")
		}
	}
	b := pattern(v.Ranges.Length)
	if got := TreeHash(b); got != v.Ranges.Tree {
		t.Errorf("whole = %v, want %v", got, v.Ranges.Tree)
	}
	for _, x := range v.Ranges.Aligned {
		r := Range{x.Off, x.End - x.Off}
		if !TreeAligned(r, v.Ranges.Length) {
			t.Errorf("%v is not aligned", r)
		}
		if got := TreeHash(b[x.Off:x.End]); got != x.Tree {
			t.Errorf("%v = %v, want %v", r, got, x.Tree)
		}
	}
	for _, x := range v.Ranges.Unaligned {
		if r := (Range{x.Off, x.End - x.Off}); TreeAligned(r, v.Ranges.Length) {
			t.Errorf("%v is aligned", r)
		}
	}
}

func TestTreeHasherState(t *testing.T) {
	var h TreeHasher
	if got, want := h.Sum(), (PartHash{Linear: sha256.Sum256(nil)}); got != want {
		t.Errorf("of nothing: %v", got)
	}
	if got := TreeHash(nil); !got.IsZero() {
		t.Errorf("TreeHash(nil) = %v", got)
	}
	if got := CombineTreeHashes(nil); !got.IsZero() {
		t.Errorf("CombineTreeHashes(nil) = %v", got)
	}
	b := pattern(3*mib + 5)
	h.Write(b[:mib+1])
	for range 2 { // Sum and Leaves disturb nothing
		if got, want := h.Sum(), HashPart(b[:mib+1]); got != want {
			t.Errorf("half way: %v, want %v", got, want)
		}
		if got := h.Leaves(); len(got) != 2 || got[0] != sha256.Sum256(b[:mib]) || got[1] != sha256.Sum256(b[mib:mib+1]) {
			t.Errorf("leaves: %v", got)
		}
	}
	h.Leaves()[0] = Hash{}
	h.Write(b[mib+1:])
	if got, want := h.Sum(), HashPart(b); got != want {
		t.Errorf("whole: %v, want %v", got, want)
	}
	h.Reset()
	h.Write([]byte("x"))
	if got, want := h.Sum(), HashPart([]byte("x")); got != want {
		t.Errorf("after Reset: %v, want %v", got, want)
	}
}

func TestTreeHashAgainstNaive(t *testing.T) {
	src := pattern(9 * mib)
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.OneOf(
			rapid.IntRange(0, len(src)),
			rapid.Map(rapid.IntRange(0, 9), func(m int) int { return m * mib }),
		).Draw(rt, "n")
		b := src[:n]
		want := naiveTree(b)
		if got := TreeHash(b); got != want {
			rt.Fatalf("TreeHash(%d) = %v, want %v", n, got, want)
		}
		var h TreeHasher
		for rest := b; len(rest) > 0; {
			k := min(len(rest), rapid.IntRange(1, 3*mib).Draw(rt, "write"))
			h.Write(rest[:k])
			rest = rest[k:]
		}
		if got := h.Sum(); got != (PartHash{sha256.Sum256(b), want}) {
			rt.Fatalf("TreeHasher(%d) = %v", n, got)
		}
		part := mib << rapid.IntRange(0, 3).Draw(rt, "part")
		var parts []Hash
		for p := range slices.Chunk(b, part) {
			parts = append(parts, TreeHash(p))
		}
		if got := CombineTreeHashes(parts); got != want {
			rt.Fatalf("%d in parts of %d: %v, want %v", n, part, got, want)
		}
	})
}

type errorAt struct {
	io.ReaderAt
	off int64
	err error
}

func (e errorAt) ReadAt(p []byte, off int64) (int, error) {
	if off <= e.off && e.off < off+int64(len(p)) {
		return 0, e.err
	}
	return e.ReaderAt.ReadAt(p, off)
}

func TestTreeHashReaderAtErrors(t *testing.T) {
	b := bytes.NewReader(pattern(4*mib + 1))
	if _, err := TreeHashReaderAt(t.Context(), b, 4*mib+2, 2); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %v", err)
	}
	boom := errors.New("boom")
	if _, err := TreeHashReaderAt(t.Context(), errorAt{b, 3 * mib, boom}, b.Size(), 2); !errors.Is(err, boom) {
		t.Errorf("read error: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if _, err := TreeHashReaderAt(ctx, b, b.Size(), 2); !errors.Is(err, boom) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := TreeHashReaderAt(t.Context(), b, -1, 2); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative: %v", err)
	}
	if h, err := TreeHashReaderAt(t.Context(), b, 0, 2); err != nil || !h.IsZero() {
		t.Errorf("empty: %v, %v", h, err)
	}
}

func TestPartSizeFor(t *testing.T) {
	const gib, tib = 1 << 30, 1 << 40
	tests := []struct {
		size, preferred, part, count int64
	}{
		{1, 0, 16 * mib, 1},
		{16*mib - 1, 0, 16 * mib, 1},
		{16 * mib, 0, 16 * mib, 1},
		{100 * mib, 0, 16 * mib, 7},
		{100*mib + 1, 0, 16 * mib, 7},
		{1 * gib, 0, 16 * mib, 64},
		{160000 * mib, 0, 16 * mib, 10000},
		{160000*mib + 1, 0, 32 * mib, 5001},
		{320000 * mib, 0, 32 * mib, 10000},
		{320000*mib + 1, 0, 64 * mib, 5001},
		{640000*mib + 1, 0, 128 * mib, 5001},
		{1 * tib, 0, 128 * mib, 8192},
		{5 * tib, 0, 1 * gib, 5120},
		{MaxArchiveSize, 0, MaxPartSize, 10000},
		// Download sizes, where the official SDK rounds down and gets 10001 ranges.
		{320000*mib + 1, 32 * mib, 64 * mib, 5001},
		{640000*mib + 1, 32 * mib, 128 * mib, 5001},
		// Preferred sizes are rounded up to what the service takes.
		{100, 1, 1 * mib, 1},
		{3 * mib, 1 * mib, 1 * mib, 3},
		{100 * mib, 48 * mib, 64 * mib, 2},
		{1 * gib, 8 * gib, MaxPartSize, 1},
	}
	for _, x := range tests {
		got, err := PartSizeFor(x.size, x.preferred)
		if count := (x.size + x.part - 1) / x.part; err != nil || got != x.part || count != x.count {
			t.Errorf("PartSizeFor(%d, %d) = %d × %d, %v, want %d × %d", x.size, x.preferred, got, count, err, x.part, x.count)
		}
	}
	for size, want := range map[int64]error{0: ErrEmpty, -1: ErrEmpty, MaxArchiveSize + 1: ErrTooLarge, math.MaxInt64: ErrTooLarge} {
		if _, err := PartSizeFor(size, 0); !errors.Is(err, want) {
			t.Errorf("PartSizeFor(%d) = %v, want %v", size, err, want)
		}
	}
}

func TestParseRange(t *testing.T) {
	for _, x := range []struct {
		s    string
		size int64
		want Range
	}{
		{"0-0", 0, Range{0, 1}},
		{"0-41955384", 41955385, Range{0, 41955385}},
		{"33554432-", 41955385, Range{33554432, 41955385 - 33554432}},
		{"0-9223372036854775806", 0, Range{0, math.MaxInt64}},
		{"007-8", 0, Range{7, 2}},
	} {
		got, err := ParseRange(x.s, x.size)
		if err != nil || got != x.want {
			t.Errorf("ParseRange(%q, %d) = %v, %v, want %v", x.s, x.size, got, err, x.want)
		}
	}
	for _, x := range []struct {
		s    string
		size int64
	}{
		{"", 0}, {"-", 0}, {"-", 5}, {"-5", 10}, {"5", 0}, {"5-", 0}, {"5-", 5}, {"2-1", 0}, {"+1-2", 0}, {"1-+2", 0},
		{"0-5", 5}, {"a-b", 0}, {"1-2-3", 0}, {" 1-2", 0}, {"1- 2", 0}, {"0-9223372036854775807", 0}, {"0-99999999999999999999", 0}, {"0x1-2", 0},
	} {
		if got, err := ParseRange(x.s, x.size); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseRange(%q, %d) = %v, %v, want ErrInvalid", x.s, x.size, got, err)
		}
	}
	if s := (Range{}).String(); s != "" {
		t.Errorf("empty range is %q", s)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"0-0", "33554432-", "-", "-1", "1-0", "0-9223372036854775807", "٣-٤", "1-2\n"} {
		f.Add(s, int64(0))
		f.Add(s, int64(41955385))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		r, err := ParseRange(s, size)
		if err != nil {
			return
		}
		if r.Off < 0 || r.Len <= 0 || r.End() <= 0 || size > 0 && r.End() > size {
			t.Fatalf("ParseRange(%q, %d) = %+v", s, size, r)
		}
		if again, err := ParseRange(r.String(), 0); err != nil || again != r {
			t.Fatalf("%q → %+v → %q → %+v, %v", s, r, r, again, err)
		}
	})
}

// nodes lists every node of the tree over n chunks, as half-open chunk spans.
func nodes(n int64) map[[2]int64]bool {
	all := map[[2]int64]bool{}
	var level [][2]int64
	for i := range n {
		level = append(level, [2]int64{i, i + 1})
	}
	for {
		for _, s := range level {
			all[s] = true
		}
		if len(level) <= 1 {
			return all
		}
		var up [][2]int64
		for i := 0; i < len(level); i += 2 {
			if i+1 == len(level) {
				up = append(up, level[i])
			} else {
				up = append(up, [2]int64{level[i][0], level[i+1][1]})
			}
		}
		level = up
	}
}

func TestTreeAlignedBruteForce(t *testing.T) {
	for n := int64(1); n < 24; n++ {
		tree := nodes(n)
		for _, size := range []int64{n * mib, (n-1)*mib + 1, n*mib - 1} {
			for p := range n {
				for q := p + 1; q <= n; q++ {
					r := Range{p * mib, min(q*mib, size) - p*mib}
					if got, want := TreeAligned(r, size), tree[[2]int64{p, q}]; got != want {
						t.Errorf("TreeAligned(%v of %d) = %v, want %v", r, size, got, want)
					}
					checkAligned(t, r, size, tree)
				}
			}
		}
	}
	for _, x := range []struct {
		r    Range
		size int64
	}{
		{Range{1, mib}, 4 * mib}, {Range{0, mib - 1}, 4 * mib}, {Range{0, 0}, 4 * mib}, {Range{0, 5 * mib}, 4 * mib},
		{Range{4 * mib, mib}, 4 * mib}, {Range{-mib, mib}, 4 * mib}, {Range{0, math.MaxInt64}, 4 * mib}, {Range{math.MaxInt64 &^ (mib - 1), mib}, 4 * mib},
	} {
		if MiBAligned(x.r, x.size) || TreeAligned(x.r, x.size) || AlignedRanges(x.r, x.size, mib) != nil {
			t.Errorf("%+v of %d passes", x.r, x.size)
		}
	}
}

// checkAligned verifies every cut of r: it covers r in order, each piece is a node of at
// most max bytes, and no fewer pieces are possible.
func checkAligned(t *testing.T, r Range, size int64, tree map[[2]int64]bool) {
	t.Helper()
	for _, most := range []int64{mib, 2 * mib, 3 * mib, 4 * mib, 32 * mib} {
		at := r.Off
		pieces := AlignedRanges(r, size, most)
		for _, p := range pieces {
			span := [2]int64{p.Off / mib, chunks(p.End())}
			if p.Off != at || p.Len > most || !tree[span] {
				t.Errorf("AlignedRanges(%v of %d, %d) has %v", r, size, most, p)
			}
			at = p.End()
		}
		if at != r.End() {
			t.Errorf("AlignedRanges(%v of %d, %d) ends at %d", r, size, most, at)
		}
		from, to := r.Off/mib, chunks(r.End())
		best := make([]int, to-from+1) // fewest nodes from from to here
		for q := from + 1; q <= to; q++ {
			best[q-from] = math.MaxInt
			for p := from; p < q; p++ {
				if tree[[2]int64{p, q}] && min(q*mib, size)-p*mib <= most && best[p-from] != math.MaxInt {
					best[q-from] = min(best[q-from], best[p-from]+1)
				}
			}
		}
		// A tail shorter than its chunks may fit below most though its chunks do not; the cut ignores that.
		if size%mib == 0 && most&(most-1) == 0 && len(pieces) != best[to-from] {
			t.Errorf("AlignedRanges(%v of %d, %d) makes %d pieces, %d would do", r, size, most, len(pieces), best[to-from])
		}
	}
}

func TestAlignedRangesCombine(t *testing.T) {
	// Cut from 0 to the end, the pieces' hashes combine to the whole's.
	rng := rand.New(rand.NewPCG(1, 2))
	src := pattern(20 * mib)
	for range 20 {
		size := 1 + rng.Int64N(int64(len(src)))
		for _, most := range []int64{mib, 4 * mib, 32 * mib} {
			var hs []Hash
			for _, r := range AlignedRanges(Range{0, size}, size, most) {
				hs = append(hs, TreeHash(src[r.Off:r.End()]))
			}
			if CombineTreeHashes(hs) != TreeHash(src[:size]) {
				t.Errorf("%d in pieces of %d do not combine", size, most)
			}
		}
	}
}

func TestHashText(t *testing.T) {
	h := TreeHash([]byte("x"))
	for _, s := range []string{h.String(), fmt.Sprintf("%X", h[:])} {
		if got, err := ParseHash(s); err != nil || got != h {
			t.Errorf("ParseHash(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"x", h.String()[1:], h.String() + "00", h.String()[:63] + "g"} {
		if _, err := ParseHash(s); err == nil {
			t.Errorf("ParseHash(%q) passes", s)
		}
	}
	var z Hash
	if b, err := z.MarshalText(); err != nil || len(b) != 0 {
		t.Errorf("zero: %q, %v", b, err)
	}
}
