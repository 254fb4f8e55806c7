package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// waiter is one system call waiting for bytes.
type waiter struct {
	c     Caller
	comm  string
	key   verKey
	since time.Time
	rts   []*retrieval
}

// admit is the open-time policy for a file whose bytes are not all local:
// nil when reads may recall, else ErrDenied, ErrGuard, or ErrAgain after
// queueing (mode queue). Called without f.mu.
//
// What is local of a partial file (its stubs, say) may be read by everyone: there the policy waits
// for the read that would recall.
func (r *recaller) admit(c Caller, f *file) error {
	f.mu.Lock()
	v := f.ver
	partial := f.local != nil && len(f.local.VerifiedRanges()) > 0
	whole := f.local != nil && f.local.Verified(0, v.Size)
	f.mu.Unlock()
	if v.V == 0 || v.State != catalog.Archived || v.Size == 0 || whole {
		return nil
	}
	r.mu.Lock()
	stopped := r.stopped
	underWay := len(r.byKey[verKey{v.Ino, v.V}]) > 0
	r.mu.Unlock()
	if stopped {
		return ErrClosing
	}
	if err := r.denied(c, v); err != nil {
		if partial {
			return nil
		}
		return err
	}
	if r.o.mode == RecallQueue {
		if err := r.queue(c, f, "", false); err != nil {
			return err
		}
		return ErrAgain
	}
	if underWay || partial || v.Damaged {
		return nil
	}
	return r.guarded(c, v)
}

// guarded is the guard's word on a version some of which is wanted, before anything is made for it: nothing when it is on its way.
func (r *recaller) guarded(c Caller, v catalog.Version) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byKey[verKey{v.Ino, v.V}]) > 0 {
		return nil
	}
	err := r.checkGuardLocked(1, 0, time.Now())
	if err != nil {
		r.refusedLocked(c, v, err)
	}
	return err
}

// denied is the policy that does not depend on what runs already.
func (r *recaller) denied(c Caller, v catalog.Version) error {
	var err error
	if r.o.mode == RecallDeny {
		err = fmt.Errorf("%w: the mount does not recall (--recall=deny)", ErrDenied)
	} else if comm, pattern := deniedComm(r.o.denyComm, c.PID); pattern != "" {
		err = fmt.Errorf("%w: programs named %s may not recall (--recall-deny-comm %s)", ErrDenied, comm, pattern)
	}
	if err != nil {
		r.refused(c, v, err)
	}
	return err
}

// ensure blocks until [off, off+n) of f's current version is local and verified (joining
// what is under way), or ctx ends. It asks for what reading strategy says: whole archive
// for contiguous reads, a window for isolated ones. Called without f.mu. The caller
// must check f.local.Verified again under f.mu, since eviction may come between.
//
// s, when there is one, tells how the caller reads: what it will want next is asked for before it waits.
func (r *recaller) ensure(ctx context.Context, c Caller, f *file, s *sequence, off, n int64) error {
	var w *waiter
	var timeout <-chan time.Time
	ahead := false
	defer func() {
		if w != nil {
			r.leave(w)
		}
	}()
	for {
		if w != nil {
			r.unlink(w)
		}
		var since time.Time
		if w != nil {
			since = w.since
		}
		rts, first, err := r.join(c, f, off, n, since)
		if err != nil || first == nil {
			return err
		}
		if w == nil {
			w = &waiter{c: c, comm: commOf(c.PID), key: first.key, since: time.Now()}
			ahead = s != nil
			t := time.NewTimer(r.o.wait)
			defer t.Stop()
			timeout = t.C
		}
		changed := r.attach(w, f, first, rts)
		if changed == nil {
			continue // ended, or got on, in between
		}
		if ahead {
			ahead = false
			r.readAhead(c, f, s)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.stop:
			return ErrClosing
		case <-timeout:
			return fmt.Errorf("%w (%s)", ErrTimedOut, r.o.wait)
		}
	}
}

// need is what a reader misses of one retrieval.
type need struct {
	rt  *retrieval
	rng cas.Range // of the archive
}

// join finds or makes the retrievals that bring [off, off+n) of f's version.
// first is nil when everything is there. A failure older than since, when that is set, or than its cool-down
// does not count.
func (r *recaller) join(c Caller, f *file, off, n int64, since time.Time) (needs []need, first *retrieval, err error) {
	f.mu.Lock()
	v, ok := missing(f, off, n)
	f.mu.Unlock()
	if !ok {
		return nil, nil, nil
	}
	if err := r.denied(c, v); err != nil {
		return nil, nil, err
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok = missing(f, off, n); !ok {
		return nil, nil, nil
	}
	if r.barred(v) {
		return nil, nil, errDamaged(v)
	}
	n = min(n, v.Size-off)
	if room := r.roomFor(f.ino); n > room {
		return nil, nil, fmt.Errorf("%w: %d bytes are needed at once, the cache takes %d", content.ErrNoSpace, n, room)
	}
	if err := r.guarded(c, v); err != nil {
		return nil, nil, err
	}
	local, err := f.ensureContentLocked()
	if err != nil {
		return nil, nil, err
	}
	spans, err := r.spans(v, local, off, n, askRead)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil, nil, ErrClosing
	}
	return r.joinLocked(c, v, local, spans, since)
}

// missing reports whether f's version lacks any of [off, off+n).
func missing(f *file, off, n int64) (catalog.Version, bool) {
	v := f.ver
	if v.V == 0 || v.State != catalog.Archived || off >= v.Size || n <= 0 {
		return v, false
	}
	n = min(n, v.Size-off)
	return v, f.local == nil || !f.local.Verified(off, n)
}

// attach makes w wait for rts and returns the channel that is closed when first
// gets on; nil when first has ended, or what is needed of it has come already: its news are told under r.mu, after that.
func (r *recaller) attach(w *waiter, f *file, first *retrieval, needs []need) <-chan struct{} {
	f.mu.Lock()
	local := f.local
	f.mu.Unlock()
	off, n := first.toFile(needs[0].rng)
	r.mu.Lock()
	defer r.mu.Unlock()
	if first.gone || local != nil && local.Verified(off, n) {
		return nil
	}
	r.waiters[w] = struct{}{}
	for _, k := range needs {
		if k.rt.gone {
			continue
		}
		k.rt.demand[w] = k.rng
		k.rt.reader = k.rng.Off
		r.recountLocked(k.rt)
		if k.rt.rec.Ahead {
			k.rt.rec.Ahead, k.rt.saved = false, false
			r.kickLocked(k.rt.rec.VaultName)
		}
		w.rts = append(w.rts, k.rt)
	}
	r.wakeFetchersLocked()
	return first.changed
}

// unlink takes w's needs off the retrievals; it is still a waiter.
func (r *recaller) unlink(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range w.rts {
		delete(rt.demand, w)
		rt.left = time.Now()
		if rt.streaming && len(rt.demand) == 0 && !rt.gone {
			r.wakeLaterLocked(rt.rec.VaultName) // it ends when nobody comes back
		}
	}
	w.rts = w.rts[:0]
}

func (r *recaller) leave(w *waiter) {
	r.unlink(w)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiters, w)
}
