package cas

import (
	"context"
	"io"
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
// value is ready. It is not safe for concurrent use.
type TreeHasher struct{ impl treeHasher }

type treeHasher struct{}

// Write adds bytes; it never fails.
func (t *TreeHasher) Write(p []byte) (int, error) { panic("unimplemented") }

// Sum returns both hashes of everything written so far. With nothing written
// Tree is the zero Hash.
func (t *TreeHasher) Sum() PartHash { panic("unimplemented") }

// Size returns the number of bytes written.
func (t *TreeHasher) Size() int64 { panic("unimplemented") }

// Leaves returns the leaf hashes of everything written so far (one per started MiB).
func (t *TreeHasher) Leaves() []Hash { panic("unimplemented") }

// Reset makes t ready for another stream.
func (t *TreeHasher) Reset() { panic("unimplemented") }

// HashPart returns both hashes of b.
func HashPart(b []byte) PartHash { panic("unimplemented") }

// TreeHash returns the tree hash of b alone.
func TreeHash(b []byte) Hash { panic("unimplemented") }

// CombineTreeHashes pairs the nodes of one level up to the root: leaves to the
// tree hash of the whole, or the tree hashes of equal power-of-two-MiB parts
// in offset order (the last may be shorter) to the archive's.
func CombineTreeHashes(nodes []Hash) Hash { panic("unimplemented") }

// TreeHashReaderAt hashes size bytes of r on workers goroutines (0: GOMAXPROCS)
// and returns the tree hash. It blocks until done or ctx ends (returning its
// cause). A short r is io.ErrUnexpectedEOF.
func TreeHashReaderAt(ctx context.Context, r io.ReaderAt, size int64, workers int) (Hash, error) {
	panic("unimplemented")
}

// PartSizeFor returns the smallest power-of-two part size not below preferred
// (0: DefaultPart) with which size bytes need at most MaxParts parts. A size out of the
// service's limits is an error matching ErrTooLarge or ErrEmpty.
func PartSizeFor(size, preferred int64) (int64, error) { panic("unimplemented") }

// Range is a half-open byte range.
type Range struct{ Off, Len int64 }

// End returns Off+Len.
func (r Range) End() int64 { return r.Off + r.Len }

// String returns the service's inclusive form, "first-last".
func (r Range) String() string { panic("unimplemented") }

// ParseRange reads "first-last", both inclusive. "first-" is allowed when size
// is positive and then reaches to the end of size bytes.
func ParseRange(s string, size int64) (Range, error) { panic("unimplemented") }

// TreeAligned reports whether r of an archive of size bytes is one node of its
// tree (cas-api.md §4), so that the service tells the range's tree hash.
func TreeAligned(r Range, size int64) bool { panic("unimplemented") }

// MiBAligned reports whether r may be asked for in a retrieval: it begins at a
// multiple of 1 MiB and ends at one or at size.
func MiBAligned(r Range, size int64) bool { panic("unimplemented") }

// AlignedRanges cuts r, which must be MiBAligned, into consecutive tree-aligned
// ranges of at most max bytes (a power of two MiB). When r is a proper
// sub-range of the archive, the pieces are aligned to the archive's tree.
func AlignedRanges(r Range, size, max int64) []Range { panic("unimplemented") }
