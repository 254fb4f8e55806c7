package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/casfs/casfs/cache/catalog"
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
	started   chan struct{}   // closed by run
	ctx       context.Context // of run
	wg        sync.WaitGroup  // run's goroutines
	stopped   bool
	stop      chan struct{} // closed by stopAdmitting
	byArc     map[uint64][]*retrieval
	byKey     map[verKey][]*retrieval
	byVault   map[string]map[*retrieval]struct{}
	byJob     map[string][]*retrieval
	orders    uint64 // retrievals made
	onWay     onWay
	audit     func()               // of tests: called whenever onWay has changed
	badSpot   func(at int64) error // of tests: why a piece of an archive cannot be read back
	failed    map[uint64]givenUp   // by archive
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

	pins           pins
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
		started:     make(chan struct{}),
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
	r.pins.size = make(map[uint64]int64)
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
		r.loadPins(tx)
		return r.waves.load(tx, r.log)
	})
	if err != nil {
		return fmt.Errorf("retrievals: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UnixNano()
	for _, k := range keep {
		k.rec.AskedAt = min(k.rec.AskedAt, now) // the clock may have been ahead
		if k.rec.State == catalog.Failed {
			r.failed[k.arc.Num] = givenUp{rec: k.rec, err: failedError(k.rec.Error), at: time.Unix(0, k.rec.AskedAt)}
			continue
		}
		ext, fileOff, ok := extentOf(k.ver, k.arc.Num)
		unasked := k.rec.Ahead && k.rec.JobID == "" && !k.rec.Uncertain
		if unasked { // its reader is gone
			r.guard.refund(k.rec.Len, time.Unix(0, k.rec.Created))
		}
		if !ok || unasked {
			drop = append(drop, k.rec.ID)
			continue
		}
		rt := r.newRetrieval(k.arc, ext, fileOff, k.rec)
		rt.saved, rt.before = true, true
		rt.failures = max(rt.rec.Attempts-rt.rec.Expired, 0)
		if rt.rec.JobID != "" && !rt.rec.Adopted {
			rt.failures = max(rt.failures-1, 0) // one of them still runs
		}
		if rt.rec.JobID != "" {
			// What became of the job is told by the next look at the list.
			rt.rec.State = catalog.Asked
		} else {
			rt.rec.State = catalog.Wanted
			rt.held = rt.rec.Expired > 0
		}
		r.addLocked(rt)
	}
	if len(drop) > 0 {
		r.log.Info("retrievals nobody needs any more are dropped", "count", len(drop))
		r.mu.Unlock()
		// Reclaim, for a mount on a full disk needs it.
		_, err = r.e.catalog.Reclaim(func(tx *catalog.Tx) error {
			for _, id := range drop {
				if err := tx.DeleteRetrieval(id); err != nil {
					return err
				}
			}
			return r.saveGuard(tx)
		})
		r.mu.Lock()
	}
	return err
}

// run does the background work until ctx ends and waits for its goroutines.
func (r *recaller) run(ctx context.Context) error {
	r.mu.Lock()
	r.running, r.ctx = true, ctx
	close(r.started)
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

func (r *recaller) runContext() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctx
}
