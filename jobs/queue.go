package jobs

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// uploader decides which version is uploaded when: a bounded number at once, big
// ones at most half of them, failed ones again after a while.
type uploader struct {
	e     *Engine
	bufs  *buffers
	limit *rate.Limiter // nil: none

	mu           sync.Mutex
	ctx          context.Context // of Run; nil before and after
	wg           sync.WaitGroup
	tasks        map[uint64]*task
	queues       map[uint64]*uploadQueue // by vault
	empty        []*task                 // queued; nothing of them goes to any vault
	running      int
	runningLarge int
	begun        uint64              // attempts so far
	streams      *semaphore.Weighted // places of files that are being written
	byIno        map[uint64][]string // intents of the catalog's Upload records
	busy         map[string]struct{} // intents some task is sending
	abandoned    map[string]abandoned
	sent         map[string]catalog.Archive // by intent: answered but not recorded yet; not to be sent again
	kick         chan struct{}              // abandoned uploads are there to be cleaned up
}

// uploadQueue is what waits to be sent to a vault.
type uploadQueue struct {
	name         string
	small, large []*task // oldest first
	outage       outage
}

type taskState int

const (
	taskQueued  taskState = iota
	taskRunning           // a goroutine has it
	taskWaiting           // failed; the settler will bring it back
)

// task is the upload of one inode's current version.
type task struct {
	ino   uint64
	queue *uploadQueue
	size  int64
	large bool
	done  atomic.Int64 // bytes the service has acknowledged

	// Guarded by uploader.mu.
	state     taskState
	counted   bool // by the buffers, as a small one
	again     bool // asked for once more while running
	cancel    context.CancelCauseFunc
	attempts  int
	nth       uint64 // of all attempts, the present one
	v         uint64 // the version it is for; 0 until that is sealed
	err       string
	permanent bool
	outage    bool // it failed because the service did
	probe     bool // it tries whether the service is back
	since     time.Time
}

var (
	errSuperseded = errors.New("the file changed while it was being uploaded")
	errInUse      = errors.New("the file is being written to at this moment")
)

// Bounds of the pause between attempts.
const (
	retryFirst     = time.Second
	retryMost      = 5 * time.Minute
	retryPermanent = 10 * time.Minute
	retryInUse     = 100 * time.Millisecond
)

func newUploader(e *Engine) *uploader {
	u := &uploader{
		e:         e,
		bufs:      newBuffers(e.opts.Parts, e.opts.PartSize),
		streams:   semaphore.NewWeighted(int64(max(e.opts.Uploads/2, 1))),
		tasks:     map[uint64]*task{},
		queues:    map[uint64]*uploadQueue{},
		byIno:     map[uint64][]string{},
		busy:      map[string]struct{}{},
		abandoned: map[string]abandoned{},
		sent:      map[string]catalog.Archive{},
		kick:      make(chan struct{}, 1),
	}
	if bw := e.opts.BandwidthUp; bw > 0 {
		u.limit = rate.NewLimiter(rate.Limit(bw), int(max(bw/10, 64<<10)))
	}
	return u
}

// run starts uploads until ctx ends and waits for those under way.
func (u *uploader) run(ctx context.Context) error {
	if u.e.opts.ReadOnly {
		return nil
	}
	u.mu.Lock()
	u.ctx = ctx
	u.pumpLocked()
	u.mu.Unlock()
	for ctx.Err() == nil {
		wait := time.Hour
		if next := u.e.cleanAbandoned(ctx); !next.IsZero() {
			wait = max(time.Until(next), 0)
		}
		t := time.NewTimer(wait)
		select {
		case <-u.kick:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	u.mu.Lock()
	u.ctx = nil
	for _, q := range u.queues {
		if t := q.outage.timer; t != nil {
			t.Stop()
		}
	}
	u.mu.Unlock()
	u.wg.Wait()
	u.bufs.drop()
	return nil
}

// enqueue asks for the upload of ino's current version, now.
func (u *uploader) enqueue(ino uint64) {
	var i catalog.Inode
	var vault catalog.Vault
	err := u.e.catalog.View(func(tx *catalog.Tx) (err error) {
		if i, err = tx.Inode(ino); err != nil {
			return err
		}
		if vault, err = tx.Vault(i.Vault); errors.Is(err, catalog.ErrNotExist) {
			return nil // the attempt says so
		}
		return err
	})
	if err != nil {
		return // deleted; what it left is the reclaimer's
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.tasks[ino]
	if t != nil {
		switch t.state {
		case taskQueued:
			return
		case taskRunning:
			t.again = true
			return
		}
	} else {
		q := u.queues[i.Vault]
		if q == nil {
			q = &uploadQueue{name: vault.Name}
			u.queues[i.Vault] = q
		}
		t = &task{ino: ino, queue: q, since: time.Now()}
		u.tasks[ino] = t
	}
	t.state, t.size, t.large = taskQueued, i.Size, i.Size > u.e.opts.SingleBelow
	u.countLocked(t, !t.large && i.Size > tiny)
	switch {
	case t.size == 0:
		u.empty = append(u.empty, t)
	case t.large:
		t.queue.large = append(t.queue.large, t)
	default:
		t.queue.small = append(t.queue.small, t)
	}
	u.pumpLocked()
}

// countLocked tells the buffers whether t is a small file that is going to need some.
func (u *uploader) countLocked(t *task, small bool) {
	switch {
	case small && !t.counted:
		u.bufs.count(1)
	case !small && t.counted:
		u.bufs.count(-1)
	}
	t.counted = small
}

// pumpLocked starts what may run.
func (u *uploader) pumpLocked() {
	if u.ctx == nil || u.ctx.Err() != nil {
		return
	}
	for u.running < u.e.opts.Uploads {
		t := u.nextLocked(time.Now())
		if t == nil {
			return
		}
		if o := &t.queue.outage; o.tries > 0 && t.size > 0 {
			t.probe = true
			o.probing++
		}
		ctx, cancel := context.WithCancelCause(u.ctx)
		t.state, t.cancel, t.again = taskRunning, cancel, false
		t.attempts++
		u.begun++
		t.nth, t.v = u.begun, 0
		t.done.Store(0)
		u.running++
		if t.large {
			u.runningLarge++
		}
		u.wg.Go(func() {
			u.finish(ctx, t, u.e.upload(ctx, t))
			cancel(nil)
		})
	}
}

// nextLocked takes a task from the queues: a large one when none is running, and otherwise the older
// of both heads while large ones hold less than half of the places.
func (u *uploader) nextLocked(now time.Time) *task {
	if u.empty = queued(u.empty); len(u.empty) > 0 {
		t := u.empty[0]
		u.empty = u.empty[1:]
		return t
	}
	room := u.runningLarge < max(u.e.opts.Uploads/2, 1)
	var small, large *task
	for _, q := range u.queues {
		q.small, q.large = queued(q.small), queued(q.large)
		if !q.outage.mayStart(now) {
			continue
		}
		if len(q.small) > 0 && (small == nil || q.small[0].since.Before(small.since)) {
			small = q.small[0]
		}
		// In an outage a small one mostly, for little is sent in vain; but what ails it may be its own.
		if len(q.large) > 0 && room && (len(q.small) == 0 || q.outage.tries%4 == 0) && (large == nil || q.large[0].since.Before(large.since)) {
			large = q.large[0]
		}
	}
	switch {
	case large != nil && (u.runningLarge == 0 || small == nil || large.since.Before(small.since)):
		large.queue.large = large.queue.large[1:]
		return large
	case small != nil:
		small.queue.small = small.queue.small[1:]
		return small
	}
	return nil
}

// queued drops what has left the queue from its head.
func queued(list []*task) []*task {
	for len(list) > 0 && list[0].state != taskQueued {
		list = list[1:]
	}
	return list
}

// finish decides what becomes of a task whose attempt, with ctx, is over.
func (u *uploader) finish(ctx context.Context, t *task, err error) {
	e := u.e
	ino := t.ino
	superseded := func() bool { return err != nil && errors.Is(context.Cause(ctx), errSuperseded) }
	if superseded() {
		err = errSuperseded
	}
	now := time.Now()
	putOff := errors.Is(err, errSuperseded) || errors.Is(err, errInUse) || errors.Is(err, catalog.ErrNotExist)
	u.mu.Lock()
	stopped := u.ctx == nil || u.ctx.Err() != nil
	failed := err != nil && !putOff && !stopped
	permanent := failed && permanentUpload(err)
	if failed {
		t.err, t.permanent = err.Error(), permanent
	}
	v, nth := t.v, t.nth
	u.mu.Unlock()
	switch {
	case failed:
		e.log.Error("upload failed", "path", e.path(ino), "attempt", t.attempts, "permanent", permanent, "err", err)
		if permanent {
			// While it still counts as running: the next attempt may go well, and what it has taken back must not come after it.
			e.fail(ino, v, nth, err)
		}
	case err != nil && !stopped:
		e.log.Debug("upload put off", "path", e.path(ino), "why", err)
	}

	u.mu.Lock()
	u.running--
	if t.large {
		u.runningLarge--
	}
	u.countLocked(t, false)
	u.learnLocked(t, err, now)
	if superseded() { // while the failure was noted: nothing waits for the pause after that
		err = errSuperseded
	}
	again := t.again
	switch {
	case err == nil, errors.Is(err, errSuperseded), errors.Is(err, catalog.ErrNotExist):
		delete(u.tasks, ino)
	case stopped:
		delete(u.tasks, ino)
		again = false
	case errors.Is(err, errInUse):
		delete(u.tasks, ino)
		again = false
		e.settle.retry(ino, now.Add(retryInUse))
	default:
		t.state, t.outage = taskWaiting, isOutage(err)
		wait := retryPermanent
		if !permanent {
			wait = min(retryFirst<<min(t.attempts-1, 16), retryMost)
			// There is a pause for all of them; but each try whose answer is lost may leave an archive.
			if t.outage && t.queue.outage.tries >= outageSaid && !errors.Is(err, cas.ErrUnknown) {
				wait = min(wait, outageMost*3/4)
			}
			wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
		}
		if !again {
			e.settle.retry(ino, now.Add(wait))
		}
	}
	u.pumpLocked()
	u.mu.Unlock()
	if again {
		u.enqueue(ino)
	}
	u.kickAbandoned()
}

// cancel stops whatever is done for ino's version, which is superseded or gone.
func (u *uploader) cancel(ino uint64) {
	u.e.settle.drop(ino)
	u.mu.Lock()
	if t := u.tasks[ino]; t != nil {
		switch t.state {
		case taskRunning:
			t.again = false
			t.cancel(errSuperseded)
		default:
			t.state = taskWaiting // the queues skip it
			u.countLocked(t, false)
			delete(u.tasks, ino)
		}
	}
	u.mu.Unlock()
	u.kickAbandoned()
}

func (u *uploader) kickAbandoned() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

// intents lists the Upload records of ino.
func (u *uploader) intents(ino uint64) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.byIno[ino]...)
}

func (u *uploader) hasIntents(ino uint64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.byIno[ino]) > 0
}

func (u *uploader) addIntent(ino uint64, intent string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byIno[ino] = append(u.byIno[ino], intent)
}

func (u *uploader) dropIntent(ino uint64, intent string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.sent, intent)
	list := u.byIno[ino]
	for i, x := range list {
		if x == intent {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(u.byIno, ino)
	} else {
		u.byIno[ino] = list
	}
}

func (u *uploader) setSent(intent string, a catalog.Archive) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sent[intent] = a
}

func (u *uploader) getSent(intent string) (catalog.Archive, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	a, ok := u.sent[intent]
	return a, ok
}

func (u *uploader) setBusy(intent string, busy bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if busy {
		u.busy[intent] = struct{}{}
	} else {
		delete(u.busy, intent)
	}
}

// active reports whether a task for ino exists, and its bytes sent.
func (u *uploader) active(ino uint64) (state taskState, done int64, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.tasks[ino]
	if t == nil {
		return 0, 0, false
	}
	return t.state, t.done.Load(), true
}

// permanentUpload reports whether trying again soon is pointless: somebody has to do something first.
func permanentUpload(err error) bool {
	for _, p := range []error{
		cas.ErrAccessDenied, cas.ErrCredentials, cas.ErrClockSkew, cas.ErrNotFound, cas.ErrInvalid,
		cas.ErrLimit, cas.ErrPolicy, cas.ErrTooLarge, cas.ErrEmpty, errVaultGone, ErrDamaged,
	} {
		if errors.Is(err, p) {
			return true
		}
	}
	return false
}

// attempts returns how many have begun.
func (u *uploader) attempts() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.begun
}

// sealed notes which version t's attempt is for.
func (u *uploader) sealed(t *task, v uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t.v = v
}

// fail records a permanent failure of ino's version v (0: it failed before it was sealed): shown by status, told once
// to the program that asks, and in the way of nothing else. nth is the attempt, 0 for a stream's.
func (e *Engine) fail(ino, v, nth uint64, cause error) {
	text := refusalText(cause)
	for _, intent := range e.up.intents(ino) {
		_, err := e.catalog.Update(func(tx *catalog.Tx) error {
			u, err := tx.Upload(intent)
			if err != nil {
				return err
			}
			if u.State == catalog.Abandoned || u.State == catalog.Sent || v != 0 && u.V != v {
				return nil
			}
			u.Permanent, u.Error = true, text
			return tx.PutUpload(u)
		})
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			e.log.Error("recording a failed upload", "path", e.path(ino), "err", err)
		}
	}
	if !e.noteFailure(ino, v, text) {
		return
	}
	if v == 0 {
		v = math.MaxUint64
	}
	e.syncEvent(ino, v, nth, cause)
}

// noteFailure keeps why a version cannot be uploaded, unless it is the file's no more: whoever has superseded it has
// forgiven that, with the file's lock held.
func (e *Engine) noteFailure(ino, v uint64, text string) bool {
	f, err := e.acquire(ino)
	if errors.Is(err, catalog.ErrNotExist) {
		return false
	}
	if err == nil {
		defer f.put()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.gone || v != 0 && f.ver.V != v {
			return false
		}
	}
	e.problemsMu.Lock()
	defer e.problemsMu.Unlock()
	if old := e.failures[ino]; old == nil || old.v != v {
		e.failures[ino] = &failure{v: v, err: text}
	} else {
		old.err = text
	}
	return true
}

// forgive forgets a failure: the version is archived or gone.
func (e *Engine) forgive(ino uint64) {
	e.problemsMu.Lock()
	delete(e.failures, ino)
	e.problemsMu.Unlock()
}
