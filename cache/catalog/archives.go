package catalog

import (
	"errors"
	"fmt"
	"iter"
)

// Archive returns an archive by the catalog's number. Errors: ErrNotExist.
func (tx *Tx) Archive(num uint64) (Archive, error) {
	return load(tx, key1(tArchive, num), decodeArchive)
}

// ArchiveByID returns an archive by the service's id. Errors: ErrNotExist.
func (tx *Tx) ArchiveByID(vault uint64, id string) (Archive, error) {
	prefix := keyName(tArchiveID, vault, id)
	return tx.archiveBy(prefix, nil)
}

// ArchiveByIntent returns the archive an upload made. A lost answer may have
// made several; a live one goes before others, then the first recorded. Errors: ErrNotExist.
func (tx *Tx) ArchiveByIntent(intent string) (Archive, error) {
	prefix := append(keyString(tIntent, intent), 0)
	return tx.archiveBy(prefix, func(a *Archive) bool { return a.State == Live })
}

// archiveBy returns the first archive of an index whose keys are prefix and the
// number, one that is better if there is one.
func (tx *Tx) archiveBy(prefix []byte, better func(*Archive) bool) (Archive, error) {
	var found *Archive
	// A longer id or intent may have the same beginning; its keys are longer.
	for a, err := range each(tx, prefix, func(k, _ []byte) (Archive, error) {
		if len(k) != len(prefix)+8 {
			return Archive{}, ErrNotExist
		}
		return tx.Archive(lastNum(k))
	}) {
		if err != nil {
			return Archive{}, err
		}
		if better == nil || better(&a) {
			return a, nil
		}
		if found == nil {
			found = &a
		}
	}
	if found == nil {
		return Archive{}, ErrNotExist
	}
	return *found, nil
}

// PutArchive stores an archive as it is.
func (tx *Tx) PutArchive(a Archive) error { return tx.replaceArchive(a.Num, &a) }

// DeleteArchive forgets an archive; one that is absent is no error.
func (tx *Tx) DeleteArchive(num uint64) error { return tx.replaceArchive(num, nil) }

func (tx *Tx) replaceArchive(num uint64, next *Archive) error {
	if num == 0 {
		return fmt.Errorf("%w: archive 0", ErrInvalid)
	}
	key := key1(tArchive, num)
	old, err := loadOld(tx, key, decodeArchive)
	if err != nil {
		return err
	}
	for _, index := range archiveIndexes {
		var from, to []byte
		if old != nil {
			from = index(old)
		}
		if next != nil {
			to = index(next)
		}
		if err := tx.move(from, to); err != nil {
			return err
		}
	}
	if next == nil {
		return tx.del(key)
	}
	return tx.put(key, encodeArchive(key, next))
}

// Archives iterates over the archives of a vault, those of all vaults for 0.
func (tx *Tx) Archives(vault uint64) iter.Seq2[Archive, error] {
	if vault == 0 {
		return each(tx, []byte{tArchive}, decodeArchive)
	}
	return each(tx, key1(tArchiveID, vault), func(k, _ []byte) (Archive, error) { return tx.Archive(lastNum(k)) })
}

// TrashUntil iterates over archives in Trash with Deadline <= t, by deadline.
func (tx *Tx) TrashUntil(t int64) iter.Seq2[Archive, error] {
	end := sortable(t)
	return func(yield func(Archive, error) bool) {
		for n, err := range each(tx, []byte{tTrash}, func(k, _ []byte) ([2]uint64, error) { return [2]uint64{num(k, 0), num(k, 1)}, nil }) {
			if err != nil {
				yield(Archive{}, err)
				return
			}
			if n[0] > end {
				return
			}
			a, err := tx.Archive(n[1])
			if errors.Is(err, ErrNotExist) {
				continue // deleted since this chunk was read
			}
			if !yield(a, err) || err != nil {
				return
			}
		}
	}
}
