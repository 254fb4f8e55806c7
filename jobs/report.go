package jobs

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// etaLocked estimates when rt will be local: nil when that cannot be said.
func (r *recaller) etaLocked(rt *retrieval, now time.Time) *time.Time {
	rest := time.Duration(float64(max(rt.rec.Len-rt.done, 0)) / r.speed.get() * float64(time.Second))
	var t time.Time
	if rt.held || rt.crowded { // nobody knows when there will be room
		return nil
	}
	switch rt.rec.State {
	case catalog.Wanted:
		t = now.Add(max(rt.notBefore.Sub(now), 0) + r.expectLocked(rt.tier()) + rest)
	case catalog.Asked:
		ready := time.Unix(0, rt.rec.AskedAt).Add(r.expectLocked(rt.tier()))
		if ready.Before(now) {
			ready = now
		}
		t = ready.Add(rest)
	case catalog.Ready, catalog.Fetching:
		t = now.Add(max(rt.notBefore.Sub(now), 0) + rest)
	default:
		return nil
	}
	t = t.Truncate(time.Second)
	return &t
}

var stateNames = map[catalog.RetrievalState]string{
	catalog.Wanted: "wanted", catalog.Asked: "asked", catalog.Ready: "ready", catalog.Fetching: "fetching", catalog.Failed: "failed",
}

func (r *recaller) statusLocked(rt *retrieval, now time.Time) RetrievalStatus {
	return RetrievalStatus{
		State: stateNames[rt.rec.State], Tier: string(rt.tier()), Job: rt.rec.JobID,
		Size: rt.rec.Len, Done: min(rt.done, rt.rec.Len), Since: time.Unix(0, rt.rec.Created),
		ETA: r.etaLocked(rt, now), Attempts: rt.rec.Attempts, Error: rt.rec.Error,
	}
}

// state describes the retrieval of a version, if any, for stat and xattrs: one
// under way (State wanted, asked, ready, fetching), one that failed, or the reason why a read was refused to start one (State failed, too).
func (r *recaller) state(ino, v uint64) (RetrievalStatus, bool) {
	key := verKey{ino, v}
	now := time.Now()
	s, ok := func() (RetrievalStatus, bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if rts := r.byKey[key]; len(rts) > 0 {
			// Several windows or segments count as one that is as far as the last of them.
			all := r.statusLocked(rts[0], now)
			state := rts[0].rec.State
			for _, rt := range rts[1:] {
				s := r.statusLocked(rt, now)
				if rt.rec.State < state {
					state, all.State, all.Job, all.Tier = rt.rec.State, s.State, s.Job, s.Tier
				}
				all.Size += s.Size
				all.Done += s.Done
				all.Attempts = max(all.Attempts, s.Attempts)
				if s.ETA != nil && (all.ETA == nil || s.ETA.After(*all.ETA)) {
					all.ETA = s.ETA
				}
				if all.Error == "" {
					all.Error = s.Error
				}
			}
			return all, true
		}
		for _, f := range r.failed {
			if f.rec.Ino == ino && f.rec.V == v {
				return RetrievalStatus{
					State: "failed", Tier: f.rec.Tier, Job: f.rec.JobID, Size: f.rec.Len,
					Since: time.Unix(0, f.rec.Created), Attempts: f.rec.Attempts, Error: f.rec.Error,
				}, true
			}
		}
		if x, ok := r.refusals[key]; ok {
			return RetrievalStatus{State: "failed", Since: x.at, Error: x.err.Error()}, true
		}
		return RetrievalStatus{}, false
	}()
	if ok {
		s.Path = r.pathOf(ino)
	}
	return s, ok
}

// maxListed bounds what status lists of each kind.
const maxListed = 1000

// fill adds retrievals, waiters and guard to s.
func (r *recaller) fill(s *Status) {
	now := time.Now()
	var rinos, winos []uint64
	r.mu.Lock()
	// What is furthest along first.
	var all []*retrieval
	for _, rts := range r.byKey {
		all = append(all, rts...)
	}
	slices.SortFunc(all, func(a, b *retrieval) int {
		if a.rec.State != b.rec.State {
			return int(b.rec.State) - int(a.rec.State)
		}
		return int(min(max(a.rec.Created-b.rec.Created, -1), 1))
	})
	for _, rt := range all[:min(len(all), maxListed)] {
		s.Retrievals = append(s.Retrievals, r.statusLocked(rt, now))
		rinos = append(rinos, rt.key.ino)
	}
	if n := len(all) - maxListed; n > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("%d more recalls are under way than are listed", n))
	}
	for _, f := range r.failed {
		if len(s.Retrievals) >= 2*maxListed {
			break
		}
		s.Retrievals = append(s.Retrievals, RetrievalStatus{
			State: "failed", Tier: f.rec.Tier, Job: f.rec.JobID, Size: f.rec.Len,
			Since: time.Unix(0, f.rec.Created), Attempts: f.rec.Attempts, Error: f.rec.Error,
		})
		rinos = append(rinos, f.rec.Ino)
	}
	for _, b := range r.waves.bulks {
		s.RecallsQueued += max(b.files-b.local-b.failed-int64(b.pending), 0)
		if s.RecallsWait == "" {
			s.RecallsWait = r.waitsForLocked(b)
		}
	}
	for w := range r.waiters {
		if len(s.Waiters) >= maxListed {
			break
		}
		ws := WaiterStatus{PID: w.c.PID, Command: w.comm, Since: w.since}
		for _, rt := range w.rts {
			if eta := r.etaLocked(rt, now); eta != nil && (ws.ETA == nil || eta.After(*ws.ETA)) {
				ws.ETA = eta
			}
		}
		s.Waiters = append(s.Waiters, ws)
		winos = append(winos, w.key.ino)
	}
	files, bytes := r.guard.limits(now)
	s.Guard = GuardStatus{
		Files: int64(r.guard.files), FilesLimit: unlimited(files),
		Bytes: r.guard.asked(now), BytesLimit: unlimited(bytes),
	}
	if now.Before(r.guard.allowUntil) {
		until := r.guard.allowUntil
		s.Guard.Until = &until
	}
	r.mu.Unlock()
	for i, ino := range rinos {
		s.Retrievals[len(s.Retrievals)-len(rinos)+i].Path = r.pathOf(ino)
	}
	for i, ino := range winos {
		s.Waiters[len(s.Waiters)-len(winos)+i].Path = r.pathOf(ino)
	}
	slices.SortFunc(s.Waiters, func(a, b WaiterStatus) int { return a.Since.Compare(b.Since) })
}

// unlimited shows no limit as -1.
func unlimited(n int64) int64 {
	if n == math.MaxInt64 {
		return -1
	}
	return n
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
