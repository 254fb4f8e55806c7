package jobs

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
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

// segment is one upload of a stream.
type segment struct {
	up      catalog.Upload
	moved   uint64             // counts changes of its bytes, when they begin and when they end
	vers    map[int64]uint64   // the same for each part, by number
	trees   map[int64]cas.Hash // of the parts sent; what changes is taken out
	dropped bool               // its bytes are gone from the staging file, or going
}

func newSegment(u catalog.Upload) *segment {
	return &segment{up: u, vers: map[int64]uint64{}, trees: map[int64]cas.Hash{}}
}

func (s *segment) end() int64 { return s.up.Off + s.up.Size }

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

// advanceLocked keeps track of how far the file is written without a gap.
func (f *file) advanceLocked(off, n int64) {
	if f.head > f.inode.Size {
		f.head = f.inode.Size
	}
	if off > f.head {
		if len(f.ahead) < 16 {
			f.ahead = append(f.ahead, content.Range{Off: off, Len: n})
		}
		return
	}
	f.head = max(f.head, min(off+n, f.inode.Size))
	for again := len(f.ahead) > 0; again; {
		again = false
		for i, r := range f.ahead {
			if r.Off <= f.head {
				f.head = max(f.head, min(r.Off+r.Len, f.inode.Size))
				f.ahead = append(f.ahead[:i], f.ahead[i+1:]...)
				again = len(f.ahead) > 0
				break
			}
		}
	}
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

// invalidateLocked prepares a staged version for a change of [off, off+n): what
// a stream has made an archive of is no longer good, and that is recorded
// before the bytes change; it reports whether there was something to record,
// which must be durable first. What was dropped cannot be changed.
func (f *file) invalidateLocked(off, n int64) (recorded bool, err error) {
	if f.stream == nil {
		if !f.e.up.hasIntents(f.ino) {
			return false, nil
		}
		if err := f.loadStreamLocked(); err != nil {
			return false, err
		}
	}
	if err := f.punchedIn(off, n); err != nil {
		return false, fmt.Errorf("%w: what is written of a file longer than the staging area can only be appended to", err)
	}
	return f.spoilLocked(off, n)
}

// spoilLocked is invalidateLocked for the segments.
func (f *file) spoilLocked(off, n int64) (recorded bool, err error) {
	s := f.stream
	kept := s.segs[:0:0]
	var gone, again []*segment
	for _, g := range s.segs {
		hit := overlap(g.up.Off, g.up.Size, off, n)
		if hit {
			g.touch(off, n)
		}
		switch {
		case hit && g.up.State == catalog.Sent:
			gone = append(gone, g)
			continue
		case hit && g.up.State == catalog.Completing:
			again = append(again, g)
		}
		kept = append(kept, g)
	}
	if len(gone)+len(again) == 0 {
		return false, nil
	}
	seq, err := f.e.catalog.Update(func(tx *catalog.Tx) error {
		for _, g := range gone {
			if err := f.e.abandonTx(tx, g.up); err != nil {
				return err
			}
		}
		for _, g := range again {
			// The archive that may come of it has the old bytes.
			u := g.up
			u.State, u.Uncertain, u.TreeHash = catalog.Sending, true, [32]byte{}
			if err := tx.PutUpload(u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	f.seq = seq
	for _, g := range again {
		g.up.State, g.up.Uncertain, g.up.TreeHash = catalog.Sending, true, [32]byte{}
	}
	s.segs = kept
	if len(gone) > 0 {
		f.e.up.kickAbandoned()
		f.e.bin.kickTrash()
	}
	return true, nil
}

// touch notes a change of the bytes of [off, off+n).
func (g *segment) touch(off, n int64) {
	g.moved++
	if g.up.PartSize == 0 {
		return
	}
	from := max(off-g.up.Off, 0) / g.up.PartSize
	to := (min(off+n, g.end()) - g.up.Off - 1) / g.up.PartSize
	for i := from; i <= to; i++ {
		g.vers[i]++
		delete(g.trees, i)
	}
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

// busyLocked reports whether a change of some byte of [off, off+n) is under way.
func (f *file) busyLocked(off, n int64) bool {
	for _, r := range f.changing {
		if overlap(r.Off, r.Len, off, n) {
			return true
		}
	}
	return false
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

// nextLocked is the first segment that is not in the vault.
func (s *stream) nextLocked() *segment {
	for _, g := range s.segs {
		if g.up.State != catalog.Sent {
			return g
		}
	}
	return nil
}

// endLocked is where the next segment begins: the first gap.
func (s *stream) endLocked() int64 {
	var end int64
	for _, g := range s.segs {
		if g.up.Off != end {
			break
		}
		end = g.end()
	}
	return end
}

// todo lists the complete parts below head that are not sent as they are now.
func (g *segment) todo(head int64) []int64 {
	var list []int64
	for i := range g.up.Size / g.up.PartSize {
		if g.up.Off+(i+1)*g.up.PartSize >= head {
			break // a part is complete when something follows it
		}
		if _, ok := g.trees[i]; !ok {
			list = append(list, i)
		}
	}
	return list
}

// endingLocked reports whether a segment is ready to become an archive: all of it is sent, something follows it
// and nobody changes it. When writers wait for room, what is sent of it will do.
func (f *file) endingLocked(g *segment, pressed bool) bool {
	n := g.up.Size / g.up.PartSize
	if pressed {
		n = min(n, int64(len(g.trees)))
	}
	if n == 0 || int64(len(g.trees)) < n || f.fds > 0 {
		return false
	}
	for i := range n {
		if _, ok := g.trees[i]; !ok {
			return false
		}
	}
	size := n * g.up.PartSize
	return f.head > g.up.Off+size && !f.busyLocked(g.up.Off, size)
}

// newSegmentLocked records the intent of the segment at the first gap. Something will follow it,
// so that the last segment is always one of the ordinary upload, which knows how many there are.
func (f *file) newSegmentLocked(s *stream, pressed bool) (*segment, error) {
	e := f.e
	off := s.endLocked()
	size := e.streamSegment()
	if pressed {
		size = min(size, max((f.head-1-off)/e.opts.PartSize, 1)*e.opts.PartSize)
	}
	at := len(s.segs)
	for i, g := range s.segs {
		if g.up.Off > off {
			size = min(size, g.up.Off-off)
			at = i
			break
		}
	}
	u := catalog.Upload{Intent: newIntent(e.catalog.ID()), Off: off, Size: size}
	want, v := f.inode, f.ver
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		i.Size, i.Mtime = want.Size, want.Mtime
		// How many there will be is not known: one more than this at least.
		if err := describeTx(tx, i, v, &u, at, at+2); err != nil {
			return err
		}
		return tx.PutUpload(u)
	})
	if err != nil {
		return nil, err
	}
	e.up.addIntent(f.ino, u.Intent)
	f.seq = seq
	g := newSegment(u)
	s.segs = append(s.segs, nil)
	copy(s.segs[at+1:], s.segs[at:])
	s.segs[at] = g
	return g, nil
}

// takeLocked makes u, as the catalog has it now, the segment's record.
func (g *segment) take(u catalog.Upload) {
	if g.up.UploadID != u.UploadID {
		clear(g.trees)
	}
	g.up = u
}

// streamSegmentOn sends what is there of a segment, and ends it when all of it is.
func (e *Engine) streamSegmentOn(ctx context.Context, f *file, s *stream, g *segment, l *content.File, pressed bool) error {
	f.mu.Lock()
	u := g.up
	f.mu.Unlock()
	e.up.setBusy(u.Intent, true)
	defer func() {
		e.up.setBusy(u.Intent, false)
		e.up.kickAbandoned()
	}()
	take := func(err error) error {
		if err == nil {
			f.mu.Lock()
			g.take(u)
			f.mu.Unlock()
		}
		return err
	}
	forget := func(why error) error {
		e.log.Warn("a stream begins a segment again", "path", e.path(f.ino), "why", why)
		_, err := e.changeUpload(&u, func(_ *catalog.Tx, u *catalog.Upload) error {
			u.Uncertain = u.Uncertain || u.State == catalog.Completing
			u.State, u.UploadID, u.PartSize, u.TreeHash = catalog.Intended, "", 0, [32]byte{}
			return nil
		})
		return take(err)
	}
	if u.State == catalog.Completing {
		return e.streamComplete(ctx, f, s, g, u, forget)
	}
	if u.UploadID == "" {
		if err := e.catalog.Barrier(ctx, 0); err != nil {
			return err
		}
		if err := take(e.initiate(ctx, &u)); err != nil {
			return err
		}
	}
	f.mu.Lock()
	todo := g.todo(f.head)
	f.mu.Unlock()
	if err := e.streamParts(ctx, f, g, u, l, todo); errors.Is(err, cas.ErrNotFound) {
		return forget(err)
	} else if err != nil {
		return err
	}
	f.mu.Lock()
	if f.stream != s || f.ver.State != catalog.Staged || !f.endingLocked(g, pressed) {
		f.mu.Unlock()
		return ctx.Err()
	}
	n := g.up.Size / g.up.PartSize
	if pressed {
		n = min(n, int64(len(g.trees)))
	}
	nodes := make([]cas.Hash, n)
	for i := range nodes {
		nodes[i] = g.trees[int64(i)]
	}
	seq, err := e.changeUpload(&u, func(_ *catalog.Tx, u *catalog.Upload) error {
		u.State, u.Size, u.TreeHash = catalog.Completing, n*u.PartSize, cas.CombineTreeHashes(nodes)
		return nil
	})
	if err == nil {
		g.take(u)
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.catalog.Barrier(ctx, seq); err != nil {
		return err
	}
	e.hit("stream.completing")
	return e.streamComplete(ctx, f, s, g, u, forget)
}

// streamParts sends parts of a segment as they are now.
func (e *Engine) streamParts(ctx context.Context, f *file, g *segment, u catalog.Upload, l *content.File, parts []int64) error {
	grp, gctx := errgroup.WithContext(ctx)
	for _, i := range parts {
		bufs, err := e.up.bufs.get(gctx, int((u.PartSize+e.opts.PartSize-1)/e.opts.PartSize), true)
		if err != nil {
			break // gctx ended; Wait says why
		}
		grp.Go(func() error {
			defer e.up.bufs.put(bufs, true)
			f.mu.Lock()
			before := g.vers[i]
			f.mu.Unlock()
			h, err := e.sendPart(gctx, l, &u, i*u.PartSize, u.PartSize, bufs, cas.PartInfo{})
			if err != nil {
				return err
			}
			f.mu.Lock()
			// A change that began before the reading ends after it, or is counted.
			if g.vers[i] == before && g.up.UploadID == u.UploadID {
				g.trees[i] = h
			}
			f.mu.Unlock()
			e.hit("stream.part")
			return nil
		})
	}
	return grp.Wait()
}

// streamComplete makes a segment an archive and records it, unless its bytes change meanwhile: whoever
// changes them has found it Completing, and taken that back before the first byte.
func (e *Engine) streamComplete(ctx context.Context, f *file, s *stream, g *segment, u catalog.Upload, forget func(error) error) error {
	a, err := e.complete(ctx, &u)
	if errors.Is(err, errRestart) || errors.Is(err, cas.ErrInvalid) || errors.Is(err, cas.ErrDigest) {
		return forget(err)
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	good := f.stream == s && g.up.State == catalog.Completing && g.up.TreeHash == u.TreeHash
	if good {
		if _, err = e.recordSent(ctx, &u, a); err == nil {
			g.take(u)
		}
	}
	f.mu.Unlock()
	if !good {
		return e.discardStreamed(f, s, g, u, a)
	}
	if err != nil {
		return err
	}
	e.hit("stream.recorded")
	e.log.Info("a segment of a file that is being written is in the vault", "path", e.path(f.ino), "off", u.Off, "size", u.Size)
	return nil
}

// discardStreamed gives up a segment whose archive has bytes that changed meanwhile.
func (e *Engine) discardStreamed(f *file, s *stream, g *segment, u catalog.Upload, a catalog.Archive) error {
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		a.Num = tx.NextID()
		a.State = catalog.Live
		e.trash(&a, time.Now())
		if err := tx.PutArchive(a); err != nil {
			return err
		}
		if err := tx.DeleteUpload(u.Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.up.dropIntent(f.ino, u.Intent)
	e.bin.kickTrash()
	f.mu.Lock()
	for i, x := range s.segs {
		if x == g {
			s.segs = append(s.segs[:i:i], s.segs[i+1:]...)
			break
		}
	}
	f.mu.Unlock()
	return nil
}

// dropStreamed takes segments that are in the vault out of the staging file, for
// staging fills up. No reader or writer of a dropped byte is under way, and none comes.
func (e *Engine) dropStreamed(f *file, s *stream, v uint64) error {
	f.mu.Lock()
	for f.awaitConvLocked() {
	}
	var drop []*segment
	if f.stream == s && f.ver.V == v && f.ver.State == catalog.Staged && f.fds == 0 && f.local != nil {
		for _, g := range s.segs {
			if g.up.State == catalog.Sent && !g.dropped && !f.busyLocked(g.up.Off, g.up.Size) {
				g.dropped = true
				drop = append(drop, g)
			}
		}
	}
	l := f.local
	if len(drop) == 0 {
		f.mu.Unlock()
		return nil
	}
	writes, set := f.writes, f.mtimeSet
	mtime, merr := l.Mtime()
	n := 0
	// No change begins and nothing is sealed meanwhile.
	err := f.gateLocked(func() error {
		// The archives must be on record durably before their bytes go.
		if err := e.catalog.Barrier(context.Background(), 0); err != nil {
			return err
		}
		e.hit("stream.droppable")
		for ; n < len(drop); n++ {
			g := drop[n].up
			if err := l.DropUploaded(g.Off, g.Size); err != nil {
				return err
			}
			e.log.Info("dropped bytes that are in the vault from a file that is being written", "path", e.path(f.ino), "off", g.Off, "size", g.Size)
		}
		e.hit("stream.dropped")
		return nil
	})
	for _, g := range drop[n:] {
		g.dropped = false
	}
	if merr == nil && f.writes == writes && f.mtimeSet == set {
		// Punching moves the mtime, and nobody has written.
		if err := l.SetMtime(mtime); err != nil {
			e.log.Warn("setting an mtime", "path", e.path(f.ino), "err", err)
		}
	}
	f.mu.Unlock()
	return err
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
