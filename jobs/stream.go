package jobs

import (
	"context"
	"errors"
	"sort"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// stream uploads a version that is still being written, from its beginning, in
// segments. A segment that is an archive of its own, recorded durably, may be
// dropped from the staging file when staging fills up; parts alone never are,
// since an upload that expires would take them along. So a file
// of any length passes through a staging area a few segments long. The rest is left
// to the ordinary upload after the last close, which keeps what is here.
//
// Fields are guarded by file.mu.
type stream struct {
	segs    []*segment // uploads of the version, by offset
	running bool
	cancel  context.CancelFunc
	wake    chan struct{} // the head has moved, or staging fills up
	retry   chan struct{} // what failed may be tried again at once
	tries   int           // that failed in a row
	err     string        // of the last one
}

// streamThreshold is the length from which an open file is streamed.
func (e *Engine) streamThreshold() int64 {
	n := e.opts.StreamAbove
	if limit := e.store.Usage().StagingLimit; limit > 0 {
		n = min(n, limit/4)
	}
	return n
}

// streamSegment is the length of a stream's segments: several must fit the staging area.
func (e *Engine) streamSegment() int64 {
	n := e.opts.SegmentSize
	if limit := e.store.Usage().StagingLimit; limit > 0 {
		n = min(n, limit/8)
	}
	return max(n/e.opts.PartSize, 1) * e.opts.PartSize
}

// loadStreamLocked finds what an earlier run, or an earlier open, has streamed of the version.
func (f *file) loadStreamLocked() error {
	if f.stream != nil {
		return nil
	}
	s := &stream{wake: make(chan struct{}, 1), retry: make(chan struct{}, 1)}
	ups, err := f.uploadsLocked()
	if err != nil {
		return err
	}
	for _, u := range ups {
		s.segs = append(s.segs, newSegment(u))
	}
	f.stream = s
	return nil
}

// uploadsLocked reads the uploads of the current version, in order of offset.
func (f *file) uploadsLocked() ([]catalog.Upload, error) {
	intents := f.e.up.intents(f.ino)
	if len(intents) == 0 {
		return nil, nil
	}
	var list []catalog.Upload
	err := f.e.catalog.View(func(tx *catalog.Tx) error {
		for _, intent := range intents {
			u, err := tx.Upload(intent)
			if errors.Is(err, catalog.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if u.V == f.ver.V && u.State != catalog.Abandoned {
				list = append(list, u)
			}
		}
		return nil
	})
	sort.Slice(list, func(i, k int) bool { return list[i].Off < list[k].Off })
	return list, err
}

// streamLocked notes a finished change of [off, off+n), and starts a stream when the file has become long.
func (f *file) streamLocked(off, n int64) {
	f.advanceLocked(off, n)
	if f.ver.State != catalog.Staged {
		return
	}
	if s := f.stream; s != nil {
		for _, g := range s.segs {
			if overlap(g.up.Off, g.up.Size, off, n) {
				g.touch(off, n)
			}
		}
		if s.running {
			s.kick()
			return
		}
	}
	if f.head >= f.e.streamAbove {
		f.startStreamLocked()
	}
}

func (s *stream) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// tryNow ends the pause after a failure.
func (s *stream) tryNow() {
	select {
	case s.retry <- struct{}{}:
	default:
	}
}

// startStreamLocked begins to upload an open file, if it may and there is a place for it.
// While a descriptor is out stores may come past the engine, so then it may not.
func (f *file) startStreamLocked() {
	e := f.e
	if f.gone || f.orphan || f.ver.V == 0 || f.ver.State != catalog.Staged || f.local == nil || f.fds > 0 || f.writers == 0 ||
		e.opts.ReadOnly || f.stream != nil && f.stream.running {
		return
	}
	u := e.up
	u.mu.Lock()
	if u.ctx == nil || u.ctx.Err() != nil || !u.streams.TryAcquire(1) {
		u.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(u.ctx)
	u.wg.Add(1)
	u.mu.Unlock()
	if err := f.loadStreamLocked(); err != nil {
		e.log.Error("streaming", "path", e.path(f.ino), "err", err)
		cancel()
		u.streams.Release(1)
		u.wg.Done()
		return
	}
	e.filesMu.Lock()
	f.refs++
	e.filesMu.Unlock()
	s, v := f.stream, f.ver.V
	s.running, s.cancel = true, cancel
	go func() {
		defer u.wg.Done()
		defer cancel()
		defer f.put()
		e.runStream(ctx, f, s, v)
		f.mu.Lock()
		s.running = false
		f.mu.Unlock()
	}()
}

// streamPause is how long a stream without anything to do keeps its place; the next write brings it back.
const streamPause = time.Second

// runStream works for an open file until there is nothing to do. It gives the place among the streams
// back that the caller has taken, also while it waits after a failure.
func (e *Engine) runStream(ctx context.Context, f *file, s *stream, v uint64) {
	placed := true
	defer func() {
		if placed {
			e.up.streams.Release(1)
		}
	}()
	idle := time.NewTimer(streamPause)
	defer idle.Stop()
	for {
		busy, err := e.streamOn(ctx, f, s, v)
		switch {
		case ctx.Err() != nil, errors.Is(err, errSuperseded):
			return
		case err != nil:
			e.up.streams.Release(1)
			placed = false
			if e.streamFailed(ctx, f, s, v, err) != nil || e.up.streams.Acquire(ctx, 1) != nil {
				return
			}
			placed = true
		case busy:
			e.streamWorks(f, s)
		default:
			idle.Reset(streamPause)
			select {
			case <-ctx.Done():
				return
			case <-s.wake:
			case <-idle.C:
				return
			}
		}
	}
}

// streamFailed notes a failure and waits until it is time to try again, or for the end of ctx.
func (e *Engine) streamFailed(ctx context.Context, f *file, s *stream, v uint64, err error) error {
	f.mu.Lock()
	vault := f.inode.Vault
	f.mu.Unlock()
	if _, name, verr := e.vaultGone(vault); verr == nil {
		err = e.explainMissing(ctx, name, err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.mu.Lock()
	s.tries++
	s.err = err.Error()
	tries := s.tries
	f.mu.Unlock()
	wait := min(retryFirst<<min(tries-1, 16), retryMost)
	if isOutage(err) {
		wait = min(wait, outageMost)
	}
	permanent := permanentUpload(err)
	e.log.Error("sending a file that is being written failed; it is tried again", "path", e.path(f.ino), "attempt", tries, "permanent", permanent, "err", err)
	if permanent {
		e.fail(f.ino, v, 0, err)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.retry:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// streamWorks forgets failures.
func (e *Engine) streamWorks(f *file, s *stream) {
	f.mu.Lock()
	failed := s.tries > 0
	s.tries, s.err = 0, ""
	f.mu.Unlock()
	if failed {
		e.forgive(f.ino)
	}
}

// streamOn does the next piece of work of a stream: drops what may be dropped, or sends what is there of a
// segment. It reports whether there was something to do; errSuperseded ends the stream.
func (e *Engine) streamOn(ctx context.Context, f *file, s *stream, v uint64) (busy bool, err error) {
	use := e.store.Usage()
	pressed := use.Throttled > 0
	if pressed || use.StagingBytes > use.StagingLimit/2 {
		if err := e.dropStreamed(f, s, v); err != nil {
			return false, err
		}
	}
	f.mu.Lock()
	if f.stream != s || f.ver.V != v || f.ver.State != catalog.Staged || f.gone || f.orphan {
		f.mu.Unlock()
		return false, errSuperseded
	}
	g := s.nextLocked()
	if g == nil && f.fds == 0 && f.head > s.endLocked()+e.opts.PartSize {
		g, err = f.newSegmentLocked(s, pressed)
		if err != nil {
			f.mu.Unlock()
			return false, err
		}
	}
	if g == nil || g.up.PartSize != 0 && len(g.todo(f.head)) == 0 && !f.endingLocked(g, pressed) {
		f.mu.Unlock()
		return false, nil
	}
	l := f.local
	f.mu.Unlock()
	return true, e.streamSegmentOn(ctx, f, s, g, l, pressed)
}

// doneLocked is how much the service has of a stream.
func (s *stream) doneLocked() int64 {
	var n int64
	for _, g := range s.segs {
		if g.up.State == catalog.Sent || g.up.State == catalog.Completing {
			n += g.up.Size
		} else {
			n += int64(len(g.trees)) * g.up.PartSize
		}
	}
	return n
}

// streamedLocked returns the uploads of the staged version that sealing keeps, in order of
// offset, and those it gives up. A segment that is not in the vault yet is cut
// to the whole parts that something follows.
func (f *file) streamedLocked() (kept, dropped []catalog.Upload, err error) {
	ups, err := f.uploadsLocked()
	if err != nil {
		return nil, nil, err
	}
	var end int64
	for _, u := range ups {
		good := u.Off >= end
		switch {
		case !good:
		case u.State == catalog.Sent:
			good = u.Off+u.Size <= f.inode.Size
		case u.State == catalog.Completing:
			good = u.Off+u.Size < f.inode.Size
		case u.UploadID != "":
			u.Size = min(u.Size, (f.inode.Size-1-u.Off)/u.PartSize*u.PartSize)
			good = u.Size > 0
		default:
			good = u.Off+u.Size < f.inode.Size
		}
		if good {
			kept = append(kept, u)
			end = u.Off + u.Size
		} else {
			dropped = append(dropped, u)
		}
	}
	return kept, dropped, nil
}

// streamPressure is told that staging fills up: open files that are long enough to be
// worth it are streamed, and those that are streamed drop what is in the vault.
func (e *Engine) streamPressure() {
	live := e.liveFiles()
	sort.Slice(live, func(i, k int) bool { return live[i].ino < live[k].ino })
	for _, f := range live {
		f.mu.Lock()
		if f.stream != nil && f.stream.running {
			f.stream.kick()
		} else if f.loadErr == nil && f.head > e.opts.PartSize {
			f.startStreamLocked()
		}
		f.mu.Unlock()
		f.put()
	}
}
