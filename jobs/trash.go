package jobs

import (
	"context"
	"errors"
	"math"
	"path"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

func (b *reclaimer) kickTrash() {
	select {
	case b.trash <- struct{}{}:
	default:
	}
}

// trash moves an archive nobody needs any more into the trash.
func (e *Engine) trash(a *catalog.Archive, now time.Time) {
	if a.State == catalog.Trash || a.State == catalog.Deleted {
		return
	}
	base := time.Unix(0, a.Created)
	if e.opts.TrashFromDelete || a.Created == 0 {
		base = now
	}
	a.State = catalog.Trash
	a.Deadline = base.Add(e.opts.TrashAge).UnixNano()
	if e.opts.TrashAge < 0 {
		a.Deadline = now.UnixNano()
	}
}

// trashVersionTx puts the archives of a version that goes into the trash, but those another version (keep) uses too.
func (e *Engine) trashVersionTx(tx *catalog.Tx, v catalog.Version, keep []catalog.Extent, now time.Time) error {
next:
	for _, x := range v.Extents {
		for _, k := range keep {
			if k.Archive == x.Archive {
				continue next
			}
		}
		a, err := tx.Archive(x.Archive)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if a.Ino != v.Ino {
			continue // shared with another file
		}
		e.trash(&a, now)
		if err := tx.PutArchive(a); err != nil {
			return err
		}
	}
	return nil
}

// trashRetry is the pause after a deletion the service refused or did not answer.
const trashRetry = 10 * time.Minute

// runTrash deletes archives at the service when their deadline has come.
func (e *Engine) runTrash(ctx context.Context) error {
	if e.opts.ReadOnly {
		return nil
	}
	var forgot time.Time
	for {
		next, err := e.reapDue(ctx)
		if err != nil && ctx.Err() == nil {
			e.log.Error("emptying the trash", "err", err)
		}
		// Not at every wake-up: it reads all uploads, and every version replaced wakes this.
		if now := time.Now(); now.Sub(forgot) >= time.Hour {
			e.forgetUncertain()
			forgot = now
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = min(wait, max(time.Until(next), 0))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-e.bin.trash:
		case <-t.C:
		}
		t.Stop()
	}
}

// reapDue deletes what is due and returns when to look again.
func (e *Engine) reapDue(ctx context.Context) (next time.Time, err error) {
	now := time.Now()
	var due []catalog.Archive
	err = e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			if a.Deadline > now.UnixNano() {
				next = time.Unix(0, a.Deadline)
				return nil
			}
			if at, ok := e.bin.failedUntil(a.Num); ok && at.After(now) {
				if next.IsZero() || at.Before(next) {
					next = at
				}
				continue
			}
			due = append(due, a)
		}
		return nil
	})
	if err != nil || len(due) == 0 {
		return next, err
	}
	_, err = e.deleteArchives(ctx, due)
	return now, err
}

func (b *reclaimer) failedUntil(num uint64) (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.failed[num]
	return at, ok
}

func (b *reclaimer) setFailed(num uint64, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until.IsZero() {
		delete(b.failed, num)
	} else {
		b.failed[num] = until
	}
}

// deleteArchives deletes archives in the trash at the service. The record in
// the trash, made durable here, is the intent; deleting twice is no error.
func (e *Engine) deleteArchives(ctx context.Context, list []catalog.Archive) (int, error) {
	if err := e.catalog.Barrier(ctx, 0); err != nil {
		return 0, err
	}
	var n int
	var errs error
	for _, a := range list {
		if ctx.Err() != nil {
			return n, errors.Join(errs, ctx.Err())
		}
		// As it is now: the list may take long to work off.
		a, used, err := e.trashed(a.Num)
		if err != nil {
			return n, errors.Join(errs, err)
		}
		if a.State != catalog.Trash {
			continue
		}
		if used {
			// Never: but an archive is gone for good once deleted.
			e.log.Error("an archive in the trash is in use; it stays", "vault", a.VaultName, "archive", a.ID)
			errs = errors.Join(errs, e.setArchiveState(a.Num, catalog.Live))
			continue
		}
		if err := e.client.DeleteArchive(ctx, a.VaultName, a.ID); err != nil && !errors.Is(err, cas.ErrNotFound) {
			e.log.Error("deleting an archive", "vault", a.VaultName, "archive", a.ID, "err", err)
			e.bin.setFailed(a.Num, time.Now().Add(trashRetry))
			errs = errors.Join(errs, err)
			continue
		}
		e.hit("trash.deleted")
		if err := e.setArchiveState(a.Num, catalog.Deleted); err != nil {
			return n, errors.Join(errs, err)
		}
		e.bin.setFailed(a.Num, time.Time{})
		e.log.Info("deleted an archive", "vault", a.VaultName, "archive", a.ID, "size", a.Size)
		n++
	}
	return n, errs
}

// trashed returns an archive, and whether a version consists of it all the same.
func (e *Engine) trashed(num uint64) (a catalog.Archive, used bool, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		if a, err = tx.Archive(num); errors.Is(err, catalog.ErrNotExist) {
			return nil
		}
		if err == nil {
			used, err = inUse(tx, a)
		}
		return err
	})
	return a, used, err
}

// inUse reports whether a version consists of an archive.
func inUse(tx *catalog.Tx, a catalog.Archive) (used bool, err error) {
	if a.Ino == 0 {
		return false, nil
	}
	vs, err := tx.Versions(a.Ino)
	if err != nil && !errors.Is(err, catalog.ErrNotExist) {
		return false, err
	}
	for _, v := range vs {
		for _, x := range v.Extents {
			used = used || x.Archive == a.Num
		}
	}
	return used, nil
}

func (e *Engine) setArchiveState(num uint64, s catalog.ArchiveState) error {
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		a, err := tx.Archive(num)
		if err != nil {
			return err
		}
		a.State = s
		return tx.PutArchive(a)
	})
	return err
}

// TrashEntry is an archive waiting to be deleted.
type TrashEntry struct {
	Vault, ArchiveID, Path string
	Size                   int64
	Uploaded, Deadline     time.Time
}

// Trash lists the trash, next to be deleted first.
func (e *Engine) Trash(ctx context.Context) ([]TrashEntry, error) {
	var list []TrashEntry
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			t := TrashEntry{
				Vault: a.VaultName, ArchiveID: a.ID, Size: a.Size,
				Uploaded: time.Unix(0, a.Created), Deadline: time.Unix(0, a.Deadline),
			}
			if m, ok := parseDescription(a.Description); ok {
				t.Path = path.Join("/", a.VaultName, m.Path)
			}
			list = append(list, t)
		}
		return ctx.Err()
	})
	return list, err
}

// Purge deletes trash now, all of it or the archives of the IDs given, whatever it costs. It returns how many were deleted.
func (e *Engine) Purge(ctx context.Context, archiveIDs []string) (int, error) {
	if e.opts.ReadOnly {
		return 0, ErrReadOnly
	}
	var list []catalog.Archive
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			if len(archiveIDs) == 0 || contains(archiveIDs, a.ID) {
				list = append(list, a)
			}
		}
		return nil
	})
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return e.deleteArchives(ctx, list)
}
