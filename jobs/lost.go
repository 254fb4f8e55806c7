package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// lostVault is a vault that has not got what the catalog says it has.
type lostVault struct {
	catalog.Vault
	anew int64 // when another one was found under its name; 0: it is gone
}

// lostVaults lists the vaults that are gone, or were made anew.
func lostVaults(tx *catalog.Tx) (map[uint64]lostVault, error) {
	vaults, err := tx.Vaults()
	if err != nil {
		return nil, err
	}
	lost := make(map[uint64]lostVault)
	for _, v := range vaults {
		anew, err := anewTx(tx, v.Ino)
		if err != nil {
			return nil, err
		}
		if v.Gone {
			lost[v.Ino] = lostVault{v, 0}
		} else if anew != 0 {
			lost[v.Ino] = lostVault{v, anew}
		}
	}
	return lost, nil
}

// lostIn calls each for the inodes and versions that consist of archives which v has not got.
func lostIn(tx *catalog.Tx, v lostVault, each func(ino catalog.Inode, ver catalog.Version)) error {
	seen := make(map[uint64]struct{})
	for a, err := range tx.Archives(v.Ino) {
		if err != nil {
			return err
		}
		if a.Ino == 0 || a.State != catalog.Live && a.State != catalog.Missing || v.anew != 0 && !before(a, v.anew) {
			continue
		}
		if _, ok := seen[a.Ino]; ok {
			continue
		}
		i, ver, err := inodeTx(tx, a.Ino)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if ver.V != a.V || ver.State != catalog.Archived {
			continue // a newer one is on its way
		}
		seen[a.Ino] = struct{}{}
		each(i, ver)
	}
	return nil
}

// lostProblems says for status which vaults were made anew and still have files of the old one.
func (e *Engine) lostProblems() (list []string, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		list = nil
		lost, err := lostVaults(tx)
		if err != nil {
			return err
		}
		for _, v := range lost {
			files, here := 0, 0
			if v.anew == 0 {
				continue // status says so anyway
			}
			if err := lostIn(tx, v, func(_ catalog.Inode, ver catalog.Version) {
				files++
				if ver.Complete {
					here++
				}
			}); err != nil {
				return err
			}
			if files > 0 {
				list = append(list, fmt.Sprintf("the vault %s was deleted at the service and made again; the archives of %d files went with it. "+
					"%d of them are complete on this machine, where they are kept: casfs check lists them, and casfs check --repair uploads them again", v.Name, files, here))
			}
		}
		return nil
	})
	return list, err
}

// checkLost reports archived files whose archives are gone. repair makes those that are complete on this machine
// versions to be uploaded; the others are left as they are.
func (e *Engine) checkLost(ctx context.Context, repair bool, report func(string)) error {
	var lost map[uint64]lostVault
	var look []uint64
	away := make(map[uint64][2]int64) // of each vault: files without a byte here, and their bytes
	err := e.catalog.View(func(tx *catalog.Tx) (err error) {
		look = nil
		if lost, err = lostVaults(tx); err != nil {
			return err
		}
		for ino, v := range lost {
			n := [2]int64{}
			if err := lostIn(tx, v, func(i catalog.Inode, ver catalog.Version) {
				if ver.Local != 0 {
					look = append(look, i.Ino)
				} else {
					n[0]++
					n[1] += i.Size
				}
			}); err != nil {
				return err
			}
			away[ino] = n
		}
		for v, err := range tx.LocalVersions() {
			if err != nil {
				return err
			}
			if !v.Damaged || v.State != catalog.Archived {
				continue
			}
			i, err := tx.Inode(v.Ino)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			if _, ok := lost[i.Vault]; err == nil && !ok {
				look = append(look, v.Ino)
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	for _, ino := range look {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := e.checkLostFile(ctx, ino, lost, repair, report); err != nil {
			return err
		}
	}
	for ino, n := range away {
		v := lost[ino]
		switch {
		case n[0] == 0:
		case v.anew == 0:
			report(fmt.Sprintf("%d files of %d bytes were only in the vault %s, which the service does not have any more", n[0], n[1], v.Name))
		default:
			report(fmt.Sprintf("%d files of %d bytes were only in the vault %s as it was before %s, when it was found deleted and made again",
				n[0], n[1], v.Name, time.Unix(0, v.anew).UTC().Format(time.RFC3339)))
		}
	}
	return nil
}

func (e *Engine) checkLostFile(ctx context.Context, ino uint64, lost map[uint64]lostVault, repair bool, report func(string)) error {
	f, err := e.acquire(ino)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.put()
	f.mu.Lock()
	last, err := f.lastLocked()
	if err != nil || !last {
		f.mu.Unlock()
		return err
	}
	v, isLost := lost[f.inode.Vault]
	whole, size, why := f.wholeLocked(), f.ver.Size, f.ver.Error
	here := bytesFrom(f.local.VerifiedRanges(), 0)
	gone := isLost && v.anew == 0
	var merr error
	if repair && whole && !gone {
		ver, local := f.ver, f.local
		f.mu.Unlock()
		merr = e.asArchived(ctx, ver, local)
		f.mu.Lock()
		switch {
		case merr != nil:
		case f.ver.V != ver.V || f.local != local:
			merr = errInUse
		default:
			merr = f.uploadAgainLocked()
		}
	}
	f.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}

	what := e.path(ino) + ": "
	switch {
	case gone:
		what += fmt.Sprintf("the service does not have the vault %s any more", v.Name)
	case isLost:
		what += fmt.Sprintf("its archive went with the vault %s, which was deleted at the service and made again", v.Name)
	default:
		what += "its archive is damaged or gone: " + why
	}
	switch {
	case !whole:
		what += fmt.Sprintf("; %d of its %d bytes are on this machine, and kept", here, size)
	case gone:
		what += fmt.Sprintf("; its copy on this machine is complete, and kept. When the vault is there again (%s), casfs check --repair uploads it", e.createVault(v.Name))
	case !repair:
		what += "; its copy on this machine is complete, and kept. casfs check --repair uploads it again"
	case errors.Is(merr, errOtherBytes):
		what += "; its copy on this machine is kept, but not uploaded again: " + merr.Error()
	case merr != nil:
		what += fmt.Sprintf("; its copy on this machine is complete, and kept (cannot be mended now: %v)", merr)
	default:
		what += "; its copy on this machine is complete (mended: it is uploaded again)"
	}
	report(what)
	return nil
}

var errOtherBytes = errors.New("it is not what was archived, its tree hash is another (this disk, or whoever wrote to it, changed it)")

// asArchived holds a complete local copy against the tree hashes of the archives it is a copy of, as far as they are known:
// nothing else would ever tell that it decayed once it is a version of its own. It reads all of it. Errors: errOtherBytes.
func (e *Engine) asArchived(ctx context.Context, v catalog.Version, l *content.File) error {
	var off int64
	for _, x := range v.Extents {
		a, err := e.archive(x.Archive)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		if err == nil && a.TreeHash != [32]byte{} && x.Off == 0 && x.Len == a.Size {
			h, err := cas.TreeHashReaderAt(ctx, io.NewSectionReader(l, off, x.Len), x.Len, 1)
			if err != nil {
				return err
			}
			if h != cas.Hash(a.TreeHash) {
				return errOtherBytes
			}
		}
		off += x.Len
	}
	return nil
}

// lastLocked reports whether the local file of an archived version holds bytes that are nowhere else.
func (f *file) lastLocked() (bool, error) {
	if f.gone || f.orphan || f.ver.V == 0 || f.ver.State != catalog.Archived || f.ver.Size == 0 || f.local == nil {
		return false, nil
	}
	return f.lastCopyLocked()
}

// uploadAgainLocked makes the complete local copy of an archived version a new version, which is uploaded as any other.
func (f *file) uploadAgainLocked() error {
	e := f.e
	for f.awaitConvLocked() {
	}
	switch last, err := f.lastLocked(); {
	case err != nil || !last:
		return err // not any more
	case e.opts.ReadOnly:
		return ErrReadOnly
	case f.local.Kind() != content.Content || !f.wholeLocked():
		return errRecalling
	}
	// A local file that was recalled has another mtime than the file.
	if err := f.local.SetMtime(time.Unix(0, f.inode.Mtime)); err != nil {
		return err
	}
	if err := f.supersedeLocked(0, 0); err != nil {
		return err
	}
	if err := f.convertLocked(); err != nil {
		return err // it is repeated when the file is used or uploaded
	}
	if !f.writingLocked() {
		e.settle.start(f.ino, time.Now().Add(e.opts.Settle))
	}
	return nil
}
