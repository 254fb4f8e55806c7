package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// waves is the queue of explicit recalls. What `casfs recall` was asked for is
// recorded as it was asked; its files are found by walking the tree, a bounded number
// at a time, and become retrievals as room and link allow. Guarded by recaller.mu.
type waves struct {
	bulks    []*bulk
	turn     int
	nextID   uint64
	inflight map[verKey]*waveFile
	look     map[verKey]struct{} // versions one of whose retrievals ended
	wake     chan struct{}       // of size 1
	save     bool                // something about the requests is to be recorded
	budget   int64               // what may still be asked for, as it was at budgetAt, less what was asked for since
	budgetAt time.Time
	keep     int          // waveKeep, less in tests
	most     int          // waveFiles, less in tests
	gone     []bulkRecord // finished: records to be deleted
}

// bulk is one recall request.
type bulk struct {
	rec  bulkRecord
	inos []uint64
	gen  int // changes when something is cancelled of it

	items   []waveKey // found, not asked for yet, in order
	more    bool      // the walk found more than it kept
	queued  []waveKey // asked for; some may not be recorded yet
	found   waveKey   // the walk kept everything up to here
	counted chan struct{}
	ended   chan struct{} // everything is local or failed, or it was cancelled
	pending int           // files asked for that are not local yet

	files, bytes           int64 // of the whole request
	local, failed, fetched int64 // fetched: bytes
	failures               []Skipped
	current                uint64
	err                    error
}

// waveFile is a version on its way for the sake of recalls.
type waveFile struct {
	parts []*wavePart // by request
}

// waveKey orders files: smallest first, then by directory.
type waveKey struct {
	Size int64
	Dir  uint64
	Ino  uint64
}

func compareKeys(a, b waveKey) int {
	return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.Ino, b.Ino))
}

// bulkRecord is what the catalog keeps of a request. Files up to Frontier have a
// retrieval's record of their own, or are done.
type bulkRecord struct {
	ID        uint64
	Recursive bool   `json:",omitempty"`
	Tier      string `json:",omitempty"`
	Off, Len  int64  `json:",omitempty"`
	Created   int64
	Chunks    int      // of inode numbers
	Exclude   []uint64 `json:",omitempty"`
	Frontier  waveKey
}

const (
	wavesMeta = "recall.requests"
	inoChunk  = 4096
	// waveKeep is how many files of a request are kept in memory; the tree is walked again for the rest.
	waveKeep = 50_000
	// waveFiles bounds the jobs running for explicit recalls.
	waveFiles = 10_000
	// waveExclude bounds the exceptions of one request.
	waveExclude = 10_000
	// waveSave is how often the frontier is recorded.
	waveSave = 5 * time.Second
	// waveAgain is when a request that could not go on is looked at again, should nothing wake it.
	waveAgain = time.Minute
	// linkShare is the part of an output's life that the link may be busy with what was asked for.
	linkShare = 0.5
)

func (w *waves) init() {
	w.inflight = make(map[verKey]*waveFile)
	w.look = make(map[verKey]struct{})
	w.wake = make(chan struct{}, 1)
	w.keep, w.most = waveKeep, waveFiles
}

func newBulk(rec bulkRecord, inos []uint64) *bulk {
	return &bulk{rec: rec, inos: inos, found: rec.Frontier, more: true, counted: make(chan struct{}), ended: make(chan struct{})}
}

// kick wakes the wave loop.
func (w *waves) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// endedLocked hears that a retrieval of a version is in no table any more.
func (w *waves) endedLocked(key verKey) {
	if _, ok := w.inflight[key]; ok {
		w.look[key] = struct{}{}
		w.kick()
	}
}

// waveLoop turns requests into retrievals.
func (r *recaller) waveLoop(ctx context.Context) {
	w := &r.waves
	var saved time.Time
	left := false // what could not be recorded, or not all of it
	for {
		if ctx.Err() != nil {
			r.saveWaves()
			return
		}
		r.mu.Lock()
		r.reapWavesLocked()
		expand := r.hungryLocked()
		r.mu.Unlock()
		if expand != nil {
			r.expand(ctx, expand)
			continue
		}
		if r.feed(ctx) {
			continue
		}
		r.mu.Lock()
		idle := len(w.bulks) == 0
		due := w.save && (idle && !left || time.Since(saved) >= waveSave)
		later := w.save && !due
		r.mu.Unlock()
		if due {
			r.saveWaves()
			saved = time.Now()
			r.mu.Lock()
			left = w.save
			r.mu.Unlock()
			continue
		}
		var again <-chan time.Time
		var t *time.Timer
		switch {
		case later:
			t = time.NewTimer(waveSave)
		case !idle:
			t = time.NewTimer(waveAgain)
		}
		if t != nil {
			again = t.C
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-again:
		}
		if t != nil {
			t.Stop()
		}
	}
}

// reapWavesLocked counts files that arrived or failed, and ends requests that have nothing left.
func (r *recaller) reapWavesLocked() {
	w := &r.waves
	for key := range w.look {
		f := w.inflight[key]
		f.parts = slices.DeleteFunc(f.parts, func(p *wavePart) bool {
			if r.waitsLocked(key, p) {
				return false
			}
			p.b.pending--
			switch {
			case p.local:
				p.b.local++
			case p.cause != nil:
				p.b.fail(key.ino, p.cause.Error())
			case p.dropped:
				p.b.fail(key.ino, "some of it had to give way to something else before the rest was there: recall less at once, or enlarge --cache-size")
			case p.arrived:
				p.b.local++
			default:
				p.b.fail(key.ino, "it was deleted, changed or cancelled before it was back")
			}
			return true
		})
		if len(f.parts) == 0 {
			delete(w.inflight, key)
		}
	}
	clear(w.look)
	w.bulks = slices.DeleteFunc(w.bulks, func(b *bulk) bool {
		if b.more || len(b.items) > 0 || b.pending > 0 {
			return false
		}
		w.endLocked(b)
		return true
	})
}

// endLocked ends a request that was taken off the list.
func (w *waves) endLocked(b *bulk) {
	b.count()
	close(b.ended)
	w.gone = append(w.gone, b.rec)
	w.save = true
}

// count tells those who wait for the totals.
func (b *bulk) count() {
	select {
	case <-b.counted:
	default:
		close(b.counted)
	}
}

func (b *bulk) fail(ino uint64, why string) {
	b.failed++
	if len(b.failures) < maxSkipped {
		b.failures = append(b.failures, Skipped{fmt.Sprint(ino), why}) // the path is filled in when it is asked for
	}
}

// hungryLocked returns a request whose tree has to be walked.
func (r *recaller) hungryLocked() *bulk {
	for _, b := range r.waves.bulks {
		if b.more && len(b.items) == 0 {
			return b
		}
	}
	return nil
}

// expand finds the next files of a request, and counts all of them the first time.
func (r *recaller) expand(ctx context.Context, b *bulk) {
	r.mu.Lock()
	rec, from, inos, gen := b.rec, b.found, b.inos, b.gen
	r.mu.Unlock()
	first := false
	select {
	case <-b.counted:
	default:
		first = true
	}
	var keep []waveKey
	var files, bytes, local int64
	more := false
	trim := func() {
		slices.SortFunc(keep, compareKeys)
		keep = slices.Compact(keep)
		if len(keep) > r.waves.keep {
			keep, more = keep[:r.waves.keep], true
		}
	}
	exclude := make(map[uint64]struct{}, len(rec.Exclude))
	for _, ino := range rec.Exclude {
		exclude[ino] = struct{}{}
	}
	err := r.walkIn(ctx, inos, rec.Recursive, exclude, func(dir uint64, ino catalog.Inode) error {
		if !isRegular(ino.Mode) {
			return nil
		}
		files++
		cold, err := r.isCold(ino)
		if err != nil {
			return err
		}
		if !cold {
			local++
			return nil
		}
		n := ino.Size
		if rec.Len > 0 {
			n = max(min(rec.Len, ino.Size-rec.Off), 0)
		}
		bytes += n
		if k := (waveKey{ino.Size, dir, ino.Ino}); compareKeys(k, from) > 0 {
			if keep = append(keep, k); len(keep) >= 2*r.waves.keep {
				trim()
			}
		}
		return nil
	})
	trim()
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil || b.gen != gen {
		return // it is looked for again
	}
	if err != nil {
		r.log.Error("the files to be recalled cannot all be found", "error", err)
		b.err = err
	}
	if first {
		b.files, b.bytes, b.local = files, bytes, local
		b.count()
	}
	b.items, b.more = keep, more && err == nil
	if len(keep) > 0 {
		b.found = keep[len(keep)-1]
	}
}

// isCold reports whether recalling the file would bring anything.
func (r *recaller) isCold(ino catalog.Inode) (bool, error) {
	if ino.Version == 0 || ino.Size == 0 {
		return false, nil
	}
	var v catalog.Version
	err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		v, err = tx.Version(ino.Ino, ino.Version)
		return err
	})
	if errors.Is(err, catalog.ErrNotExist) {
		return false, nil
	}
	return err == nil && v.State == catalog.Archived && !v.Complete, err
}

// budgetLocked returns how many more bytes may be asked for: what is on its way must
// fit in the cache, and be fetched before its jobs' outputs expire.
func (r *recaller) budgetLocked() (budget, inflight int64, crowded bool) {
	inflight = r.onWay.explicit
	return min(r.room(), r.linkLocked()) - inflight, inflight, r.onWay.crowded > 0
}

// linkLocked returns what can be fetched of outputs that become ready together before they expire.
func (r *recaller) linkLocked() int64 {
	speed := r.speed.get()
	if r.limit != nil {
		speed = min(speed, float64(r.limit.Limit())) // known before anything was measured
	}
	return int64(speed * outputLife.Seconds() * linkShare)
}

// feed asks for the next file of a request; it reports whether there may be more to do at once.
func (r *recaller) feed(ctx context.Context) bool {
	w := &r.waves
	r.mu.Lock()
	n := len(w.bulks)
	var b *bulk
	w.turn++
	for i := range n {
		// Those that wait for others to leave the disk keep nobody from what there is room for.
		if x := w.bulks[(i+w.turn)%n]; len(x.items) > 0 && (b == nil || r.waitsForLocked(b) != "") {
			b = x
		}
	}
	if b == nil || len(w.inflight) >= w.most || ctx.Err() != nil {
		r.mu.Unlock()
		return false
	}
	k, gen := b.items[0], b.gen
	need := b.needs(k)
	fits := func(room int64) bool {
		if need <= room {
			return true
		}
		b.fail(k.Ino, fmt.Sprintf("its %d bytes do not fit in the cache, which takes %d beside what is pinned: recall a range, read it (it streams), or enlarge --cache-size", need, room))
		b.next(k)
		return false
	}
	if !fits(r.mostRoom()) { // whatever else is on its way, or pinned
		r.mu.Unlock()
		return true
	}
	if now := time.Now(); need > w.budget || now.Sub(w.budgetAt) > time.Second {
		budget, inflight, crowded := r.budgetLocked()
		if inflight > 0 && (need > budget || crowded) {
			w.budget = 0
			r.mu.Unlock()
			return false
		}
		w.budget, w.budgetAt = budget, now
	}
	if !fits(r.emptyRoomLocked(k.Ino)) {
		r.mu.Unlock()
		return true
	}
	if need > r.roomForLocked(k.Ino) { // others fill the disk; it is looked at again with every tick
		w.budget = 0
		r.mu.Unlock()
		return false
	}
	w.budget -= need
	rec := b.rec
	r.mu.Unlock()

	f, err := r.e.acquire(k.Ino)
	if err == nil {
		_, err = r.queueRange(Caller{}, f, rec.Tier, true, rec.Off, rec.Len)
		f.mu.Lock()
		key := verKey{f.ver.Ino, f.ver.V}
		p := newPart(b, f)
		f.mu.Unlock()
		defer f.put()
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case b.gen != gen && w.inflight[key] == nil:
			// Cancelled meanwhile; if it was not this file, it is found again.
			for _, rt := range slices.Clone(r.byKey[key]) {
				if rt.rec.Explicit && rt.rec.State == catalog.Wanted && !rt.asking && !rt.rec.Uncertain && len(rt.demand) == 0 {
					r.cancelLocked(rt)
				}
			}
			return true
		case errors.Is(err, ErrClosing):
			return false
		case errors.Is(err, catalog.ErrNoSpace), errors.Is(err, content.ErrNoSpace):
			b.err = err // tried again with the next tick
			return false
		case err != nil:
			b.fail(k.Ino, err.Error())
		case !r.waitsLocked(key, p):
			b.local++
		default:
			wf := w.inflight[key]
			if wf == nil {
				wf = &waveFile{}
				w.inflight[key] = wf
			}
			if !slices.ContainsFunc(wf.parts, func(x *wavePart) bool { return x.b == b }) {
				wf.parts = append(wf.parts, p)
				b.pending++
				r.wakeFetchersLocked() // streams bring what of them is wanted
			}
		}
		b.next(k)
		w.save = true
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.Is(err, catalog.ErrNotExist) { // else it was deleted meanwhile
		b.fail(k.Ino, err.Error())
	}
	b.next(k)
	return true
}

// needs returns how many bytes of a file the request wants.
func (b *bulk) needs(k waveKey) int64 {
	if b.rec.Len > 0 {
		return max(min(b.rec.Len, k.Size-b.rec.Off), 1)
	}
	return k.Size
}

// next takes the first file off the list.
func (b *bulk) next(k waveKey) {
	if len(b.items) > 0 && b.items[0] == k {
		b.items = b.items[1:]
		b.queued = append(b.queued, k)
	}
}
