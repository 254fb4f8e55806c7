package content

import (
	"testing"
)

// TestLimitHoldsWithTheFileSystemsOwnBlocks: a file fetched in many places has blocks of the file system's own (the
// index of its extents), which are seen only when it is counted anew. The cache keeps its limit all the same.
func TestLimitHoldsWithTheFileSystemsOwnBlocks(t *testing.T) {
	const limit = 16 * mib
	s := openStore(t, Options{StateDir: t.TempDir(), CacheLimit: limit}) // on a disk: memory has no such blocks
	f, err := s.CreateContent(1, 64*mib)
	must(t, err)
	defer f.Close()
	filled := 0
	for off := int64(0); off < 64*mib; off += 2 * mib { // every other MiB
		release, err := s.ReserveContent(bg, mib)
		if err != nil {
			wantErr(t, err, ErrNoSpace)
			break
		}
		must(t, f.WriteVerified(make([]byte, mib), off))
		release()
		filled++
	}
	if filled < 15 {
		t.Errorf("only %d MiB of %d could be filled", filled, limit/mib)
	}
	must(t, f.Drop(63*mib, mib)) // nothing, but it counts
	t.Logf("%d MiB filled, %d bytes counted", filled, s.Usage().CacheBytes)
	if got := s.Usage().CacheBytes; got > limit {
		t.Errorf("%d bytes in a cache of %d", got, limit)
	}
}
