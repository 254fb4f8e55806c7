package catalog

import "sync"

// turns decides whose turn it is to commit. Whoever comes when nobody is
// committing does so himself, which spares two changes of goroutine; those who
// come meanwhile wait for the committer, which merges them. Only one of all these
// commits at a time: badger, the journal and the fields of the committer are his.
type turns struct {
	mu      sync.Mutex
	idle    sync.Cond // busy became false
	busy    bool
	closed  bool
	waiting []*request
	wake    chan struct{} // of one: the turn goes to the committer
}

// take returns true when it is the caller's turn, and otherwise queues his request.
func (t *turns) take(r *request) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false, ErrClosed
	}
	if !t.busy {
		t.busy = true
		return true, nil
	}
	r.done = make(chan struct{})
	t.waiting = append(t.waiting, r)
	return false, nil
}

// pass ends a turn: it is the committer's if somebody waits.
func (t *turns) pass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) > 0 {
		t.wake <- struct{}{}
		return
	}
	t.busy = false
	t.idle.Broadcast()
}

// next takes the request that waits longest, nil for none.
func (t *turns) next() *request {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return nil
	}
	r := t.waiting[0]
	t.waiting[0] = nil
	t.waiting = t.waiting[1:]
	return r
}

// close lets nobody begin and waits until all who have are served; false if that was done before.
func (t *turns) close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.closed = true
	for t.busy {
		t.idle.Wait()
	}
	close(t.wake)
	return true
}
