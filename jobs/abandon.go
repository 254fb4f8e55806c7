package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

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
		delete(u.abandoned, intent) // whoever abandons it from here on puts it there again
	}
	u.mu.Unlock()
	for intent, ino := range todo {
		if ctx.Err() != nil {
			u.mu.Lock()
			u.abandoned[intent] = abandoned{ino: ino}
			u.mu.Unlock()
			continue
		}
		given, err := e.cleanOne(ctx, intent)
		if err != nil {
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
		if given {
			u.dropIntent(ino, intent)
		}
	}
	return next
}

// cleanOne does it for one upload. given: it was given up indeed.
func (e *Engine) cleanOne(ctx context.Context, intent string) (given bool, err error) {
	var u catalog.Upload
	// Not a View: abandonTx tells of it before its transaction is committed, or has failed, and this one comes after it.
	_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
		var err error
		u, err = tx.Upload(intent)
		return err
	})
	if errors.Is(err, catalog.ErrNotExist) {
		return true, nil
	}
	if err != nil || u.State != catalog.Abandoned {
		return false, err
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
			case errors.Is(err, errRestart):
				u.Uncertain, abort = true, false
			case errors.Is(err, cas.ErrInvalid), errors.Is(err, cas.ErrDigest):
			default:
				return false, err
			}
		}
		if abort {
			if err := e.client.AbortUpload(ctx, u.VaultName, u.UploadID); err != nil && !errors.Is(err, cas.ErrNotFound) {
				return false, err
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
	return true, err
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
