package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"

	"github.com/dgraph-io/badger/v4"
)

// tree compares the records with each other at one moment. Tables that are
// ordered by inode number are read side by side, so that nothing grows with the catalog but the directories' numbers.
//
// Whether an index holds exactly what it should is decided by sums over hashes
// of its keys, which needs no look-ups; only if a sum is wrong does a second pass find out where.
func (k *checker) tree() error {
	found, err := k.look()
	if err != nil {
		return err
	}
	// Mending makes Updates; by now the View is over, and its old versions can go.
	for _, f := range found {
		if err := k.pause(); err != nil {
			return err
		}
		if err := k.problem(f.fix, "%s", f.text); err != nil {
			return err
		}
	}
	return nil
}

type finding struct {
	text string
	fix  func(tx *Tx) (bool, error)
}

// maxFindings bounds a report nobody reads to its end.
const maxFindings = 10000

var errEnough = errors.New("enough")

// looker is one pass over the records.
type looker struct {
	*checker
	tx       *Tx
	detailed bool // look up what the sums only cover
	suspect  bool // a detailed pass is needed
	seed     maphash.Seed
	sums     [256]uint64 // by table: hashes of what should be there less those of what is
	found    []finding
	dirs     map[uint64]uint64 // directories and the ones above them
	maxID    uint64
	stats    Stats
}

func (k *checker) look() (found []finding, err error) {
	err = k.c.View(func(tx *Tx) error {
		for _, detailed := range []bool{false, true} {
			l := &looker{checker: k, tx: tx, detailed: detailed, seed: maphash.MakeSeed(), dirs: map[uint64]uint64{}}
			if err := l.passes(); err != nil {
				return err
			}
			found = l.found
			if !l.suspect && l.sums == [256]uint64{} {
				break
			}
		}
		return nil
	})
	return found, err
}

func (l *looker) passes() error {
	for _, pass := range []func() error{l.inodes, l.names, l.reach, l.versions, l.archives, l.rest, l.counts} {
		if err := pass(); err == errEnough {
			l.found = append(l.found, finding{text: fmt.Sprintf("more than %d problems; the rest is not listed", maxFindings)})
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// should and is count a key of an index table, nil for none.
func (l *looker) should(key []byte) {
	if key != nil {
		l.sums[key[0]] += maphash.Bytes(l.seed, key)
	}
}

func (l *looker) is(key []byte) { l.sums[key[0]] -= maphash.Bytes(l.seed, key) }

// nameSum is what a name and an entry of the listing must agree on.
func nameSum(d *Dirent) []byte {
	b := keyName(tName, d.Parent, d.Name)
	b = binary.BigEndian.AppendUint64(b, d.Cookie)
	b = binary.BigEndian.AppendUint64(b, d.Ino)
	return binary.BigEndian.AppendUint32(b, d.Type)
}

func (l *looker) add(fix func(tx *Tx) (bool, error), format string, args ...any) error {
	if len(l.found) >= maxFindings {
		return errEnough
	}
	l.found = append(l.found, finding{fmt.Sprintf(format, args...), fix})
	return l.pause()
}

// cursor reads a table in order.
type cursor struct{ it *badger.Iterator }

func (l *looker) cursor(table byte) cursor {
	c := cursor{l.tx.base.NewIterator(badger.IteratorOptions{Prefix: []byte{table}})}
	c.it.Rewind()
	return c
}

func (c cursor) close() { c.it.Close() }

// num is the first number of the key, the largest there is at the end.
func (c cursor) num() uint64 {
	if !c.it.Valid() {
		return math.MaxUint64
	}
	return num(c.it.Item().Key(), 0)
}

func (c cursor) key() []byte { return c.it.Item().KeyCopy(nil) }

func (c cursor) next() { c.it.Next() }

// inodes checks every inode against its names and, for directories, its entries.
func (l *looker) inodes() error {
	inodes, parents, entries := l.cursor(tInode), l.cursor(tParent), l.cursor(tEntry)
	defer inodes.close()
	defer parents.close()
	defer entries.close()
	for {
		ino := min(inodes.num(), parents.num(), entries.num())
		if ino == math.MaxUint64 {
			return nil
		}
		if err := l.pause(); err != nil {
			return err
		}
		var i *Inode
		if inodes.num() == ino {
			v, err := inodes.it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			got, err := decodeInode(inodes.key(), v)
			inodes.next()
			if err != nil {
				if err := l.add(nil, "inode %d: %v", ino, err); err != nil {
					return err
				}
			} else {
				i = &got
				l.stats.countInode(i, 1)
				l.maxID = max(l.maxID, ino)
			}
		}
		var names uint32
		var up uint64
		for ; parents.num() == ino; parents.next() {
			key := parents.key()
			if l.is(key); !l.detailed {
				names++
				up = num(key, 1)
				continue
			}
			d, err := load(l.tx, key2(tEntry, num(key, 1), num(key, 2)), decodeEntry)
			if err == nil && d.Ino == ino {
				names++
				up = d.Parent
				continue
			}
			if err := l.add(deleteStray(key, func(tx *Tx) (bool, error) {
				d, err := load(tx, key2(tEntry, num(key, 1), num(key, 2)), decodeEntry)
				return err == nil && d.Ino == ino, missing(err)
			}), "inode %d: noted as an entry of directory %d, where it is not", ino, num(key, 1)); err != nil {
				return err
			}
		}
		var kids, subdirs int64
		for ; entries.num() == ino; entries.next() {
			kids++
			var d Dirent
			err := entries.it.Item().Value(func(v []byte) (err error) {
				d, err = decodeEntry(entries.key(), v)
				return err
			})
			if err == nil && d.Type == sIFDIR {
				subdirs++
			}
			if err := l.entry(d, err); err != nil {
				return err
			}
		}
		if i == nil {
			l.suspect = true
			if kids > 0 {
				if err := l.add(nil, "directory %d has %d entries but no record", ino, kids); err != nil {
					return err
				}
			}
			continue // its names are reported where they are listed
		}
		if err := l.inode(i, names, up, kids, subdirs); err != nil {
			return err
		}
	}
}

// entry checks an entry of a listing against the tables that should agree with it.
func (l *looker) entry(d Dirent, err error) error {
	if err != nil {
		return l.add(nil, "directory entry: %v", err)
	}
	l.should(nameSum(&d))
	l.should(key3(tParent, d.Ino, d.Parent, d.Cookie))
	if !l.detailed {
		return nil
	}
	_, err = l.tx.Inode(d.Ino)
	if errors.Is(err, ErrNotExist) {
		if err := l.add(func(tx *Tx) (bool, error) { return mendDangling(tx, d) },
			"%q in directory %d names inode %d, which does not exist", d.Name, d.Parent, d.Ino); err != nil {
			return err
		}
	} else if missing(err) != nil {
		return err
	}
	wrong := func(tx *Tx) (bool, error) {
		if now, err := load(tx, key2(tEntry, d.Parent, d.Cookie), decodeEntry); err != nil || now != d {
			return false, missing(err)
		}
		named, err := tx.Lookup(d.Parent, d.Name)
		if missing(err) != nil {
			return false, err
		}
		noted, err2 := tx.has(key3(tParent, d.Ino, d.Parent, d.Cookie))
		return named != d || !noted, err2
	}
	bad, err := wrong(l.tx)
	if err != nil || !bad {
		return err
	}
	return l.add(func(tx *Tx) (bool, error) {
		if bad, err := wrong(tx); err != nil || !bad {
			return false, err
		}
		if named, err := tx.Lookup(d.Parent, d.Name); err == nil && named.Cookie != d.Cookie {
			return false, fmt.Errorf("the name is taken by inode %d", named.Ino)
		}
		return true, tx.putDirent(&d)
	}, "%q in directory %d is listed but cannot be looked up, or its inode does not know of it", d.Name, d.Parent)
}

// inode checks what an inode says of itself.
func (l *looker) inode(i *Inode, names uint32, up uint64, kids, subdirs int64) error {
	if err := l.indexed(pinKey(i), key1(tInode, i.Ino), "pinned inode %d", i.Ino); err != nil {
		return err
	}
	orphan, err := l.tx.has(key1(tOrphan, i.Ino))
	if err != nil {
		return err
	}
	if orphan && names > 0 {
		if err := l.add(func(tx *Tx) (bool, error) {
			if names, err := tx.Parents(i.Ino); err != nil || len(names) == 0 {
				return false, err
			}
			return true, tx.DeleteOrphan(i.Ino)
		}, "inode %d is to be reclaimed but has %d names", i.Ino, names); err != nil {
			return err
		}
	}
	if names == 0 && !orphan && i.Ino != RootIno {
		return l.add(func(tx *Tx) (bool, error) { return rescue(tx, i.Ino) }, "inode %d (mode %o, %d bytes) has no name", i.Ino, i.Mode, i.Size)
	}
	fix := func(tx *Tx) (bool, error) { return recount(tx, i.Ino) }
	if !i.isDir() {
		if i.Nlink != names {
			return l.add(fix, "inode %d has %d names but says %d", i.Ino, names, i.Nlink)
		}
		return nil
	}
	l.dirs[i.Ino] = up
	if i.Ino == RootIno {
		up = RootIno
		l.dirs[i.Ino] = 0
	}
	if names > 1 {
		if err := l.add(nil, "directory %d has %d names", i.Ino, names); err != nil {
			return err
		}
	}
	if i.Entries != kids || int64(i.Nlink) != 2+subdirs || i.Parent != up {
		return l.add(fix, "directory %d has %d entries, %d of them directories, and is in %d, but says %d, %d and %d",
			i.Ino, kids, subdirs, up, i.Entries, int64(i.Nlink)-2, i.Parent)
	}
	return nil
}

// names checks the table of names against the listing, which entry did the other way round.
func (l *looker) names() error {
	return l.each(tName, func(key, v []byte) error {
		d, err := decodeName(key, v)
		if err != nil {
			return l.add(nil, "name: %v", err)
		}
		if l.is(nameSum(&d)); !l.detailed {
			return nil
		}
		e, err := load(l.tx, key2(tEntry, d.Parent, d.Cookie), decodeEntry)
		if missing(err) != nil {
			return err
		}
		if e == d {
			return nil
		}
		return l.add(func(tx *Tx) (bool, error) {
			if now, err := tx.Lookup(d.Parent, d.Name); err != nil || now != d {
				return false, missing(err)
			}
			switch e, err := load(tx, key2(tEntry, d.Parent, d.Cookie), decodeEntry); {
			case missing(err) != nil:
				return false, err
			case err == nil && e != d:
				return false, fmt.Errorf("its place is taken by %q", e.Name)
			case err == nil:
				return false, nil
			}
			if err := tx.putDirent(&d); err != nil {
				return false, err
			}
			if _, err := recount(tx, d.Ino); err != nil {
				return false, err
			}
			_, err := recount(tx, d.Parent)
			return true, err
		}, "%q in directory %d can be looked up but is not listed", d.Name, d.Parent)
	})
}

// each goes over a table.
func (l *looker) each(table byte, fn func(key, val []byte) error) error {
	c := l.cursor(table)
	defer c.close()
	for ; c.it.Valid(); c.next() {
		if err := l.pause(); err != nil {
			return err
		}
		key := c.key()
		if err := c.it.Item().Value(func(v []byte) error { return fn(key, v) }); err != nil {
			return err
		}
	}
	return nil
}

// reach finds directories that hang together but not on the root.
func (l *looker) reach() error {
	reached := map[uint64]bool{RootIno: true}
	for ino := range l.dirs {
		var path []uint64
		at := ino
		for !reached[at] && at != 0 && len(path) <= maxDepth {
			path = append(path, at)
			at = l.dirs[at]
		}
		if at == 0 {
			continue // a nameless one above: reported
		}
		if !reached[at] {
			if err := l.add(nil, "directory %d is below itself", ino); err != nil {
				return err
			}
			continue
		}
		for _, p := range path {
			reached[p] = true
		}
	}
	return nil
}
