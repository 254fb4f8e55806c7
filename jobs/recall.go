package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// recaller owns everything that brings bytes back: retrievals, polling,
// fetching, the guard, waves, eviction.
//
// Its lock is taken after a file's and inside a catalog Update, and no Update
// is made with it held.
type recaller struct {
	e   *Engine
	o   recallOptions
	log *slog.Logger

	mu        sync.Mutex
	running   bool
	ctx       context.Context // of run
	wg        sync.WaitGroup  // run's goroutines
	stopped   bool
	stop      chan struct{} // closed by stopAdmitting
	byArc     map[uint64][]*retrieval
	byKey     map[verKey][]*retrieval
	byVault   map[string]map[*retrieval]struct{}
	byJob     map[string][]*retrieval
	failed    map[uint64]givenUp // by archive
	vaults    map[string]*vaultLoop
	waiters   map[*waiter]struct{}
	refusals  map[verKey]refusal
	refusedN  refusalLog
	guard     guard
	stubs     map[uint64]int64 // local files that are stubs only, with their bytes
	stubBytes int64

	work     chan struct{} // closed when there may be something to fetch
	ready    []*retrieval  // Ready, no file opened yet
	active   []*retrieval  // being fetched
	dead     []*retrieval  // gone: record to be deleted, file to be given back
	turn     int           // rotates through active
	inflight []*flight
	idle     *sync.Cond          // on mu: a write to a local file ended
	checked  map[uint64]struct{} // archives whose local copy matched the tree hash
	limit    *rate.Limiter
	speed    meter
	took     map[cas.Tier]time.Duration // how long jobs take, measured

	waves          waves
	inventories    map[string]*inventory // by vault
	merging        chan struct{}         // of size merges
	noInventory    bool                  // none begins by itself
	inventoryLimit int                   // archives per job, 0: as many as the service gives
}

// recallOptions are the reading side of Options with defaults filled in.
type recallOptions struct {
	mode             RecallMode
	tier             string
	wait             time.Duration
	denyComm         []string
	window, above    int64
	stub             int64
	piece            int64 // bytes fetched and verified at once
	fetches          int
	pollMin, pollMax time.Duration
}

// verKey names a version.
type verKey struct{ ino, v uint64 }

const (
	mib = 1 << 20
	// maxPiece is the most that is fetched and verified at once: it bounds the
	// memory of a download and how long the first reader waits on a fast link.
	maxPiece = 32 * mib
)

func newRecaller(e *Engine) *recaller {
	r := &recaller{
		e: e, log: e.log,
		stop:        make(chan struct{}),
		work:        make(chan struct{}),
		byArc:       make(map[uint64][]*retrieval),
		byKey:       make(map[verKey][]*retrieval),
		byVault:     make(map[string]map[*retrieval]struct{}),
		byJob:       make(map[string][]*retrieval),
		failed:      make(map[uint64]givenUp),
		vaults:      make(map[string]*vaultLoop),
		waiters:     make(map[*waiter]struct{}),
		refusals:    make(map[verKey]refusal),
		checked:     make(map[uint64]struct{}),
		stubs:       make(map[uint64]int64),
		took:        make(map[cas.Tier]time.Duration),
		inventories: make(map[string]*inventory),
		merging:     make(chan struct{}, merges),
	}
	r.idle = sync.NewCond(&r.mu)
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	o := e.opts
	r.o = recallOptions{
		mode: o.Recall, tier: o.Tier, wait: o.RecallWait, denyComm: o.DenyComm,
		window: o.Window, above: o.WindowAbove, stub: o.Stub,
		piece: maxPiece, fetches: o.Fetches, pollMin: o.PollMin, pollMax: o.PollMax,
	}
	setDefault(&r.o.mode, RecallAuto)
	setDefault(&r.o.tier, "standard")
	setDefault(&r.o.wait, 24*time.Hour)
	setDefault(&r.o.window, 64*mib)
	setDefault(&r.o.above, 1<<30)
	setDefault(&r.o.stub, 64<<10)
	setDefault(&r.o.fetches, 4)
	setDefault(&r.o.pollMin, 500*time.Millisecond)
	setDefault(&r.o.pollMax, time.Minute)
	r.o.window = powerOfTwo(r.o.window)
	r.o.pollMax = max(r.o.pollMax, r.o.pollMin)
	r.waves.init()
	r.guard.init(o.GuardFiles, o.GuardBytes)
	if o.BandwidthDown > 0 {
		r.limit = rate.NewLimiter(rate.Limit(o.BandwidthDown), int(min(max(o.BandwidthDown/10, 64<<10), maxPiece)))
	}
	return r
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// powerOfTwo returns the largest power of two MiB not above n, at least 1 MiB:
// only such sizes are nodes of a tree hash.
func powerOfTwo(n int64) int64 {
	p := int64(mib)
	for p*2 <= n {
		p *= 2
	}
	return p
}

// load picks up unfinished retrievals from the catalog; called by Open.
func (r *recaller) load() error {
	// A piece must fit in the cache several times over, or nothing can be fetched.
	if limit := r.e.store.Usage().CacheLimit; limit > 0 {
		r.o.piece = min(maxPiece, powerOfTwo(limit/int64(4*r.o.fetches)))
		r.o.window = min(r.o.window, powerOfTwo(r.room()/2))
	}
	type found struct {
		rec catalog.Retrieval
		arc catalog.Archive
		ver catalog.Version
	}
	var keep []found
	var drop []uint64
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		for rec, err := range tx.Retrievals() {
			if err != nil {
				return err
			}
			arc, err := tx.Archive(rec.Archive)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			ver, verr := tx.Version(rec.Ino, rec.V)
			if verr != nil && !errors.Is(verr, catalog.ErrNotExist) {
				return verr
			}
			ino, ierr := tx.Inode(rec.Ino)
			if ierr != nil && !errors.Is(ierr, catalog.ErrNotExist) {
				return ierr
			}
			if err != nil || verr != nil || ierr != nil || ino.Version != rec.V || ver.State != catalog.Archived || ver.Complete {
				drop = append(drop, rec.ID)
				continue
			}
			keep = append(keep, found{rec, arc, ver})
		}
		if err := r.guard.load(tx); err != nil {
			return err
		}
		return r.waves.load(tx)
	})
	if err != nil {
		return fmt.Errorf("retrievals: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keep {
		if k.rec.State == catalog.Failed {
			r.failed[k.arc.Num] = givenUp{rec: k.rec, err: failedError(k.rec.Error), at: time.Unix(0, k.rec.AskedAt)}
			continue
		}
		ext, fileOff, ok := extentOf(k.ver, k.arc.Num)
		if !ok {
			drop = append(drop, k.rec.ID)
			continue
		}
		rt := r.newRetrieval(k.arc, ext, fileOff, k.rec)
		rt.saved = true
		rt.failures = max(rt.rec.Attempts-rt.rec.Expired, 0)
		if rt.rec.JobID != "" && !rt.rec.Adopted {
			rt.failures = max(rt.failures-1, 0) // one of them still runs
		}
		if rt.rec.JobID != "" {
			// What became of the job is told by the next look at the list.
			rt.rec.State = catalog.Asked
		} else {
			rt.rec.State = catalog.Wanted
		}
		r.addLocked(rt)
	}
	if len(drop) > 0 {
		r.log.Info("retrievals of versions that are gone or complete are dropped", "count", len(drop))
		r.mu.Unlock()
		_, err = r.e.catalog.Update(func(tx *catalog.Tx) error {
			for _, id := range drop {
				if err := tx.DeleteRetrieval(id); err != nil {
					return err
				}
			}
			return nil
		})
		r.mu.Lock()
	}
	return err
}

// run does the background work until ctx ends and waits for its goroutines.
func (r *recaller) run(ctx context.Context) error {
	r.mu.Lock()
	r.running, r.ctx = true, ctx
	for name := range r.byVault {
		r.kickLocked(name)
	}
	r.mu.Unlock()
	var workers sync.WaitGroup
	for range r.o.fetches {
		workers.Go(func() { r.fetchLoop(ctx) })
	}
	workers.Go(func() { r.waveLoop(ctx) })
	workers.Go(func() { r.inventoryLoop(ctx) })
	<-ctx.Done()
	r.mu.Lock()
	r.running = false
	r.mu.Unlock()
	r.stopAdmitting() // nothing that is waited for will come
	workers.Wait()
	r.wg.Wait()
	r.bury()
	return nil
}

// stopAdmitting cancels all waits with ErrClosing.
func (r *recaller) stopAdmitting() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.stopped = true
		close(r.stop)
	}
}

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
	r.mu.Lock()
	err := r.guard.check(1, 0, time.Now())
	r.mu.Unlock()
	if err != nil {
		r.refused(c, v, err)
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
func (r *recaller) ensure(ctx context.Context, c Caller, f *file, off, n int64) error {
	var w *waiter
	var timeout <-chan time.Time
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
			t := time.NewTimer(r.o.wait)
			defer t.Stop()
			timeout = t.C
		}
		changed := r.attach(w, first, rts)
		if changed == nil {
			continue // ended in between
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
	if v.Damaged {
		return nil, nil, fmt.Errorf("%w: %s", ErrDamaged, v.Error)
	}
	n = min(n, v.Size-off)
	if room := r.room(); n > room {
		return nil, nil, fmt.Errorf("%w: %d bytes are needed at once, the cache takes %d", content.ErrNoSpace, n, room)
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
// gets on; nil when first has ended.
func (r *recaller) attach(w *waiter, first *retrieval, needs []need) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if first.gone {
		return nil
	}
	r.waiters[w] = struct{}{}
	for _, k := range needs {
		if k.rt.gone {
			continue
		}
		k.rt.demand[w] = k.rng
		k.rt.reader = k.rng.Off
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

// queue starts a retrieval of the whole file without waiting. explicit ones are not limited by the guard. tier "" is the mount's.
// An explicit one tries again what failed or is damaged.
func (r *recaller) queue(c Caller, f *file, tier string, explicit bool) error {
	_, err := r.queueRange(c, f, tier, explicit, 0, 0)
	return err
}

// queueRange is queue for a range (n 0: all); it returns the bytes newly asked for.
func (r *recaller) queueRange(c Caller, f *file, tier string, explicit bool, off, n int64) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n <= 0 {
		off, n = 0, f.ver.Size
	}
	v, ok := missing(f, off, n)
	if !ok {
		return 0, nil
	}
	n = min(n, v.Size-off)
	switch {
	case v.Damaged && !explicit:
		return 0, fmt.Errorf("%w: %s", ErrDamaged, v.Error)
	case v.Damaged:
		if err := r.setVersion(f, func(v *catalog.Version) { v.Damaged, v.Error = false, "" }); err != nil {
			return 0, err
		}
	}
	local, err := f.ensureContentLocked()
	if err != nil {
		return 0, err
	}
	how := askRange
	if n == v.Size {
		how = askWhole
	}
	spans, err := r.spans(v, local, off, n, how)
	if err != nil {
		return 0, err
	}
	for i := range spans {
		spans[i].tier, spans[i].explicit = tier, explicit
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return 0, ErrClosing
	}
	if explicit {
		for _, s := range spans {
			r.forgetFailureLocked(s.arc.Num)
		}
	}
	before := r.bytesLocked(verKey{v.Ino, v.V})
	if _, _, err := r.joinLocked(c, v, local, spans, time.Time{}); err != nil {
		return 0, err
	}
	return r.bytesLocked(verKey{v.Ino, v.V}) - before, nil
}

// bytesLocked returns what is being retrieved for a version.
func (r *recaller) bytesLocked(k verKey) (n int64) {
	for _, rt := range r.byKey[k] {
		n += rt.rec.Len
	}
	return n
}

// forget tells that a version is gone or changed: its waiters are woken to look again, its wanted retrievals dropped.
// When it returns nothing is being written to the version's local file any more.
// It makes no Update and gives no reference back, so callers may hold f.mu.
func (r *recaller) forget(ino, v uint64) {
	key := verKey{ino, v}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range slices.Clone(r.byKey[key]) {
		r.removeLocked(rt)
	}
	for _, f := range r.inflight {
		if f.rt.key == key {
			f.cancel()
		}
	}
	for r.writingLocked(key) {
		r.idle.Wait()
	}
	delete(r.refusals, key)
}

func (r *recaller) writingLocked(key verKey) bool {
	for _, f := range r.inflight {
		if f.rt.key == key && f.writing {
			return true
		}
	}
	return false
}

// setVersion changes f's current version in catalog and memory; f.mu is held.
func (r *recaller) setVersion(f *file, change func(v *catalog.Version)) error {
	return r.changeVersion(f, r.e.catalog.Update, change)
}

// changeVersion is setVersion by Update, or by Reclaim for what gives room back.
func (r *recaller) changeVersion(f *file, update func(func(*catalog.Tx) error) (uint64, error), change func(v *catalog.Version)) error {
	_, err := update(func(tx *catalog.Tx) error {
		v, err := tx.Version(f.ver.Ino, f.ver.V)
		if err != nil {
			return err
		}
		change(&v)
		return tx.PutVersion(v)
	})
	if err == nil {
		change(&f.ver)
	}
	return err
}

func (r *recaller) attrChanged(ino uint64) {
	r.e.opts.Observer.AttrChanged(ino)
}

func (r *recaller) contentChanged(ino uint64) {
	r.e.opts.Observer.ContentChanged(ino)
}

// etaLocked estimates when rt will be local: nil when that cannot be said.
func (r *recaller) etaLocked(rt *retrieval, now time.Time) *time.Time {
	rest := time.Duration(float64(max(rt.rec.Len-rt.done, 0)) / r.speed.get() * float64(time.Second))
	var t time.Time
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
		t = now.Add(rest)
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
