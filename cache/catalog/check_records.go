package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// versions checks contents against inodes, archives and their indexes.
func (l *looker) versions() error {
	inodes, versions := l.cursor(tInode), l.cursor(tVersion)
	defer inodes.close()
	defer versions.close()
	for {
		ino := min(inodes.num(), versions.num())
		if ino == math.MaxUint64 {
			break
		}
		if err := l.pause(); err != nil {
			return err
		}
		var current uint64 // that no version was found for
		there := inodes.num() == ino
		if there {
			err := inodes.it.Item().Value(func(v []byte) error {
				if i, err := decodeInode(inodes.key(), v); err == nil { // else reported
					current = i.Version
				}
				return nil
			})
			if err != nil {
				return err
			}
			inodes.next()
		}
		for ; versions.num() == ino; versions.next() {
			key := versions.key()
			if num(key, 1) == current {
				current = 0
			}
			if err := versions.it.Item().Value(func(val []byte) error { return l.version(key, val, there) }); err != nil {
				return err
			}
		}
		if current != 0 {
			if err := l.add(nil, "inode %d has content %d, of which there is no record", ino, current); err != nil {
				return err
			}
		}
	}
	for _, table := range []byte{tStaged, tLocal} {
		if err := l.strays(table, func(tx *Tx, key []byte) (bool, error) {
			v, err := tx.Version(lastNum(key[:len(key)-8]), lastNum(key))
			return err == nil && (bytes.Equal(key, stagedKey(&v)) || bytes.Equal(key, localKey(&v))), missing(err)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (l *looker) version(key, val []byte, there bool) error {
	v, err := decodeVersion(key, val)
	if err != nil {
		return l.add(nil, "version: %v", err)
	}
	l.stats.countVersion(&v, 1)
	l.maxID = max(l.maxID, v.Local)
	if !there {
		if err := l.add(nil, "version %d of inode %d, which does not exist; its bytes are kept", v.V, v.Ino); err != nil {
			return err
		}
	}
	for _, e := range v.Extents {
		if has, err := l.tx.has(key1(tArchive, e.Archive)); err != nil {
			return err
		} else if !has {
			if err := l.add(nil, "version %d of inode %d is in archive %d, of which there is no record", v.V, v.Ino, e.Archive); err != nil {
				return err
			}
		}
	}
	for _, index := range [][]byte{stagedKey(&v), localKey(&v)} {
		if err := l.indexed(index, key, "version %d of inode %d", v.V, v.Ino); err != nil {
			return err
		}
	}
	return nil
}

// indexed reports an index entry that should be there and is not; what it is for is at key.
func (l *looker) indexed(index, key []byte, format string, args ...any) error {
	l.should(index)
	if index == nil || !l.detailed {
		return nil
	}
	has, err := l.tx.has(index)
	if err != nil || has {
		return err
	}
	before, err := l.tx.get(key)
	if err != nil {
		return err
	}
	before = bytes.Clone(before)
	return l.add(func(tx *Tx) (bool, error) {
		if now, err := tx.get(key); err != nil || !bytes.Equal(now, before) {
			return false, err
		}
		return true, tx.put(index, nil)
	}, format+" is missing from index %q", append(args, index[0])...)
}

// strays reports index entries of a table that stand for nothing.
func (l *looker) strays(table byte, right func(tx *Tx, key []byte) (bool, error)) error {
	return l.each(table, func(key, _ []byte) error {
		if l.is(key); !l.detailed {
			return nil
		}
		ok, err := right(l.tx, key)
		if err != nil || ok {
			return err
		}
		return l.add(deleteStray(key, func(tx *Tx) (bool, error) { return right(tx, key) }), "index %q has %x, which stands for nothing", table, key[1:])
	})
}

// archives checks archives against their indexes.
func (l *looker) archives() error {
	if err := l.each(tArchive, func(key, val []byte) error {
		a, err := decodeArchive(key, val)
		if err != nil {
			return l.add(nil, "archive: %v", err)
		}
		l.maxID = max(l.maxID, a.Num)
		for _, index := range archiveIndexes {
			if err := l.indexed(index(&a), key, "archive %d", a.Num); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for n, table := range []byte{tArchiveID, tIntent, tTrash} {
		if err := l.strays(table, func(tx *Tx, key []byte) (bool, error) {
			a, err := tx.Archive(lastNum(key))
			return err == nil && bytes.Equal(key, archiveIndexes[n](&a)), missing(err)
		}); err != nil {
			return err
		}
	}
	return nil
}

// rest checks the small tables.
func (l *looker) rest() error {
	for _, t := range []struct {
		table byte
		what  string
		check func(key, val []byte) error
	}{
		{tUpload, "upload", func(k, v []byte) error { _, err := decodeUpload(k, v); return err }},
		{tRetrieval, "retrieval", func(k, v []byte) error { _, err := decodeRetrieval(k, v); return err }},
		{tMeta, "setting", func(k, v []byte) error { _, err := decodeBytes(k, v); return err }},
		{tXattr, "attribute", func(k, v []byte) error {
			if _, err := decodeBytes(k, v); err != nil {
				return err
			}
			has, err := l.tx.has(key1(tInode, num(k, 0)))
			if err == nil && !has {
				err = fmt.Errorf("attribute %q of inode %d, which does not exist", k[9:], num(k, 0))
			}
			return err
		}},
		{tOrphan, "orphan", func(k, _ []byte) error {
			has, err := l.tx.has(key1(tInode, num(k, 0)))
			if err == nil && !has {
				err = fmt.Errorf("inode %d is to be reclaimed but does not exist", num(k, 0))
			}
			return err
		}},
		{tVault, "vault", func(k, v []byte) error {
			w, err := decodeVault(k, v)
			if err == nil {
				_, err = l.tx.VaultByName(w.Name)
			}
			if err == nil {
				_, err = l.tx.Inode(w.Ino)
			}
			l.should(keyString(tVaultName, w.Name))
			if errors.Is(err, ErrNotExist) {
				err = fmt.Errorf("%q has no directory or cannot be found by its name", w.Name)
			}
			return err
		}},
	} {
		if err := l.each(t.table, func(k, v []byte) error {
			if err := t.check(k, v); err != nil {
				return l.add(nil, "%s: %v", t.what, err)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := l.strays(tPin, func(tx *Tx, key []byte) (bool, error) {
		i, err := tx.Inode(num(key, 0))
		return err == nil && i.Pinned, missing(err)
	}); err != nil {
		return err
	}
	return l.strays(tVaultName, func(tx *Tx, key []byte) (bool, error) {
		ino, err := load(tx, key, decodeNumber)
		if err != nil {
			return false, missing(err)
		}
		v, err := tx.Vault(ino)
		return err == nil && v.Name == string(key[1:]), missing(err)
	})
}

// counts checks the totals and the counter.
func (l *looker) counts() error {
	next, err := load(l.tx, counterKey, decodeNumber)
	if missing(err) != nil {
		return err
	}
	if l.maxID >= firstID && next <= l.maxID {
		if err := l.add(func(tx *Tx) (bool, error) {
			if tx.c.nextID > l.maxID {
				return true, tx.put(counterKey, encodeNumber(counterKey, tx.c.nextID))
			}
			tx.c.nextID = l.maxID + idsSkipped
			tx.NextID()
			return true, nil
		}, "the next number to give out is %d, but %d is in use", next, l.maxID); err != nil {
			return err
		}
	}
	b, err := l.tx.get(stateKey)
	if err != nil {
		return err
	}
	s, err := decodeState(b)
	if err != nil {
		return err
	}
	l.stats.Seq = s.stats.Seq
	if l.stats == s.stats {
		return nil
	}
	return l.add(func(tx *Tx) (bool, error) {
		now, err := countAll(tx)
		if err != nil {
			return false, err
		}
		is := tx.c.pending
		is.add(&tx.delta)
		now.Seq = is.Seq
		if now == is {
			return false, nil
		}
		tx.delta.add(&now)
		is.negate()
		tx.delta.add(&is)
		return true, tx.put(counterKey, encodeNumber(counterKey, tx.c.nextID)) // the counts are stored with a record
	}, "there are %+v, but the counts say %+v", l.stats, s.stats)
}
