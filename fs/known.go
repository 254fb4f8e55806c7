package fs

import (
	"sync"

	"github.com/casfs/casfs/jobs"
)

// known counts the kernel's references to inodes, and keeps what the kernel may
// still ask of those whose last name is gone. Nothing else is kept of what the kernel has looked up: a listing of a
// million files makes it know a million, and it may be weeks before it forgets them.
type known struct {
	shards [64]knownShard
}

type knownShard struct {
	mu      sync.Mutex
	refs    map[uint64]uint64
	removed map[uint64]*removed
	peak    int // of len(refs), since refs was made
}

// removed is what the kernel may still ask of an inode whose last name is gone. A local
// file system keeps an inode as long as anyone refers to it, if only a path look-up
// that found the name a moment before a rename replaced it; the catalog drops it at once.
type removed struct {
	attr    jobs.Attr // of anything but a regular file, Nlink 0
	target  string    // of a symlink
	release func()    // lets the engine drop a regular file; else nil
}

func (k *known) shard(ino uint64) *knownShard { return &k.shards[ino%uint64(len(k.shards))] }

// add counts one reference more: an answer that names the inode.
func (k *known) add(ino uint64) {
	s := k.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs == nil {
		s.refs = make(map[uint64]uint64)
	}
	s.refs[ino]++
	s.peak = max(s.peak, len(s.refs))
}

// forget takes n references back, and with the last one what was kept of the inode.
func (k *known) forget(ino, n uint64) {
	s := k.shard(ino)
	s.mu.Lock()
	var r *removed
	if have := s.refs[ino]; have > n {
		s.refs[ino] = have - n
	} else {
		delete(s.refs, ino)
		r = s.removed[ino]
		delete(s.removed, ino)
		if len(s.refs) == 0 && s.peak > 1000 {
			s.refs, s.peak = nil, 0 // a map keeps the room it once had
		}
	}
	s.mu.Unlock()
	if r != nil && r.release != nil {
		r.release()
	}
}

// has reports whether the kernel refers to the inode, and what is kept of it.
func (k *known) has(ino uint64) (bool, *removed) {
	s := k.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refs[ino] > 0, s.removed[ino]
}

// keep keeps r until the kernel forgets the inode, and reports whether it does:
// not when the kernel has forgotten it already, nor when something is kept of a regular file.
func (k *known) keep(ino uint64, r *removed) bool {
	s := k.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[ino] == 0 || r.release != nil && s.removed[ino] != nil {
		return false
	}
	if s.removed == nil {
		s.removed = make(map[uint64]*removed)
	}
	s.removed[ino] = r
	return true
}

// clear lets go of everything: after an unmount the kernel forgets nothing any more.
func (k *known) clear() {
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		gone := s.removed
		s.refs, s.removed, s.peak = nil, nil, 0
		s.mu.Unlock()
		for _, r := range gone {
			if r.release != nil {
				r.release()
			}
		}
	}
}
