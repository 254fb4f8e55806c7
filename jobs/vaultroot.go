package jobs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// VaultRoot is what an archive's description tells of its vault's own directory.
type VaultRoot struct{ Mode, UID, GID uint32 }

// formatRoot is the field of a description; "" for what is not told.
func formatRoot(r *VaultRoot) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf(" root=%o.%d.%d", r.Mode, r.UID, r.GID)
}

func parseRoot(s string) (*VaultRoot, error) {
	f := strings.Split(s, ".")
	if len(f) != 3 {
		return nil, strconv.ErrSyntax
	}
	mode, err := strconv.ParseUint(f[0], 8, 12)
	uid, uerr := parse32(f[1], 10)
	gid, gerr := parse32(f[2], 10)
	return &VaultRoot{uint32(mode), uid, gid}, errors.Join(err, uerr, gerr)
}

// metaRootTold notes that archives tell of a vault's directory: from then on all do, since what is usual is not told otherwise.
func metaRootTold(vault uint64) string { return fmt.Sprintf("vault.root.told/%d", vault) }

// metaRootListed notes that a vault's directory was made from the service's list, and that nobody has set its mode or owner since.
// It holds when the archive was made that has told them, 0 if none has.
func metaRootListed(vault uint64) string { return fmt.Sprintf("vault.root.listed/%d", vault) }

// hasMeta reports whether a named value is there, and returns it.
func hasMeta(tx *catalog.Tx, name string) ([]byte, bool, error) {
	b, err := tx.Meta(name)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil, false, nil
	}
	return b, err == nil && len(b) > 0, err
}

// rootTx returns what an archive is to tell of its vault's directory, nil while that is as another machine would make it.
func (e *Engine) rootTx(tx *catalog.Tx, vault uint64) (*VaultRoot, error) {
	i, err := tx.Inode(vault)
	if err != nil {
		return nil, err
	}
	r := &VaultRoot{i.Mode & 07777, i.UID, i.GID}
	_, told, err := hasMeta(tx, metaRootTold(vault))
	switch {
	case err != nil:
		return nil, err
	case told:
		return r, nil
	case *r == VaultRoot{usualDir, e.opts.UID, e.opts.GID}:
		return nil, nil
	}
	return r, tx.PutMeta(metaRootTold(vault), []byte("1"))
}

// rootSetTx hears that somebody sets mode or owner of a directory.
func rootSetTx(tx *catalog.Tx, i catalog.Inode) error {
	if i.Parent != catalog.RootIno {
		return nil
	}
	if _, listed, err := hasMeta(tx, metaRootListed(i.Ino)); err != nil || !listed {
		return err
	}
	return tx.PutMeta(metaRootListed(i.Ino), nil)
}

// root gives the vault's directory the mode and owner that its newest archive tells, unless somebody has set them here.
func (m *merger) root(tx *catalog.Tx, md Metadata, created int64, now time.Time) error {
	if md.Root == nil {
		return nil
	}
	b, listed, err := hasMeta(tx, metaRootListed(m.inv.ino))
	if err != nil || !listed {
		return err
	}
	if at, err := strconv.ParseInt(string(b), 10, 64); err != nil || created <= at {
		return err
	}
	i, err := tx.Inode(m.inv.ino)
	if err != nil {
		return err
	}
	i.Mode, i.UID, i.GID, i.Ctime = i.Mode&syscall.S_IFMT|md.Root.Mode, md.Root.UID, md.Root.GID, now.UnixNano()
	m.rooted = true
	return errors.Join(tx.PutInode(i),
		tx.PutMeta(metaRootListed(m.inv.ino), strconv.AppendInt(nil, created, 10)),
		tx.PutMeta(metaRootTold(m.inv.ino), []byte("1")))
}
