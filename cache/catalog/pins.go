package catalog

import (
	"context"
	"errors"
	"iter"
	"slices"
)

// metaPins says that the index of pinned inodes has all of them. Catalogs of programs that did not keep it lack both, until IndexPins
// was called. Such an older program may still use the catalog afterwards: what it unpins is passed over
// later, and what it pins is missing from the index until a check mends that.
const metaPins = "catalog.pins"

var pinsKept = []byte("1")

// Pinned iterates over the inodes that are pinned, by number; in an older catalog over those that were since it is used, until IndexPins was called.
func (tx *Tx) Pinned() iter.Seq2[Inode, error] {
	return each(tx, []byte{tPin}, func(k, _ []byte) (Inode, error) {
		i, err := tx.Inode(num(k, 0))
		if err == nil && !i.Pinned {
			err = ErrNotExist
		}
		return i, err
	})
}

// IndexPins makes the index of pinned inodes where there is none yet, and reports whether it did. It reads every inode then, which takes
// seconds when there are a million; ctx ends it, and what is there of it by then does no harm. Errors: as Reclaim's.
func (c *Catalog) IndexPins(ctx context.Context) (made bool, err error) {
	var pinned []uint64
	kept := false
	err = c.View(func(tx *Tx) error {
		_, err := tx.Meta(metaPins)
		if kept = err == nil; kept || !errors.Is(err, ErrNotExist) {
			return err
		}
		err = tx.scan([]byte{tInode}, nil, func(k, v []byte) bool {
			if i, err := decodeInode(k, v); err == nil && i.Pinned { // a damaged one is for a check to report
				pinned = append(pinned, i.Ino)
			}
			return ctx.Err() == nil
		})
		return errors.Join(err, ctx.Err())
	})
	if err != nil || kept {
		return false, err
	}
	for chunk := range slices.Chunk(pinned, 1000) {
		if _, err := c.Reclaim(func(tx *Tx) error {
			for _, ino := range chunk {
				i, err := tx.Inode(ino)
				if missing(err) != nil {
					return err
				}
				if err != nil || !i.Pinned {
					continue // not any more
				}
				if err := tx.put(pinKey(&i), nil); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return false, err
		}
	}
	// Last: who is killed before begins anew.
	_, err = c.Reclaim(func(tx *Tx) error { return tx.PutMeta(metaPins, pinsKept) })
	return err == nil, err
}
