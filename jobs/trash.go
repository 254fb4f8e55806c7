package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
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
	switch {
	case e.opts.TrashAge < 0:
		a.Deadline = now.UnixNano()
	case a.Deadline < base.UnixNano():
		a.Deadline = math.MaxInt64 // it is later than that
	}
}

// An archive that is to be deleted at the service is claimed first: in an Update that finds it in the trash and in no
// version, its Deadline is made negative, durably. Nobody else can tell, after a crash least of all, whether the service was
// asked, so what is claimed counts as deleted. The claim is taken back only where the service was surely not asked, or has refused.

// mayLeaveTrash reports whether an archive in the trash may become a file's again: it is neither claimed nor due. That
// holds for the Update that asks.
func mayLeaveTrash(a catalog.Archive, now time.Time) bool {
	return a.State == catalog.Trash && a.Deadline > now.UnixNano()
}

// deletion returns when an archive in the trash is deleted: one that is claimed, now.
func deletion(a catalog.Archive, now time.Time) time.Time {
	if a.Deadline >= 0 {
		return time.Unix(0, a.Deadline)
	}
	return time.Unix(0, min(-a.Deadline, now.UnixNano()))
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

const (
	// trashRetry is the pause after a deletion the service refused or did not answer.
	trashRetry = 10 * time.Minute
	// trashBatch is how many archives are claimed at once: the more, the fewer barriers, and the more that a crash in between
	// has deleted although whoever asked for it might have thought better of it.
	trashBatch = 64
)

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
	later := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	err = e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			if a.Deadline > now.UnixNano() {
				later(time.Unix(0, a.Deadline))
				return nil
			}
			if at, ok := e.bin.failedUntil(a.Num); ok && at.After(now) {
				later(at)
				continue
			}
			due = append(due, a)
		}
		return nil
	})
	if err != nil || len(due) == 0 {
		return next, err
	}
	if _, err = e.deleteArchives(ctx, due); err != nil {
		return now.Add(trashRetry), err // the disk may be full, the network away
	}
	return now, nil
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

// deleteArchives deletes archives at the service, those of them that are in the trash when their turn comes.
func (e *Engine) deleteArchives(ctx context.Context, list []catalog.Archive) (n int, _ error) {
	var errs error
	for batch := range slices.Chunk(list, trashBatch) {
		deleted, refused, err := e.deleteBatch(ctx, batch)
		n += deleted
		errs = errors.Join(errs, refused, err)
		if err != nil {
			break
		}
	}
	return n, errs
}

// deleteBatch claims archives and deletes them. refused: what was said of some of them; err: why it ended early.
func (e *Engine) deleteBatch(ctx context.Context, list []catalog.Archive) (n int, refused, err error) {
	// One at a time: else one could take back what another has asked for.
	select {
	case e.bin.deleting <- struct{}{}:
		defer func() { <-e.bin.deleting }()
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	claimed, err := e.claim(ctx, list)
	var there []catalog.Archive // claimed, and surely not deleted
	defer func() { err = errors.Join(err, e.unclaim(append(there, claimed...))) }()
	if err != nil {
		return 0, nil, err
	}
	e.hit("trash.claimed")
	for len(claimed) > 0 {
		if ctx.Err() != nil {
			return n, refused, ctx.Err()
		}
		a := claimed[0]
		claimed = claimed[1:]
		// Deleting twice is no error.
		if err := e.client.DeleteArchive(ctx, a.VaultName, a.ID); err != nil && !errors.Is(err, cas.ErrNotFound) {
			e.log.Error("deleting an archive", "vault", a.VaultName, "archive", a.ID, "err", err)
			e.bin.setFailed(a.Num, time.Now().Add(trashRetry))
			refused = errors.Join(refused, err)
			if errors.Is(err, cas.ErrAccessDenied) {
				there = append(there, a)
			}
			continue
		}
		e.hit("trash.deleted")
		if err := e.setArchiveState(a.Num, catalog.Deleted); err != nil {
			return n, refused, err
		}
		e.bin.setFailed(a.Num, time.Time{})
		e.log.Info("deleted an archive", "vault", a.VaultName, "archive", a.ID, "size", a.Size)
		n++
	}
	return n, refused, nil
}

// claim makes sure that archives which are in the trash stay there, whatever happens, and returns them as they were. Also when it
// fails: these are to be taken back then.
func (e *Engine) claim(ctx context.Context, list []catalog.Archive) (claimed []catalog.Archive, err error) {
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		claimed = nil
		for _, a := range list {
			// As it is now: the list may take long to work off.
			a, err := tx.Archive(a.Num)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && a.State != catalog.Trash {
				continue
			}
			if err != nil {
				return err
			}
			used, err := inUse(tx, a)
			if err != nil {
				return err
			}
			if used {
				// Never: but an archive is gone for good once deleted.
				e.log.Error("an archive in the trash is in use; it stays", "vault", a.VaultName, "archive", a.ID)
				a.State, a.Deadline = catalog.Live, 0
			} else {
				claimed = append(claimed, a)
				if a.Deadline >= 0 { // else a crash or an answer that never came has left it so
					a.Deadline = -max(a.Deadline, 1)
				}
			}
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return claimed, e.catalog.Barrier(ctx, seq)
}

// unclaim takes back what claim did to archives the service has surely not deleted. Those that were claimed before stay so.
func (e *Engine) unclaim(list []catalog.Archive) error {
	list = slices.DeleteFunc(list, func(a catalog.Archive) bool { return a.Deadline < 0 })
	if len(list) == 0 {
		return nil
	}
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for _, was := range list {
			a, err := tx.Archive(was.Num)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && a.State != catalog.Trash {
				continue
			}
			if err != nil {
				return err
			}
			a.Deadline = was.Deadline
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("archives that were not deleted stay marked for it: %w", err)
	}
	return nil
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

// Trash lists the trash, next to be deleted first; of files that were removed before it began, all but those still in use.
func (e *Engine) Trash(ctx context.Context) ([]TrashEntry, error) {
	if err := e.reclaimForTrash(ctx); err != nil {
		return nil, err
	}
	var list []TrashEntry
	now := time.Now()
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			t := TrashEntry{
				Vault: a.VaultName, ArchiveID: a.ID, Size: a.Size,
				Uploaded: time.Unix(0, a.Created), Deadline: deletion(a, now),
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
// What the service was asked for and did not answer is deleted in the background; the rest of what ctx ends stays.
func (e *Engine) Purge(ctx context.Context, archiveIDs []string) (int, error) {
	if e.opts.ReadOnly {
		return 0, ErrReadOnly
	}
	if err := e.reclaimForTrash(ctx); err != nil {
		return 0, err
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
	n, err := e.deleteArchives(ctx, list)
	if err != nil {
		e.bin.kickTrash()
	}
	return n, err
}
