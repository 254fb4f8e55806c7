package jobs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Part buffers live outside of Go's heap: they are most of what an upload needs, and the
// collector lets the heap grow to twice what is in use. Their addresses are never
// unmapped, only their pages are given back, since a request that was given up
// may still be reading its body.
var partMemory struct {
	mu   sync.Mutex
	free map[int64][][]byte // by size; without pages
	used int64              // bytes given out
}

// takePartMemory returns size bytes of any content.
func takePartMemory(size int64) []byte {
	m := &partMemory
	m.mu.Lock()
	m.used += size
	if l := m.free[size]; len(l) > 0 {
		b := l[len(l)-1]
		m.free[size] = l[:len(l)-1]
		m.mu.Unlock()
		return b
	}
	m.mu.Unlock()
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, size) // a limit on address space: the heap may still have room
	}
	return b
}

// givePartMemory gives the pages of what takePartMemory returned back to the kernel.
func givePartMemory(bufs [][]byte) {
	m := &partMemory
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range bufs {
		m.used -= int64(len(b))
		if unix.Madvise(b, unix.MADV_DONTNEED) != nil {
			continue
		}
		if m.free == nil {
			m.free = make(map[int64][][]byte)
		}
		m.free[int64(len(b))] = append(m.free[int64(len(b))], b)
	}
}
