package jobs

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// standIn is an archive that holds what one that is gone from the vault held.
type standIn struct {
	gone uint64 // Archive.Num
	a    catalog.Archive
}

// twice decides about an archive that holds what another of the catalog holds, which a file consists of. It goes to
// the trash only if the other was listed by this inventory, too.
func (m *merger) twice(tx *catalog.Tx, e cas.InventoryEntry, a, twin catalog.Archive, now time.Time) error {
	switch {
	case twin.State == catalog.Missing:
		m.find(a.ID, "holds what archive %s held, which is gone; it takes its place", twin.ID)
		m.stand = append(m.stand, standIn{twin.Num, a})
		return nil
	case twin.State == catalog.Live && twin.Confirmed < m.stamp:
		// Perhaps it comes later in the list; at the end of the list, the next inventory tells.
		if !m.last {
			m.unsure = append(m.unsure, e)
		}
		return nil
	}
	m.find(a.ID, "holds what archive %s holds; it goes to the trash", twin.ID)
	m.r.log.Info("an archive was uploaded twice; the second goes to the trash", "vault", m.inv.name, "archive", a.ID, "first", twin.ID)
	m.toTrash(&a, now)
	return tx.PutArchive(a)
}

// later keeps what can be decided only when all of the inventory was seen.
func (inv *inventory) later(unsure []cas.InventoryEntry, more []string) {
	inv.unsure = append(inv.unsure, unsure...)
	if inv.settles == nil {
		inv.settles = make(map[string]bool)
	}
	for _, key := range more {
		inv.settles[key] = true
	}
}

// standIn puts s.a in the place of an archive that is gone: in the file that consists of it, or in what is gathered for one.
func (r *recaller) standIn(s standIn) error {
	gone, err := r.e.archive(s.gone)
	if err != nil {
		return err
	}
	var f *file
	if gone.Ino != 0 {
		f, err = r.e.acquire(gone.Ino)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		if err == nil {
			defer f.put()
			f.mu.Lock()
			defer f.mu.Unlock()
		}
	}
	used := false
	_, err = r.e.catalog.Update(func(tx *catalog.Tx) (err error) {
		used, err = r.standInTx(tx, s)
		return err
	})
	if err != nil || !used {
		return err
	}
	if f != nil {
		vers := []*catalog.Version{&f.ver}
		if f.expected != nil {
			vers = append(vers, &f.expected.old)
		}
		if err := r.e.catalog.View(func(tx *catalog.Tx) error {
			for _, v := range vers {
				if v.V == 0 || v.State != catalog.Archived {
					continue
				}
				now, err := tx.Version(f.ino, v.V)
				if err != nil {
					return err
				}
				v.Extents, v.Damaged, v.Error = now.Extents, now.Damaged, now.Error
			}
			return nil
		}); err != nil {
			return err
		}
	}
	r.log.Warn("an archive that is gone is replaced by one that holds the same", "vault", gone.VaultName, "gone", gone.ID, "archive", s.a.ID, "path", r.pathOf(gone.Ino))
	r.e.bin.kickTrash()
	if gone.Ino != 0 {
		r.attrChanged(gone.Ino)
	}
	return nil
}

func (r *recaller) standInTx(tx *catalog.Tx, s standIn) (used bool, err error) {
	gone, err := tx.Archive(s.gone)
	if err != nil {
		return false, err
	}
	a := s.a
	known, err := tx.ArchiveByID(a.Vault, a.ID)
	switch {
	case err == nil && !mayLeaveTrash(known, time.Now()) || gone.State != catalog.Missing:
		return false, nil // it was decided otherwise meanwhile
	case err == nil:
		a = known
	case errors.Is(err, catalog.ErrNotExist):
		a.Num = tx.NextID()
	default:
		return false, err
	}
	vs, err := tx.Versions(gone.Ino)
	if err != nil && !errors.Is(err, catalog.ErrNotExist) {
		return false, err
	}
	for _, v := range vs {
		uses, missing := false, false
		for i := range v.Extents {
			x := &v.Extents[i]
			if x.Archive == gone.Num {
				x.Archive, uses = a.Num, true
				continue
			}
			other, err := tx.Archive(x.Archive)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return false, err
			}
			missing = missing || err != nil || other.State == catalog.Missing
		}
		if !uses {
			continue
		}
		if v.Damaged && v.Error == missingText && !missing {
			v.Damaged, v.Error = false, ""
		}
		if err := tx.PutVersion(v); err != nil {
			return false, err
		}
		used = true
	}
	if md, ok := parseDescription(gone.Description); ok {
		key := gatherMeta(gone.Vault, md)
		g, err := loadGathering(tx, key)
		if err != nil {
			return false, err
		}
		if g.replace(gone.Num, a.Num) {
			used = true
			if err := putGathering(tx, key, g); err != nil {
				return false, err
			}
		}
	}
	if !used {
		return false, nil
	}
	a.State, a.Deadline, a.Ino, a.V = catalog.Live, 0, gone.Ino, gone.V
	gone.Ino, gone.V = 0, 0
	r.e.trash(&gone, time.Now()) // should it ever come back
	if err := tx.PutArchive(gone); err != nil {
		return false, err
	}
	return true, tx.PutArchive(a)
}

// standIns looks in the trash for what can take the place of archives that are gone. since: the inventory that listed it.
func (r *recaller) standIns(lost []catalog.Archive, since int64) (list []standIn, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	type bytes struct {
		size int64
		tree [32]byte
	}
	want := make(map[bytes][]catalog.Archive)
	for _, a := range lost {
		if a.TreeHash != [32]byte{} {
			want[bytes{a.Size, a.TreeHash}] = append(want[bytes{a.Size, a.TreeHash}], a)
		}
	}
	now := time.Now()
	err = r.e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			k := bytes{a.Size, a.TreeHash}
			if len(want[k]) == 0 || a.Vault != want[k][0].Vault || !mayLeaveTrash(a, now) || a.Confirmed < since {
				continue
			}
			used, err := inUse(tx, a)
			if err != nil {
				return err
			}
			if !used {
				list = append(list, standIn{want[k][0].Num, a})
				want[k] = want[k][1:]
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking in the trash for what is missing: %w", err)
	}
	return list, nil
}
