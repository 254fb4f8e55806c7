package jobs

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

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
		if err := e.describeTx(tx, i, v, &u, at, at+2, setOpen); err != nil {
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
		if errors.Is(why, errRestart) {
			if err := onlyGone(e.askVault(ctx, u.VaultName)); err != nil {
				return err
			}
		}
		_, err := e.changeUpload(&u, func(_ *catalog.Tx, u *catalog.Upload) error {
			u.Uncertain = u.Uncertain || u.State == catalog.Completing
			u.State, u.UploadID, u.PartSize, u.TreeHash = catalog.Intended, "", 0, [32]byte{}
			return nil
		})
		return take(err)
	}
	if err := e.vaultThere(ctx, u.Vault); err != nil {
		return err
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
		return forget(restart(err))
	} else if err != nil {
		return err
	}
	f.mu.Lock()
	ending := f.endingLocked(g, pressed)
	f.mu.Unlock()
	if !ending {
		return ctx.Err()
	}
	// The local bytes will count as a copy of the archive, also after a power loss. Those that change from here on take their part out.
	if err := l.Sync(); err != nil {
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
		u.Error, u.Permanent = "", false
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
