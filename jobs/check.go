package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// Check compares catalog, staging and content (and the vaults, with inventory); problems go to report. repair mends what loses nothing.
func (e *Engine) Check(ctx context.Context, inventory, repair bool, report func(problem string)) error {
	if err := e.catalog.Check(ctx, repair, report); err != nil {
		return err
	}
	if err := e.checkLocal(ctx, repair, report); err != nil {
		return err
	}
	if err := e.checkLost(ctx, repair, report); err != nil {
		return err
	}
	if !inventory {
		return nil
	}
	var vaults []catalog.Vault
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		vaults, err = tx.Vaults()
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range vaults {
		if v.Gone {
			report(fmt.Sprintf("the service no longer lists the vault %s", v.Name))
			continue
		}
		if err := e.checkVault(ctx, v, report); err != nil {
			return err
		}
	}
	return nil
}

// checkLocal looks for versions whose local file is missing or of the wrong
// size, and for local files of no version. repair forgets copies that are gone or cannot be right.
func (e *Engine) checkLocal(ctx context.Context, repair bool, report func(string)) error {
	entries := map[uint64]content.Entry{}
	for _, x := range e.store.List() {
		entries[x.ID] = x
	}
	type bad struct {
		ino, local uint64
		copy       bool // of what is in the vault
		what       string
	}
	var bads []bad
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for v, err := range tx.LocalVersions() {
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			x, there := entries[v.Local]
			delete(entries, v.Local)
			staged := v.State != catalog.Archived
			switch {
			case !there && staged:
				bads = append(bads, bad{v.Ino, v.Local, false, fmt.Sprintf("staging file %d is missing: %d bytes that were not in the vault", v.Local, v.Size)})
			case !there:
				bads = append(bads, bad{v.Ino, v.Local, true, fmt.Sprintf("its local copy %d is missing; the vault has its bytes", v.Local)})
			case !staged && x.Size != v.Size:
				bads = append(bads, bad{v.Ino, v.Local, true, fmt.Sprintf("its local copy has %d bytes instead of %d; the vault has the right ones", x.Size, v.Size)})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range bads {
		what := e.path(b.ino) + ": " + b.what
		if repair && b.copy {
			if err := e.forgetCopy(b.ino, b.local); err != nil {
				what += fmt.Sprintf(" (cannot be mended now: %v)", err)
			} else {
				what += " (mended: the file is cold)"
			}
		}
		report(what)
	}
	for _, x := range entries {
		// Files made or removed since the list was taken are not damage. What is there, has no record and was not new before that was
		// looked up is removed, or belongs to no file.
		gone := func() bool {
			_, err := e.store.Stat(x.ID)
			return errors.Is(err, content.ErrNotExist)
		}
		if !gone() && !e.isNew(x.ID) && !e.knows(x.ID) && !gone() {
			report(fmt.Sprintf("local file %d (%d bytes) belongs to no file; the next start keeps it in lost+found, or removes it when it is only a copy", x.ID, x.Size))
		}
	}
	return nil
}

// forgetCopy makes an archived file cold whose local copy is missing or wrong.
func (e *Engine) forgetCopy(ino, local uint64) error {
	f, err := e.acquire(ino)
	if err != nil {
		return err
	}
	defer f.put()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.ver.V == 0 || f.ver.State != catalog.Archived || f.ver.Local != local:
		return nil // not any more
	case f.pinned > 0 || f.writers > 0:
		return errInUseNow
	}
	if last, err := f.lastLocked(); err != nil {
		return err
	} else if last {
		return errLastCopy // whatever is wrong with it
	}
	v := f.ver
	v.Local, v.Complete = 0, false
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error { return tx.PutVersion(v) })
	if err != nil {
		return err
	}
	f.ver, f.seq = v, seq
	f.replaceLocalLocked(nil)
	if err := e.store.Remove(local); err != nil && !errors.Is(err, content.ErrNotExist) {
		return err
	}
	return nil
}

func (e *Engine) knows(id uint64) bool {
	found := false
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for v, err := range tx.LocalVersions() {
			if err != nil {
				return err
			}
			if v.Local == id {
				found = true
				return nil
			}
		}
		return nil
	})
	return found || err != nil
}
