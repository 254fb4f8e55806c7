package journal

import "context"

// round is one fsync and those who wait for it.
type round struct {
	done   chan struct{}
	target uint64 // what it covers; known once it runs
	err    error
}

// Barrier blocks until everything up to seq is on stable storage; one fsync
// serves all who wait. ctx ends the waiting, not the fsync. After a failed fsync every later Barrier and Append fails (the page cache cannot be trusted).
func (j *Journal) Barrier(ctx context.Context, seq uint64) error {
	r, err := j.join(seq)
	if r == nil {
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *Journal) barrier(seq uint64) error {
	r, err := j.join(seq)
	if r == nil {
		return err
	}
	<-r.done
	return r.err
}

// join returns the round that will cover seq, nil when nothing is left to wait for.
func (j *Journal) join(seq uint64) (*round, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	seq = min(seq, j.last)
	if seq <= j.durable {
		return nil, j.failed
	}
	if err := j.usableLocked(); err != nil {
		return nil, err
	}
	switch {
	case j.running == nil:
		j.running = &round{done: make(chan struct{})}
		r := j.running
		j.startLocked()
		return r, nil
	case seq <= j.running.target:
		return j.running, nil
	case j.queued == nil:
		j.queued = &round{done: make(chan struct{})}
	}
	return j.queued, nil
}

// startLocked begins the fsync of j.running. It covers whatever has been
// appended by now: earlier segments were synced when they were full or opened,
// so there is a current one if anything is left to sync.
func (j *Journal) startLocked() {
	r, s := j.running, j.cur
	r.target = j.last
	s.refs++ // a rotation meanwhile must not close the file
	go func() {
		err := j.fsync(s.f)
		j.mu.Lock()
		defer j.mu.Unlock()
		s.release()
		if err != nil {
			r.err = j.failLocked(err)
		} else {
			j.durable = max(j.durable, r.target)
		}
		close(r.done)
		j.running, j.queued = j.queued, nil
		if q := j.running; q != nil {
			if j.failed != nil {
				q.err = j.failed
				close(q.done)
				j.running = nil
				return
			}
			if j.cur == nil {
				// The segment was full, and synced, and no other could be begun: nothing is left to sync.
				close(q.done)
				j.running = nil
				return
			}
			j.startLocked()
		}
	}()
}
