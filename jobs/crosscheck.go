package jobs

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// finding is something an inventory says that the catalog did not.
type finding struct{ id, what string }

// maxFindings bounds what is kept of one inventory.
const maxFindings = 1000

// noteLocked takes findings, each once: a list that broke off is read again.
func (inv *inventory) noteLocked(found []finding) {
	for _, f := range found {
		switch {
		case slices.Contains(inv.findings, f):
		case len(inv.findings) >= maxFindings:
			inv.more++
		default:
			inv.findings = append(inv.findings, f)
		}
	}
}

// checkVault takes an inventory of a vault and reports where it and the catalog disagree: archives that are missing, unknown,
// of another size or hash, or there twice. Nothing is recalled.
func (e *Engine) checkVault(ctx context.Context, v catalog.Vault, report func(string)) error {
	r := e.recall
	var inv *inventory
	for inv == nil || inv.resumed {
		list, err := r.takeInventory(ctx, v.Name, true, nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			report(fmt.Sprintf("the inventory of vault %s failed: %v", v.Name, err))
			return nil
		}
		inv = list[0]
	}
	r.mu.Lock()
	found, more := inv.findings, inv.more
	r.mu.Unlock()
	for _, f := range found {
		path := ""
		err := e.catalog.View(func(tx *catalog.Tx) error {
			a, err := tx.ArchiveByID(v.Ino, f.id)
			if err == nil && a.Ino != 0 {
				path, err = tx.Path(a.Ino)
			}
			return err
		})
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		report(fmt.Sprintf("/%s: archive %s of vault %s %s", path, f.id, v.Name, f.what))
	}
	if more > 0 {
		report(fmt.Sprintf("vault %s: %d more archives do not agree", v.Name, more))
	}
	return e.checkArchives(ctx, v, report)
}

// checkArchives reports what only the whole list shows: archives the last inventory should have held, and
// archives of others that are there twice.
func (e *Engine) checkArchives(ctx context.Context, v catalog.Vault, report func(string)) error {
	type line struct {
		ino  uint64
		what string
	}
	var lines []line
	seed := maphash.MakeSeed()
	first := make(map[uint64]uint64) // by what tells an archive from others: the first such
	err := e.catalog.View(func(tx *catalog.Tx) error {
		rec, err := loadInventory(tx, v.Ino)
		if err != nil {
			return err
		}
		date := time.Unix(0, rec.Date).UTC().Format(time.RFC3339)
		for a, err := range tx.Archives(v.Ino) {
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			say := func(format string, args ...any) {
				lines = append(lines, line{a.Ino, fmt.Sprintf("archive %s of vault %s ", a.ID, v.Name) + fmt.Sprintf(format, args...)})
			}
			switch {
			case a.State == catalog.Missing:
				say("is gone: two inventories, the last of %s, do not list it", date)
			case a.State != catalog.Live || a.ID == "":
			case a.Confirmed < rec.Started && a.Created+int64(inventoryLag) < rec.Date:
				say("is missing from the inventory of %s", date)
			case a.Confirmed < rec.Started && a.Created < rec.Date:
				say("is missing from the inventory of %s; it was uploaded less than two days before, and inventories may lag behind", date)
			default:
				if _, own := parseDescription(a.Description); own {
					continue // its intent makes it unique
				}
				h := maphash.Comparable(seed, [3]any{a.Size, a.TreeHash, a.Description})
				num, ok := first[h]
				if !ok {
					first[h] = a.Num
					continue
				}
				other, err := tx.Archive(num)
				if err != nil {
					return err
				}
				if sameBytes(a, other) && a.Description == other.Description {
					say("holds what archive %s holds, and is described alike", other.ID)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range lines {
		report(e.path(l.ino) + ": " + l.what)
	}
	return nil
}
