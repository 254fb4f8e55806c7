package fs

import "sync"

// table gives open handles the numbers the kernel knows them by. A number is
// used once, so that no request can meet another's handle.
type table[H any] struct {
	mu   sync.RWMutex
	last uint64
	open map[uint64]H
}

func (t *table[H]) add(h H) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = make(map[uint64]H)
	}
	t.last++
	t.open[t.last] = h
	return t.last
}

// get returns the zero H for a number that is not open.
func (t *table[H]) get(n uint64) H {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.open[n]
}

func (t *table[H]) take(n uint64) H {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[n]
	delete(t.open, n)
	return h
}

func (t *table[H]) takeAll() (all []H) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.open {
		all = append(all, h)
	}
	clear(t.open)
	return all
}
