package jobs

import (
	"errors"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// claim is for which archive a name is wanted.
type claim struct {
	id string
	// made is when the newest archive of a file of casfs was made: of several files with one path, which programs made by
	// replacing it, the newest has the name. 0: the name is not taken from another.
	made int64
	but  uint64 // an inode it is not taken from, either

	dirs []uint32 // modes of the directories of its path, as far as told
}

// name returns the name, if it is free or becomes free, or one with as much of the archive's ID as makes it new.
func (m *merger) name(tx *catalog.Tx, dir uint64, name string, c claim, now time.Time) (string, error) {
	if err := m.displace(tx, dir, name, c, now); err != nil {
		return "", err
	}
	return m.freeName(tx, dir, name, c.id)
}

// displace gives the file that has a name another name, if it is older than the claim. That is only done to what an inventory has
// made, and nobody has changed or moved since.
func (m *merger) displace(tx *catalog.Tx, dir uint64, name string, c claim, now time.Time) error {
	if c.made == 0 {
		return nil
	}
	d, err := tx.Lookup(dir, name)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && (d.Type == modeDir || d.Ino == c.but) {
		return nil
	}
	if err != nil {
		return err
	}
	i, err := tx.Inode(d.Ino)
	if err != nil || i.Version == 0 {
		return err
	}
	ver, err := tx.Version(i.Ino, i.Version)
	if err != nil {
		return err
	}
	if ver.State != catalog.Archived || ver.ArchivedAt >= c.made || len(ver.Extents) == 0 {
		return nil
	}
	a, err := tx.Archive(ver.Extents[0].Archive)
	if err != nil {
		return err
	}
	md, ok := parseDescription(a.Description)
	if !ok {
		return nil
	}
	key := gatherMeta(m.inv.ino, md)
	put := m.open == nil
	var g *gathering
	if put {
		var loaded gathering
		loaded, err = loadGathering(tx, key)
		g = &loaded
	} else {
		g, err = m.gathering(tx, key)
	}
	if err != nil {
		return err
	}
	if g.Ino != d.Ino || g.OurV != i.Version || g.Parent != dir || g.Name != name {
		return nil
	}
	to, err := m.freeName(tx, dir, name, a.ID)
	if err != nil {
		return err
	}
	if _, _, err := tx.Rename(dir, name, dir, to, catalog.RenameNoReplace, now.UnixNano()); err != nil {
		return err
	}
	g.Name = to
	m.names = append(m.names, catalog.Dirent{Parent: dir, Name: to, Ino: d.Ino}, d)
	if put {
		return putGathering(tx, key, *g)
	}
	return nil
}
