package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// streamIdle is how long a retrieval of a file larger than the cache waits for
// its next reader. A later one finds the job again in the list.
const streamIdle = time.Hour

// aheadPause is how long it is fetched ahead of a reader that has gone. After that it holds neither a place nor room that others
// could use.
const aheadPause = time.Minute

// idleStream reports whether nobody has read a stream for a while.
func (rt *retrieval) idleStream(now time.Time) bool {
	return rt.streaming && len(rt.demand) == 0 && !now.Before(rt.left.Add(aheadPause))
}

var errNoRoom = errors.New("no room for what nobody waits for")

// flight is one piece being fetched.
type flight struct {
	rt       *retrieval
	rng      cas.Range // of the archive
	demanded bool
	cancel   context.CancelFunc
	writing  bool

	// As they were when it started.
	local    *content.File
	job      string
	jobRange cas.Range
	large    bool
}

// wakeFetchersLocked has the workers look for work.
func (r *recaller) wakeFetchersLocked() {
	close(r.work)
	r.work = make(chan struct{})
}

// fetchLoop is one of Fetches workers; each holds at most one buffer.
func (r *recaller) fetchLoop(ctx context.Context) {
	var buf []byte
	for ctx.Err() == nil {
		r.mu.Lock()
		bury := len(r.dead) > 0
		r.mu.Unlock()
		if bury {
			r.bury()
		}
		now := time.Now()
		r.mu.Lock()
		fl, open, next := r.pickLocked(ctx, now)
		work := r.work
		r.mu.Unlock()
		switch {
		case open != nil:
			r.open(open)
		case fl != nil:
			if int64(cap(buf)) < fl.rng.Len {
				buf = make([]byte, fl.rng.Len)
			}
			r.fetch(ctx, fl, buf[:fl.rng.Len])
		default:
			buf = nil
			var timer <-chan time.Time
			var t *time.Timer
			if !next.IsZero() {
				t = time.NewTimer(max(next.Sub(now), time.Millisecond))
				timer = t.C
			}
			select {
			case <-work:
			case <-timer:
			case <-ctx.Done():
			}
			if t != nil {
				t.Stop()
			}
		}
	}
}

// pickLocked returns what to fetch or open next, or when to look again. What a
// reader waits for comes first, then the rest in the order it became ready.
func (r *recaller) pickLocked(ctx context.Context, now time.Time) (fl *flight, open *retrieval, next time.Time) {
	later := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	n := len(r.active)
	r.turn++
	for i := range n {
		rt := r.active[(i+r.turn)%n]
		if rt.finishing || rt.lost {
			continue
		}
		// Demand does not wait for the room others could not find, only for a service that failed.
		if rt.notBefore.After(now) && !rt.crowded {
			later(rt.notBefore)
			continue
		}
		for _, want := range rt.demand {
			if p, ok := r.pieceLocked(rt, want.Off, want.End()); ok {
				rt.cursor = p.End()
				return r.flyLocked(ctx, rt, p, true), nil, next
			}
		}
	}
	opened := 0
	for _, rt := range r.ready {
		switch {
		case rt.opening:
			opened++
		case rt.notBefore.After(now):
			later(rt.notBefore)
		case len(rt.demand) > 0:
			rt.opening = true
			return nil, rt, next
		}
	}
	for i := range n {
		rt := r.active[(i+r.turn)%n]
		if rt.finishing || rt.lost {
			continue
		}
		if rt.notBefore.After(now) {
			later(rt.notBefore)
			continue
		}
		if p, ok := r.aheadLocked(rt); ok {
			rt.cursor = p.End()
			return r.flyLocked(ctx, rt, p, false), nil, next
		}
	}
	idle := 0
	for _, rt := range r.active {
		switch {
		case rt.idleStream(now):
			idle++
		case rt.streaming && len(rt.demand) == 0 && len(r.ready) > 0:
			later(rt.left.Add(aheadPause))
		}
	}
	if n-idle+opened < 2*r.o.fetches {
		for _, rt := range r.ready {
			if !rt.opening && !rt.notBefore.After(now) {
				rt.opening = true
				return nil, rt, next
			}
		}
	}
	return nil, nil, next
}

// pieceAt returns the piece that holds off. Pieces are nodes of the archive's tree.
func (r *recaller) pieceAt(rt *retrieval, off int64) cas.Range {
	if rt.rec.Len <= r.o.piece {
		return cas.Range{Off: rt.rec.Off, Len: rt.rec.Len}
	}
	lo := off / r.o.piece * r.o.piece
	return cas.Range{Off: lo, Len: min(r.o.piece, rt.end()-lo)}
}

// pieceLocked returns the first piece of [lo, hi) that is neither there nor on its way.
func (r *recaller) pieceLocked(rt *retrieval, lo, hi int64) (cas.Range, bool) {
	lo, hi = max(lo, rt.rec.Off), min(hi, rt.end())
	for lo < hi {
		p := r.pieceAt(rt, lo)
		lo = p.End()
		if off, n := rt.toFile(p); n == 0 || rt.local.Verified(off, n) {
			continue
		}
		if !slices.ContainsFunc(r.inflight, func(f *flight) bool {
			return f.rt.arc.Num == rt.arc.Num && f.rng.Off < p.End() && p.Off < f.rng.End()
		}) {
			return p, true
		}
	}
	return cas.Range{}, false
}

// aheadLocked returns the next piece in order, from where the last one was.
func (r *recaller) aheadLocked(rt *retrieval) (cas.Range, bool) {
	if rt.streaming {
		if p, ok := r.recalledLocked(rt); ok {
			return p, true
		}
		// Only as far ahead of the reader as a quarter of the cache, and only while somebody reads.
		if rt.idleStream(time.Now()) {
			return cas.Range{}, false
		}
		return r.pieceLocked(rt, max(rt.cursor, rt.reader), rt.reader+r.room()/4)
	}
	if p, ok := r.pieceLocked(rt, rt.cursor, rt.end()); ok {
		return p, true
	}
	return r.pieceLocked(rt, rt.rec.Off, rt.cursor)
}

func (r *recaller) flyLocked(ctx context.Context, rt *retrieval, p cas.Range, demanded bool) *flight {
	rt.rec.State = catalog.Fetching
	f := &flight{rt: rt, rng: p, demanded: demanded, local: rt.local, job: rt.rec.JobID, jobRange: rt.jobRange, large: rt.large,
		cancel: func() {}}
	r.inflight = append(r.inflight, f)
	return f
}

// open gets the local file of a retrieval whose output is ready.
func (r *recaller) open(rt *retrieval) {
	f, local := rt.file, rt.local
	var err error
	if f == nil {
		f, err = r.e.acquire(rt.key.ino)
	}
	var size, have, done int64
	if err == nil {
		f.mu.Lock()
		if f.ver.V != rt.key.v || f.ver.State != catalog.Archived {
			err = catalog.ErrNotExist
		} else if local, err = f.ensureContentLocked(); err == nil {
			size = f.ver.Size
		}
		f.mu.Unlock()
	}
	if err == nil {
		verified := local.VerifiedRanges()
		off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
		done = bytesFrom(verified, off) - bytesFrom(verified, off+n)
		have = bytesFrom(verified, min(r.behind(rt, f), off)) // what lies before it goes when room is needed
	}

	r.mu.Lock()
	room := r.roomForLocked(rt.key.ino)
	rt.opening = false
	rt.file, rt.local = f, local
	switch {
	case rt.gone: // bury gives the file back
	case errors.Is(err, catalog.ErrNotExist):
		r.removeLocked(rt)
	case err != nil:
		r.log.Error("a recalled file cannot be written", "ino", rt.key.ino, "error", err)
		r.noRoomLocked(rt, time.Now(), len(rt.demand) > 0, err.Error())
	case slices.Contains(r.ready, rt): // the job may have expired meanwhile
		r.ready = slices.DeleteFunc(r.ready, func(x *retrieval) bool { return x == rt })
		r.active = append(r.active, rt)
		rt.done, rt.cursor = done, rt.rec.Off
		rt.size, rt.large = size, size > room
		if rt.rec.Explicit { // it waits while others fill the disk, and what the cache has of the file beside gives way
			room, have = r.emptyRoomLocked(rt.key.ino), 0
		}
		rt.streaming = rt.large && have+rt.rec.Len-done > room
		r.countLocked(rt)
		if rt.streaming {
			r.log.Info("the file is larger than the cache and streams through it", "ino", rt.key.ino, "size", size)
			if len(rt.demand) == 0 {
				if rt.left.IsZero() {
					rt.left = time.Now()
				}
				r.wakeLaterLocked(rt.rec.VaultName) // it ends when nobody comes
			}
		}
	}
	finish := !rt.gone && !rt.finishing && rt.local != nil && r.completeLocked(rt)
	if finish {
		rt.finishing = true
	}
	r.wakeFetchersLocked()
	r.mu.Unlock()
	if finish {
		r.finish(rt)
	}
}

// completeLocked reports whether all of rt's range is local.
func (r *recaller) completeLocked(rt *retrieval) bool {
	off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	return slices.Contains(r.active, rt) && (n == 0 || rt.local.Verified(off, n))
}

// fetch brings one piece, verified, into the local file.
func (r *recaller) fetch(ctx context.Context, fl *flight, buf []byte) {
	rt := fl.rt
	ctx, cancel := r.cancellable(ctx, fl)
	defer cancel()
	began := time.Now()
	sum, err := r.bring(ctx, fl, buf)
	now := time.Now()

	r.mu.Lock()
	r.inflight = slices.DeleteFunc(r.inflight, func(f *flight) bool { return f == fl })
	r.idle.Broadcast()
	finish := false
	var others []*retrieval
	if err == nil {
		others = r.broughtLocked(fl)
	}
	switch {
	case rt.gone:
	case err == nil:
		if rt.sums == nil {
			rt.sums = make(map[int64]cas.Hash)
		}
		rt.sums[fl.rng.Off] = sum
		rt.done += fl.rng.Len
		rt.progress, rt.tries, rt.noRoom, rt.rec.Error, rt.crowded = true, 0, 0, "", false
		r.countLocked(rt)
		rt.notBefore = time.Time{}
		r.speed.add(fl.rng.Len, began, now)
		r.waves.fetchedLocked(rt, fl.rng)
		if !rt.finishing && r.completeLocked(rt) {
			rt.finishing, finish = true, true
		}
	default:
		r.fetchFailedLocked(ctx, fl, err, now)
	}
	rt.wake()
	r.wakeFetchersLocked()
	give := rt.spoiled && !rt.gone && !rt.finishing
	if give {
		rt.finishing = true
	}
	r.mu.Unlock()
	if err == nil && fl.large {
		r.mend(rt)
	}
	switch {
	case finish:
		r.finish(rt)
	case give:
		r.spoil(rt, err)
	}
	for _, other := range others {
		r.overtaken(other)
	}
}

// broughtLocked has the other retrievals that fl's piece was for as well take note: who waits for them looks again.
// It returns those that have nothing left to fetch now, to be finished.
func (r *recaller) broughtLocked(fl *flight) (complete []*retrieval) {
	for _, rt := range r.byArc[fl.rt.arc.Num] {
		if rt == fl.rt || rt.rec.Off >= fl.rng.End() || fl.rng.Off >= rt.end() {
			continue
		}
		rt.wake()
		if !rt.finishing && (r.completeLocked(rt) || overtakenBy(rt, fl)) {
			rt.finishing, rt.lost = true, false // no other job is wanted for it
			complete = append(complete, rt)
		}
	}
	return complete
}

// cancellable makes fl's context, which forget ends.
func (r *recaller) cancellable(ctx context.Context, fl *flight) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	fl.cancel = cancel
	if fl.rt.gone {
		cancel()
	}
	return ctx, cancel
}

// fetchFailedLocked decides what becomes of a retrieval one of whose pieces did not come.
func (r *recaller) fetchFailedLocked(ctx context.Context, fl *flight, err error, now time.Time) {
	rt := fl.rt
	switch {
	case ctx.Err() != nil:
	case rt.rec.JobID != fl.job:
	case errors.Is(err, errNoRoom), errors.Is(err, content.ErrNoSpace):
		rt.crowded = !fl.demanded                                    // its readers may still take room from others
		rt.large = rt.large || rt.size > r.roomForLocked(rt.key.ino) // beside what was pinned meanwhile
		r.countLocked(rt)
		if rt.crowded && rt.rec.Explicit && len(rt.demand) == 0 && r.pins.bytes.Load() > 0 && rt.rec.Len > r.roomForLocked(rt.key.ino) && len(r.rangesLocked(rt)) == 0 {
			r.waves.failedLocked(rt, errBesidePins)
			r.removeLocked(rt)
			return
		}
		if rt.crowded && rt.large && !rt.rec.Explicit && !rt.streaming {
			// There will be room when its reader comes, if he does.
			rt.streaming = true
			if rt.left.IsZero() {
				rt.left = now
			}
			r.wakeLaterLocked(rt.rec.VaultName)
		}
		r.noRoomLocked(rt, now, fl.demanded, "it waits for room: "+r.roomText())
	case errors.Is(err, cas.ErrExpired), errors.Is(err, cas.ErrNotFound):
		rt.lost = true
		r.kickLocked(rt.rec.VaultName)
	case errors.Is(err, cas.ErrNotReady), errors.Is(err, cas.ErrJobFailed):
		// The list will say what it is; when it says again that the output is there, that is not believed at once.
		r.log.Warn("a job's output is not there although the job is listed as completed", "archive", rt.arc.ID, "job", fl.job, "error", err)
		rt.retryLocked(now, err)
		r.unopenLocked(rt)
		rt.rec.State, rt.polled = catalog.Asked, time.Time{}
		r.kickLocked(rt.rec.VaultName)
	case errors.Is(err, cas.ErrDigest), errors.Is(err, cas.ErrProtocol):
		// The client has asked several times already.
		rt.digests++
		r.log.Warn("a range of a job's output is not what its hash says", "archive", rt.arc.ID, "job", fl.job, "range", fl.rng.String(), "error", err)
		if rt.digests > maxDigests {
			rt.spoiled = true
		} else {
			rt.retryLocked(now, err)
		}
	default:
		rt.crowded = false
		r.countLocked(rt)
		rt.retryLocked(now, err)
		r.log.Warn("a range of a job's output was not fetched", "archive", rt.arc.ID, "job", fl.job, "range", fl.rng.String(), "error", err)
	}
}

var errBesidePins = errors.New("it does not fit in the cache beside what is pinned (user.cas.pin)")

// maxDigests is how many pieces may be wrong, after the client's own attempts, before the archive counts as damaged.
const maxDigests = 1

// bring downloads, verifies and stores fl's piece and returns its tree hash.
func (r *recaller) bring(ctx context.Context, fl *flight, buf []byte) (cas.Hash, error) {
	rt := fl.rt
	off, n := rt.toFile(fl.rng)
	release, err := r.makeRoom(ctx, fl, n)
	if err != nil {
		return cas.Hash{}, err
	}
	defer release()
	rel := cas.Range{Off: fl.rng.Off - fl.jobRange.Off, Len: fl.rng.Len}
	sum, err := r.e.client.FetchRangeHash(ctx, rt.rec.VaultName, fl.job, rel, buf, r.limit)
	if err != nil {
		return cas.Hash{}, err
	}
	if fl.rng.Len == rt.arc.Size && rt.arc.TreeHash != ([32]byte{}) && sum != cas.Hash(rt.arc.TreeHash) {
		return cas.Hash{}, fmt.Errorf("%w: the archive is %s, %s came", cas.ErrDigest, cas.Hash(rt.arc.TreeHash), sum)
	}
	r.e.hit("recall.fetched")
	r.mu.Lock()
	if rt.gone {
		r.mu.Unlock()
		return cas.Hash{}, context.Canceled
	}
	fl.writing = true
	r.mu.Unlock()
	lead := off - (fl.rng.Off - rt.ext.Off + rt.fileOff) // where the extent begins in the piece
	err = fl.local.WriteVerified(buf[lead:lead+n], off)
	r.e.hit("recall.verified")
	r.mu.Lock()
	fl.writing = false
	r.idle.Broadcast()
	r.mu.Unlock()
	return sum, err
}
