package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// recover brings local files and catalog together after whatever ended the last
// run, and queues everything unfinished. The catalog decides; bytes that are nowhere else are never deleted.
// Its changes are few, and a mount on a full disk needs them: hence Reclaim.
func (e *Engine) recover() error {
	// What was acknowledged before a kill may still be in the page cache only; what
	// follows acts on it, so it must not be taken back by a power loss.
	if err := e.catalog.Barrier(context.Background(), 0); err != nil {
		return err
	}
	known, err := e.recoverVersions()
	if err != nil {
		return err
	}
	if err := e.recoverStrays(known); err != nil {
		return err
	}
	if err := e.recoverUploads(); err != nil {
		return err
	}
	return e.recoverOrphans()
}

// recoverVersions checks every version with a local file and returns the numbers of those files.
func (e *Engine) recoverVersions() (map[uint64]struct{}, error) {
	entries := map[uint64]content.Entry{}
	for _, x := range e.store.List() {
		entries[x.ID] = x
	}
	known := map[uint64]struct{}{}
	var cold, staged []catalog.Version
	var move, rest []uint64
	now := time.Now()
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for v, err := range tx.LocalVersions() {
			if err != nil {
				return err
			}
			known[v.Local] = struct{}{}
			x, there := entries[v.Local]
			if v.State == catalog.Archived {
				switch {
				case !there:
					cold = append(cold, v)
				case x.Kind == content.Staging && v.Complete:
					move = append(move, v.Local)
				case x.Kind == content.Staging:
					// What streaming has left of it; all of it is in the vault.
					rest = append(rest, v.Local)
					cold = append(cold, v)
				}
				continue
			}
			if there && x.Kind == content.Content {
				move = append(move, v.Local)
			}
			staged = append(staged, v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range move {
		x := entries[id]
		if x.Kind == content.Staging {
			err = e.store.Promote(id)
		} else {
			err = e.store.Demote(id)
		}
		if err != nil {
			// Repeated when the file is used, and at the next start.
			e.problem(fmt.Sprintf("local/%d", id), fmt.Sprintf("local file %d is not where it belongs: %v", id, err))
		}
	}
	for _, id := range rest {
		if err := e.store.Remove(id); err != nil {
			return nil, fmt.Errorf("removing what is left of a streamed file: %w", err)
		}
	}
	for batch := range batches(cold, recoverBatch) {
		_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
			for _, v := range batch {
				v.Local, v.Complete = 0, false
				if err := tx.PutVersion(v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if n := len(cold) - len(rest); n > 0 {
		e.log.Warn("local copies of archived files are missing; the files are cold now", "files", n)
	}
	for batch := range batches(staged, recoverBatch) {
		if err := e.recoverStaged(batch, entries, now); err != nil {
			return nil, err
		}
	}
	return known, nil
}

const recoverBatch = 512

func batches[T any](list []T, n int) func(func([]T) bool) {
	return func(yield func([]T) bool) {
		for len(list) > 0 {
			k := min(n, len(list))
			if !yield(list[:k]) {
				return
			}
			list = list[k:]
		}
	}
}

// recoverStaged takes size and mtime of staged versions from their staging files,
// which writes reach before the catalog hears of them.
func (e *Engine) recoverStaged(batch []catalog.Version, entries map[uint64]content.Entry, now time.Time) error {
	type change struct {
		v    catalog.Version
		size int64
		mt   int64
	}
	var changes []change
	var lost []catalog.Version
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for _, v := range batch {
			i, err := tx.Inode(v.Ino)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && (i.Version != v.V || i.Nlink == 0) {
				continue // deleted, or for the catalog's check to report
			}
			if err != nil {
				return err
			}
			x, there := entries[v.Local]
			switch {
			case !there && i.Size == 0 && v.Size == 0:
				// Created, never synced, and a power loss: an empty file, as everywhere.
				v.State, v.Local, v.Complete, v.ArchivedAt = catalog.Archived, 0, true, now.UnixNano()
				changes = append(changes, change{v: v, mt: i.Mtime})
			case !there:
				lost = append(lost, v)
			case v.State == catalog.Staged && (x.Size != i.Size || x.Complete && x.Mtime.UnixNano() != i.Mtime):
				// (Dropping parts that are in the vault again, at start, moves the mtime.)
				v.Size, v.Mtime = x.Size, x.Mtime.UnixNano()
				changes = append(changes, change{v, v.Size, v.Mtime})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, v := range lost {
		text := fmt.Sprintf("%s: the staging file %d of its %d bytes is missing; they were not in the vault yet", e.path(v.Ino), v.Local, v.Size)
		e.problem(lostStaging(v.Ino), text)
		if v.Error == "" {
			v.Error = "the staging file is missing"
			changes = append(changes, change{v: v, size: -1})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for _, c := range changes {
			if err := tx.PutVersion(c.v); err != nil {
				return err
			}
			if c.size < 0 {
				continue
			}
			i, err := tx.Inode(c.v.Ino)
			if err != nil {
				return err
			}
			i.Size, i.Mtime = c.size, c.mt
			i.Ctime = max(i.Ctime, i.Mtime)
			if err := tx.PutInode(i); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// lostStaging is the subject of the problem that a staging file is missing.
func lostStaging(ino uint64) string { return fmt.Sprintf("staging/%d", ino) }

// recoverStrays deals with local files the catalog does not know: content is a
// copy and goes; staging files with bytes are kept for people to look at.
func (e *Engine) recoverStrays(known map[uint64]struct{}) error {
	for _, x := range e.store.List() {
		if _, ok := known[x.ID]; ok {
			continue
		}
		if x.Kind == content.Content || x.Size == 0 {
			if err := e.store.Remove(x.ID); err != nil && !errors.Is(err, content.ErrNotExist) {
				return fmt.Errorf("removing local file %d: %w", x.ID, err)
			}
			continue
		}
		where, err := e.store.Quarantine(x.ID)
		if err != nil {
			return fmt.Errorf("keeping staging file %d, which the catalog does not know: %w", x.ID, err)
		}
		e.problem(where, fmt.Sprintf("a staging file of %d bytes that the catalog does not know was kept as %s", x.Size, where))
	}
	return nil
}

// recoverUploads queues what was staged or on its way.
func (e *Engine) recoverUploads() error {
	var unknown []catalog.Upload
	now := time.Now()
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for u, err := range tx.Uploads() {
			if err != nil {
				return err
			}
			e.up.byIno[u.Ino] = append(e.up.byIno[u.Ino], u.Intent)
			asked := u.State == catalog.Intended && u.UploadID == "" && u.Size <= e.opts.SingleBelow
			gone := false
			switch u.State {
			case catalog.Abandoned:
				if u.UploadID == "" && u.Uncertain {
					continue // waits for an inventory
				}
				e.up.abandoned[u.Intent] = abandoned{ino: u.Ino}
				asked = u.UploadID == ""
			default:
				v, err := tx.Version(u.Ino, u.V)
				gone = errors.Is(err, catalog.ErrNotExist)
				if err != nil && !gone {
					return err
				}
				if u.Permanent && !gone {
					e.failures[u.Ino] = &failure{v: v.V, err: u.Error}
				}
			}
			if gone || asked && !u.Uncertain {
				// The request may have been sent before the end: no telling.
				u.Uncertain = u.Uncertain || asked
				unknown = append(unknown, u)
			}
		}
		for v, err := range tx.StagedVersions() {
			if err != nil {
				return err
			}
			if v.State == catalog.Uploading {
				e.settle.retry(v.Ino, now)
			} else {
				// The clock may have been ahead when it was staged.
				e.settle.start(v.Ino, earlier(time.Unix(0, v.StagedAt), now).Add(e.opts.Settle))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for batch := range batches(unknown, recoverBatch) {
		_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
			for _, u := range batch {
				if _, err := tx.Version(u.Ino, u.V); errors.Is(err, catalog.ErrNotExist) && u.State != catalog.Abandoned {
					if err := e.abandonTx(tx, u); err != nil {
						return err
					}
					continue
				}
				if err := tx.PutUpload(u); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recoverOrphans reclaims inodes that lost their last name while open.
func (e *Engine) recoverOrphans() error {
	var list []uint64
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		list, err = tx.Orphans()
		return err
	})
	for _, ino := range list {
		e.bin.add(ino)
	}
	return err
}
