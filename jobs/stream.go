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
	s := &stream{wake: make(chan struct{}, 1)}
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
	if u.ctx == nil || u.ctx.Err() != nil || u.streams >= max(e.opts.Uploads/2, 1) {
		u.mu.Unlock()
		return
	}
	u.streams++
	ctx, cancel := context.WithCancel(u.ctx)
	u.wg.Add(1)
	u.mu.Unlock()
	give := func() {
		cancel()
		u.mu.Lock()
		u.streams--
		u.mu.Unlock()
		u.wg.Done()
	}
	if err := f.loadStreamLocked(); err != nil {
		e.log.Error("streaming", "path", e.path(f.ino), "err", err)
		give()
		return
	}
	e.filesMu.Lock()
	f.refs++
	e.filesMu.Unlock()
	s, v := f.stream, f.ver.V
	s.running, s.cancel = true, cancel
	go func() {
		defer give()
		defer f.put()
		e.runStream(ctx, f, s, v)
		f.mu.Lock()
		s.running = false
		f.mu.Unlock()
	}()
}

// streamPause is how long a stream without anything to do keeps its place; the next write brings it back.
const streamPause = time.Second

// runStream works for an open file until there is nothing to do.
func (e *Engine) runStream(ctx context.Context, f *file, s *stream, v uint64) {
	wait := retryFirst
	idle := time.NewTimer(streamPause)
	defer idle.Stop()
	for {
		busy, err := e.streamOn(ctx, f, s, v)
		switch {
		case ctx.Err() != nil, errors.Is(err, errSuperseded):
			return
		case err != nil:
			e.log.Error("sending a file that is being written; it is tried again", "path", e.path(f.ino), "err", err)
			if sleep(ctx, wait) != nil {
				return
			}
			wait = min(2*wait, retryMost)
		case busy:
			wait = retryFirst
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
	if g == nil && f.head > s.endLocked()+e.opts.PartSize {
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
	e.filesMu.Lock()
	var live []*file
	for _, f := range e.files {
		f.refs++
		live = append(live, f)
	}
	e.filesMu.Unlock()
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
