package jobs

import (
	"errors"

	"github.com/casfs/casfs/cache/catalog"
)

// missingText is what a version says whose archive inventories no longer list.
const missingText = "the vault's inventories no longer list its archive"

// finishInventory looks for archives the inventory should have listed and did not.
func (r *recaller) finishInventory(inv *inventory, rec inventoryRecord) error {
	// What is superseded goes last: only all of the list tells histories apart.
	m := merger{r: r, inv: inv, stamp: rec.Started, last: true}
	for key := range inv.settles {
		if err := m.settle(key); err != nil {
			return err
		}
	}
	inv.settles = nil
	var prev int64
	var absent []uint64
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		v, err := tx.Vault(inv.ino)
		if err != nil {
			return err
		}
		prev = v.Merged
		if rec.Date <= prev {
			return nil // not newer than the last one: it proves nothing again
		}
		for a, err := range tx.Archives(inv.ino) {
			if err != nil {
				return err
			}
			if overdue(a, rec) {
				absent = append(absent, a.Num)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n := len(absent); n > 0 {
		r.log.Warn("the inventory does not list archives it should", "vault", inv.name, "archives", n)
	}
	for len(absent) > 0 {
		n := min(len(absent), mergeBatch)
		var lost []catalog.Archive
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			lost = lost[:0]
			for _, num := range absent[:n] {
				a, err := tx.Archive(num)
				if errors.Is(err, catalog.ErrNotExist) || err == nil && !overdue(a, rec) {
					continue
				}
				if err != nil {
					return err
				}
				if a.Misses++; a.Misses >= 2 {
					a.State = catalog.Missing
					lost = append(lost, a)
				}
				if err := tx.PutArchive(a); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, a := range lost {
			r.log.Error("an archive is gone from the vault", "vault", inv.name, "archive", a.ID, "path", r.pathOf(a.Ino))
			r.markDamaged(verKey{a.Ino, a.V}, missingText)
			r.attrChanged(a.Ino)
		}
		stand, err := r.standIns(lost, rec.Started)
		if err != nil {
			return err
		}
		for _, s := range stand {
			if err := r.standIn(s); err != nil {
				return err
			}
		}
		absent = absent[n:]
	}
	for _, e := range inv.unsure {
		if err := m.add(e); err != nil {
			return err
		}
	}
	if err := m.flush(); err != nil {
		return err
	}
	inv.unsure = nil
	rec.Active = false
	_, err = r.e.catalog.Update(func(tx *catalog.Tx) error {
		v, err := tx.Vault(inv.ino)
		if err != nil {
			return err
		}
		v.InventoryJob, v.InventoryMarker = "", ""
		v.Merged = max(v.Merged, rec.Date, 1)
		if err := tx.PutVault(v); err != nil {
			return err
		}
		return putInventory(tx, inv.ino, rec)
	})
	return err
}

// overdue reports whether the inventory should have listed a. Inventories lag behind by a day or two.
func overdue(a catalog.Archive, rec inventoryRecord) bool {
	return a.State == catalog.Live && a.ID != "" && a.Confirmed < rec.Started && a.Created+int64(inventoryLag) < rec.Date
}
