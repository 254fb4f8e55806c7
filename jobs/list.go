package jobs

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// knownJobs is what the last complete list of a vault's jobs showed, and what was asked
// for since. Jobs are listed for a day after their end: with thousands of them, reading
// all of the list for each file that is wanted would be most of what the program does.
type knownJobs struct {
	at       time.Time           // when that list was begun; zero: never
	jobs     int                 // in the list
	archives map[uint64]struct{} // hashes of the archives they are for
}

const (
	// fewJobs is how long a list may be that is read as a whole each time.
	fewJobs = 200
	// knowledge is how long a list is good for, for each job it held: reading it takes some 1 % of that.
	knowledge = time.Millisecond
	// describeShare: it is faster to describe one job than to list so many.
	describeShare = 20
)

var jobSeed = maphash.MakeSeed()

func hashOf(archive string) uint64 { return maphash.String(jobSeed, archive) }

// add takes note of a job.
func (k *knownJobs) add(archive string) {
	if k.archives == nil {
		k.archives = make(map[uint64]struct{})
	}
	k.jobs++
	k.archives[hashOf(archive)] = struct{}{}
}

// without reports whether it is known that no job is for the archive.
func (k *knownJobs) without(archive string, now time.Time) bool {
	if k.at.IsZero() || k.jobs <= fewJobs || now.Sub(k.at) > time.Duration(k.jobs)*knowledge {
		return false
	}
	_, ok := k.archives[hashOf(archive)]
	return !ok
}

// look reads the list of jobs and takes over what it says: all of it, or that of running jobs. Those of
// ours that are not in it have ended: a few are described, many are found in the rest of the list.
func (v *vaultLoop) look(ctx context.Context, began time.Time, all bool) error {
	seen := make(map[string]struct{})
	if all {
		known := knownJobs{at: began}
		if err := v.list(ctx, began, seen, cas.JobFilter{}, &known); err != nil {
			return err
		}
		v.known = known
	} else {
		for _, completed := range []bool{false, true} {
			if completed && len(v.unseen(began, seen)) <= v.known.jobs/describeShare {
				break
			}
			if err := v.list(ctx, began, seen, cas.JobFilter{Completed: &completed}, nil); err != nil {
				return err
			}
		}
	}
	v.missing(ctx, began, seen)
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	for rt := range v.r.byVault[v.name] {
		rt.polled = began
	}
	return nil
}

// unseen returns the retrievals whose jobs a list should have held.
func (v *vaultLoop) unseen(began time.Time, seen map[string]struct{}) (rts []*retrieval) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for rt := range r.byVault[v.name] {
		if rt.lost || rt.finishing || rt.rec.State != catalog.Asked || rt.rec.AskedAt >= began.UnixNano() || rt.lookAgain.After(began) {
			continue
		}
		if _, ok := seen[rt.rec.JobID]; !ok {
			rts = append(rts, rt)
		}
	}
	return rts
}

// list reads jobs of the vault once and notes in seen which of those that are waited for it held. With
// known it is the complete list, and what is wanted takes what it finds there.
func (v *vaultLoop) list(ctx context.Context, began time.Time, seen map[string]struct{}, filter cas.JobFilter, known *knownJobs) error {
	r := v.r
	wanted := make(map[string][]*retrieval)
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if known != nil && rt.rec.State == catalog.Wanted && rt.saved && !rt.asking {
			wanted[rt.arc.ID] = append(wanted[rt.arc.ID], rt)
		}
	}
	inv := r.inventoryOfLocked(v.name)
	r.mu.Unlock()

	var changed []*retrieval
	for j, err := range r.e.client.Jobs(ctx, v.name, filter) {
		if err != nil {
			r.settle(changed)
			return err
		}
		if known != nil {
			known.add(j.ArchiveID)
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
		inv.listedLocked(began, known != nil)
	}
	r.mu.Unlock()
	r.settle(changed)
	return nil
}

// missing looks after jobs that the list should have held.
func (v *vaultLoop) missing(ctx context.Context, began time.Time, seen map[string]struct{}) {
	r := v.r
	var mu sync.Mutex
	var changed []*retrieval
	var g errgroup.Group
	g.SetLimit(4)
	for _, rt := range v.unseen(began, seen) {
		g.Go(func() error {
			if v.describe(ctx, began, rt) {
				mu.Lock()
				defer mu.Unlock()
				changed = append(changed, rt)
			}
			return nil
		})
	}
	g.Wait()
	r.settle(changed)
}

// expire takes note of outputs that fetching found gone.
func (v *vaultLoop) expire(now time.Time) {
	r := v.r
	var changed []*retrieval
	r.mu.Lock()
	for rt := range r.byVault[v.name] {
		if rt.lost && r.expiredLocked(rt, now) {
			changed = append(changed, rt)
		}
	}
	r.mu.Unlock()
	r.settle(changed)
}

// describe asks for rt's job; it reports whether anything changed.
func (v *vaultLoop) describe(ctx context.Context, began time.Time, rt *retrieval) bool {
	r := v.r
	r.mu.Lock()
	id := rt.rec.JobID
	r.mu.Unlock()
	if id == "" || ctx.Err() != nil {
		return false
	}
	j, err := r.e.client.DescribeJob(ctx, v.name, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	age := began.Sub(time.Unix(0, rt.rec.AskedAt))
	rt.lookAgain = time.Now().Add(max(10*time.Second, v.interval(age)))
	switch {
	case rt.gone || rt.rec.JobID != id:
	case err == nil:
		return r.applyLocked(rt, j, began)
	case errors.Is(err, cas.ErrNotFound):
		return r.expiredLocked(rt, began)
	case ctx.Err() == nil:
		r.log.Warn("a job cannot be looked at", "vault", v.name, "job", id, "error", err)
	}
	return false
}
