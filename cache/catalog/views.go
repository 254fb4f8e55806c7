package catalog

import "sync"

// views hands out points in time to read at. Badger's own bookkeeping would
// make readers wait for the commit in progress, so the sequence number of the
// last record applied is the timestamp, and badger may forget only what no View can see.
type views struct {
	mu     sync.Mutex
	idle   sync.Cond
	at     uint64
	active map[uint64]int
	n      int
	closed bool
}

func (v *views) begin() (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return 0, ErrClosed
	}
	v.active[v.at]++
	v.n++
	return v.at, nil
}

func (v *views) end(ts uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.active[ts]--; v.active[ts] == 0 {
		delete(v.active, ts)
	}
	if v.n--; v.n == 0 && v.closed {
		v.idle.Broadcast()
	}
}

// publish lets Views begin at ts and returns the oldest one still read at.
func (v *views) publish(ts uint64) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at = ts
	for t := range v.active {
		ts = min(ts, t)
	}
	return ts
}

func (v *views) published() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

// close lets no View begin and waits for those that have.
func (v *views) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for v.n > 0 {
		v.idle.Wait()
	}
}
