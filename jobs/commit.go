package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// commitEmptyLocked ends the life of a staged version without bytes: the
// service takes no empty archive, so the catalog's word is all there is.
func (f *file) commitEmptyLocked() error {
	e := f.e
	f.timesLocked()
	v := f.ver
	v.State, v.Complete, v.Size, v.Mtime, v.ArchivedAt = catalog.Archived, true, 0, f.inode.Mtime, time.Now().UnixNano()
	v.Extents, v.TreeHash, v.Error = nil, [32]byte{}, ""
	if f.fds == 0 {
		v.Local = 0 // else it is promoted: the kernel holds the descriptor, so the next bytes must go to the same file
	}
	abandon, err := f.uploadsLocked()
	if err != nil {
		return err
	}
	seq, err := e.recordArchived(f, v, nil, nil, abandon, nil)
	if err != nil {
		return err
	}
	f.ver, f.seq = v, seq
	if v.Local == 0 {
		id := f.local.ID()
		f.replaceLocalLocked(nil)
		if err := e.store.Remove(id); err != nil && !errors.Is(err, content.ErrNotExist) {
			e.log.Warn("removing an empty staging file", "path", e.path(f.ino), "err", err)
		}
	} else if err := f.convertLocked(); err != nil {
		e.log.Warn("keeping an empty file", "path", e.path(f.ino), "err", err)
	}
	e.forgive(f.ino)
	e.syncEvent(f.ino, v.V, 0, nil)
	return nil
}

// recordArchived is the one transaction in which a version becomes Archived.
// It fails with errSuperseded when the version is no longer the file's. With next, that becomes a staged version on
// the same local file in the same moment.
func (e *Engine) recordArchived(f *file, v catalog.Version, archives []catalog.Archive, uploads, abandon []catalog.Upload, next *catalog.Version) (uint64, error) {
	now := time.Now()
	want, dirty := f.inode, f.dirty
	var drop []uint64
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		drop = nil
		i, err := tx.Inode(f.ino)
		if errors.Is(err, catalog.ErrNotExist) || err == nil && i.Version != v.V {
			return errSuperseded
		}
		if err != nil {
			return err
		}
		if dirty {
			i.Size, i.Mtime, i.Atime = want.Size, want.Mtime, want.Atime
			i.Ctime = max(i.Ctime, want.Ctime)
			if err := tx.PutInode(i); err != nil {
				return err
			}
		}
		want = i
		for k := range archives {
			a := &archives[k]
			if a.Num == 0 {
				a.Num = tx.NextID()
				if err := tx.PutArchive(*a); err != nil {
					return err
				}
			}
			if k < len(v.Extents) {
				v.Extents[k].Archive = a.Num
			}
		}
		for _, u := range uploads {
			if err := tx.DeleteUpload(u.Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		for _, u := range abandon {
			if err := e.abandonTx(tx, u); err != nil {
				return err
			}
		}
		olds, err := tx.Versions(f.ino)
		if err != nil {
			return err
		}
		for _, o := range olds {
			if o.V >= v.V {
				continue
			}
			if err := e.trashVersionTx(tx, o, v.Extents, now); err != nil {
				return err
			}
			if o.Local != 0 && o.Local != v.Local {
				drop = append(drop, o.Local)
			}
			if err := tx.DeleteVersion(o.Ino, o.V); err != nil {
				return err
			}
		}
		if next == nil {
			return tx.PutVersion(v)
		}
		*next = catalog.Version{Ino: f.ino, V: v.V + 1, State: catalog.Staged, Local: v.Local, Size: i.Size, Mtime: i.Mtime, StagedAt: now.UnixNano()}
		i.Version = next.V
		want = i
		old := v
		old.Local, old.Complete = 0, false
		return errors.Join(tx.PutInode(i), tx.PutVersion(old), tx.PutVersion(*next))
	})
	if err != nil {
		return 0, err
	}
	f.dirty = false
	f.adoptLocked(want)
	for _, u := range uploads {
		e.up.dropIntent(f.ino, u.Intent)
	}
	e.bin.kickTrash() // older versions' archives
	for _, id := range drop {
		if err := e.store.Remove(id); err != nil && !errors.Is(err, content.ErrNotExist) {
			e.log.Warn("removing the local copy of an old version", "path", e.path(f.ino), "err", err)
		}
	}
	return seq, nil
}

// commit makes the version Archived, provided not a byte moved since it was sealed.
func (e *Engine) commit(ctx context.Context, j *sealed, archives []catalog.Archive) error {
	f := j.f
	e.hit("sent")
	f.mu.Lock()
	for f.awaitConvLocked() {
	}
	moved := f.gone || f.ver.V != j.ver.V || f.ver.State != catalog.Uploading || f.writes != j.writes
	if !moved {
		size, err1 := j.local.Size()
		mtime, err2 := j.local.Mtime()
		if err := errors.Join(err1, err2); err != nil {
			f.mu.Unlock()
			return err
		}
		var err error
		if moved, err = f.movedLocked(size, mtime, j.ver); err != nil {
			f.mu.Unlock()
			return err
		}
		if moved {
			if err := f.flushLocked(); err != nil {
				e.log.Error("recording size and times", "path", e.path(f.ino), "err", err)
			}
			if !f.writingLocked() {
				e.settle.start(f.ino, time.Now().Add(e.opts.Settle))
			}
		}
	}
	if moved {
		f.mu.Unlock()
		return errors.Join(errSuperseded, e.discardArchives(j, archives))
	}
	v := j.ver
	v.State, v.ArchivedAt, v.Error, v.Damaged = catalog.Archived, time.Now().UnixNano(), "", false
	v.Complete = j.local.Verified(0, v.Size)
	v.Extents = make([]catalog.Extent, len(archives))
	for k, a := range archives {
		v.Extents[k] = catalog.Extent{Archive: a.Num, Len: j.segs[k].Size}
	}
	v.TreeHash = [32]byte{}
	if len(archives) == 1 {
		v.TreeHash = archives[0].TreeHash
	}
	// Streamed: parts of it were dropped as their archives were recorded. The record names the rest until it
	// is gone, or after a crash nobody would know whose it is.
	punched := !v.Complete
	// Whoever has the descriptor for writing may have it mapped: what is stored from now on is no part of this version,
	// and no moment may pass in which it would count as that, nor in which there is no room to record it.
	var next *catalog.Version
	if f.fds > 0 && f.writers > 0 && v.Complete {
		next = &catalog.Version{}
	}
	seq, err := e.recordArchived(f, v, archives, j.segs, nil, next)
	if err != nil {
		f.mu.Unlock()
		if errors.Is(err, errSuperseded) {
			err = errors.Join(err, e.discardArchives(j, archives))
		}
		return err
	}
	f.ver, f.seq = v, seq
	if next != nil {
		f.ver, f.stream = *next, nil
		f.expected = &expected{old: v, writes: f.writes, mtimeSet: f.mtimeSet}
	}
	if punched {
		// At once: nothing may be built on this one any more.
		f.replaceLocalLocked(nil)
	}
	f.mu.Unlock()
	e.hit("committed")
	e.forgive(f.ino)

	// Only now may the bytes be treated as a copy.
	if err := e.catalog.Barrier(context.WithoutCancel(ctx), seq); err != nil {
		return err
	}
	e.hit("committed.durable")
	if punched {
		err = e.dropRest(f, v)
	} else {
		f.mu.Lock()
		if f.ver.V == v.V && f.ver.State == catalog.Archived {
			err = f.convertLocked()
		}
		f.mu.Unlock()
	}
	if err != nil && !errors.Is(err, content.ErrNotExist) {
		// It stays in staging until the next start, which repeats this.
		e.log.Warn("an archived file stays in staging", "path", e.path(f.ino), "err", err)
	}
	e.hit("promoted")
	e.log.Info("archived", "path", e.path(f.ino), "size", v.Size, "archives", len(archives))
	e.opts.Observer.AttrChanged(f.ino)
	e.syncEvent(f.ino, v.V, 0, nil)
	return nil
}

// dropRest removes the staging file of an archived version that was streamed, and then its name from the record.
func (e *Engine) dropRest(f *file, v catalog.Version) error {
	if err := e.store.Remove(v.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
		return err
	}
	e.hit("stream.removed")
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		now, err := tx.Version(v.Ino, v.V)
		if err != nil || now.Local != v.Local {
			return err // recalled, or changed, meanwhile
		}
		now.Local = 0
		return tx.PutVersion(now)
	})
	if errors.Is(err, catalog.ErrNotExist) {
		return nil
	}
	if err == nil && f.ver.V == v.V && f.ver.Local == v.Local {
		f.ver.Local = 0
	}
	return err
}

// discardArchives puts archives no version will use into the trash.
func (e *Engine) discardArchives(j *sealed, archives []catalog.Archive) error {
	now := time.Now()
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for k, a := range archives {
			if a.Num != 0 {
				continue // recorded with its upload, which whoever superseded the version has dealt with
			}
			a.Num = tx.NextID()
			e.trash(&a, now)
			if err := tx.PutArchive(a); err != nil {
				return err
			}
			if err := tx.DeleteUpload(j.segs[k].Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, a := range archives {
		if a.Num == 0 {
			e.up.dropIntent(j.f.ino, j.segs[k].Intent)
		}
	}
	e.bin.kickTrash()
	return nil
}

func (e *Engine) archive(num uint64) (a catalog.Archive, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		a, err = tx.Archive(num)
		return err
	})
	return a, err
}

func newArchive(u *catalog.Upload, id string, tree cas.Hash) catalog.Archive {
	return catalog.Archive{
		Vault: u.Vault, VaultName: u.VaultName, ID: id, Size: u.Size, TreeHash: tree,
		Created: time.Now().UnixNano(), Description: u.Description, Intent: u.Intent,
		State: catalog.Live, Ino: u.Ino, V: u.V,
	}
}

// refuseArchive puts an archive into the trash that the service has made of other bytes than were sent.
func (e *Engine) refuseArchive(a catalog.Archive) error {
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		a.Num = tx.NextID()
		e.trash(&a, time.Now())
		return tx.PutArchive(a)
	})
	if err == nil {
		e.bin.kickTrash()
	}
	return err
}
