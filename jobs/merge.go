package jobs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// merger takes an inventory into the catalog, a bounded number of archives per change.
// Everything it does may be done again with the same list without changing anything.
type merger struct {
	r     *recaller
	inv   *inventory
	stamp int64 // when this inventory began: what it lists is confirmed as of then
	batch []cas.InventoryEntry
	open  map[string]*gathering // by Meta key: as the present change has them; nil in one that is not about a batch

	// What a change calls for once it is committed.
	names   []catalog.Dirent // appeared
	back    []verKey         // archives that were missing
	newer   map[string]bool  // gatherings that may have a newer version than is shown
	more    []string         // gatherings of more than one archive
	stand   []standIn        // archives for those that are missing
	unsure  []cas.InventoryEntry
	found   []finding
	trashed bool
	rooted  bool // the vault's directory has another mode or owner

	last bool // all of the inventory was seen
}

// rebuildGrace is how long an archive that an inventory shows to be superseded is kept at least.
const rebuildGrace = 7 * 24 * time.Hour

// sourceLen is how much of an intent names the catalog it comes from.
const sourceLen = 8

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
		m.names, m.back, m.newer, m.found, m.trashed, m.rooted = nil, nil, make(map[string]bool), nil, false, false
		m.more, m.stand, m.unsure = nil, nil, nil
		m.open = make(map[string]*gathering)
		for _, e := range m.batch {
			if err := m.entry(tx, e, now); err != nil {
				return fmt.Errorf("archive %.20s…: %w", e.ArchiveID, err)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(m.open)) {
			if err := putGathering(tx, key, *m.open[key]); err != nil {
				return err
			}
		}
		return nil
	})
	m.open = nil
	if err != nil {
		return err
	}
	n := len(m.batch)
	m.batch = m.batch[:0]
	m.r.mu.Lock()
	if !m.last {
		m.inv.entries += int64(n)
	}
	m.inv.noteLocked(m.found)
	m.r.mu.Unlock()
	m.inv.later(m.unsure, m.more)
	for _, key := range m.back {
		m.r.unmarkDamaged(key, missingText)
	}
	for _, s := range m.stand {
		if err := m.r.standIn(s); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.newer)) {
		if err := m.renew(key); err != nil {
			return err
		}
	}
	for _, d := range m.names {
		m.r.e.opts.Observer.EntryChanged(d.Parent, d.Name)
	}
	if m.rooted {
		m.r.attrChanged(m.inv.ino)
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
		m.unknown(a)
		return m.foreign(tx, a, now)
	}
	if err := m.root(tx, md, a.Created, now); err != nil {
		return err
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
	case err == nil && !sameBytes(twin, a):
		m.unknown(a)
		return m.beside(tx, []catalog.Archive{a}, md, twin, now)
	case err == nil:
		return m.twice(tx, e, a, twin, now)
	case !errors.Is(err, catalog.ErrNotExist):
		return err
	}
	if own := m.r.e.catalog.ID(); strings.HasPrefix(md.Intent, own[:min(sourceLen, len(own))]) {
		// Made by this catalog, which does not know it: its records were lost, or an older state directory was
		// restored, and its inode number is another file's by now. Only what is there already may go.
		twin, busy, err := m.compare(tx, a, md)
		switch {
		case err != nil:
			return err
		case busy:
			return nil // on its way there right now; the next inventory tells
		case twin != nil:
			return m.twice(tx, e, a, *twin, now)
		}
	}
	return m.gather(tx, e, a, md, now)
}

// unknown notes an archive the catalog knew nothing of. At first that is all of them.
func (m *merger) unknown(a catalog.Archive) {
	if !m.inv.first {
		m.find(a.ID, "was not known, %d bytes described as %.200q; it is shown as a file now", a.Size, a.Description)
	}
}

func (m *merger) find(id, format string, args ...any) {
	m.found = append(m.found, finding{id, fmt.Sprintf(format, args...)})
}

// compare returns the archive with the same bytes of which the inode consists that an archive's description names, if there
// is one, or says that it is uploading the version that the description names.
func (m *merger) compare(tx *catalog.Tx, a catalog.Archive, md Metadata) (twin *catalog.Archive, busy bool, err error) {
	i, err := tx.Inode(md.Ino)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && i.Version == 0 {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if md.Born != 0 && md.Born != i.Btime {
		return nil, false, nil // the number was another file's
	}
	v, err := tx.Version(md.Ino, i.Version)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if v.State != catalog.Archived {
		return nil, v.V == md.V, nil
	}
	for _, x := range v.Extents {
		other, err := tx.Archive(x.Archive)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return nil, false, err
		}
		if err == nil && (other.State == catalog.Live || other.State == catalog.Missing) && sameBytes(other, a) &&
			(twin == nil || other.State == catalog.Missing) {
			twin = &other
		}
	}
	return twin, false, nil
}

// sameBytes reports whether two archives are known to hold the same.
func sameBytes(a, b catalog.Archive) bool {
	return a.Size == b.Size && a.TreeHash == b.TreeHash && a.TreeHash != [32]byte{}
}

// beside shows archives that claim to be what another is, or its successor, and cannot be, as a file of its own.
func (m *merger) beside(tx *catalog.Tx, list []catalog.Archive, md Metadata, other catalog.Archive, now time.Time) error {
	id := list[0].ID
	m.r.log.Warn("two archives claim to be the same file and cannot both be; the second becomes a file of its own",
		"vault", m.inv.name, "archive", id, "other", other.ID, "path", md.Path)
	var size int64
	for i := range list {
		size += list[i].Size
		list[i].Intent = "" // it is the other's
	}
	ino, _, err := m.create(tx, m.pathOf(md, id), claim{id: id, dirs: md.Dirs}, inodeOf(md, size), now)
	if err != nil {
		return err
	}
	return m.show(tx, ino, 1, list, now)
}

// known confirms an archive of the catalog. What is in the trash or deleted stays so.
func (m *merger) known(tx *catalog.Tx, a catalog.Archive, e cas.InventoryEntry, now time.Time) error {
	was := a
	a.Confirmed, a.Misses = max(a.Confirmed, m.stamp), 0
	if a.TreeHash == ([32]byte{}) {
		a.TreeHash = e.TreeHash
	}
	if a.Size != e.Size || a.TreeHash != e.TreeHash && !e.TreeHash.IsZero() {
		m.find(a.ID, "is not what was uploaded: %d bytes with tree hash %s by the inventory, %d with %s by the catalog",
			e.Size, e.TreeHash, a.Size, cas.Hash(a.TreeHash))
		m.r.log.Error("the vault's archive is not what was uploaded", "vault", m.inv.name, "archive", a.ID,
			"size", e.Size, "recorded size", a.Size, "tree hash", e.TreeHash, "recorded tree hash", cas.Hash(a.TreeHash))
	}
	if a.State == catalog.Missing {
		a.State = catalog.Live
		m.back = append(m.back, verKey{a.Ino, a.V})
	}
	if a.State == catalog.Live && a.Ino == 0 {
		if md, ok := parseDescription(a.Description); ok {
			// Left over by a stop in between, or of no complete version.
			key := gatherMeta(m.inv.ino, md)
			m.newer[key] = true
			m.more = append(m.more, key)
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
	ino, _, err := m.create(tx, displayName(a.Description, a.ID), claim{id: a.ID}, catalog.Inode{
		Mode: modeRegular | 0o644, UID: o.UID, GID: o.GID, Size: a.Size, Mtime: mtime.UnixNano(),
	}, now)
	if err != nil {
		return err
	}
	return m.show(tx, ino, 1, []catalog.Archive{a}, now)
}

// create makes a file at path below the vault, its directories, and a suffix where names collide.
func (m *merger) create(tx *catalog.Tx, path []string, c claim, want catalog.Inode, now time.Time) (catalog.Inode, catalog.Dirent, error) {
	dir, err := m.mkdirs(tx, path[:len(path)-1], c, want, now)
	if err != nil {
		return catalog.Inode{}, catalog.Dirent{}, err
	}
	name, err := m.name(tx, dir, path[len(path)-1], c, now)
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

// mkdirs makes the directories of a path, owned as the file that needs them, with the modes its archive tells. Those
// that are there stay as they are. A name that belongs to something else gets a suffix.
func (m *merger) mkdirs(tx *catalog.Tx, path []string, c claim, want catalog.Inode, now time.Time) (uint64, error) {
	dir := m.inv.ino
	told := len(c.dirs) == len(path) // else names were left out that no directory can have
	for k, name := range path {
		if err := m.displace(tx, dir, name, c, now); err != nil {
			return 0, err
		}
		d, err := tx.Lookup(dir, name)
		if err == nil && d.Type != modeDir {
			if d, err = tx.Lookup(dir, withSuffix(name, c.id, suffixLen)); err == nil && d.Type == modeDir {
				dir = d.Ino
				continue
			}
			if name, err = m.freeName(tx, dir, name, c.id); err != nil {
				return 0, err
			}
			err = catalog.ErrNotExist
		}
		switch {
		case errors.Is(err, catalog.ErrNotExist):
			mode := modeDir | guessDir(want.Mode)
			if told {
				mode = modeDir | c.dirs[k]
			}
			ino, err := tx.Create(dir, name, catalog.Inode{Mode: mode, UID: want.UID, GID: want.GID}, now.UnixNano())
			if err != nil {
				return 0, err
			}
			if told && ino.Mode != mode { // it would inherit setgid
				ino.Mode = mode
				if err := tx.PutInode(ino); err != nil {
					return 0, err
				}
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

// show makes archives the content of a file: version v, in the vault only. Those of them that are in the trash may leave it.
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
