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
type VaultRoot struct {
	Mode, UID, GID uint32
	At             int64 // ns; when that was set: archives may be made long after, and by who has it from others
}

// formatRoot is the field of a description; "" for what is not told.
func formatRoot(r *VaultRoot) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf(" root=%o.%d.%d.%d", r.Mode, r.UID, r.GID, r.At)
}

func parseRoot(s string) (*VaultRoot, error) {
	f := strings.Split(s, ".")
	if len(f) != 4 {
		return nil, strconv.ErrSyntax
	}
	mode, err := strconv.ParseUint(f[0], 8, 12)
	uid, uerr := parseID(f[1])
	gid, gerr := parseID(f[2])
	at, aerr := strconv.ParseInt(f[3], 10, 64)
	return &VaultRoot{uint32(mode), uid, gid, at}, errors.Join(err, uerr, gerr, aerr)
}

// metaRootTold notes that archives tell of a vault's directory: from then on all do, since what is usual is not told otherwise.
func metaRootTold(vault uint64) string { return fmt.Sprintf("vault.root.told/%d", vault) }

// metaRootListed notes that a vault's directory was made from the service's list, and that nobody has set its mode or owner since.
func metaRootListed(vault uint64) string { return fmt.Sprintf("vault.root.listed/%d", vault) }

// metaRootAt holds when mode and owner of a vault's directory were set, here or as archives have told.
func metaRootAt(vault uint64) string { return fmt.Sprintf("vault.root.at/%d", vault) }

// rootAt returns what metaRootAt holds: when the directory was made where nobody has set them, and 0 where that was from the list.
func rootAt(tx *catalog.Tx, i catalog.Inode) (at int64, listed bool, err error) {
	_, listed, err = hasMeta(tx, metaRootListed(i.Ino))
	if err != nil {
		return 0, false, err
	}
	b, set, err := hasMeta(tx, metaRootAt(i.Ino))
	switch {
	case err != nil:
		return 0, false, err
	case set:
		at, err = strconv.ParseInt(string(b), 10, 64)
	case !listed:
		at = i.Btime
	}
	return at, listed, err
}

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
	at, _, err := rootAt(tx, i)
	if err != nil || at == 0 {
		return nil, err
	}
	r := &VaultRoot{i.Mode & 07777, i.UID, i.GID, at}
	_, told, err := hasMeta(tx, metaRootTold(vault))
	switch {
	case err != nil:
		return nil, err
	case told:
		return r, nil
	case *r == VaultRoot{usualDir, e.opts.UID, e.opts.GID, at}:
		return nil, nil
	}
	return r, tx.PutMeta(metaRootTold(vault), []byte("1"))
}

// rootSetTx hears that somebody sets mode or owner of a directory.
func rootSetTx(tx *catalog.Tx, i catalog.Inode, now time.Time) error {
	if i.Parent != catalog.RootIno {
		return nil
	}
	return errors.Join(tx.PutMeta(metaRootListed(i.Ino), nil),
		tx.PutMeta(metaRootAt(i.Ino), strconv.AppendInt(nil, now.UnixNano(), 10)))
}

// root gives the vault's directory the mode and owner that were set last, unless somebody has set them here. They were not set after
// the archive was made, whatever the clock said that tells it.
func (m *merger) root(tx *catalog.Tx, md Metadata, created int64, now time.Time) error {
	if md.Root == nil {
		return nil
	}
	i, err := tx.Inode(m.inv.ino)
	if err != nil {
		return err
	}
	at, listed, err := rootAt(tx, i)
	told := min(md.Root.At, created)
	if err != nil || !listed || told <= at {
		return err
	}
	i.Mode, i.UID, i.GID, i.Ctime = i.Mode&syscall.S_IFMT|md.Root.Mode, md.Root.UID, md.Root.GID, now.UnixNano()
	m.rooted = true
	return errors.Join(tx.PutInode(i),
		tx.PutMeta(metaRootAt(m.inv.ino), strconv.AppendInt(nil, told, 10)),
		tx.PutMeta(metaRootTold(m.inv.ino), []byte("1")))
}
