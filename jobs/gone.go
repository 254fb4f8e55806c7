package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// errVaultGone is a permanent refusal: somebody has deleted the vault at the service.
var errVaultGone = errors.New("the service does not have the vault any more")

func goneProblem(vault string) string {
	return fmt.Sprintf("the service does not have the vault %s any more; what is known of it is kept, and all copies of its files on this machine (casfs check lists them)", vault)
}

// CreateVault is the command, for a shell, that makes a vault at the service which these flags mean (Options.ServiceFlags).
func CreateVault(flags, name string) string {
	words := []string{"casfs vault create"}
	if flags != "" {
		words = append(words, flags)
	}
	if strings.HasPrefix(name, "-") {
		words = append(words, "--")
	}
	return strings.Join(append(words, name), " ")
}

// createVault is the one for the service of this mount.
func (e *Engine) createVault(name string) string { return CreateVault(e.opts.ServiceFlags, name) }

// vaultThere fails with errVaultGone when an upload's vault was found gone and still is.
func (e *Engine) vaultThere(ctx context.Context, vault uint64) error {
	gone, name, err := e.vaultGone(vault)
	if err != nil || !gone {
		return err
	}
	return onlyGone(e.askVault(ctx, name))
}

// onlyGone passes errVaultGone on. That the vault could not be asked about is in nobody's way.
func onlyGone(err error) error {
	if errors.Is(err, errVaultGone) {
		return err
	}
	return nil
}

// vaultGone reports what is on record.
func (e *Engine) vaultGone(vault uint64) (gone bool, name string, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		v, err := tx.Vault(vault)
		gone, name = v.Gone, v.Name
		return err
	})
	return gone, name, err
}

// anewTx returns when a vault was last seen to be another one under the same name, in ns; 0: never.
func anewTx(tx *catalog.Tx, vault uint64) (int64, error) {
	b, err := tx.Meta(metaAnew(vault))
	if errors.Is(err, catalog.ErrNotExist) || err == nil && len(b) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	at, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", metaAnew(vault), err)
	}
	return at, nil
}

// lastCopy reports whether the vault has not all of an archived version any more, as far as is known: it is gone, or was made
// anew since, and no inventory has listed an archive of the version after that; or the inventories do not list one that they should.
func (e *Engine) lastCopy(vault uint64, v catalog.Version) (last bool, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		rec, err := tx.Vault(vault)
		if err != nil || rec.Gone {
			last = rec.Gone
			return err
		}
		anew, err := anewTx(tx, vault)
		if err != nil {
			return err
		}
		for _, x := range v.Extents {
			a, err := tx.Archive(x.Archive)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			last = last || err != nil || before(a, anew) || a.State == catalog.Missing || a.State == catalog.Deleted
		}
		return nil
	})
	return last, err
}

// before reports whether an archive was in the vault that was there before anew.
func before(a catalog.Archive, anew int64) bool { return max(a.Created, a.Confirmed) < anew }

// lastCopyLocked reports whether what is local of an archived version is all that is left of it, as far as is known.
func (f *file) lastCopyLocked() (bool, error) {
	if f.ver.Damaged {
		return true, nil
	}
	return f.e.lastCopy(f.inode.Vault, f.ver)
}

// explainMissing asks about the vault when the service did not find what an upload needs.
func (e *Engine) explainMissing(ctx context.Context, vault string, err error) error {
	if !errors.Is(err, cas.ErrNotFound) || errors.Is(err, errVaultGone) {
		return err
	}
	switch verr := e.askVault(ctx, vault); {
	case verr == nil:
		return fmt.Errorf("%v, but the vault is there: %w", err, errRestart)
	case errors.Is(verr, errVaultGone):
		return verr
	}
	return err
}

// askVault asks the service whether there is a vault, and notes the answer. Errors: errVaultGone, cas's.
func (e *Engine) askVault(ctx context.Context, name string) error {
	err := e.lookAtVault(ctx, name)
	if !errors.Is(err, cas.ErrNotFound) {
		return err
	}
	var vault uint64
	_, cerr := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		v, err := tx.VaultByName(name)
		if err != nil {
			return err
		}
		vault = v.Ino
		e.vaultNews.note(name) // gone is recorded in any case: it keeps what is here, and the next answer may tell otherwise
		if v.Gone {
			return nil
		}
		v.Gone = true
		return tx.PutVault(v)
	})
	if cerr != nil {
		return errors.Join(err, cerr)
	}
	e.problem("vault/"+name, goneProblem(name))
	// Its archives went with it: what of them is still here must not leave the disk.
	e.sendAgain(vault, name, true)
	return fmt.Errorf("%w; make it again (%s), or move the files to another: %w", errVaultGone, e.createVault(name), err)
}

// vaultReturned is told that the service has a vault again. anew: it is another one under the same name, and empty.
func (e *Engine) vaultReturned(vault uint64, name string, anew bool) {
	if anew {
		e.log.Warn("a vault was deleted at the service and made again; the archives it had are gone", "vault", name)
		e.sendAgain(vault, name, true)
	}
	e.up.hurry(vault)
	for _, f := range e.liveFiles() {
		f.mu.Lock()
		if f.stream != nil && f.inode.Vault == vault {
			f.stream.tryNow()
		}
		f.mu.Unlock()
		f.put()
	}
}

// hurry tries the failed uploads to a vault at once.
func (u *uploader) hurry(vault uint64) {
	u.mu.Lock()
	var waiting []uint64
	for ino, t := range u.tasks {
		if t.state == taskWaiting {
			waiting = append(waiting, ino)
		}
	}
	u.mu.Unlock()
	now := time.Now()
	err := u.e.catalog.View(func(tx *catalog.Tx) error {
		for _, ino := range waiting {
			i, err := tx.Inode(ino)
			if err == nil && i.Vault == vault {
				u.e.settle.retry(ino, now)
			} else if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		u.e.log.Error("looking for uploads to a vault that is back", "err", err)
	}
}

// sendAgain gives up the archives of segments whose files are not archived yet, for their vault is
// gone, or they went with the one that had its name before: what is still in staging is uploaded anew, and what is not
// is reported. Of them all, or of those that wentBefore tells: it has to be done again when it was cut short.
func (e *Engine) sendAgain(vault uint64, name string, all bool) error {
	if e.opts.ReadOnly {
		return nil
	}
	lost := map[uint64]map[string]bool{} // intents by file
	err := e.catalog.View(func(tx *catalog.Tx) error {
		anew, err := anewTx(tx, vault)
		if err != nil {
			return err
		}
		for u, err := range tx.Uploads() {
			if err != nil {
				return err
			}
			if u.Vault != vault || u.State != catalog.Sent {
				continue
			}
			a, err := tx.Archive(u.Archive)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			if all || err != nil || a.Created < anew {
				if lost[u.Ino] == nil {
					lost[u.Ino] = map[string]bool{}
				}
				lost[u.Ino][u.Intent] = true
			}
		}
		return nil
	})
	for ino, intents := range lost {
		f, aerr := e.acquire(ino)
		if aerr != nil {
			if !errors.Is(aerr, catalog.ErrNotExist) {
				err = errors.Join(err, aerr)
			}
			continue
		}
		f.mu.Lock()
		n, serr := f.sendAgainLocked(intents)
		f.mu.Unlock()
		if n > 0 {
			e.problem(lostWithVault(ino), fmt.Sprintf("%s: %d bytes of it were in the vault %s only, which was deleted at the service; the rest of it is here", e.path(ino), n, name))
		}
		err = errors.Join(err, serr)
		f.put()
	}
	if err != nil {
		e.log.Error("taking back what was sent to a vault that is gone", "vault", name, "err", err)
	}
	return err
}

// wentBefore reports whether an archive went with a vault that had the name before. Who learns that a vault was made anew
// sends again what was sent; but he may have been killed on the way, or there was no room to record it.
func (e *Engine) wentBefore(vault uint64, archives ...uint64) (went bool, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		anew, err := anewTx(tx, vault)
		if err != nil || anew == 0 {
			return err
		}
		for _, num := range archives {
			a, err := tx.Archive(num)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			went = went || err != nil || a.Created < anew
		}
		return nil
	})
	return went, err
}

// lostWithVault is the subject of the problem that a vault took bytes along.
func lostWithVault(ino uint64) string { return fmt.Sprintf("vault.lost/%d", ino) }

// sendAgainLocked takes segments back that were in the vault and are in staging, and returns how many bytes were in the vault only.
func (f *file) sendAgainLocked(intents map[string]bool) (lost int64, err error) {
	for f.awaitConvLocked() {
	}
	if f.gone || !f.stagingLocked() || f.local == nil {
		return 0, nil
	}
	ups, err := f.uploadsLocked()
	if err != nil {
		return 0, err
	}
	for _, u := range ups {
		switch {
		case u.State != catalog.Sent || !intents[u.Intent]:
		case f.droppedLocked(u.Off, u.Size):
			lost += u.Size
		case f.ver.State == catalog.Uploading:
			// A new version: whoever sends the old one must not commit it.
			if err := f.supersedeLocked(u.Off, u.Size); err != nil {
				return lost, err
			}
			if !f.writingLocked() && !f.orphan {
				f.e.settle.start(f.ino, time.Now())
			}
		default:
			if err := f.loadStreamLocked(); err != nil {
				return lost, err
			}
			if _, err := f.spoilLocked(u.Off, u.Size); err != nil {
				return lost, err
			}
		}
	}
	return lost, nil
}

// droppedLocked reports whether bytes of a staged version were dropped from its staging file, or are about to be.
func (f *file) droppedLocked(off, n int64) bool {
	if f.stream != nil {
		for _, g := range f.stream.segs {
			if g.dropped && overlap(g.up.Off, g.up.Size, off, n) {
				return true
			}
		}
	}
	return !f.local.Verified(off, n)
}
