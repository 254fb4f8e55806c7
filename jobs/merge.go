package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// merger takes an inventory into the catalog, a bounded number of archives per change.
// Everything it does may be done again with the same list without changing anything.
type merger struct {
	r     *recaller
	inv   *inventory
	stamp int64 // when this inventory began: what it lists is confirmed as of then
	batch []cas.InventoryEntry

	// What a change calls for once it is committed.
	names   []catalog.Dirent // appeared
	back    []verKey         // archives that were missing
	newer   map[string]bool  // gatherings that may have a newer version than is shown
	trashed bool
}

// rebuildGrace is how long an archive that an inventory shows to be superseded is kept at least.
const rebuildGrace = 7 * 24 * time.Hour

// sourceLen is how much of an intent names the catalog it comes from.
const sourceLen = 8

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
}

func gatherMeta(vault uint64, m Metadata) string {
	return fmt.Sprintf("rebuild.%d.%.*s.%d", vault, sourceLen, m.Intent, m.Ino)
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
		versions[p.V] = p
	}
	for _, v := range slices.Backward(slices.Sorted(maps.Keys(versions))) {
		want := versions[v]
		var parts []gathered
		var sum int64
		for seg := range max(want.Segs, 1) {
			var best *gathered
			for i := range g.Parts {
				if p := &g.Parts[i]; p.Seg == seg && p.V <= v && (best == nil || p.V > best.V) {
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

// add takes the next archive of the list.
func (m *merger) add(e cas.InventoryEntry) error {
	if m.batch = append(m.batch, e); len(m.batch) >= mergeBatch {
		return m.flush()
	}
	return nil
}

// flush commits what add took.
func (m *merger) flush() error {
	if len(m.batch) == 0 {
		return nil
	}
	now := time.Now()
	_, err := m.r.e.catalog.Update(func(tx *catalog.Tx) error {
		m.names, m.back, m.newer, m.trashed = nil, nil, make(map[string]bool), false
		for _, e := range m.batch {
			if err := m.entry(tx, e, now); err != nil {
				return fmt.Errorf("archive %.20s…: %w", e.ArchiveID, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n := len(m.batch)
	m.batch = m.batch[:0]
	m.r.mu.Lock()
	m.inv.entries += int64(n)
	m.r.mu.Unlock()
	for _, key := range m.back {
		m.r.unmarkDamaged(key, missingText)
	}
	for _, key := range slices.Sorted(maps.Keys(m.newer)) {
		if err := m.renew(key); err != nil {
			return err
		}
	}
	for _, d := range m.names {
		m.r.e.opts.Observer.EntryChanged(d.Parent, d.Name)
	}
	if m.trashed {
		m.r.e.bin.kickTrash()
	}
	return nil
}

// entry merges one archive.
func (m *merger) entry(tx *catalog.Tx, e cas.InventoryEntry, now time.Time) error {
	a, err := tx.ArchiveByID(m.inv.ino, e.ArchiveID)
	switch {
	case err == nil:
		return m.known(tx, a, e, now)
	case !errors.Is(err, catalog.ErrNotExist):
		return err
	}
	a = catalog.Archive{
		Num: tx.NextID(), Vault: m.inv.ino, VaultName: m.inv.name, ID: e.ArchiveID, Size: e.Size,
		TreeHash: e.TreeHash, Created: e.CreationDate.UnixNano(), Description: e.Description,
		State: catalog.Live, Confirmed: m.stamp,
	}
	if e.CreationDate.IsZero() {
		a.Created = now.UnixNano()
	}
	md, ok := parseDescription(e.Description)
	if !ok {
		return m.foreign(tx, a, now)
	}
	a.Intent = md.Intent
	switch u, err := tx.Upload(md.Intent); {
	case err == nil && u.State == catalog.Abandoned:
		m.r.log.Info("an abandoned upload left an archive, which goes to the trash", "vault", m.inv.name, "archive", a.ID, "path", md.Path)
		m.toTrash(&a, now)
		return tx.PutArchive(a)
	case err == nil:
		// It is being sent, perhaps again after a lost answer. When that is over, the next inventory
		// shows which archive is one too many.
		return nil
	case !errors.Is(err, catalog.ErrNotExist):
		return err
	}
	switch twin, err := tx.ArchiveByIntent(md.Intent); {
	case err == nil:
		m.r.log.Info("an archive was uploaded twice; the second goes to the trash", "vault", m.inv.name, "archive", a.ID, "first", twin.ID, "path", md.Path)
		m.toTrash(&a, now)
		return tx.PutArchive(a)
	case !errors.Is(err, catalog.ErrNotExist):
		return err
	}
	if own := m.r.e.catalog.ID(); strings.HasPrefix(md.Intent, own[:min(sourceLen, len(own))]) {
		i, err := tx.Inode(md.Ino)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		v, verr := tx.Version(md.Ino, i.Version)
		switch {
		case err != nil || i.Version < md.V: // made by this catalog, which does not know the file: it is shown again
		case i.Version > md.V || verr == nil && v.State == catalog.Archived:
			m.r.log.Info("an archive of a version that is not needed goes to the trash", "vault", m.inv.name, "archive", a.ID, "path", md.Path)
			m.toTrash(&a, now)
			return tx.PutArchive(a)
		default:
			return nil // on its way there right now
		}
	}
	return m.gather(tx, a, md, now)
}

// known confirms an archive of the catalog. What is in the trash or deleted stays so.
func (m *merger) known(tx *catalog.Tx, a catalog.Archive, e cas.InventoryEntry, now time.Time) error {
	was := a
	a.Confirmed, a.Misses = max(a.Confirmed, m.stamp), 0
	if a.TreeHash == ([32]byte{}) {
		a.TreeHash = e.TreeHash
	}
	if a.Size != e.Size || a.TreeHash != e.TreeHash && !e.TreeHash.IsZero() {
		m.r.log.Error("the vault's archive is not what was uploaded", "vault", m.inv.name, "archive", a.ID,
			"size", e.Size, "recorded size", a.Size, "tree hash", e.TreeHash, "recorded tree hash", cas.Hash(a.TreeHash))
	}
	if a.State == catalog.Missing {
		a.State = catalog.Live
		m.back = append(m.back, verKey{a.Ino, a.V})
	}
	if a.State == catalog.Live && a.Ino == 0 {
		if md, ok := parseDescription(a.Description); ok {
			m.newer[gatherMeta(m.inv.ino, md)] = true // left over by a stop in between
		}
	}
	if a == was {
		return nil
	}
	return tx.PutArchive(a)
}

// toTrash gives a superseded archive time to be noticed.
func (m *merger) toTrash(a *catalog.Archive, now time.Time) {
	m.r.e.trash(a, now)
	a.Deadline = max(a.Deadline, now.Add(rebuildGrace).UnixNano())
	m.trashed = true
}

// foreign makes a file of an archive casfs did not write.
func (m *merger) foreign(tx *catalog.Tx, a catalog.Archive, now time.Time) error {
	_, mtime := foreignPath(a.Description)
	if mtime.IsZero() {
		mtime = time.Unix(0, a.Created)
	}
	o := m.r.e.opts
	ino, _, err := m.create(tx, displayName(a.Description, a.ID), a.ID, catalog.Inode{
		Mode: modeRegular | 0o644, UID: o.UID, GID: o.GID, Size: a.Size, Mtime: mtime.UnixNano(),
	}, now)
	if err != nil {
		return err
	}
	return m.show(tx, ino, 1, []catalog.Archive{a}, now)
}

// create makes a file at path below the vault, its directories, and a suffix where names collide.
func (m *merger) create(tx *catalog.Tx, path []string, id string, want catalog.Inode, now time.Time) (catalog.Inode, catalog.Dirent, error) {
	dir, err := m.mkdirs(tx, path[:len(path)-1], id, want, now)
	if err != nil {
		return catalog.Inode{}, catalog.Dirent{}, err
	}
	name, err := m.freeName(tx, dir, path[len(path)-1], id)
	if err != nil {
		return catalog.Inode{}, catalog.Dirent{}, err
	}
	ino, err := tx.Create(dir, name, want, now.UnixNano())
	if err != nil {
		return catalog.Inode{}, catalog.Dirent{}, err
	}
	ino.Mode, ino.UID, ino.GID = want.Mode, want.UID, want.GID
	ino.Size, ino.Mtime, ino.Atime = want.Size, want.Mtime, want.Mtime
	d := catalog.Dirent{Parent: dir, Name: name, Ino: ino.Ino, Type: modeRegular}
	m.names = append(m.names, d)
	return ino, d, nil
}

// mkdirs makes the directories of a path, owned as the file that needs them. A name that belongs to something
// else gets a suffix.
func (m *merger) mkdirs(tx *catalog.Tx, path []string, id string, want catalog.Inode, now time.Time) (uint64, error) {
	dir := m.inv.ino
	for _, name := range path {
		d, err := tx.Lookup(dir, name)
		if err == nil && d.Type != modeDir {
			if d, err = tx.Lookup(dir, withSuffix(name, id, suffixLen)); err == nil && d.Type == modeDir {
				dir = d.Ino
				continue
			}
			if name, err = m.freeName(tx, dir, name, id); err != nil {
				return 0, err
			}
			err = catalog.ErrNotExist
		}
		switch {
		case errors.Is(err, catalog.ErrNotExist):
			ino, err := tx.Create(dir, name, catalog.Inode{Mode: modeDir | 0o755, UID: want.UID, GID: want.GID}, now.UnixNano())
			if err != nil {
				return 0, err
			}
			m.names = append(m.names, catalog.Dirent{Parent: dir, Name: name, Ino: ino.Ino, Type: modeDir})
			dir = ino.Ino
		case err != nil:
			return 0, err
		default:
			dir = d.Ino
		}
	}
	return dir, nil
}

// suffixLen is how much of an archive's ID tells files of one name apart.
const suffixLen = 8

// freeName returns name, or name with as much of the archive's ID as makes it new.
func (m *merger) freeName(tx *catalog.Tx, dir uint64, name, id string) (string, error) {
	for n := 0; ; n += suffixLen {
		try := name
		switch {
		case n > 0 && n <= len(id):
			try = withSuffix(name, id, n)
		case n > len(id): // all of the ID does not help: count
			try = withSuffix(name, fmt.Sprint(n), 20)
		}
		_, err := tx.Lookup(dir, try)
		if errors.Is(err, catalog.ErrNotExist) {
			return try, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// show makes archives the content of a file: version v, in the vault only.
func (m *merger) show(tx *catalog.Tx, ino catalog.Inode, v uint64, archives []catalog.Archive, now time.Time) error {
	ver := catalog.Version{
		Ino: ino.Ino, V: v, State: catalog.Archived, Size: ino.Size, Mtime: ino.Mtime, StagedAt: now.UnixNano(),
	}
	for _, a := range archives {
		a.Ino, a.V = ino.Ino, v
		if a.State == catalog.Trash {
			a.State, a.Deadline = catalog.Live, 0
		}
		if err := tx.PutArchive(a); err != nil {
			return err
		}
		ver.Extents = append(ver.Extents, catalog.Extent{Archive: a.Num, Len: a.Size})
		ver.ArchivedAt = max(ver.ArchivedAt, a.Created)
	}
	if len(archives) == 1 {
		ver.TreeHash = archives[0].TreeHash
	}
	ino.Version = v
	if err := tx.PutInode(ino); err != nil {
		return err
	}
	return tx.PutVersion(ver)
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
	for _, p := range g.Parts {
		if p.V == md.V && p.Seg == md.Seg {
			old, err := tx.Archive(p.Num)
			if err == nil && old.TreeHash == a.TreeHash && old.Size == a.Size {
				m.toTrash(&a, now)
				return tx.PutArchive(a)
			}
			m.r.log.Warn("two archives claim to be the same version; the second becomes a file of its own",
				"vault", m.inv.name, "archive", a.ID, "other", old.ID, "path", md.Path)
			ino, _, err := m.create(tx, m.pathOf(md, a.ID), a.ID, inodeOf(md, a.Size), now)
			if err != nil {
				return err
			}
			return m.show(tx, ino, 1, []catalog.Archive{a}, now)
		}
	}
	g.Parts = append(g.Parts, gathered{V: md.V, Seg: md.Seg, Segs: md.Segs, Num: a.Num, Len: a.Size, Size: md.Size})
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
		if p.V > g.V {
			return nil
		}
	}
	var keep []gathered
	for _, p := range g.Parts {
		if slices.Contains(parts, p) {
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
		if a.State == catalog.Live {
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
		if err := r.e.store.Remove(old.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
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

// unmarkDamaged takes a damage back that was recorded for reason why.
func (r *recaller) unmarkDamaged(key verKey, why string) {
	f, err := r.e.acquire(key.ino)
	if err != nil {
		return
	}
	defer f.put()
	f.mu.Lock()
	if f.ver.V == key.v && f.ver.Damaged && f.ver.Error == why {
		if err := r.setVersion(f, func(v *catalog.Version) { v.Damaged, v.Error = false, "" }); err != nil {
			r.log.Error("an archive that is back is not recorded", "ino", key.ino, "error", err)
		}
	}
	f.mu.Unlock()
	r.attrChanged(key.ino)
}
