package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// WriteAt writes all of p or fails; the first write to archived content makes a new version, recalling it first unless the file is
// empty. It waits for staging room. Errors: content.ErrNoSpace, ErrPunched, ErrClosing and ReadAt's.
func (h *Handle) WriteAt(ctx context.Context, c Caller, p []byte, off int64) (int, error) {
	f := h.impl.f
	h.opened()
	n, err := f.writeAt(ctx, c, p, off)
	if err == nil && h.impl.flags.Sync {
		err = f.syncWrite(ctx)
	}
	return n, err
}

func (f *file) writeAt(ctx context.Context, c Caller, p []byte, off int64) (int, error) {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return 0, catalog.ErrInvalid
	}
	if f.e.closing.Load() {
		return 0, ErrClosing
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := f.killPriv(c); err != nil {
		return 0, err
	}
	var n int
	err := f.change(ctx, c, off, int64(len(p)), func(l *content.File) error {
		var err error
		n, err = l.WriteAt(ctx, p, off)
		return err
	})
	return n, err
}

// killPriv clears setuid and setgid before c changes the bytes, as the kernel
// does on a local disk unless the writer is privileged. (With a set-attributes call the kernel says so itself.)
func (f *file) killPriv(c Caller) error {
	if c.UID == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kill := SetAttr{KillPriv: true}
	now := time.Now()
	if i := f.inode; f.gone || !kill.apply(c, &i, now) {
		return nil
	}
	var i catalog.Inode
	_, err := f.e.catalog.Update(func(tx *catalog.Tx) error {
		var err error
		if i, err = tx.Inode(f.ino); err != nil {
			return err
		}
		kill.apply(c, &i, now)
		return tx.PutInode(i)
	})
	if err == nil {
		f.adoptLocked(i)
	}
	return err
}

// change makes the file writable, runs op on its staging file without a lock,
// and takes over the size. The bytes of [off, off+n) are what op touches.
func (f *file) change(ctx context.Context, c Caller, off, n int64, op func(*content.File) error) error {
	f.mu.Lock()
	if err := f.makeWritableLocked(ctx, c, off, n); err != nil {
		f.mu.Unlock()
		return err
	}
	l := f.local
	f.writes++
	f.inflight++
	f.changing = append(f.changing, content.Range{Off: off, Len: n})
	f.dirty = true
	f.mu.Unlock()
	err := op(l)
	f.mu.Lock()
	f.inflight--
	for i, r := range f.changing {
		if r.Off == off && r.Len == n {
			f.changing = append(f.changing[:i], f.changing[i+1:]...)
			break
		}
	}
	f.writes++
	f.inode.Ctime = max(f.inode.Ctime, time.Now().UnixNano())
	if off+n >= f.inode.Size {
		// Grown or cut: the staging file knows, whatever runs beside this.
		if size, serr := l.Size(); serr == nil {
			f.inode.Size = size
		}
	}
	f.streamLocked(off, n)
	f.mu.Unlock()
	return err
}

// makeWritableLocked brings the file to a Staged version whose staging file is
// ready to be changed in [off, off+n). mu is released while it waits for a recall.
func (f *file) makeWritableLocked(ctx context.Context, c Caller, off, n int64) error {
	for {
		if f.gone {
			return ErrStale
		}
		if f.awaitConvLocked() {
			continue
		}
		switch {
		case f.ver.V == 0:
			return f.newStagingLocked()
		case f.ver.State == catalog.Staged && f.local == nil:
			return fmt.Errorf("%w: its staging file is missing", ErrDamaged)
		case f.ver.State == catalog.Staged && f.local.Kind() == content.Staging:
			recorded, err := f.invalidateLocked(off, n)
			if err != nil || !recorded {
				return err
			}
			// As below: an archive of a segment counts as a copy of these bytes.
			if err := f.barrierLocked(); err != nil {
				return err
			}
		case f.ver.State == catalog.Staged:
			if err := f.convertLocked(); err != nil {
				return err
			}
		case f.ver.State == catalog.Uploading && f.local == nil:
			return fmt.Errorf("%w: its staging file is missing", ErrDamaged)
		case f.ver.State == catalog.Uploading, f.wholeLocked() && f.local != nil:
			if err := f.supersedeLocked(off, n); err != nil {
				return err
			}
			// Segments that are in the vault already count as copies of these bytes:
			// the end of that must outlive a power loss before the bytes change.
			if err := f.barrierLocked(); err != nil {
				return err
			}
		case f.inode.Size == 0:
			return f.newStagingLocked()
		default:
			f.mu.Unlock()
			err := f.ensureWhole(ctx, c)
			f.mu.Lock()
			if err != nil {
				return err
			}
		}
	}
}

// barrierLocked makes the file's last record durable, with mu released meanwhile.
func (f *file) barrierLocked() error {
	seq := f.seq
	return f.gateLocked(func() error { return f.e.catalog.Barrier(context.Background(), seq) })
}

// newStagingLocked begins a version with an empty staging file: the file's first
// bytes, or a truncation that needs nothing of the old content.
func (f *file) newStagingLocked() error {
	e := f.e
	l, err := e.newStaging()
	if err != nil {
		return err
	}
	id := l.ID()
	defer e.newStagingEnds(id)
	e.hit("truncate.staging")
	m, err := l.Mtime()
	if err != nil {
		m = time.Now()
	}
	old := f.ver
	now := time.Now().UnixNano()
	v := catalog.Version{Ino: f.ino, V: old.V + 1, State: catalog.Staged, Local: id, Mtime: m.UnixNano(), StagedAt: now}
	var i catalog.Inode
	seq, err := e.catalog.Update(func(tx *catalog.Tx) error {
		var err error
		i, err = tx.Inode(f.ino)
		if err != nil {
			return err
		}
		if i.Version != old.V {
			return fmt.Errorf("inode %d is at version %d, not %d: %w", f.ino, i.Version, old.V, catalog.ErrInvalid)
		}
		i.Version, i.Size, i.Mtime = v.V, 0, v.Mtime
		i.Ctime = max(i.Ctime, now)
		if err := tx.PutInode(i); err != nil {
			return err
		}
		if err := e.retireTx(tx, old, nil); err != nil {
			return err
		}
		return tx.PutVersion(v)
	})
	if err != nil {
		return errors.Join(err, l.Close(), e.store.Remove(id))
	}
	e.hit("truncate.recorded")
	f.dirty = false
	f.adoptLocked(i)
	f.ver, f.seq = v, seq
	f.replaceLocalLocked(l)
	f.stream, f.head, f.ahead = nil, 0, nil
	f.retired(old)
	e.solved(lostWithVault(f.ino)) // they are not wanted any more
	if old.Local != 0 {
		// A copy of what is archived, or bytes that were just truncated away.
		if err := e.removeLocal(old.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
			e.log.Warn("removing a replaced local copy", "path", e.path(f.ino), "err", err)
		}
	}
	return nil
}

// supersedeLocked begins a version on the same local file: what was sealed or
// archived is about to change in [off, off+n).
func (f *file) supersedeLocked(off, n int64) error {
	e := f.e
	old := f.ver
	if f.local == nil || f.local.ID() != old.Local {
		return fmt.Errorf("inode %d: version %d has no local file to go on with: %w", f.ino, old.V, catalog.ErrInvalid)
	}
	now := time.Now().UnixNano()
	v := catalog.Version{Ino: f.ino, V: old.V + 1, State: catalog.Staged, Local: old.Local, Size: f.inode.Size, Mtime: f.inode.Mtime, StagedAt: now}
	keep := func(u *catalog.Upload) bool {
		// A segment in the vault stays good as long as its bytes do; it may be the only copy of them. While the kernel has
		// the descriptor all of them are here, and nobody knows which of them stores through a mapping change.
		if u.State != catalog.Sent || overlap(u.Off, u.Size, off, n) || f.fds > 0 {
			return false
		}
		u.V = v.V
		return true
	}
	if err := f.punchedIn(off, n); err != nil {
		return err
	}
	seq, err := e.catalog.Update(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		if i.Version != old.V {
			return fmt.Errorf("inode %d is at version %d, not %d: %w", f.ino, i.Version, old.V, catalog.ErrInvalid)
		}
		i.Version = v.V
		if err := tx.PutInode(i); err != nil {
			return err
		}
		if err := e.retireTx(tx, old, keep); err != nil {
			return err
		}
		return tx.PutVersion(v)
	})
	if err != nil {
		return err
	}
	e.hit("supersede.recorded")
	f.ver, f.seq = v, seq
	f.inode.Version = v.V
	f.stream = nil
	f.retired(old)
	return nil
}

// retireTx is what the catalog says of version old from now on: one that is in
// the vault stays until its successor is, without local file; one that never
// got there goes, and its uploads, but those keep wants, are abandoned.
func (e *Engine) retireTx(tx *catalog.Tx, old catalog.Version, keep func(*catalog.Upload) bool) error {
	if old.V == 0 {
		return nil
	}
	if old.State == catalog.Archived {
		old.Local, old.Complete = 0, false
		return tx.PutVersion(old)
	}
	for _, intent := range e.up.intents(old.Ino) {
		u, err := tx.Upload(intent)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if u.V != old.V || u.State == catalog.Abandoned {
			continue
		}
		if keep != nil && keep(&u) {
			a, err := tx.Archive(u.Archive)
			if err != nil {
				return err
			}
			a.V = u.V
			if err := errors.Join(tx.PutUpload(u), tx.PutArchive(a)); err != nil {
				return err
			}
			continue
		}
		if err := e.abandonTx(tx, u); err != nil {
			return err
		}
	}
	return tx.DeleteVersion(old.Ino, old.V)
}

// retired tells everybody who worked for version old.
func (f *file) retired(old catalog.Version) {
	if old.V == 0 {
		return
	}
	f.e.recall.forget(f.ino, old.V)
	if old.State != catalog.Archived {
		f.e.solved(lostStaging(f.ino))
		f.e.up.cancel(f.ino)
		f.e.forgive(f.ino)
	}
}

func overlap(aOff, aLen, bOff, bLen int64) bool {
	return aOff < bOff+bLen && bOff < aOff+aLen
}

// punchedIn refuses a change of bytes that are in the vault only.
func (f *file) punchedIn(off, n int64) error {
	if f.local == nil || !f.stagingLocked() {
		return nil
	}
	if f.stream != nil {
		for _, g := range f.stream.segs {
			if g.dropped && overlap(g.up.Off, g.up.Size, off, n) {
				return content.ErrPunched
			}
		}
	}
	n = min(n, f.inode.Size-off)
	if n > 0 && !f.local.Verified(off, n) {
		return content.ErrPunched
	}
	return nil
}

// truncate sets the size.
func (f *file) truncate(ctx context.Context, c Caller, size int64) error {
	if size < 0 {
		return catalog.ErrInvalid
	}
	if f.e.closing.Load() {
		return ErrClosing
	}
	f.mu.Lock()
	for f.awaitConvLocked() {
	}
	if f.gone {
		f.mu.Unlock()
		return ErrStale
	}
	archived := f.ver.V != 0 && f.ver.State == catalog.Archived
	lost := f.ver.V != 0 && f.inode.Size > 0 && (f.local == nil || !f.local.Verified(0, f.inode.Size))
	switch {
	case size == f.inode.Size && !f.stagingLocked():
		now := time.Now().UnixNano()
		f.inode.Mtime, f.inode.Ctime = now, now
		f.dirty = true
		err := f.flushLocked()
		f.mu.Unlock()
		return err
	case size == 0 && f.inflight == 0 && (archived && f.fds == 0 || lost && !archived):
		// Nothing of the old bytes is needed, and nobody reads the local file behind our back.
		err := f.newStagingLocked()
		f.mu.Unlock()
		return err
	}
	// What goes away is touched, and what is new.
	from := min(size, f.inode.Size)
	n := max(size, f.inode.Size) - from
	f.mu.Unlock()
	return f.change(ctx, c, from, n, func(l *content.File) error { return l.Truncate(size) })
}

// Allocate is fallocate(2).
func (h *Handle) Allocate(ctx context.Context, c Caller, mode uint32, off, n int64) error {
	f := h.impl.f
	if off < 0 || n <= 0 || off > math.MaxInt64-n {
		return catalog.ErrInvalid
	}
	if f.e.closing.Load() {
		return ErrClosing
	}
	if err := f.killPriv(c); err != nil {
		return err
	}
	err := f.change(ctx, c, off, n, func(l *content.File) error { return l.Allocate(ctx, mode, off, n) })
	if err == nil && h.impl.flags.Sync {
		err = f.syncWrite(ctx)
	}
	return err
}

// syncWrite makes the bytes just written durable, for O_SYNC. Size and mtime are
// the staging file's own, so the catalog needs a barrier only for the records that name it.
func (f *file) syncWrite(ctx context.Context) error {
	f.mu.Lock()
	l, seq := f.local, f.seq
	f.mu.Unlock()
	if l == nil {
		return nil
	}
	if err := l.Sync(); err != nil {
		return err
	}
	return f.e.catalog.Barrier(ctx, seq)
}
