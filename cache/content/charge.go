package content

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

// A chunk says which blocks of chunkSize bytes are charged.
const (
	chunkSize   = 8 << 20
	chunkBlocks = chunkSize / blockSize
)

type chunk [chunkBlocks / 64]uint64

// fullChunk stands for every chunk without a free block.
var fullChunk = func() *chunk {
	c := new(chunk)
	c.set(0, chunkBlocks)
	return c
}()

// blockMap remembers, while a file is open, which of its blocks are charged.
// A chunk is filled from what the file system has allocated when it is first
// needed. Allocation that SEEK_DATA does not show (preallocated blocks) may be
// charged twice; recount sets that right, at the latest when room gets short.
type blockMap struct {
	chunks map[int64]*chunk
	last   int64
	lastC  *chunk
}

func (m *blockMap) reset() { *m = blockMap{} }

// chunk returns the chunk with index i, never to be changed when it is fullChunk.
func (m *blockMap) chunk(fd int, i int64) *chunk {
	if m.lastC != nil && m.last == i {
		return m.lastC
	}
	c := m.chunks[i]
	if c == nil {
		c = seedChunk(fd, i*chunkSize)
		if m.chunks == nil {
			m.chunks = make(map[int64]*chunk)
		}
		m.chunks[i] = c
	}
	m.last, m.lastC = i, c
	return c
}

// seedChunk charges the blocks that hold data already.
func seedChunk(fd int, start int64) *chunk {
	c := new(chunk)
	end := start + chunkSize
	for at := start; at < end; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err != nil || data >= end {
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || hole > end {
			hole = end
		}
		if hole <= data {
			break
		}
		c.set(int(data-start)/blockSize, int(hole-start+blockSize-1)/blockSize)
		at = hole
	}
	if c.count(0, chunkBlocks) == chunkBlocks {
		return fullChunk
	}
	return c
}

// count returns how many of blocks [from, to) are charged.
func (c *chunk) count(from, to int) int {
	n := 0
	for w := from / 64; w*64 < to; w++ {
		n += bits.OnesCount64(c[w] & mask(w, from, to))
	}
	return n
}

func (c *chunk) set(from, to int) {
	for w := from / 64; w*64 < to; w++ {
		c[w] |= mask(w, from, to)
	}
}

// mask selects blocks [from, to) in word w.
func mask(w, from, to int) uint64 {
	m := ^uint64(0)
	if lo := from - w*64; lo > 0 {
		m <<= lo
	}
	if hi := to - w*64; hi < 64 {
		m &= 1<<hi - 1
	}
	return m
}

// each calls fn for every chunk that [off, off+n) touches, with the blocks in it.
func (m *blockMap) each(fd int, off, n int64, fn func(i int64, c *chunk, from, to int)) {
	end := (off + n + blockSize - 1) / blockSize
	for b := off / blockSize; b < end; {
		i := b / (chunkBlocks)
		next := min(end, (i+1)*chunkBlocks)
		fn(i, m.chunk(fd, i), int(b-i*chunkBlocks), int(next-i*chunkBlocks))
		b = next
	}
}

// missing returns how many bytes of [off, off+n) are not charged.
func (m *blockMap) missing(fd int, off, n int64) int64 {
	if n <= 0 {
		return 0
	}
	var blocks int64
	m.each(fd, off, n, func(_ int64, c *chunk, from, to int) {
		if c != fullChunk {
			blocks += int64(to - from - c.count(from, to))
		}
	})
	return blocks * blockSize
}

// mark notes [off, off+n) as charged.
func (m *blockMap) mark(fd int, off, n int64) {
	if n <= 0 {
		return
	}
	m.each(fd, off, n, func(i int64, c *chunk, from, to int) {
		if c == fullChunk {
			return
		}
		c.set(from, to)
		if c.count(0, chunkBlocks) == chunkBlocks {
			m.chunks[i] = fullChunk
			m.lastC = nil
		}
	})
}

// maxChunks bounds what a file's map may take in memory (some 5 MB, for 128 GiB written in one opening);
// beyond it the map starts again from what is allocated.
const maxChunks = 16 << 10

// settle is recountLocked with the lock.
func (o *open) settle() error {
	o.io.Lock()
	defer o.io.Unlock()
	return o.recountLocked()
}

// recountLocked replaces the file's charge by what is allocated. The io lock is
// held for writing, so nothing is charged that is not written or refused yet.
func (o *open) recountLocked() error {
	o.recount.Store(false)
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return err
	}
	o.mu.Lock()
	o.charges.reset()
	o.mu.Unlock()
	s, n := o.s, o.n
	s.mu.Lock()
	defer s.mu.Unlock()
	n.size, n.mtime = st.Size, st.Mtim.Nano()
	s.settleLocked(n, st.Blocks*512)
	return nil
}

// settleLocked makes bytes the file's charge.
func (s *Store) settleLocked(n *node, bytes int64) {
	switch d := bytes - n.total(); {
	case d < 0:
		s.unchargeLocked(n, -d)
		s.roomLocked()
	case d > 0:
		s.raiseLocked(n, d)
	}
}

func (s *Store) raiseLocked(n *node, d int64) {
	acct := acctStaging
	if n.kind == Content {
		acct = acctCache
	}
	n.charged[acct] += d
	s.used[acct] += d
}

// account charges what was allocated without going through WriteAt: stores through a
// shared mapping, passthrough. It never lowers the charge, since writes may be under way.
func (o *open) account() error {
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return err
	}
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if d := st.Blocks*512 - o.n.total(); d > 0 {
		o.s.raiseLocked(o.n, d)
		o.recount.Store(true)
	}
	return nil
}
