package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// outputLife is how long the service keeps a job's output.
const outputLife = 24 * time.Hour

// adoptLife is what must be left of it for somebody's finished job to be of use.
const adoptLife = 10 * time.Minute

// maxFailures is how many jobs of a retrieval may fail, or expire without a byte fetched, before it is given up.
const maxFailures = 5

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

	now := time.Now()
	r.mu.Lock()
	inv := r.inventoryOfLocked(v.name)
	look := inv != nil && inv.polled
	for rt := range r.byVault[v.name] {
		if rt.lost || rt.rec.State == catalog.Asked || rt.rec.State == catalog.Wanted && !rt.notBefore.After(now) {
			look = true
		}
		rt.candidate = nil
	}
	r.mu.Unlock()
	if !look {
		return v.next()
	}

	began := time.Now()
	seen, err := v.list(ctx, began)
	if err != nil {
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
	v.missing(ctx, began, seen)
	asked := v.ask(ctx, began)
	if asked {
		return time.Now() // a store without delays has them ready already
	}
	return v.next()
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
				if rt.rec.ID == 0 && !rt.gone {
					r.failed[rt.arc.Num] = givenUp{rec: catalog.Retrieval{Off: rt.rec.Off, Len: rt.rec.Len}, err: err, at: time.Now()}
					r.waves.failedLocked(rt.key, err)
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

// list reads the vault's jobs once and returns which of the jobs that are waited for it held.
func (v *vaultLoop) list(ctx context.Context, began time.Time) (seen map[string]struct{}, err error) {
	r := v.r
	seen = make(map[string]struct{})
	wanted := make(map[string][]*retrieval)
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if rt.rec.State == catalog.Wanted && rt.saved && !rt.asking {
			wanted[rt.arc.ID] = append(wanted[rt.arc.ID], rt)
		}
	}
	inv := r.inventoryOfLocked(v.name)
	r.mu.Unlock()

	var changed []*retrieval
	for j, err := range r.e.client.Jobs(ctx, v.name, cas.JobFilter{}) {
		if err != nil {
			return nil, err
		}
		switch j.Type {
		case cas.ArchiveRetrieval:
			r.mu.Lock()
			for _, rt := range slices.Clone(r.byJob[j.ID]) {
				seen[j.ID] = struct{}{}
				if r.applyLocked(rt, j, began) {
					changed = append(changed, rt)
				}
			}
			for _, rt := range wanted[j.ArchiveID] {
				r.considerLocked(rt, j, began)
			}
			r.mu.Unlock()
		case cas.InventoryRetrieval:
			if inv != nil {
				r.mu.Lock()
				inv.seeLocked(j, began)
				r.mu.Unlock()
			}
		}
	}
	r.mu.Lock()
	for _, rts := range wanted {
		for _, rt := range rts {
			if r.adoptLocked(rt, began) {
				changed = append(changed, rt)
			}
		}
	}
	if inv != nil {
		inv.listedLocked(began)
	}
	r.mu.Unlock()
	r.settle(changed)
	return seen, nil
}

// settle records retrievals whose job got on, and gives up those that failed for good.
func (r *recaller) settle(changed []*retrieval) {
	var keep []*retrieval
	for _, rt := range changed {
		r.mu.Lock()
		gone, failed, why := rt.gone, rt.failures >= maxFailures, rt.rec.Error
		r.mu.Unlock()
		switch {
		case gone: // bury deletes its record
		case failed:
			r.fail(rt, errors.New(why), false)
		default:
			keep = append(keep, rt)
		}
	}
	if len(keep) == 0 {
		return
	}
	if _, err := r.save(keep...); err != nil {
		r.log.Error("the state of recalls is not recorded; the list of jobs will tell", "error", err)
	}
}

// covers reports whether the output of j serves rt: it holds the range, and the service tells hashes of its parts.
func covers(j cas.Job, rt *retrieval) bool {
	return j.Range.Off <= rt.rec.Off && rt.end() <= j.Range.End() && cas.TreeAligned(j.Range, rt.arc.Size) &&
		(j.ArchiveSize < 0 || j.ArchiveSize == rt.arc.Size)
}

// applyLocked takes over what the service says of rt's job; it reports whether anything changed.
func (r *recaller) applyLocked(rt *retrieval, j cas.Job, now time.Time) bool {
	if rt.gone || rt.rec.State == catalog.Wanted || rt.rec.JobID != j.ID {
		return false
	}
	switch {
	case j.Failed():
		rt.failures++
		rt.rec.Error = "job failed: " + j.StatusMessage
		rt.notBefore = now.Add(min(time.Minute<<min(rt.failures-1, 20), time.Hour))
		r.log.Warn("a recall's job failed", "archive", rt.arc.ID, "job", j.ID, "message", j.StatusMessage, "failures", rt.failures)
		r.unreadyLocked(rt)
		return true
	case j.ArchiveID != rt.arc.ID || !covers(j, rt):
		rt.failures++
		rt.rec.Error = fmt.Sprintf("job %s is for another range, %s", j.ID, j.Range)
		r.unreadyLocked(rt)
		return true
	case !j.Succeeded():
		rt.jobRange = j.Range
		return false
	}
	rt.jobRange = j.Range
	if rt.rec.State != catalog.Asked {
		return false
	}
	completed := j.CompletionDate
	if completed.IsZero() {
		completed = now
	}
	if now.Sub(completed) >= outputLife {
		return r.expiredLocked(rt, now)
	}
	if !j.CreationDate.IsZero() {
		r.tookLocked(j.Tier, completed.Sub(j.CreationDate))
	}
	rt.rec.State, rt.rec.ReadyAt, rt.rec.Expires = catalog.Ready, completed.UnixNano(), completed.Add(outputLife).UnixNano()
	rt.rec.Error = ""
	rt.cursor, rt.notBefore, rt.tries = rt.rec.Off, time.Time{}, 0
	r.ready = append(r.ready, rt)
	rt.wake()
	r.wakeFetchersLocked()
	return true
}

// unreadyLocked takes rt back to where no job is known.
func (r *recaller) unreadyLocked(rt *retrieval) {
	r.setJobLocked(rt, "")
	rt.rec.State, rt.rec.Adopted = catalog.Wanted, false
	is := func(x *retrieval) bool { return x == rt }
	r.ready = slices.DeleteFunc(r.ready, is)
	r.active = slices.DeleteFunc(r.active, is)
}

// expiredLocked counts an output that went before all of it was fetched; rt is asked for again.
func (r *recaller) expiredLocked(rt *retrieval, now time.Time) bool {
	if rt.streaming && len(rt.demand) == 0 {
		r.unreadLocked(rt)
		return false
	}
	rt.rec.Expired++
	if !rt.progress {
		rt.failures++
	}
	rt.rec.Error = "the job's output expired before it was fetched"
	rt.notBefore = now
	r.log.Warn("a job's output expired before it was fetched", "archive", rt.arc.ID, "job", rt.rec.JobID, "expired", rt.rec.Expired)
	r.unreadyLocked(rt)
	return true
}

// unreadLocked drops a streaming retrieval nobody reads any more.
func (r *recaller) unreadLocked(rt *retrieval) {
	r.waves.failedLocked(rt.key, errTooLarge)
	r.removeLocked(rt)
}

var errTooLarge = errors.New("it is larger than the cache and comes only while it is read")

// considerLocked remembers j if rt could use it and it is better than what was seen so far.
func (r *recaller) considerLocked(rt *retrieval, j cas.Job, now time.Time) {
	if rt.gone || j.Failed() || !covers(j, rt) {
		return
	}
	own := rt.rec.ID != 0 && j.Description == jobDescription(r.e.catalog.ID(), rt.rec.ID)
	if j.Succeeded() {
		if j.CompletionDate.IsZero() || now.Sub(j.CompletionDate) > outputLife-adoptLife {
			return
		}
	} else if !own && rt.tier() == cas.Expedited && j.Tier != cas.Expedited {
		return // it would come hours later
	}
	if c := rt.candidate; c != nil {
		better := j.Succeeded() && !c.Succeeded() ||
			j.Succeeded() == c.Succeeded() && (j.Range.Len < c.Range.Len || j.Range.Len == c.Range.Len && j.CompletionDate.After(c.CompletionDate))
		if !better {
			return
		}
	}
	rt.candidate = &j
}

// adoptLocked makes a job that runs already rt's.
func (r *recaller) adoptLocked(rt *retrieval, now time.Time) bool {
	j := rt.candidate
	rt.candidate = nil
	rt.listed = true
	if j == nil || rt.gone || rt.asking || rt.rec.State != catalog.Wanted {
		return false
	}
	own := rt.rec.ID != 0 && j.Description == jobDescription(r.e.catalog.ID(), rt.rec.ID)
	r.setJobLocked(rt, j.ID)
	rt.rec.State, rt.rec.AskedAt, rt.rec.Uncertain, rt.rec.Error = catalog.Asked, now.UnixNano(), false, ""
	if !j.CreationDate.IsZero() {
		rt.rec.AskedAt = j.CreationDate.UnixNano()
	}
	rt.tries = 0
	if own {
		rt.rec.Attempts++
	} else {
		rt.rec.Adopted = true
		if rt.counted && rt.rec.Attempts == 0 {
			r.guard.refund(rt.rec.Len, time.Unix(0, rt.rec.Created))
		}
		r.log.Info("a job that runs already is used", "archive", rt.arc.ID, "job", j.ID, "status", j.StatusCode)
	}
	r.applyLocked(rt, *j, now)
	return true
}

// missing looks after jobs that the list should have held.
func (v *vaultLoop) missing(ctx context.Context, began time.Time, seen map[string]struct{}) {
	r := v.r
	var changed, look []*retrieval
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if rt.lost {
			if r.expiredLocked(rt, began) {
				changed = append(changed, rt)
			}
			continue
		}
		if _, ok := seen[rt.rec.JobID]; ok || rt.rec.State != catalog.Asked || rt.rec.AskedAt >= began.UnixNano() || rt.lookAgain.After(began) {
			continue
		}
		look = append(look, rt)
	}
	r.mu.Unlock()
	for _, rt := range look {
		r.mu.Lock()
		id := rt.rec.JobID
		r.mu.Unlock()
		if id == "" || ctx.Err() != nil {
			continue
		}
		j, err := r.e.client.DescribeJob(ctx, v.name, id)
		r.mu.Lock()
		rt.lookAgain = time.Now().Add(max(10*time.Second, v.intervalLocked(rt, began)))
		switch {
		case rt.gone || rt.rec.JobID != id:
		case err == nil:
			if r.applyLocked(rt, j, began) {
				changed = append(changed, rt)
			}
		case errors.Is(err, cas.ErrNotFound):
			if r.expiredLocked(rt, began) {
				changed = append(changed, rt)
			}
		case ctx.Err() == nil:
			r.log.Warn("a job cannot be looked at", "vault", v.name, "job", id, "error", err)
		}
		r.mu.Unlock()
	}
	r.settle(changed)
}

// asksPerPass bounds the requests between two looks at the list.
const asksPerPass = 128

// ask starts the jobs of what the list showed nothing for; it reports whether it started any.
func (v *vaultLoop) ask(ctx context.Context, began time.Time) bool {
	r := v.r
	var due []*retrieval
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if rt.rec.State == catalog.Wanted && rt.saved && rt.listed && !rt.asking && !rt.notBefore.After(began) {
			due = append(due, rt)
		}
	}
	// Those that are waited for first, then in the order they were wanted.
	slices.SortFunc(due, func(a, b *retrieval) int {
		if a.rec.Explicit != b.rec.Explicit {
			if b.rec.Explicit {
				return -1
			}
			return 1
		}
		return int(min(max(a.rec.Created-b.rec.Created, -1), 1))
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
	return len(due) > 0
}

// intervalLocked grows with the age of a job: what takes hours is not looked at every second.
func (v *vaultLoop) intervalLocked(rt *retrieval, now time.Time) time.Duration {
	return v.interval(now.Sub(time.Unix(0, rt.rec.AskedAt)))
}

func (v *vaultLoop) interval(age time.Duration) time.Duration {
	return max(min(max(age/8, v.r.o.pollMin), v.r.o.pollMax), 4*v.listed)
}

// next returns when the jobs are looked at again.
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
		case rt.rec.State == catalog.Asked:
			soonest(now.Add(v.intervalLocked(rt, now)))
		case rt.rec.State == catalog.Wanted:
			soonest(rt.notBefore)
		case rt.streaming && len(rt.demand) == 0:
			if idle := rt.left.Add(streamIdle); idle.After(now) {
				soonest(idle)
			} else {
				r.unreadLocked(rt)
			}
		}
	}
	if inv := r.inventoryOfLocked(v.name); inv != nil && inv.polled {
		soonest(now.Add(v.interval(now.Sub(inv.asked))))
	}
	return next
}

// tookLocked learns how long jobs of a tier take, for estimates.
func (r *recaller) tookLocked(t cas.Tier, d time.Duration) {
	if d <= 0 {
		return
	}
	if old, ok := r.took[t]; ok {
		d = (3*old + d) / 4
	}
	r.took[t] = d
}

// expectLocked returns how long a job of tier t takes: as measured, or as the service says.
func (r *recaller) expectLocked(t cas.Tier) time.Duration {
	if d, ok := r.took[t]; ok {
		return d
	}
	if d, ok := r.e.opts.JobTime[t]; ok {
		return d
	}
	switch t {
	case cas.Expedited:
		return 3 * time.Minute
	case cas.Bulk:
		return 8 * time.Hour
	}
	return 4 * time.Hour
}
