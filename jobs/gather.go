package jobs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// gathering collects the archives of one file of a lost catalog, or another
// machine's, until a version is complete. It is kept as a Meta value.
type gathering struct {
	Parts []gathered

	// What is shown of it: our inode, its version, and where it was put.
	V      uint64 `json:",omitempty"`
	Ino    uint64 `json:",omitempty"`
	OurV   uint64 `json:",omitempty"`
	Parent uint64 `json:",omitempty"`
	Name   string `json:",omitempty"`
}

// gathered is one archive of it.
type gathered struct {
	V    uint64
	Seg  int
	Segs int
	Num  uint64
	Len  int64
	Size int64 // of the whole version

	Created int64 `json:",omitempty"` // the archive

	Beside bool `json:",omitempty"` // a file of its own: it only tells that there are two histories
}

// gatherMeta names the gathering of an inode of some catalog. The number alone is not enough: one that a restored
// backup had forgotten may have become another file's.
func gatherMeta(vault uint64, m Metadata) string {
	key := fmt.Sprintf("rebuild.%d.%.*s.%d", vault, sourceLen, m.Intent, m.Ino)
	if m.Born != 0 {
		key += fmt.Sprintf(".%d", m.Born)
	}
	return key
}

// forked reports whether two archives of an inode cannot be versions of one history: the one with the
// smaller number was made later. Between them an older state directory was restored, and neither replaces the other. (Segments
// of two versions may be under way at the same time.)
func forked(a, b gathered) bool {
	if a.V > b.V {
		a, b = b, a
	}
	return a.V < b.V && a.Created > b.Created && b.Created != 0 && a.Segs <= 1 && b.Segs <= 1
}

// fork is where a history of a file parts: a version number that had been given out, or passed, was given out again then.
type fork struct {
	v  uint64
	at int64
}

// forks returns where the histories of the archives known so far part.
func (g *gathering) forks() (list []fork) {
	parts := slices.Clone(g.Parts)
	slices.SortStableFunc(parts, func(a, b gathered) int { return cmp.Compare(a.Created, b.Created) })
	var most uint64
	for _, p := range parts {
		if p.Segs > 1 || p.Created == 0 {
			continue
		}
		if p.V <= most {
			list = append(list, fork{p.V, p.Created})
		}
		most = max(most, p.V)
	}
	return list
}

// parts reports whether two archives are on different sides of f: then neither replaces the other.
func (f fork) parts(a, b gathered) bool {
	return a.Segs <= 1 && b.Segs <= 1 && a.V >= f.v && b.V >= f.v && (a.Created < f.at) != (b.Created < f.at)
}

func loadGathering(tx *catalog.Tx, key string) (g gathering, err error) {
	b, err := tx.Meta(key)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && len(b) == 0 {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	if err != nil {
		return g, fmt.Errorf("%s: %w", key, err)
	}
	return g, nil
}

func putGathering(tx *catalog.Tx, key string, g gathering) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return tx.PutMeta(key, b)
}

// complete returns the newest version of which every byte is there, as its
// archives in order. A segment that did not change between two versions was uploaded only once,
// with the older.
func (g *gathering) complete() (v uint64, size int64, parts []gathered) {
	versions := make(map[uint64]gathered)
	for _, p := range g.Parts {
		if !p.Beside {
			versions[p.V] = p
		}
	}
	for _, v := range slices.Backward(slices.Sorted(maps.Keys(versions))) {
		want := versions[v]
		var parts []gathered
		var sum int64
		for seg := range max(want.Segs, 1) {
			var best *gathered
			for i := range g.Parts {
				if p := &g.Parts[i]; !p.Beside && p.Seg == seg && p.V <= v && (best == nil || p.V > best.V) {
					best = p
				}
			}
			if best == nil {
				break
			}
			sum += best.Len
			parts = append(parts, *best)
		}
		if len(parts) == max(want.Segs, 1) && sum == want.Size {
			return v, want.Size, parts
		}
	}
	return 0, 0, nil
}

// gather takes an archive whose description is casfs's own and whose upload this catalog does not know.
func (m *merger) gather(tx *catalog.Tx, a catalog.Archive, md Metadata, now time.Time) error {
	key := gatherMeta(m.inv.ino, md)
	if err := tx.PutArchive(a); err != nil {
		return err
	}
	g, err := loadGathering(tx, key)
	if err != nil {
		return err
	}
	part := gathered{V: md.V, Seg: md.Seg, Segs: md.Segs, Num: a.Num, Len: a.Size, Size: md.Size, Created: a.Created}
	forks := g.forks()
	var other *gathered // that part cannot be a version of one file with
	for i, p := range g.Parts {
		same := p.V == md.V && p.Seg == md.Seg
		if same {
			old, err := tx.Archive(p.Num)
			if err == nil && sameBytes(old, a) {
				m.toTrash(&a, now)
				return tx.PutArchive(a)
			}
		}
		if !p.Beside && other == nil && (same || forked(p, part) || slices.ContainsFunc(forks, func(f fork) bool { return f.parts(p, part) })) {
			other = &g.Parts[i]
		}
	}
	if other != nil {
		old, err := tx.Archive(other.Num)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		part.Beside = true
		g.Parts = append(g.Parts, part)
		if err := m.beside(tx, a, md, old, now); err != nil {
			return err
		}
		if g.Ino != 0 {
			m.newer[key] = true // what was taken for an older version of it may be one of this history
		}
		return putGathering(tx, key, g)
	}
	g.Parts = append(g.Parts, part)
	v, size, parts := g.complete()
	switch {
	case parts == nil: // more segments have to come
	case g.Ino != 0: // a version of it is shown already, perhaps to programs
		m.newer[key] = true
	default:
		if err := m.place(tx, &g, v, size, parts, now); err != nil {
			return err
		}
	}
	return putGathering(tx, key, g)
}

// pathOf returns where a file of casfs goes, from its description. What lost the
// left of its path is collected below one directory.
func (m *merger) pathOf(md Metadata, id string) []string {
	path := md.components()
	if len(path) == 0 {
		path = []string{fallbackName(id)}
	}
	if md.Cut {
		path = append([]string{"lost+found"}, path...)
	}
	return path
}

func inodeOf(md Metadata, size int64) catalog.Inode {
	return catalog.Inode{Mode: modeRegular | md.Mode&0o7777, UID: md.UID, GID: md.GID, Size: size, Mtime: md.Mtime}
}

// archivesOf loads the archives of parts and the description of the newest.
func archivesOf(tx *catalog.Tx, parts []gathered) (list []catalog.Archive, md Metadata, err error) {
	var newest uint64
	for _, p := range parts {
		a, err := tx.Archive(p.Num)
		if err != nil {
			return nil, md, err
		}
		list = append(list, a)
		if d, ok := parseDescription(a.Description); ok && d.V >= newest {
			newest, md = d.V, d
		}
	}
	return list, md, nil
}

// place shows a complete version as a new file, and lets go of older ones.
func (m *merger) place(tx *catalog.Tx, g *gathering, v uint64, size int64, parts []gathered, now time.Time) error {
	archives, md, err := archivesOf(tx, parts)
	if err != nil {
		return err
	}
	ino, d, err := m.create(tx, m.pathOf(md, archives[0].ID), archives[0].ID, inodeOf(md, size), now)
	if err != nil {
		return err
	}
	if err := m.show(tx, ino, v, archives, now); err != nil {
		return err
	}
	g.V, g.Ino, g.OurV, g.Parent, g.Name = v, ino.Ino, v, d.Parent, d.Name
	return m.supersede(tx, g, parts, now)
}

// supersede puts what is older than the version shown into the trash, unless a newer
// one that is not complete may still need it.
func (m *merger) supersede(tx *catalog.Tx, g *gathering, parts []gathered, now time.Time) error {
	for _, p := range g.Parts {
		if p.V > g.V && !p.Beside {
			return nil
		}
	}
	forks := g.forks()
	var keep []gathered
	for _, p := range g.Parts {
		if p.Beside || slices.Contains(parts, p) {
			keep = append(keep, p)
			continue
		}
		a, err := tx.Archive(p.Num)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		md, described := parseDescription(a.Description)
		put := a.State == catalog.Trash && a.Ino == 0 // by an earlier inventory, or an earlier part of this one
		if (a.State == catalog.Live || put) && described && slices.ContainsFunc(forks, func(f fork) bool { return f.parts(p, parts[0]) }) {
			// It was found before what tells that it is none.
			p.Beside = true
			other, err := tx.Archive(parts[0].Num)
			if err != nil {
				return err
			}
			if err := m.beside(tx, a, md, other, now); err != nil {
				return err
			}
		} else if used, err := inUse(tx, a); err != nil { // by a file that was busy when the newer version came, and stayed
			return err
		} else if a.State == catalog.Live && !used {
			m.r.log.Info("an older version's archive goes to the trash", "vault", m.inv.name, "archive", a.ID, "version", p.V, "newest", g.V)
			m.toTrash(&a, now)
			a.Ino, a.V = 0, 0
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		keep = append(keep, p) // remembered, so that the next inventory does not show it
	}
	g.Parts = keep
	return nil
}

// renew shows a newer version of a file that an inventory made. A file that was changed here
// since, or is in use, stays as it is, and the newer version becomes a file beside it.
func (m *merger) renew(key string) error {
	r := m.r
	var g gathering
	if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		g, err = loadGathering(tx, key)
		return err
	}); err != nil {
		return err
	}
	v, size, parts := g.complete()
	if parts == nil {
		return nil
	}
	now := time.Now()
	f, err := r.e.acquire(g.Ino)
	if g.Ino == 0 || errors.Is(err, catalog.ErrNotExist) {
		if v <= g.V {
			return nil // it was deleted here
		}
		return m.update(key, func(tx *catalog.Tx, g *gathering) error { return m.place(tx, g, v, size, parts, now) })
	}
	if err != nil {
		return err
	}
	defer f.put()
	f.mu.Lock()
	if v <= g.V {
		// An older one came later.
		f.mu.Unlock()
		return m.update(key, func(tx *catalog.Tx, g *gathering) error { return m.supersede(tx, g, parts, now) })
	}
	old := f.ver
	if old.V != g.OurV || old.State != catalog.Archived || f.pinned > 0 || f.writers > 0 {
		f.mu.Unlock()
		return m.update(key, func(tx *catalog.Tx, g *gathering) error { return m.place(tx, g, v, size, parts, now) })
	}
	var ino catalog.Inode
	var ver catalog.Version
	var gone catalog.Dirent
	err = m.update(key, func(tx *catalog.Tx, g *gathering) error {
		archives, md, err := archivesOf(tx, parts)
		if err != nil {
			return err
		}
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		// It moves to where the newer version was written, if nobody moved it here.
		path := m.pathOf(md, archives[0].ID)
		if d, err := tx.Lookup(g.Parent, g.Name); err == nil && d.Ino == f.ino {
			dir, err := m.mkdirs(tx, path[:len(path)-1], archives[0].ID, i, now)
			if err != nil {
				return err
			}
			if name := path[len(path)-1]; dir != g.Parent || name != g.Name {
				if name, err = m.freeName(tx, dir, name, archives[0].ID); err != nil {
					return err
				}
				if _, _, err := tx.Rename(g.Parent, g.Name, dir, name, catalog.RenameNoReplace, now.UnixNano()); err != nil {
					return err
				}
				gone = d
				m.names = append(m.names, catalog.Dirent{Parent: dir, Name: name, Ino: f.ino})
				g.Parent, g.Name = dir, name
				if i, err = tx.Inode(f.ino); err != nil {
					return err
				}
			}
		}
		want := inodeOf(md, size)
		i.Mode, i.UID, i.GID, i.Size, i.Mtime = want.Mode, want.UID, want.GID, want.Size, want.Mtime
		g.V, g.OurV = v, max(v, old.V+1)
		if err := m.show(tx, i, g.OurV, archives, now); err != nil {
			return err
		}
		if err := tx.DeleteVersion(f.ino, old.V); err != nil {
			return err
		}
		if err := m.supersede(tx, g, parts, now); err != nil {
			return err
		}
		if ino, err = tx.Inode(f.ino); err != nil {
			return err
		}
		ver, err = tx.Version(f.ino, g.OurV)
		return err
	})
	if err != nil {
		f.mu.Unlock()
		return err
	}
	f.adoptLocked(ino)
	f.ver = ver
	f.replaceLocalLocked(nil)
	f.mu.Unlock()
	r.forget(f.ino, old.V)
	if old.Local != 0 {
		if err := r.e.removeLocal(old.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
			r.log.Warn("removing a replaced local copy", "ino", f.ino, "error", err)
		}
	}
	if gone.Ino != 0 {
		r.e.opts.Observer.EntryChanged(gone.Parent, gone.Name)
	}
	r.contentChanged(f.ino)
	return nil
}

// update changes a gathering, alone among Updates.
func (m *merger) update(key string, change func(tx *catalog.Tx, g *gathering) error) error {
	_, err := m.r.e.catalog.Update(func(tx *catalog.Tx) error {
		g, err := loadGathering(tx, key)
		if err != nil {
			return err
		}
		if err := change(tx, &g); err != nil {
			return err
		}
		return putGathering(tx, key, g)
	})
	return err
}
