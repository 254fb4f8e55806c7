package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// Progress is reported while a verb waits; totals may grow.
type Progress struct {
	FilesDone, FilesTotal int64
	BytesDone, BytesTotal int64
	Current               string // a path
	Waits                 string // for what it goes no further, in plain words
}

// Pending is a file not yet archived.
type Pending struct {
	Path  string
	Size  int64
	State string
	Error string
}

// syncJob is one caller that waits for versions to be archived.
type syncJob struct {
	mu      sync.Mutex
	want    map[uint64]syncWant // not done yet
	done    Progress
	failed  map[uint64]error
	current uint64
	changed chan struct{} // buffered 1
}

type syncWant struct {
	v     uint64
	size  int64
	after uint64 // attempts up to this one of all had begun before: their failures are no answer
}

// syncEvent tells waiting callers that ino's version v has been archived or is gone (nil), or that the nth attempt failed for good.
// Those who wait for a later version, or have asked for another attempt since, do not hear of it.
func (e *Engine) syncEvent(ino, v, nth uint64, err error) {
	e.problemsMu.Lock()
	var jobs []*syncJob
	for j := range e.syncs {
		jobs = append(jobs, j)
	}
	e.problemsMu.Unlock()
	for _, j := range jobs {
		j.note(ino, v, nth, err)
	}
}

func (j *syncJob) note(ino, v, nth uint64, err error) {
	j.mu.Lock()
	w, ok := j.want[ino]
	if ok = ok && v >= w.v && (err == nil || nth > w.after); ok {
		delete(j.want, ino)
		if err != nil {
			j.failed[ino] = err
		} else {
			j.done.FilesDone++
			j.done.BytesDone += w.size
		}
		j.current = ino
	}
	j.mu.Unlock()
	if ok {
		select {
		case j.changed <- struct{}{}:
		default:
		}
	}
}

// Sync seals everything staged under the inodes (all of it below directories) at call time,
// skipping settle, and waits until it is archived and recorded. Files that the service refuses for good keep it from no
// others: it fails with a *SyncError, which names them, at the end.
func (e *Engine) Sync(ctx context.Context, inos []uint64, progress func(Progress)) error {
	if err := e.flushAll(); err != nil {
		return err
	}
	wants, err := e.stagedBelow(inos)
	if err != nil {
		return err
	}
	failed, err := e.awaitArchived(ctx, wants, progress)
	if err != nil {
		return err
	}
	err = e.catalog.Barrier(ctx, 0)
	if len(failed) > 0 {
		return errors.Join(e.syncError(failed), err)
	}
	return err
}

// SyncError is the failure of a Sync that has archived what could be. It matches ErrUpload, and the error of each file.
type SyncError struct {
	Failures []Skipped // by path
	errs     []error
}

func (s *SyncError) Error() string {
	more := ""
	if n := len(s.errs) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("%v: %s: %s%s", ErrUpload, s.Failures[0].Path, s.Failures[0].Reason, more)
}

// Unwrap returns ErrUpload and what became of each file.
func (s *SyncError) Unwrap() []error { return append([]error{ErrUpload}, s.errs...) }

// syncError makes the error of files that failed, naming as many as a verb explains.
func (e *Engine) syncError(failed map[uint64]error) *SyncError {
	s := &SyncError{}
	for ino, err := range failed {
		s.errs = append(s.errs, err)
		if len(s.Failures) < maxSkipped {
			s.Failures = append(s.Failures, Skipped{e.path(ino), refusalText(err)})
		}
	}
	slices.SortFunc(s.Failures, func(a, b Skipped) int { return strings.Compare(a.Path, b.Path) })
	return s
}

// flushAll brings the catalog up to the sizes of the files being written.
func (e *Engine) flushAll() error {
	var errs error
	for _, f := range e.liveFiles() {
		f.mu.Lock()
		if !f.gone && f.loadErr == nil {
			if err := f.flushLocked(); err != nil {
				errs = errors.Join(errs, err)
			}
		}
		f.mu.Unlock()
		f.put()
	}
	return errs
}

// stagedBelow lists the versions not yet archived of the files given and of everything below the directories given;
// nil: of everything.
func (e *Engine) stagedBelow(inos []uint64) (map[uint64]syncWant, error) {
	wants := map[uint64]syncWant{}
	err := e.catalog.View(func(tx *catalog.Tx) error {
		below := map[uint64]bool{} // directories known to be inside or outside
		files := map[uint64]bool{}
		for _, ino := range inos {
			i, err := tx.Inode(ino)
			if err != nil {
				return err
			}
			if i.Mode&syscall.S_IFMT == syscall.S_IFDIR {
				below[ino] = true
			} else {
				files[ino] = true
			}
		}
		var inside func(dir uint64) (bool, error)
		inside = func(dir uint64) (bool, error) {
			if in, ok := below[dir]; ok {
				return in, nil
			}
			in := false
			if dir != catalog.RootIno {
				i, err := tx.Inode(dir)
				if err != nil {
					return false, err
				}
				if in, err = inside(i.Parent); err != nil {
					return false, err
				}
			}
			below[dir] = in
			return in, nil
		}
		for v, err := range tx.StagedVersions() {
			if err != nil {
				return err
			}
			if inos != nil && !files[v.Ino] {
				names, err := tx.Parents(v.Ino)
				if err != nil {
					return err
				}
				hit := false
				for _, d := range names {
					if hit, err = inside(d.Parent); err != nil {
						return err
					}
					if hit {
						break
					}
				}
				if !hit {
					continue
				}
			}
			i, err := tx.Inode(v.Ino)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && (i.Nlink == 0 || i.Version != v.V) {
				continue
			}
			if err != nil {
				return err
			}
			wants[v.Ino] = syncWant{v: v.V, size: i.Size}
		}
		return nil
	})
	for ino := range wants {
		if f := e.live(ino); f != nil {
			f.mu.Lock()
			if f.unchangedLocked() {
				delete(wants, ino) // it is archived, and only may change
			}
			f.mu.Unlock()
			f.put()
		}
	}
	return wants, err
}

// progressEvery is how often a waiting verb reports.
const progressEvery = 250 * time.Millisecond

// recheckEvery is how often it looks the files up instead of waiting to be told.
const recheckEvery = 2 * time.Second

// awaitArchived starts the uploads of wants and waits until each is archived, gone, or failed for good.
func (e *Engine) awaitArchived(ctx context.Context, wants map[uint64]syncWant, progress func(Progress)) (map[uint64]error, error) {
	if len(wants) == 0 {
		return nil, nil
	}
	if e.opts.ReadOnly {
		return nil, ErrReadOnly
	}
	j := &syncJob{want: wants, failed: map[uint64]error{}, changed: make(chan struct{}, 1)}
	var start []uint64
	after := e.up.attempts()
	for ino, w := range wants {
		w.after = after
		wants[ino] = w
		j.done.FilesTotal++
		j.done.BytesTotal += w.size
		start = append(start, ino)
	}
	e.problemsMu.Lock()
	e.syncs[j] = struct{}{}
	e.problemsMu.Unlock()
	defer func() {
		e.problemsMu.Lock()
		delete(e.syncs, j)
		e.problemsMu.Unlock()
	}()
	for _, ino := range start {
		e.settle.drop(ino)
		e.up.enqueue(ino)
	}
	e.up.tryNow()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var looked time.Time
	for report := true; ; {
		// Events tell of changes from here on; what was done before, and what a
		// writer has superseded and thereby taken from the queue, is found by looking.
		if looked.IsZero() || time.Since(looked) >= recheckEvery {
			if err := e.recheck(j); err != nil {
				return nil, err
			}
			looked = time.Now()
		}
		j.mu.Lock()
		left, p, current := len(j.want), j.done, j.current
		j.mu.Unlock()
		if progress != nil && (report || left == 0) {
			p.BytesDone += e.up.sending(j)
			if current != 0 {
				p.Current = e.path(current)
			}
			progress(p)
		}
		if left == 0 {
			return j.failed, nil
		}
		select {
		case <-ctx.Done():
			return j.failed, ctx.Err()
		case <-j.changed:
			report = false
		case <-tick.C:
			report = true
		}
	}
}

// recheck looks each awaited version up.
func (e *Engine) recheck(j *syncJob) error {
	j.mu.Lock()
	want := make(map[uint64]syncWant, len(j.want))
	for ino, w := range j.want {
		want[ino] = w
	}
	j.mu.Unlock()
	var done, again []uint64
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for ino := range want {
			i, err := tx.Inode(ino)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && (i.Nlink == 0 || i.Version == 0) {
				done = append(done, ino)
				continue
			}
			if err != nil {
				return err
			}
			v, err := tx.Version(ino, i.Version)
			if err != nil {
				return err
			}
			if v.State == catalog.Archived {
				// Also an earlier one: what was made for stores that did not come is undone.
				done = append(done, ino)
			} else {
				again = append(again, ino)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, ino := range done {
		j.note(ino, math.MaxUint64, 0, nil)
	}
	for _, ino := range again {
		if _, _, ok := e.up.active(ino); !ok {
			e.settle.drop(ino)
			e.up.enqueue(ino)
		}
	}
	return nil
}

// sending sums the acknowledged bytes of the uploads j waits for.
func (u *uploader) sending(j *syncJob) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	var n int64
	for ino, t := range u.tasks {
		if _, ok := j.want[ino]; ok {
			n += t.done.Load()
		}
	}
	return n
}

// Drain is Sync of everything, for unmount; it returns what is left when ctx ends, and begins nothing when that was
// before. What fails for good is left too, with ErrUpload.
func (e *Engine) Drain(ctx context.Context, progress func(Progress)) ([]Pending, error) {
	for {
		err := e.flushAll()
		if err == nil {
			var wants map[uint64]syncWant
			if wants, err = e.stagedBelow(nil); err == nil && len(wants) == 0 {
				return nil, e.catalog.Barrier(context.WithoutCancel(ctx), 0)
			}
			if err == nil {
				err = ctx.Err() // what only waited to be quiet is not sent for half of a moment
			}
			if err == nil {
				var failed map[uint64]error
				failed, err = e.awaitArchived(ctx, wants, progress)
				if err == nil && len(failed) > 0 {
					err = fmt.Errorf("%w: %d files", ErrUpload, len(failed))
				}
			}
		}
		if err != nil {
			left, perr := e.pending()
			return left, errors.Join(err, perr)
		}
	}
}

// pending lists what is not archived yet.
func (e *Engine) pending() ([]Pending, error) {
	wants, err := e.stagedBelow(nil)
	if err != nil {
		return nil, err
	}
	var list []Pending
	for ino, w := range wants {
		p := Pending{Path: e.path(ino), Size: w.size, State: "staged"}
		if st, _, ok := e.up.active(ino); ok && st == taskRunning {
			p.State = "uploading"
		}
		p.Error = e.uploadError(ino)
		list = append(list, p)
	}
	return list, nil
}

func (e *Engine) failureText(ino uint64) string {
	e.problemsMu.Lock()
	defer e.problemsMu.Unlock()
	if fl := e.failures[ino]; fl != nil {
		return fl.err
	}
	return ""
}

// uploadError says why the last attempt to upload ino failed, "" if it did not.
func (e *Engine) uploadError(ino uint64) string {
	if text := e.failureText(ino); text != "" {
		return text
	}
	e.up.mu.Lock()
	defer e.up.mu.Unlock()
	if t := e.up.tasks[ino]; t != nil {
		return t.err
	}
	return ""
}
