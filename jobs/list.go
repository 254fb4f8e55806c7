package jobs

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

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
