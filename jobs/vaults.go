package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// Probe asks the service for the vault list and merges it; it is the mount's
// check that endpoint, credentials and clock are right. Errors are cas's. With
// Options.Vault, a vault that does not exist is cas.ErrNotFound.
func (e *Engine) Probe(ctx context.Context) error {
	if e.opts.Vault != "" {
		if err := e.lookAtVault(ctx, e.opts.Vault); err != nil {
			return fmt.Errorf("vault %s: %w", e.opts.Vault, err)
		}
		return nil
	}
	asked := e.vaultNews.now()
	var list []cas.VaultInfo
	for v, err := range e.client.Vaults(ctx) {
		if err != nil {
			return fmt.Errorf("listing vaults: %w", err)
		}
		list = append(list, v)
	}
	return e.mergeVaults(list, true, asked)
}

// mergeVaults makes a directory of each vault not known yet and notes what the
// service says of the others. With all, a vault missing from the list is
// marked; its records stay. asked is vaultNews.now from before the service was asked: what was recorded since then holds.
func (e *Engine) mergeVaults(list []cas.VaultInfo, all bool, asked uint64) error {
	var added, gone, dropped []string
	var back, anew []catalog.Vault
	now := time.Now()
	// Reclaim, for a mount on a full disk needs it, to read and to delete.
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		added, gone, dropped, back, anew = nil, nil, nil, nil, nil
		seen := map[string]bool{}
		for _, info := range list {
			seen[info.Name] = true
			if e.vaultNews.since(info.Name, asked) {
				if !all {
					return errOvertaken
				}
				continue
			}
			v, err := tx.VaultByName(info.Name)
			if errors.Is(err, catalog.ErrNotExist) {
				if info.Name == "." || info.Name == ".." {
					continue // no directory can have it
				}
				i, err := tx.Create(catalog.RootIno, info.Name, catalog.Inode{Mode: syscall.S_IFDIR | usualDir, UID: e.opts.UID, GID: e.opts.GID}, now.UnixNano())
				if err != nil {
					return fmt.Errorf("vault %q: %w", info.Name, err)
				}
				if err := tx.PutMeta(metaRootListed(i.Ino), []byte("1")); err != nil {
					return err
				}
				v = catalog.Vault{Ino: i.Ino, Name: info.Name, Archives: -1, Bytes: -1}
				added = append(added, info.Name)
			} else if err != nil {
				return err
			}
			was := v
			v.Gone = false
			v.QCS = info.QCS
			if at := unixNano(info.CreationDate); at != 0 { // 0: the service does not know any more
				v.Created = at
			}
			v.LastInventory = unixNano(info.LastInventoryDate)
			v.Archives, v.Bytes = info.NumberOfArchives, info.Size
			switch {
			case was.QCS != "" && was.Created != 0 && v.Created-was.Created >= int64(time.Second):
				anew = append(anew, v)
				if err := tx.PutMeta(metaAnew(v.Ino), strconv.AppendInt(nil, now.UnixNano(), 10)); err != nil {
					return err
				}
			case was.Gone:
				back = append(back, v)
			}
			if v.Gone != was.Gone || v.Created != was.Created || v.QCS != was.QCS {
				e.vaultNews.note(v.Name)
			}
			if v != was {
				if err := tx.PutVault(v); err != nil {
					return err
				}
			}
		}
		if !all {
			return nil
		}
		known, err := tx.Vaults()
		if err != nil {
			return err
		}
		for _, v := range known {
			if seen[v.Name] || e.vaultNews.since(v.Name, asked) {
				continue
			}
			e.vaultNews.note(v.Name)
			if _, err := tx.Meta(metaDeleting + v.Name); err == nil {
				// Its deletion was cut short after the service had done its part.
				if err := dropVaultTx(tx, v); err == nil {
					dropped = append(dropped, v.Name)
					continue
				} else if !errors.Is(err, catalog.ErrNotEmpty) {
					return err
				}
			}
			gone = append(gone, v.Name)
			if !v.Gone {
				v.Gone = true
				if err := tx.PutVault(v); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range gone {
		e.problem("vault/"+name, goneProblem(name))
	}
	for _, v := range slices.Concat(back, anew) {
		e.solved("vault/" + v.Name)
	}
	for _, name := range dropped {
		e.vaultEnded(name)
		e.log.Info("deleted a vault", "vault", name)
		e.opts.Observer.EntryChanged(catalog.RootIno, name)
	}
	for _, name := range added {
		e.log.Info("found a vault", "vault", name)
		e.opts.Observer.EntryChanged(catalog.RootIno, name)
	}
	for _, v := range back {
		e.vaultReturned(v.Ino, v.Name, false)
	}
	for _, v := range anew {
		e.vaultReturned(v.Ino, v.Name, true)
	}
	return nil
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// runVaults repeats the list now and then.
func (e *Engine) runVaults(ctx context.Context) error {
	for sleep(ctx, e.opts.VaultRefresh) == nil {
		if err := e.Probe(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("refreshing the list of vaults", "err", err)
		}
	}
	return nil
}

// mkVault creates a vault at the service, then its directory. After a crash in
// between, the next list of vaults brings the directory.
func (e *Engine) mkVault(ctx context.Context, c Caller, name string, mode uint32) (Attr, error) {
	if err := cas.ValidVaultName(name); err != nil || name == "." || name == ".." {
		return Attr{}, fmt.Errorf("%w: %q cannot be a vault's name: letters, digits, '_', '-' and '.' only", catalog.ErrInvalid, name)
	}
	err := e.catalog.View(func(tx *catalog.Tx) error {
		_, err := tx.Lookup(catalog.RootIno, name)
		return err
	})
	if err == nil {
		return Attr{}, catalog.ErrExist
	}
	if !errors.Is(err, catalog.ErrNotExist) {
		return Attr{}, err
	}
	if _, err := e.client.CreateVault(ctx, name); err != nil {
		return Attr{}, fmt.Errorf("creating vault %s: %w", name, err)
	}
	e.hit("vault.created")
	var i catalog.Inode
	now := time.Now().UnixNano()
	_, err = e.catalog.Update(func(tx *catalog.Tx) error {
		var err error
		e.vaultNews.note(name)
		i, err = tx.Create(catalog.RootIno, name, catalog.Inode{Mode: syscall.S_IFDIR | mode&07777, UID: c.UID, GID: c.GID}, now)
		if err != nil {
			return err
		}
		// What is new is empty: no inventory has to tell.
		return tx.PutVault(catalog.Vault{Ino: i.Ino, Name: name, Created: now, Archives: -1, Bytes: -1, Merged: now})
	})
	if err != nil {
		return Attr{}, err
	}
	if err := e.lookAtVault(ctx, name); err != nil {
		e.log.Warn("describing a new vault", "vault", name, "err", err) // the list of vaults will tell
	}
	e.log.Info("created a vault", "vault", name)
	a := attrOf(i)
	a.Parent = catalog.RootIno
	return a, nil
}

// metaDeleting and a name: the vault is being deleted at the service.
const metaDeleting = "vault.deleting/"

// metaAnew names when a vault was last seen to be another one under the same name, in ns.
func metaAnew(vault uint64) string { return fmt.Sprintf("vault.anew/%d", vault) }

// dropVaultTx removes the directory and the records of a vault that is gone at the service.
func dropVaultTx(tx *catalog.Tx, v catalog.Vault) error {
	if _, err := tx.Rmdir(catalog.RootIno, v.Name, time.Now().UnixNano()); err != nil {
		return err
	}
	var nums []uint64
	for a, err := range tx.Archives(v.Ino) {
		if err != nil {
			return err
		}
		nums = append(nums, a.Num)
	}
	for _, n := range nums {
		if err := tx.DeleteArchive(n); err != nil {
			return err
		}
	}
	for _, name := range []string{metaDeleting + v.Name, metaAnew(v.Ino), metaRootTold(v.Ino), metaRootListed(v.Ino), metaRootAt(v.Ino)} {
		if err := tx.PutMeta(name, nil); err != nil {
			return err
		}
	}
	return tx.DeleteVault(v.Ino)
}

// rmVault deletes an empty vault at the service, then its directory.
func (e *Engine) rmVault(ctx context.Context, name string) error {
	// What was deleted a moment ago must count as trash already.
	if err := e.reclaimNow(ctx); err != nil {
		return err
	}
	var v catalog.Vault
	var live, trash int
	var until time.Time
	now := time.Now()
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		v, err = tx.VaultByName(name)
		if err != nil {
			return err
		}
		i, err := tx.Inode(v.Ino)
		if err != nil {
			return err
		}
		if i.Entries > 0 {
			return catalog.ErrNotEmpty
		}
		for a, err := range tx.Archives(v.Ino) {
			if err != nil {
				return err
			}
			switch a.State {
			case catalog.Deleted:
			case catalog.Trash:
				trash++
				if at := deletion(a, now); at.After(until) {
					until = at
				}
			default:
				live++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch {
	case live > 0:
		return fmt.Errorf("%w: vault %s holds %d archives", ErrBusy, name, live)
	case trash > 0:
		return fmt.Errorf("%w: vault %s holds %d archives in the trash until %s (casfs trash purge deletes them now, for a fee)",
			ErrBusy, name, trash, until.UTC().Format(time.RFC3339))
	}
	seq, err := e.catalog.Update(func(tx *catalog.Tx) error { return tx.PutMeta(metaDeleting+name, []byte{1}) })
	if err != nil {
		return err
	}
	if err := e.catalog.Barrier(ctx, seq); err != nil {
		return err
	}
	if err := e.client.DeleteVault(ctx, name); err != nil && !errors.Is(err, cas.ErrNotFound) {
		if _, merr := e.catalog.Update(func(tx *catalog.Tx) error { return tx.PutMeta(metaDeleting+name, nil) }); merr != nil {
			return errors.Join(err, merr)
		}
		if errors.Is(err, cas.ErrNotEmpty) {
			return fmt.Errorf("%w: the service says vault %s is not empty: %w", ErrBusy, name, err)
		}
		return fmt.Errorf("deleting vault %s: %w", name, err)
	}
	e.hit("vault.deleted")
	_, err = e.catalog.Update(func(tx *catalog.Tx) error {
		e.vaultNews.note(name)
		return dropVaultTx(tx, v)
	})
	if err != nil {
		return err
	}
	e.vaultEnded(name)
	e.log.Info("deleted a vault", "vault", name)
	return nil
}

// vaultEnded takes back what was wrong with a vault that is no more.
func (e *Engine) vaultEnded(name string) {
	e.solved("vault/" + name)
	e.solved("inventory/" + name)
}
