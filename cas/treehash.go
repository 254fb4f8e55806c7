package cas

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/bits"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Sizes of the service (cas-api.md §4, §6, §9).
const (
	ChunkSize      = 1 << 20           // bytes under one leaf of the tree hash
	MinPartSize    = 1 << 20           // smallest part the service takes
	MaxPartSize    = 4 << 30           // largest part
	MaxParts       = 10000             // parts of one multipart upload
	MaxArchiveSize = 10000 * (4 << 30) // bytes of one archive
	DefaultPart    = 16 << 20          // part size the client prefers
	MaxDescription = 1024              // bytes of an archive description
)

// TreeHasher computes linear and tree hash of a stream in one pass. The zero
// value is ready. It is not safe for concurrent use, and it keeps one leaf, 32
// bytes, per MiB written.
type TreeHasher struct {
	linear linearHash
	chunk  hash.Hash // the unfinished chunk, but the first
	fill   int       // bytes of the unfinished chunk, below ChunkSize
	size   int64
	leaves []Hash // of the finished chunks
}

// Write adds bytes; it never fails.
func (t *TreeHasher) Write(p []byte) (int, error) {
	if t.linear == nil {
		t.linear, t.chunk = newLinear(), sha256.New()
	}
	n := len(p)
	t.size += int64(n)
	for len(p) > 0 {
		b := p[:min(len(p), ChunkSize-t.fill)]
		p = p[len(b):]
		first := len(t.leaves) == 0
		if len(b) == ChunkSize && twoAtOnce && !first {
			t.leaves = append(t.leaves, hashTwo(t.linear, b))
			continue
		}
		// Both hashes of a chunk are taken while it is in the processor's cache.
		t.linear.Write(b)
		if len(b) == ChunkSize && !first {
			t.leaves = append(t.leaves, sha256.Sum256(b))
			continue
		}
		if !first {
			t.chunk.Write(b)
		}
		if t.fill += len(b); t.fill == ChunkSize {
			t.leaves = append(t.leaves, t.partial())
			t.chunk.Reset()
			t.fill = 0
		}
	}
	return n, nil
}

// partial returns the leaf of the chunk that is being filled. That of the first one is the linear hash.
func (t *TreeHasher) partial() (h Hash) {
	if len(t.leaves) == 0 {
		t.linear.Sum(h[:0])
	} else {
		t.chunk.Sum(h[:0])
	}
	return h
}

// Sum returns both hashes of everything written so far. With nothing written
// Tree is the zero Hash.
func (t *TreeHasher) Sum() PartHash {
	var h PartHash
	if t.linear == nil {
		h.Linear = sha256.Sum256(nil)
		return h
	}
	t.linear.Sum(h.Linear[:0])
	h.Tree = combine(t.Leaves())
	return h
}

// Size returns the number of bytes written.
func (t *TreeHasher) Size() int64 { return t.size }

// Leaves returns the leaf hashes of everything written so far (one per started
// MiB), in a slice of its own.
func (t *TreeHasher) Leaves() []Hash {
	l := make([]Hash, len(t.leaves), len(t.leaves)+1)
	copy(l, t.leaves)
	if t.fill > 0 {
		l = append(l, t.partial())
	}
	return l
}

// Reset makes t ready for another stream.
func (t *TreeHasher) Reset() {
	if t.linear != nil {
		t.linear.Reset()
		t.chunk.Reset()
	}
	t.fill, t.size, t.leaves = 0, 0, t.leaves[:0]
}

// HashPart returns both hashes of b. Where one goroutine cannot take them at once it uses two, from a few MiB on.
func HashPart(b []byte) PartHash {
	if twoAtOnce || len(b) < 4*ChunkSize || runtime.GOMAXPROCS(0) == 1 {
		var t TreeHasher
		t.Write(b)
		return t.Sum()
	}
	linear := make(chan Hash, 1)
	go func() { linear <- sha256.Sum256(b) }()
	tree := TreeHash(b)
	return PartHash{Linear: <-linear, Tree: tree}
}

// TreeHash returns the tree hash of b alone; of nothing it is the zero Hash.
func TreeHash(b []byte) Hash {
	nodes := make([]Hash, 0, (len(b)+ChunkSize-1)/ChunkSize)
	for len(b) > 0 {
		n := min(len(b), ChunkSize)
		nodes = append(nodes, sha256.Sum256(b[:n]))
		b = b[n:]
	}
	return combine(nodes)
}

// CombineTreeHashes pairs the nodes of one level up to the root: leaves to the
// tree hash of the whole, or the tree hashes of equal power-of-two-MiB parts
// in offset order (the last may be shorter) to the archive's. It leaves nodes
// as they are; no nodes give the zero Hash.
func CombineTreeHashes(nodes []Hash) Hash {
	return combine(append([]Hash(nil), nodes...))
}

// combine overwrites nodes.
func combine(nodes []Hash) Hash {
	if len(nodes) == 0 {
		return Hash{}
	}
	var pair [2 * sha256.Size]byte
	for len(nodes) > 1 {
		up := nodes[:0]
		for i := 0; i < len(nodes); i += 2 {
			if i+1 == len(nodes) {
				up = append(up, nodes[i]) // an odd last node rises unchanged
				break
			}
			copy(pair[:sha256.Size], nodes[i][:])
			copy(pair[sha256.Size:], nodes[i+1][:])
			up = append(up, sha256.Sum256(pair[:]))
		}
		nodes = up
	}
	return nodes[0]
}

// maxNodes bounds the memory of TreeHashReaderAt, not its parallelism.
const maxNodes = 1 << 16

// TreeHashReaderAt hashes size bytes of r on workers goroutines (0: GOMAXPROCS)
// and returns the tree hash. It blocks until done or ctx ends (returning its
// cause). A short r is io.ErrUnexpectedEOF. It holds 1 MiB per worker.
func TreeHashReaderAt(ctx context.Context, r io.ReaderAt, size int64, workers int) (Hash, error) {
	if size < 0 {
		return Hash{}, fmt.Errorf("cas: tree hash of %d bytes: %w", size, ErrInvalid)
	}
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	unit := int64(ChunkSize) // a power of two MiB, so that the units' hashes are nodes of the tree
	for (size+unit-1)/unit > maxNodes {
		unit *= 2
	}
	nodes := make([]Hash, (size+unit-1)/unit)
	var next atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	for range min(workers, len(nodes)) {
		g.Go(func() error {
			buf := make([]byte, min(ChunkSize, size))
			leaves := make([]Hash, 0, unit/ChunkSize)
			for {
				i := next.Add(1) - 1
				if i >= int64(len(nodes)) {
					return nil
				}
				leaves = leaves[:0]
				for off, end := i*unit, min((i+1)*unit, size); off < end; off += ChunkSize {
					if gctx.Err() != nil {
						return context.Cause(gctx)
					}
					b := buf[:min(ChunkSize, end-off)]
					if err := readFullAt(r, b, off); err != nil {
						return err
					}
					leaves = append(leaves, sha256.Sum256(b))
				}
				nodes[i] = combine(leaves)
			}
		})
	}
	if err := g.Wait(); err != nil {
		return Hash{}, err
	}
	return combine(nodes), nil
}

// readFullAt fills b from off; the end of r before that is io.ErrUnexpectedEOF.
func readFullAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// PartSizeFor returns the smallest power-of-two part size not below preferred
// (0: DefaultPart) with which size bytes need at most MaxParts parts. A size out of the
// service's limits is an error matching ErrTooLarge or ErrEmpty.
func PartSizeFor(size, preferred int64) (int64, error) {
	if err := checkSize(size); err != nil {
		return 0, err
	}
	want := min(max(cmp.Or(preferred, DefaultPart), MinPartSize), MaxPartSize)
	part := int64(MinPartSize)
	for part < want || (size+part-1)/part > MaxParts {
		part *= 2 // ends at MaxPartSize at the latest: size is at most MaxArchiveSize
	}
	return part, nil
}

func checkSize(size int64) error {
	switch {
	case size <= 0:
		return fmt.Errorf("cas: %d bytes: %w", size, ErrEmpty)
	case size > MaxArchiveSize:
		return fmt.Errorf("cas: %d bytes, at most %d are possible: %w", size, int64(MaxArchiveSize), ErrTooLarge)
	}
	return nil
}

// Range is a half-open byte range.
type Range struct{ Off, Len int64 }

// End returns Off+Len.
func (r Range) End() int64 { return r.Off + r.Len }

// String returns the service's inclusive form, "first-last"; an empty range is "".
func (r Range) String() string {
	if r.Len <= 0 {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.Off, r.End()-1)
}

// ParseRange reads "first-last", both inclusive. "first-" is allowed when size
// is positive and then reaches to the end of size bytes. A range beyond a
// positive size, or one that is not well formed, is an error matching ErrInvalid.
func ParseRange(s string, size int64) (Range, error) {
	bad := func(why string) (Range, error) {
		return Range{}, fmt.Errorf("cas: range %q: %s: %w", s, why, ErrInvalid)
	}
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return bad("not of the form first-last")
	}
	first, err := parseOffset(a)
	if err != nil {
		return bad("bad first byte")
	}
	last := size - 1
	if b != "" {
		if last, err = parseOffset(b); err != nil {
			return bad("bad last byte")
		}
	} else if size <= 0 {
		return bad("last byte missing")
	}
	switch {
	case last < first:
		return bad("ends before it begins")
	case last == math.MaxInt64:
		return bad("too large")
	case size > 0 && last >= size:
		return bad(fmt.Sprintf("beyond the %d bytes there are", size))
	}
	return Range{first, last - first + 1}, nil
}

// parseOffset takes digits only: no sign, no blanks.
func parseOffset(s string) (int64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

func (r Range) within(size int64) bool {
	return r.Off >= 0 && r.Len > 0 && r.Off < size && r.Len <= size-r.Off
}

// TreeAligned reports whether r of an archive of size bytes is one node of its
// tree (cas-api.md §4), so that the service tells the range's tree hash.
func TreeAligned(r Range, size int64) bool {
	if !MiBAligned(r, size) {
		return false
	}
	p, q, n := r.Off/ChunkSize, chunks(r.End()), chunks(size)
	for k := int64(1); p%k == 0; k *= 2 {
		if end := min(p+k, n); end >= q {
			return end == q
		}
	}
	return false
}

func chunks(size int64) int64 { return size/ChunkSize + min(1, size%ChunkSize) }

// MiBAligned reports whether r may be asked for in a retrieval: it begins at a
// multiple of 1 MiB and ends at one or at size.
func MiBAligned(r Range, size int64) bool {
	return r.within(size) && r.Off%ChunkSize == 0 && (r.End()%ChunkSize == 0 || r.End() == size)
}

// AlignedRanges cuts r, which must be MiBAligned (else nil), into consecutive tree-aligned
// ranges of at most max bytes (a power of two MiB, else the next below; at least 1 MiB). When r is a proper
// sub-range of the archive, the pieces are aligned to the archive's tree.
func AlignedRanges(r Range, size, max int64) []Range {
	if !MiBAligned(r, size) {
		return nil
	}
	most := int64(1)
	if max >= 2*ChunkSize {
		most = 1 << (bits.Len64(uint64(max/ChunkSize)) - 1)
	}
	p, q, n := r.Off/ChunkSize, chunks(r.End()), chunks(size)
	out := make([]Range, 0, (q-p)/most+2)
	for p < q {
		k := most
		for p%k != 0 || min(p+k, n) > q {
			k /= 2
		}
		end := min(p+k, n)
		from := p * ChunkSize
		out = append(out, Range{from, min(end*ChunkSize, size) - from})
		p = end
	}
	return out
}
