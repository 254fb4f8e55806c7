package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// retrieval brings one range of one archive back: at most one job at a time,
// asked for again when its output expires or it fails. Its range is always a node
// of the archive's tree, since only of those the service tells hashes. Fields are guarded by recaller.mu.
type retrieval struct {
	rec     catalog.Retrieval
	arc     catalog.Archive
	key     verKey
	ext     catalog.Extent // of the version, in this archive
	fileOff int64          // where ext begins in the file

	order   uint64                // of those in the tables, as they were made
	saved   bool                  // recorded as it is
	gone    bool                  // done, failed or dropped: in no table any more
	changed chan struct{}         // closed when something happened that a waiter wants to know
	demand  map[*waiter]cas.Range // what is waited for, of the archive
	reader  int64                 // where the last reader missed something
	left    time.Time             // when the last reader went
	counted bool                  // by the guard
	onWay   onWay                 // what the recaller's holds of it
	window  bool                  // may be merged with neighbours before it is asked for
	before  bool                  // made before the program started

	asking    bool // the range is fixed
	listed    bool // the list of jobs was searched since it was wanted
	failures  int  // jobs that failed, or whose output expired with nothing of it fetched
	notBefore time.Time
	tries     int // requests that failed in a row
	candidate *cas.Job
	standard  bool // Expedited was refused

	polled    time.Time      // the list of jobs was last looked at; zero: not since its job was asked for
	jobRange  cas.Range      // what the job's output holds; Len 0: not known yet
	lookAgain time.Time      // no Describe before
	lost      bool           // the output is gone
	lostJobs  map[string]int // how often a job's output was gone
	progress  bool           // something was fetched from the present job

	opening   bool
	file      *file
	local     *content.File
	cursor    int64 // next offset to fetch, in the archive
	sums      map[int64]cas.Hash
	done      int64
	refetched bool // the whole did not match once
	reread    bool // some of it could not be read back once
	finishing bool
	good      bool  // all of it is what it should be, and is being recorded
	size      int64 // of its file, once that is open
	large     bool  // which does not fit in the cache
	streaming bool  // nor does this part of it, with the rest that is wanted
	crowded   bool  // the last piece found no room
	noRoom    int   // tries in a row that found none
	held      bool  // its output expired: no other job is wanted before there is room
	digests   int   // pieces that did not match their hash
	spoiled   bool  // too many of them
}

// end returns where the retrieval's range ends in the archive.
func (rt *retrieval) end() int64 { return rt.rec.Off + rt.rec.Len }

func (rt *retrieval) whole() bool { return rt.rec.Off == 0 && rt.rec.Len == rt.arc.Size }

// toFile maps a range of the archive to the file, cut to the version's extent.
func (rt *retrieval) toFile(r cas.Range) (off, n int64) {
	lo := max(r.Off, rt.ext.Off)
	hi := min(r.End(), rt.ext.Off+rt.ext.Len)
	return lo - rt.ext.Off + rt.fileOff, max(hi-lo, 0)
}

func (rt *retrieval) wake() {
	close(rt.changed)
	rt.changed = make(chan struct{})
}

// givenUp is a retrieval that failed for good.
type givenUp struct {
	rec catalog.Retrieval
	err error
	at  time.Time
}

// failureCooldown keeps a program that repeats its read from starting jobs for
// ever; `casfs recall` does not wait for it.
const failureCooldown = time.Hour

// maxFailed bounds the failures kept for explanation.
const maxFailed = 1000

func failedError(text string) error { return fmt.Errorf("recall failed: %s", text) }

func (r *recaller) newRetrieval(arc catalog.Archive, ext catalog.Extent, fileOff int64, rec catalog.Retrieval) *retrieval {
	return &retrieval{
		rec: rec, arc: arc, key: verKey{rec.Ino, rec.V}, ext: ext, fileOff: fileOff,
		changed: make(chan struct{}), demand: make(map[*waiter]cas.Range), cursor: rec.Off,
	}
}

func (r *recaller) addLocked(rt *retrieval) {
	r.orders++
	rt.order = r.orders
	r.byArc[rt.arc.Num] = append(r.byArc[rt.arc.Num], rt)
	r.byKey[rt.key] = append(r.byKey[rt.key], rt)
	vault := r.byVault[rt.rec.VaultName]
	if vault == nil {
		vault = make(map[*retrieval]struct{})
		r.byVault[rt.rec.VaultName] = vault
	}
	vault[rt] = struct{}{}
	if rt.rec.JobID != "" {
		r.byJob[rt.rec.JobID] = append(r.byJob[rt.rec.JobID], rt)
	}
	r.recountLocked(rt)
	r.countLocked(rt)
}

// setJobLocked changes the job a retrieval waits for, "" for none.
func (r *recaller) setJobLocked(rt *retrieval, id string) {
	if old := rt.rec.JobID; old != "" {
		dropFrom(r.byJob, old, rt)
	}
	rt.rec.JobID = id
	if id != "" {
		r.byJob[id] = append(r.byJob[id], rt)
	}
	rt.jobRange, rt.lost, rt.progress, rt.lookAgain, rt.polled = cas.Range{}, false, false, time.Time{}, time.Time{}
}

// dropFrom takes rt out of a table of lists.
func dropFrom[K comparable](m map[K][]*retrieval, k K, rt *retrieval) {
	rest := slices.DeleteFunc(m[k], func(x *retrieval) bool { return x == rt })
	if len(rest) == 0 {
		delete(m, k)
	} else {
		m[k] = rest
	}
}

// removeLocked takes rt out of every table and wakes who waits for it. Its
// record and file are dealt with by bury, later, without locks.
func (r *recaller) removeLocked(rt *retrieval) {
	if rt.gone {
		return
	}
	rt.gone = true
	dropFrom(r.byArc, rt.arc.Num, rt)
	dropFrom(r.byKey, rt.key, rt)
	if rt.rec.JobID != "" {
		dropFrom(r.byJob, rt.rec.JobID, rt)
	}
	delete(r.byVault[rt.rec.VaultName], rt)
	if len(r.byVault[rt.rec.VaultName]) == 0 {
		delete(r.byVault, rt.rec.VaultName)
	}
	r.unopenLocked(rt)
	r.roomCameLocked()
	r.uncountLocked(rt)
	r.countLocked(rt)
	r.dead = append(r.dead, rt)
	rt.wake()
	r.waves.endedLocked(rt.key)
	r.wakeFetchersLocked()
}

// cancelLocked removes a retrieval that was not asked for and gives its bytes back to the guard.
func (r *recaller) cancelLocked(rt *retrieval) {
	if rt.counted {
		r.guard.refund(rt.rec.Len, time.Unix(0, rt.rec.Created))
	}
	r.removeLocked(rt)
}

func (r *recaller) makeExplicitLocked(rt *retrieval, tier string) {
	rt.rec.Ahead = false
	r.uncountLocked(rt)
	if !rt.rec.Explicit {
		rt.rec.Explicit = true
		rt.saved = false
		r.countLocked(rt)
		r.kickLocked(rt.rec.VaultName)
	}
	if tier != "" && rt.rec.State == catalog.Wanted && !rt.asking {
		rt.rec.Tier = tier
	}
	if rt.large && rt.size <= r.emptyRoomLocked(rt.key.ino) { // there was less when it was opened, or others fill the disk
		rt.large, rt.streaming = false, false
		r.countLocked(rt)
		r.wakeFetchersLocked()
	} else if rt.streaming && rt.rec.Len-rt.done <= r.emptyRoomLocked(rt.key.ino) {
		rt.streaming = false // what the cache has of the file beside gives way
		r.countLocked(rt)
		r.wakeFetchersLocked()
	}
	rt.notBefore = time.Time{}
}

// save records the present state of retrievals, or deletes the records of those that are gone.
func (r *recaller) save(rts ...*retrieval) (seq uint64, err error) {
	ids := make([]uint64, len(rts))
	seq, err = r.e.catalog.Update(func(tx *catalog.Tx) error {
		for i, rt := range rts {
			r.mu.Lock()
			rec, gone := rt.rec, rt.gone
			r.mu.Unlock()
			switch {
			case gone && rec.State != catalog.Failed:
				if rec.ID == 0 {
					continue
				}
				if err := tx.DeleteRetrieval(rec.ID); err != nil && !errors.Is(err, catalog.ErrNotExist) {
					return err
				}
				continue
			case rec.ID == 0:
				rec.ID = tx.NextID()
				ids[i] = rec.ID
			}
			if err := tx.PutRetrieval(rec); err != nil {
				return err
			}
		}
		return r.saveGuard(tx)
	})
	if err != nil {
		return 0, fmt.Errorf("recording retrievals: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, rt := range rts {
		rt.saved = true
		if ids[i] == 0 {
			continue
		}
		rt.rec.ID = ids[i]
		if rt.gone && rt.rec.State != catalog.Failed {
			r.dead = append(r.dead, rt) // went away while its record was made
			r.wakeFetchersLocked()
		}
	}
	return seq, nil
}

// bury deletes the records of retrievals that are gone and gives their files
// back, unless something still writes to those.
func (r *recaller) bury() {
	r.mu.Lock()
	var now []*retrieval
	rest := r.dead[:0]
	for _, rt := range r.dead {
		if slices.ContainsFunc(r.inflight, func(f *flight) bool { return f.rt == rt }) || rt.finishing || rt.opening {
			rest = append(rest, rt)
		} else {
			now = append(now, rt)
		}
	}
	clear(r.dead[len(rest):])
	r.dead = rest
	files := make([]*file, 0, len(now))
	var recorded []*retrieval
	for _, rt := range now {
		if rt.file != nil {
			files = append(files, rt.file)
			rt.file, rt.local = nil, nil
		}
		if rt.rec.ID != 0 {
			recorded = append(recorded, rt)
		}
	}
	r.mu.Unlock()
	for len(recorded) > 0 {
		n := min(len(recorded), 500)
		if _, err := r.save(recorded[:n]...); err != nil {
			// The next start drops records of what is complete or gone.
			r.log.Error("records of finished retrievals stay behind", "count", n, "error", err)
		}
		recorded = recorded[n:]
		r.e.hit("recall.finished")
	}
	for _, f := range files {
		f.put()
	}
}

// fail gives a retrieval up. With damaged the version is marked, too.
func (r *recaller) fail(rt *retrieval, cause error, damaged bool) {
	r.mu.Lock()
	if rt.rec.Ahead && !rt.gone {
		r.dropAheadLocked(rt, cause)
		r.mu.Unlock()
		return
	}
	job, jobs := rt.rec.JobID, rt.rec.Attempts
	r.mu.Unlock()
	r.log.Error("recall given up", "path", r.pathOf(rt.key.ino), "archive", rt.arc.ID, "job", job, "jobs", jobs, "error", cause)
	err := failedError(cause.Error())
	if damaged {
		err = fmt.Errorf("%w: %w", ErrDamaged, cause)
		r.markDamaged(rt.key, cause.Error())
	}
	r.mu.Lock()
	if rt.gone {
		r.mu.Unlock()
		return
	}
	rt.rec.State, rt.rec.Error = catalog.Failed, cause.Error()
	rt.rec.AskedAt = time.Now().UnixNano()
	var old uint64
	if len(r.failed) >= maxFailed {
		for num, f := range r.failed {
			old = f.rec.ID
			delete(r.failed, num)
			break
		}
	}
	r.failed[rt.arc.Num] = givenUp{rec: rt.rec, err: err, at: time.Now()}
	r.waves.failedLocked(rt, cause)
	r.removeLocked(rt)
	r.mu.Unlock()
	if _, err := r.save(rt); err != nil {
		r.log.Error("a failed recall is not recorded", "error", err)
	}
	if old != 0 {
		r.deleteRecord(old)
	}
	r.attrChanged(rt.key.ino)
}

func (r *recaller) forgetFailureLocked(archive uint64) {
	f, ok := r.failed[archive]
	if !ok {
		return
	}
	delete(r.failed, archive)
	if f.rec.ID != 0 {
		rec := f.rec
		rec.State = catalog.Wanted // so that bury deletes it
		r.dead = append(r.dead, &retrieval{rec: rec, gone: true})
		r.wakeFetchersLocked()
	}
}

func (r *recaller) deleteRecord(id uint64) {
	if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error { return tx.DeleteRetrieval(id) }); err != nil {
		r.log.Error("a retrieval's record stays behind", "error", err)
	}
}

// pathOf is for people.
func (r *recaller) pathOf(ino uint64) string {
	path := ""
	r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		path, err = tx.Path(ino)
		return err
	})
	if path == "" {
		path = fmt.Sprintf("#%d", ino)
	}
	return path
}

// tier says how fast to ask. Expedited takes only less than MaxExpedited.
func (rt *retrieval) tier() cas.Tier {
	small := rt.rec.Len < cas.MaxExpedited && !rt.standard
	switch strings.ToLower(rt.rec.Tier) {
	case "expedited":
		if small {
			return cas.Expedited
		}
	case "bulk":
		return cas.Bulk
	case "auto":
		// Someone waits for a read; a bulk recall is one of many.
		switch {
		case rt.rec.Explicit:
			return cas.Bulk
		case small:
			return cas.Expedited
		}
	}
	return cas.Standard
}

// ask starts rt's job. The record says Wanted and is on stable storage.
func (r *recaller) ask(ctx context.Context, rt *retrieval) {
	r.mu.Lock()
	if rt.gone {
		r.mu.Unlock()
		return
	}
	rec, tier := rt.rec, rt.tier()
	r.mu.Unlock()
	if strings.EqualFold(rec.Tier, string(cas.Expedited)) && tier != cas.Expedited {
		r.log.Info("Expedited does not take as much, Standard is asked for", "path", r.pathOf(rt.key.ino), "bytes", rec.Len)
	}
	q := cas.JobRequest{
		Type: cas.ArchiveRetrieval, ArchiveID: rt.arc.ID, Tier: tier,
		Description: jobDescription(r.e.catalog.ID(), rec.ID),
	}
	if !rt.whole() {
		q.Range = cas.Range{Off: rec.Off, Len: rec.Len}
	}
	r.e.hit("recall.recorded")
	id, err := r.e.client.InitiateJob(ctx, rec.VaultName, q)
	if err == nil {
		r.e.hit("recall.asked")
	}
	now := time.Now()
	r.mu.Lock()
	var final error
	damaged := false
	rt.asking = false
	switch {
	case err == nil && rt.gone: // nobody wants it any more; who will finds the job in the list
	case err == nil:
		r.setJobLocked(rt, id)
		rt.rec.State, rt.rec.AskedAt, rt.rec.Uncertain, rt.rec.Adopted, rt.rec.Error = catalog.Asked, now.UnixNano(), false, false, ""
		rt.rec.Attempts++
		rt.tries = 0
	case ctx.Err() != nil, errors.Is(err, cas.ErrUnknown):
		// The job may be running: the list tells, once the service had time to add it.
		rt.rec.Uncertain, rt.rec.Error = true, err.Error()
		rt.notBefore = now.Add(10 * time.Second)
	case rt.finishing: // others have brought it
	case rt.rec.Ahead && !errors.Is(err, cas.ErrThrottled) && !errors.Is(err, cas.ErrUnavailable) && (q.Tier != cas.Expedited || !errors.Is(err, cas.ErrInvalid)):
		r.dropAheadLocked(rt, err)
	case errors.Is(err, cas.ErrNotFound):
		final, damaged = fmt.Errorf("the service does not know the archive: %w", err), true
	case errors.Is(err, cas.ErrPolicy):
		rt.rec.Error = err.Error()
		rt.notBefore = now.Add(15 * time.Minute)
	case errors.Is(err, cas.ErrThrottled), errors.Is(err, cas.ErrUnavailable):
		rt.retryLocked(now, err)
	case q.Tier == cas.Expedited && errors.Is(err, cas.ErrInvalid):
		rt.standard = true
	case rt.tries >= maxRefusals, errors.Is(err, cas.ErrInvalid), errors.Is(err, cas.ErrAccessDenied):
		final = err
	default:
		rt.retryLocked(now, err)
	}
	r.mu.Unlock()
	if final != nil {
		r.fail(rt, final, damaged)
		return
	}
	if err != nil {
		r.log.Warn("no job was started", "path", r.pathOf(rt.key.ino), "vault", rec.VaultName, "error", err)
	} else {
		r.log.Info("recall asked for", "path", r.pathOf(rt.key.ino), "bytes", rec.Len, "tier", q.Tier, "job", id)
	}
	if _, err := r.save(rt); err != nil {
		r.log.Error("a job is not recorded; the list of jobs will tell", "job", id, "error", err)
	}
	if id != "" {
		r.e.hit("recall.noted")
	}
}

// maxRefusals is how often a request that is refused for no reason of its own is repeated.
const maxRefusals = 5

// retryLocked waits longer each time, up to five minutes.
func (rt *retrieval) retryLocked(now time.Time, err error) {
	rt.rec.Error = err.Error()
	rt.notBefore = now.Add(min(time.Second<<min(rt.tries, 20), 5*time.Minute))
	rt.tries++
}
