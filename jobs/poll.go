package jobs

import (
	"cmp"
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
)

// outputLife is how long the service keeps a job's output.
const outputLife = 24 * time.Hour

// gather is how long windows wait for neighbours before they are asked for.
const gather = 20 * time.Millisecond

// vaultLoop asks for and polls the jobs of one vault, one List Jobs for all of them.
type vaultLoop struct {
	r       *recaller
	name    string
	wake    chan struct{} // of size 1: look now
	again   chan struct{} // of size 1: think again about when
	running bool

	tries  int           // lists that failed in a row
	listed time.Duration // how long the last list took
	known  knownJobs
}

// wakeLaterLocked makes the vault's loop think again about when it looks next.
func (r *recaller) wakeLaterLocked(vault string) {
	v := r.vaults[vault]
	if v == nil || !v.running {
		r.kickLocked(vault)
		return
	}
	select {
	case v.again <- struct{}{}:
	default:
	}
}

// kickLocked makes the vault's loop look at its retrievals now.
func (r *recaller) kickLocked(vault string) {
	v := r.vaults[vault]
	if v == nil {
		v = &vaultLoop{r: r, name: vault, wake: make(chan struct{}, 1), again: make(chan struct{}, 1)}
		r.vaults[vault] = v
	}
	select {
	case v.wake <- struct{}{}:
	default:
	}
	if r.running && !v.running {
		v.running = true
		ctx := r.ctx
		r.wg.Go(func() { v.run(ctx) })
	}
}

func (v *vaultLoop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	timer.Stop()
	for {
		var next time.Time
		select {
		case <-ctx.Done():
			return
		case <-v.wake:
			next = v.pass(ctx)
		case <-timer.C:
			next = v.pass(ctx)
		case <-v.again:
			next = v.next()
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), 0))
		}
	}
}

// pass does what is due and returns when the next pass is, zero for when kicked.
func (v *vaultLoop) pass(ctx context.Context) time.Time {
	r := v.r
	if !v.record(ctx) {
		return time.Now().Add(r.o.pollMax)
	}

	began := time.Now()
	v.expire(began)
	list, all, ask := v.due(began)
	if list {
		if err := v.look(ctx, began, all); err != nil {
			if ctx.Err() != nil {
				return time.Time{}
			}
			v.tries++
			r.log.Warn("the vault's jobs cannot be listed", "vault", v.name, "error", err)
			r.mu.Lock()
			for rt := range r.byVault[v.name] {
				if rt.rec.State == catalog.Wanted {
					rt.rec.Error = err.Error()
				}
			}
			r.mu.Unlock()
			return time.Now().Add(min(r.o.pollMax, r.o.pollMin<<min(v.tries, 20)))
		}
		v.tries = 0
		v.listed = time.Since(began)
	}
	if ask && v.ask(ctx, began) {
		return time.Now() // a store without delays has them ready already
	}
	return v.next()
}

// due says what a pass is for: to read the list of jobs, or all of it, because there may be a job
// in it that can be used; and to ask for what is wanted.
func (v *vaultLoop) due(now time.Time) (list, all, ask bool) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if inv := r.inventoryOfLocked(v.name); inv != nil && inv.polled {
		list, all = !v.inventoryNext(inv).After(now), inv.job == ""
	}
	for rt := range r.byVault[v.name] {
		rt.candidate = nil
		switch {
		case rt.finishing:
		case rt.rec.State == catalog.Asked:
			list = list || !v.nextLocked(rt).After(now)
		case rt.rec.State == catalog.Wanted && !rt.notBefore.After(now):
			if rt.held && r.heldLocked(rt, now) {
				continue
			}
			ask = true
			switch {
			case rt.listed:
			case !rt.rec.Uncertain && v.known.without(rt.arc.ID, now):
				rt.listed = true
			default:
				all = true
			}
		}
	}
	list = list || all
	return list, all || list && v.known.jobs <= fewJobs, ask
}

// record makes new retrievals durable before anything is asked for, merging windows that touch.
// It reports whether the rest of the pass makes sense.
func (v *vaultLoop) record(ctx context.Context) bool {
	r := v.r
	unsaved := func() (rts []*retrieval, windows bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for rt := range r.byVault[v.name] {
			if !rt.saved {
				rts = append(rts, rt)
				windows = windows || rt.window && rt.rec.State == catalog.Wanted
			}
		}
		slices.SortFunc(rts, func(a, b *retrieval) int { return cmp.Compare(a.order, b.order) }) // so are their records, then
		return rts, windows
	}
	rts, windows := unsaved()
	if windows {
		t := time.NewTimer(gather)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
		r.mu.Lock()
		r.mergeLocked(v.name)
		r.mu.Unlock()
		rts, _ = unsaved()
	}
	var seq uint64
	for len(rts) > 0 {
		n := min(len(rts), 500)
		s, err := r.save(rts[:n]...)
		if err != nil {
			// Nothing is asked for that is not recorded: those who wait are told.
			r.log.Error("recalls cannot be recorded", "vault", v.name, "error", err)
			r.mu.Lock()
			for _, rt := range rts {
				if rt.rec.Ahead && !rt.gone {
					r.dropAheadLocked(rt, err)
				}
				if rt.rec.ID == 0 && !rt.gone {
					r.failed[rt.arc.Num] = givenUp{rec: catalog.Retrieval{Off: rt.rec.Off, Len: rt.rec.Len}, err: err, at: time.Now()}
					r.waves.failedLocked(rt, err)
					r.cancelLocked(rt)
				}
			}
			r.mu.Unlock()
			return false
		}
		seq = s
		rts = rts[n:]
	}
	if seq != 0 {
		if err := r.e.catalog.Barrier(ctx, seq); err != nil {
			if ctx.Err() == nil {
				r.log.Error("recalls cannot be recorded durably", "vault", v.name, "error", err)
			}
			return false
		}
	}
	return true
}

// asksPerPass bounds the requests between two looks at the list.
const asksPerPass = 128

// ask starts the jobs of what the list showed nothing for; it reports whether it started any.
func (v *vaultLoop) ask(ctx context.Context, began time.Time) bool {
	r := v.r
	var due, idle []*retrieval
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if rt.rec.State != catalog.Wanted || rt.finishing || !rt.saved || !rt.listed || rt.asking || rt.held || rt.notBefore.After(began) {
			continue
		}
		if rt.rec.Ahead && rt.before {
			idle = append(idle, rt)
		} else {
			due = append(due, rt)
		}
	}
	for _, rt := range idle {
		r.log.Info("what was asked for ahead of a reader who is gone did not reach the service", "archive", rt.arc.ID)
		r.cancelLocked(rt)
	}
	// Those that are waited for first, what nobody wants yet last, then in the order they were wanted.
	rank := func(rt *retrieval) int {
		switch {
		case rt.rec.Ahead:
			return 2
		case rt.rec.Explicit:
			return 1
		}
		return 0
	}
	slices.SortFunc(due, func(a, b *retrieval) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.rec.Created, b.rec.Created), cmp.Compare(a.order, b.order))
	})
	due = due[:min(len(due), asksPerPass)]
	for _, rt := range due {
		rt.asking, rt.listed = true, false
	}
	r.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(4)
	for _, rt := range due {
		g.Go(func() error {
			r.ask(ctx, rt)
			return nil
		})
	}
	g.Wait()
	for _, rt := range due {
		v.known.add(rt.arc.ID)
	}
	return len(due) > 0
}

// nextLocked returns when rt's job is looked at again.
func (v *vaultLoop) nextLocked(rt *retrieval) time.Time {
	asked := time.Unix(0, rt.rec.AskedAt)
	if rt.polled.IsZero() {
		return asked
	}
	age := rt.polled.Sub(asked)
	wait := v.interval(age)
	if took, ok := v.r.took[rt.tier()]; ok && age < took/2 {
		wait = max(wait, min(took/2-age, v.r.o.pollMax)) // nothing was ever that fast
	}
	return rt.polled.Add(wait)
}

// inventoryNext is nextLocked for an inventory.
func (v *vaultLoop) inventoryNext(inv *inventory) time.Time {
	if inv.job == "" || inv.asked.IsZero() {
		return inv.since
	}
	return inv.since.Add(v.interval(inv.since.Sub(inv.asked)))
}

// interval grows with the age of a job: what takes hours is not looked at every second.
func (v *vaultLoop) interval(age time.Duration) time.Duration {
	return max(min(max(age/8, v.r.o.pollMin), v.r.o.pollMax), 4*v.listed)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// next returns when the jobs are looked at again; zero when there is nothing to look for.
func (v *vaultLoop) next() (next time.Time) {
	r := v.r
	now := time.Now()
	soonest := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for rt := range r.byVault[v.name] {
		switch {
		case rt.finishing:
			soonest(now.Add(r.o.pollMax)) // should it lose some of what has come
		case rt.rec.State == catalog.Asked:
			soonest(v.nextLocked(rt))
		case rt.rec.State == catalog.Wanted:
			soonest(later(rt.notBefore, now)) // zero would be never
		case rt.streaming && len(rt.demand) == 0:
			idle := rt.left.Add(streamIdle)
			switch {
			case len(r.rangesLocked(rt)) > 0:
				soonest(now.Add(aheadPause))
			case !idle.After(now):
				r.unreadLocked(rt)
			case rt.idleStream(now):
				r.uncountLocked(rt)
				soonest(idle)
			default:
				soonest(rt.left.Add(aheadPause))
			}
		}
	}
	if inv := r.inventoryOfLocked(v.name); inv != nil && inv.polled {
		soonest(v.inventoryNext(inv))
	}
	return next
}
