package jobs

import (
	"context"
	"errors"
	"math"
	"path"
	"sync"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// reclaimer takes away what deleted files leave: inodes without a name and
// without handles, with their local files. Deleting is one small transaction for the caller; the rest
// happens here, for many at once, after the deletion is durable, so that a
// power loss cannot bring back a name whose bytes are gone.
type reclaimer struct {
	e *Engine

	mu     sync.Mutex
	inos   map[uint64]struct{}
	held   map[uint64]int // by Hold: not to be taken
	wake   chan struct{}
	trash  chan struct{} // the trash has changed
	idle   chan struct{} // closed and replaced when inos is empty
	failed map[uint64]time.Time
}

// reclaimBatch is how many files one transaction reclaims.
const reclaimBatch = 256

func newReclaimer(e *Engine) *reclaimer {
	return &reclaimer{
		e: e, inos: map[uint64]struct{}{}, held: map[uint64]int{}, failed: map[uint64]time.Time{},
		wake: make(chan struct{}, 1), trash: make(chan struct{}, 1),
	}
}

// add hands over an inode whose last name and handle are gone.
func (b *reclaimer) add(ino uint64) {
	b.mu.Lock()
	b.inos[ino] = struct{}{}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Hold keeps a regular file from being reclaimed after its last name and handle
// are gone, until release is called: the kernel may have found the name just before, and opens
// the inode by number next. It costs nothing to speak of and survives no restart.
func (e *Engine) Hold(ino uint64) (release func()) {
	b := e.bin
	b.mu.Lock()
	b.held[ino]++
	b.mu.Unlock()
	return sync.OnceFunc(func() {
		b.mu.Lock()
		if b.held[ino]--; b.held[ino] == 0 {
			delete(b.held, ino)
		}
		_, waits := b.inos[ino]
		b.mu.Unlock()
		if waits {
			b.add(ino)
		}
	})
}

func (b *reclaimer) kickTrash() {
	select {
	case b.trash <- struct{}{}:
	default:
	}
}

func (b *reclaimer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		// rm -r of many: let some more come.
		if sleep(ctx, 20*time.Millisecond) != nil {
			return nil
		}
		for {
			n, err := b.reclaim(ctx)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				b.e.log.Error("reclaiming deleted files", "err", err)
				if sleep(ctx, 5*time.Second) != nil {
					return nil
				}
				continue
			}
			if n == 0 {
				break
			}
		}
	}
}

// take claims a batch: no handle may come to these inodes any more.
func (b *reclaimer) take() []*file {
	b.mu.Lock()
	var inos []uint64
	for ino := range b.inos {
		if b.held[ino] > 0 {
			continue
		}
		if inos = append(inos, ino); len(inos) == reclaimBatch {
			break
		}
	}
	for _, ino := range inos {
		delete(b.inos, ino)
	}
	b.mu.Unlock()
	e := b.e
	var batch []*file
	for _, ino := range inos {
		e.filesMu.Lock()
		f := e.files[ino]
		if f == nil {
			// A place holder that acquire finds.
			f = &file{e: e, ino: ino, refs: 1, gone: true, orphan: true, loadErr: catalog.ErrNotExist}
			e.files[ino] = f
			e.filesMu.Unlock()
			batch = append(batch, f)
			continue
		}
		f.refs++
		e.filesMu.Unlock()
		f.mu.Lock()
		busy := f.handles > 0 || f.loadErr == nil && !f.orphan
		if !busy {
			f.gone = true
		}
		f.mu.Unlock()
		if busy {
			f.put() // its last Release brings it back
			continue
		}
		batch = append(batch, f)
	}
	return batch
}

// reclaim does one batch and returns its size.
func (b *reclaimer) reclaim(ctx context.Context) (int, error) {
	batch := b.take()
	if len(batch) == 0 {
		return 0, nil
	}
	defer func() {
		for _, f := range batch {
			f.put()
		}
	}()
	e := b.e
	again := func(err error) (int, error) {
		for _, f := range batch {
			b.add(f.ino)
		}
		return len(batch), err
	}
	if err := e.catalog.Barrier(ctx, 0); err != nil {
		return again(err)
	}
	e.hit("reclaim.durable")
	gone := make(map[uint64][]catalog.Version, len(batch))
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for _, f := range batch {
			i, err := tx.Inode(f.ino)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && i.Nlink > 0 {
				continue
			}
			if err != nil {
				return err
			}
			vs, err := tx.Versions(f.ino)
			if err != nil {
				return err
			}
			gone[f.ino] = vs
		}
		return nil
	})
	if err != nil {
		return again(err)
	}
	for ino, vs := range gone {
		e.up.cancel(ino)
		for _, v := range vs {
			e.recall.forget(ino, v.V)
			if v.Local == 0 {
				continue
			}
			if err := e.store.Remove(v.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
				e.log.Warn("removing the local copy of a deleted file", "ino", ino, "err", err)
			}
		}
	}
	e.hit("reclaim.removed")
	now := time.Now()
	_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for ino, vs := range gone {
			for _, v := range vs {
				if err := e.trashVersionTx(tx, v, nil, now); err != nil {
					return err
				}
				if v.State != catalog.Archived {
					if err := e.retireTx(tx, v, nil); err != nil {
						return err
					}
					continue
				}
				if err := tx.DeleteVersion(ino, v.V); err != nil {
					return err
				}
			}
			if err := tx.DeleteInode(ino); err != nil {
				return err
			}
			if err := tx.DeleteOrphan(ino); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return again(err)
	}
	e.hit("reclaim.recorded")
	for ino := range gone {
		e.forgive(ino)
		e.syncEvent(ino, nil)
	}
	e.up.kickAbandoned()
	b.kickTrash()
	return len(batch), nil
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

// abandonTx gives up an upload. What it made already goes into the trash; what is
// under way at the service is cleaned up by cleanAbandoned.
func (e *Engine) abandonTx(tx *catalog.Tx, u catalog.Upload) error {
	if u.State == catalog.Sent {
		a, err := tx.Archive(u.Archive)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		if err == nil {
			e.trash(&a, time.Now())
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		e.up.abandon(u)
		return tx.DeleteUpload(u.Intent)
	}
	u.State = catalog.Abandoned
	e.up.abandon(u)
	return tx.PutUpload(u)
}

// abandon notes that an upload is to be cleaned up, once no task has it.
func (u *uploader) abandon(up catalog.Upload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.abandoned[up.Intent] = abandoned{ino: up.Ino}
}

type abandoned struct {
	ino   uint64
	after time.Time // not before
}

// abandonedRetry is the pause after a clean-up that failed.
const abandonedRetry = time.Minute

// cleanAbandoned aborts what abandoned uploads left at the service, and forgets
// them. One that may have made an archive nobody has seen stays recorded: its
// intent is how the inventory recognises that archive.
func (e *Engine) cleanAbandoned(ctx context.Context) (next time.Time) {
	u := e.up
	now := time.Now()
	u.mu.Lock()
	todo := map[string]uint64{}
	for intent, a := range u.abandoned {
		if _, busy := u.busy[intent]; busy {
			continue // its task's end kicks again
		}
		if a.after.After(now) {
			if next.IsZero() || a.after.Before(next) {
				next = a.after
			}
			continue
		}
		todo[intent] = a.ino
	}
	u.mu.Unlock()
	for intent, ino := range todo {
		if ctx.Err() != nil {
			return next
		}
		if err := e.cleanOne(ctx, intent); err != nil {
			e.log.Warn("cleaning up an abandoned upload", "ino", ino, "intent", intent, "err", err)
			at := time.Now().Add(abandonedRetry)
			u.mu.Lock()
			u.abandoned[intent] = abandoned{ino: ino, after: at}
			u.mu.Unlock()
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		u.mu.Lock()
		delete(u.abandoned, intent)
		u.mu.Unlock()
		u.dropIntent(ino, intent)
	}
	return next
}

func (e *Engine) cleanOne(ctx context.Context, intent string) error {
	var u catalog.Upload
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		u, err = tx.Upload(intent)
		return err
	})
	if errors.Is(err, catalog.ErrNotExist) || err == nil && u.State != catalog.Abandoned {
		return nil
	}
	if err != nil {
		return err
	}
	var made *catalog.Archive
	if a, ok := e.up.getSent(intent); ok {
		made = &a
	} else if u.UploadID != "" {
		abort := true
		if u.TreeHash != ([32]byte{}) {
			// Complete may have been asked for: asking again tells.
			a, err := e.complete(ctx, &u)
			switch {
			case err == nil:
				made, abort = &a, false
			case errors.Is(err, cas.ErrNotFound):
				u.Uncertain, abort = true, false
			case errors.Is(err, cas.ErrInvalid), errors.Is(err, cas.ErrDigest):
			default:
				return err
			}
		}
		if abort {
			if err := e.client.AbortUpload(ctx, u.VaultName, u.UploadID); err != nil && !errors.Is(err, cas.ErrNotFound) {
				return err
			}
		}
	}
	_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
		if made != nil {
			made.Num = tx.NextID()
			e.trash(made, time.Now())
			if err := tx.PutArchive(*made); err != nil {
				return err
			}
		} else if u.Uncertain {
			u.UploadID = ""
			return tx.PutUpload(u)
		}
		return tx.DeleteUpload(intent)
	})
	if made != nil {
		e.bin.kickTrash()
	}
	return err
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
		used, err := e.inUse(a)
		if err != nil {
			return n, errors.Join(errs, err)
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

func (e *Engine) inUse(a catalog.Archive) (used bool, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		vs, err := tx.Versions(a.Ino)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		for _, v := range vs {
			for _, x := range v.Extents {
				used = used || x.Archive == a.Num
			}
		}
		return nil
	})
	return used, err
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

// inventoryLag is how far behind an inventory of the service may be.
const inventoryLag = 48 * time.Hour

// forgetUncertain drops abandoned uploads whose possible archive an inventory merged since would have shown.
func (e *Engine) forgetUncertain() {
	var old []string
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for u, err := range tx.Uploads() {
			if err != nil {
				return err
			}
			if u.State != catalog.Abandoned || !u.Uncertain || u.UploadID != "" {
				continue
			}
			v, err := tx.Vault(u.Vault)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && v.Merged > u.Started+int64(inventoryLag) {
				old = append(old, u.Intent)
			}
		}
		return nil
	})
	if err == nil && len(old) > 0 {
		_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
			for _, intent := range old {
				if err := tx.DeleteUpload(intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		e.log.Error("forgetting uncertain uploads", "err", err)
	}
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
