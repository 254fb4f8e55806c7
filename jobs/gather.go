package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// gathering collects the archives of one file of a lost catalog, or another
// machine's, until a version is complete. It is kept as a Meta value.
type gathering struct {
	Parts []gathered

	// What is shown of it: our inode, its version, and where it was put.
	V      uint64   `json:",omitempty"`
	Ino    uint64   `json:",omitempty"`
	OurV   uint64   `json:",omitempty"`
	Parent uint64   `json:",omitempty"`
	Name   string   `json:",omitempty"`
	Shown  []uint64 `json:",omitempty"` // its archives
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

	// Of one of several segments, as described.
	Mtime int64  `json:",omitempty"`
	Set   string `json:",omitempty"`
	Off   int64  `json:",omitempty"` // with Set

	Intent string `json:",omitempty"` // also of what may be a segment of a later version

	Beside bool `json:",omitempty"` // a file of its own: it only tells that there are two histories
}

// leastKept is how long an archive is at least that was kept when its file grew while it was being uploaded: a part, for
// what was sent in one request is not recorded before it is all of its version.
const leastKept = 1 << 20

// gatherMeta names the gathering of an inode of some catalog. The number alone is not enough: one that a restored
// backup had forgotten may have become another file's.
func gatherMeta(vault uint64, m Metadata) string {
	key := fmt.Sprintf("rebuild.%d.%.*s.%d", vault, sourceLen, m.Intent, m.Ino)
	if m.Born != 0 {
		key += fmt.Sprintf(".%d", m.Born)
	}
	return key
}

func loadGathering(tx *catalog.Tx, key string) (g gathering, err error) {
	b, err := tx.Meta(key)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && len(b) == 0 {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	for i := range g.Parts {
		if err == nil {
			err = g.Parts[i].describe(tx)
		}
	}
	if err != nil {
		return g, fmt.Errorf("%s: %w", key, err)
	}
	return g, nil
}

// describe fills in what a gathering of an earlier version of the program does not tell of an archive: its description does.
func (p *gathered) describe(tx *catalog.Tx) error {
	if p.Segs > 1 && (p.Mtime != 0 || p.Set != "") || p.Segs <= 1 && (p.Len < leastKept || p.Intent != "") {
		return nil
	}
	a, err := tx.Archive(p.Num)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil
	}
	if md, ok := parseDescription(a.Description); err == nil && ok {
		p.tell(md)
	}
	return err
}

// tell takes over what a description tells of which archives it goes with.
func (p *gathered) tell(md Metadata) {
	if md.Segs > 1 {
		p.Mtime, p.Set, p.Off = md.Mtime, md.Set, md.Off
	}
	if md.Segs > 1 || p.Len >= leastKept {
		p.Intent = md.Intent
	}
}

func putGathering(tx *catalog.Tx, key string, g gathering) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if old, err := tx.Meta(key); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return tx.PutMeta(key, b)
}

// replace puts another archive in the place of one.
func (g *gathering) replace(num, by uint64) (done bool) {
	for i := range g.Parts {
		if g.Parts[i].Num == num {
			g.Parts[i].Num, done = by, true
		}
	}
	for i := range g.Shown {
		if g.Shown[i] == num {
			g.Shown[i] = by
		}
	}
	return done
}

// newerBetween reports whether a later version than that of p was made between p and what was made at another time.
func (g *gathering) newerBetween(p gathered, at int64) bool {
	from, to := min(p.Created, at), max(p.Created, at)
	return slices.ContainsFunc(g.Parts, func(x gathered) bool { return x.V > p.V && from < x.Created && x.Created < to })
}

// gathering returns a gathering that the present change may alter; the end of the change records it. A file may have very many versions.
func (m *merger) gathering(tx *catalog.Tx, key string) (*gathering, error) {
	if g := m.open[key]; g != nil {
		return g, nil
	}
	g, err := loadGathering(tx, key)
	if err != nil {
		return nil, err
	}
	m.open[key] = &g
	return &g, nil
}

// gather takes an archive whose description is casfs's own and whose upload this catalog does not know.
func (m *merger) gather(tx *catalog.Tx, e cas.InventoryEntry, a catalog.Archive, md Metadata, now time.Time) error {
	key := gatherMeta(m.inv.ino, md)
	g, err := m.gathering(tx, key)
	if err != nil {
		return err
	}
	for _, p := range g.Parts {
		if p.V != md.V || p.Seg != md.Seg {
			continue
		}
		old, err := tx.Archive(p.Num)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		alike := p.Segs <= 1 && md.Segs <= 1 || p.Segs == md.Segs && p.Set == md.Set && md.Set != setOpen && p.Size == md.Size && p.Mtime == md.Mtime
		if err != nil || !alike || !sameBytes(old, a) {
			continue
		}
		if old.State != catalog.Missing {
			if !m.last {
				m.unsure = append(m.unsure, e) // what comes later in the list may tell otherwise
				return nil
			}
			if g.newerBetween(p, a.Created) {
				continue // written again after an older state directory was restored: what the newer one replaced is not this one
			}
		}
		return m.twice(tx, e, a, old, now)
	}
	m.unknown(a)
	if err := tx.PutArchive(a); err != nil {
		return err
	}
	part := gathered{V: md.V, Seg: md.Seg, Segs: md.Segs, Num: a.Num, Len: a.Size, Size: md.Size, Created: a.Created}
	part.tell(md)
	g.Parts = append(g.Parts, part)
	if len(g.Parts) > 1 {
		m.more = append(m.more, key)
	}
	if part.Segs <= 1 {
		list := g.makings()
		mine := list.of(part)
		for _, o := range list.list {
			if o == mine || o.beside() || !list.apart(o, mine) {
				continue
			}
			old, err := tx.Archive(o.own[0].Num)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			g.Parts[len(g.Parts)-1].Beside = true
			if err := m.beside(tx, []catalog.Archive{a}, md, old, now); err != nil {
				return err
			}
			if g.Ino != 0 {
				m.newer[key] = true // what was taken for an older version of it may be one of this history
			}
			return nil
		}
	}
	switch best := g.makings().complete(); {
	case best == nil: // more segments have to come
	case g.Ino != 0: // a version of it is shown already, perhaps to programs
		m.newer[key] = true
	default:
		return m.place(tx, g, best, now)
	}
	return nil
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

// errLeft is about archives that are deleted, or may be: what consists of them is not in the vault any more.
var errLeft = fmt.Errorf("deleted, or about to be: %w", catalog.ErrNotExist)

// archivesOf loads the archives of parts, to be shown by the present change, and the description of the newest. Errors: errLeft.
func archivesOf(tx *catalog.Tx, parts []gathered, now time.Time) (list []catalog.Archive, md Metadata, err error) {
	var newest uint64
	for _, p := range parts {
		a, err := tx.Archive(p.Num)
		if err != nil {
			return nil, md, err
		}
		if a.State == catalog.Deleted || a.State == catalog.Trash && !mayLeaveTrash(a, now) {
			return nil, md, fmt.Errorf("archive %s: %w", a.ID, errLeft)
		}
		list = append(list, a)
		if d, ok := parseDescription(a.Description); ok && d.V >= newest {
			newest, md = d.V, d
		}
	}
	return list, md, nil
}

// place shows a complete version as a new file, unless archives of it are gone.
func (m *merger) place(tx *catalog.Tx, g *gathering, k *making, now time.Time) error {
	archives, md, err := archivesOf(tx, k.parts, now)
	if errors.Is(err, errLeft) {
		m.notShown(k, err)
		return nil
	}
	if err != nil {
		return err
	}
	ino, d, err := m.create(tx, m.pathOf(md, archives[0].ID), claim{archives[0].ID, k.last, g.Ino, md.Dirs}, inodeOf(md, k.size), now)
	if err != nil {
		return err
	}
	if err := m.show(tx, ino, k.v, archives, now); err != nil {
		return err
	}
	g.V, g.Ino, g.OurV, g.Parent, g.Name = k.v, ino.Ino, k.v, d.Parent, d.Name
	g.shows(k)
	return nil
}

func (m *merger) notShown(k *making, why error) {
	m.r.log.Warn("a version is not shown, since archives of it are gone", "vault", m.inv.name, "version", k.v, "size", k.size, "why", why)
}

// shows notes what is shown.
func (g *gathering) shows(k *making) {
	g.Shown = nil
	for _, p := range k.parts {
		g.Shown = append(g.Shown, p.Num)
	}
}

// part shows what is complete and of another history than what is shown as files of their own.
func (m *merger) part(tx *catalog.Tx, g *gathering, now time.Time) error {
	list := g.makings()
	shown := list.shown(g)
	if shown == nil {
		return nil
	}
	for _, o := range list.list {
		if o == shown || o.beside() || o.parts == nil || !list.apart(o, shown) {
			continue
		}
		archives, md, err := archivesOf(tx, o.parts, now)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		free := err == nil
		for i, a := range archives {
			used, err := inUse(tx, a)
			if err != nil {
				return err
			}
			put := mayLeaveTrash(a, now) && a.Ino == 0 // by an earlier inventory, before what tells that it is none was found
			free = free && !used && (a.State == catalog.Live || put) && !slices.Contains(g.Shown, o.parts[i].Num)
		}
		if !free {
			continue
		}
		other, err := tx.Archive(shown.parts[0].Num)
		if err != nil {
			return err
		}
		for i := range g.Parts {
			p := &g.Parts[i]
			p.Beside = p.Beside || slices.ContainsFunc(o.parts, func(x gathered) bool { return x.Num == p.Num })
		}
		if err := m.beside(tx, archives, md, other, now); err != nil {
			return err
		}
	}
	return nil
}

// settle puts what is older than the version shown into the trash, unless a newer
// one that is not complete may still need it. All of an inventory must have been seen.
func (m *merger) settle(key string) error {
	if err := m.renew(key); err != nil {
		return err
	}
	now := time.Now()
	if err := m.update(key, func(tx *catalog.Tx, g *gathering) error {
		if err := m.part(tx, g, now); err != nil {
			return err
		}
		return m.supersede(tx, g, now)
	}); err != nil {
		return err
	}
	for _, d := range m.names {
		m.r.e.opts.Observer.EntryChanged(d.Parent, d.Name)
	}
	m.names = nil
	if m.trashed {
		m.r.e.bin.kickTrash()
	}
	return nil
}

func (m *merger) supersede(tx *catalog.Tx, g *gathering, now time.Time) error {
	list := g.makings()
	shown := list.shown(g)
	if shown == nil {
		return nil
	}
	for _, p := range g.Parts {
		if p.V > g.V && !p.Beside {
			return nil
		}
	}
	for _, p := range g.Parts {
		if p.Beside || slices.Contains(g.Shown, p.Num) {
			continue
		}
		k := list.of(p)
		if k != nil && list.apart(k, shown) || p.Created > shown.last {
			continue
		}
		if k == nil && list.elsewhere(p, shown) {
			continue // of something another history began and perhaps never ended
		}
		if k == nil && slices.ContainsFunc(list.list, func(o *making) bool {
			return o.parts == nil && o.v >= p.V && o.first >= p.Created && list.apart(o, shown)
		}) {
			continue // it may belong to what is not complete, of another history
		}
		a, err := tx.Archive(p.Num)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		used, err := inUse(tx, a) // by a file that was busy when the newer version came, and stayed
		if err != nil {
			return err
		}
		if a.State == catalog.Live && !used {
			m.r.log.Info("an older version's archive goes to the trash", "vault", m.inv.name, "archive", a.ID, "version", p.V, "newest", g.V)
			m.toTrash(&a, now)
			a.Ino, a.V = 0, 0
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		// It is remembered, so that the next inventory does not show it.
	}
	return nil
}

// renew shows a newer version of a file that an inventory made. A file that was changed here
// since, or is in use, stays as it is, and the newer version becomes a file beside it.
func (m *merger) renew(key string) error {
	r := m.r
	now := time.Now()
	var g gathering
	if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		g, err = loadGathering(tx, key)
		return err
	}); err != nil {
		return err
	}
	if len(g.Parts) > 1 {
		if err := m.update(key, func(tx *catalog.Tx, fresh *gathering) error {
			if err := m.part(tx, fresh, now); err != nil {
				return err
			}
			g = *fresh
			return nil
		}); err != nil {
			return err
		}
	}
	best := g.makings().complete()
	if best == nil {
		return nil
	}
	f, err := r.e.acquire(g.Ino)
	if g.Ino == 0 || errors.Is(err, catalog.ErrNotExist) {
		if best.v <= g.V {
			return nil // it was deleted here
		}
		return m.update(key, func(tx *catalog.Tx, g *gathering) error {
			return errors.Join(m.place(tx, g, best, now), m.part(tx, g, now))
		})
	}
	if err != nil {
		return err
	}
	defer f.put()
	f.mu.Lock()
	if best.v <= g.V {
		f.mu.Unlock() // an older one came later
		return nil
	}
	old := f.ver
	if old.V != g.OurV || old.State != catalog.Archived || f.pinned > 0 || f.writers > 0 {
		f.mu.Unlock()
		return m.update(key, func(tx *catalog.Tx, g *gathering) error {
			for _, p := range best.parts {
				if a, err := tx.Archive(p.Num); err != nil {
					return err
				} else if used, err := inUse(tx, a); err != nil || used {
					return err // an archive is one file's: the next inventory tries again
				}
			}
			return errors.Join(m.place(tx, g, best, now), m.part(tx, g, now))
		})
	}
	var ino catalog.Inode
	var ver catalog.Version
	var gone catalog.Dirent
	err = m.update(key, func(tx *catalog.Tx, g *gathering) error {
		archives, md, err := archivesOf(tx, best.parts, now)
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
			c := claim{archives[0].ID, best.last, f.ino, md.Dirs}
			dir, err := m.mkdirs(tx, path[:len(path)-1], c, inodeOf(md, best.size), now)
			if err != nil {
				return err
			}
			if name := path[len(path)-1]; dir != g.Parent || name != g.Name {
				if name, err = m.name(tx, dir, name, c, now); err != nil {
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
		want := inodeOf(md, best.size)
		i.Mode, i.UID, i.GID, i.Size, i.Mtime = want.Mode, want.UID, want.GID, want.Size, want.Mtime
		g.V, g.OurV = best.v, max(best.v, old.V+1)
		if err := m.show(tx, i, g.OurV, archives, now); err != nil {
			return err
		}
		g.shows(best)
		if err := tx.DeleteVersion(f.ino, old.V); err != nil {
			return err
		}
		for _, x := range old.Extents {
			// Nobody's until settle, or the next inventory, which finds it so.
			if a, err := tx.Archive(x.Archive); err == nil && !slices.Contains(g.Shown, a.Num) {
				a.Ino, a.V = 0, 0
				if err := tx.PutArchive(a); err != nil {
					return err
				}
			}
		}
		if err := m.part(tx, g, now); err != nil {
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
		if errors.Is(err, errLeft) {
			m.notShown(best, err)
			return nil
		}
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
