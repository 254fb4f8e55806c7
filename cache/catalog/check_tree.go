package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"time"

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

// missing makes the absence of a record no error.
func missing(err error) error {
	if errors.Is(err, ErrNotExist) || errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}

// deleteStray removes an index entry unless it is right by now.
func deleteStray(key []byte, right func(tx *Tx) (bool, error)) func(tx *Tx) (bool, error) {
	return func(tx *Tx) (bool, error) {
		if has, err := tx.has(key); err != nil || !has {
			return false, err
		}
		if ok, err := right(tx); err != nil || ok {
			return false, err
		}
		return true, tx.del(key)
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

// mendDangling removes a name of nothing. If there is a content or entries that
// only miss their inode, it makes one.
func mendDangling(tx *Tx, d Dirent) (bool, error) {
	if now, err := load(tx, key2(tEntry, d.Parent, d.Cookie), decodeEntry); err != nil || now != d {
		return false, missing(err)
	}
	if _, err := tx.Inode(d.Ino); !errors.Is(err, ErrNotExist) {
		return false, err
	}
	versions, err := tx.Versions(d.Ino)
	if err != nil {
		return false, err
	}
	kid, err := tx.first(key1(tEntry, d.Ino))
	if err != nil {
		return false, err
	}
	if len(versions) == 0 && kid == nil {
		if err := tx.deleteDirent(&d); err != nil {
			return false, err
		}
		_, err := recount(tx, d.Parent)
		return true, err
	}
	p, err := tx.Inode(d.Parent)
	if err != nil {
		return false, err
	}
	now := time.Now().UnixNano()
	i := Inode{
		Ino: d.Ino, Vault: p.Vault, Mode: d.Type | p.Mode&0o700, UID: p.UID, GID: p.GID,
		Atime: now, Mtime: now, Ctime: now, Btime: now,
	}
	if d.Parent == RootIno {
		i.Vault = i.Ino
	}
	if n := len(versions); n > 0 {
		v := &versions[n-1]
		i.Version, i.Size, i.Mtime = v.V, v.Size, v.Mtime
	}
	if err := tx.PutInode(i); err != nil {
		return false, err
	}
	_, err = recount(tx, d.Ino)
	return true, err
}

// inode checks what an inode says of itself.
func (l *looker) inode(i *Inode, names uint32, up uint64, kids, subdirs int64) error {
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

// recount makes an inode say what the tables do.
func recount(tx *Tx, ino uint64) (bool, error) {
	i, err := tx.Inode(ino)
	if err != nil {
		return false, missing(err)
	}
	was := i
	names, err := tx.Parents(ino)
	if err != nil {
		return false, err
	}
	if !i.isDir() {
		i.Nlink = uint32(len(names))
	} else {
		var kids, subdirs int64
		var bad error
		if err := tx.scan(key1(tEntry, ino), nil, func(key, v []byte) bool {
			var d Dirent
			d, bad = decodeEntry(key, v)
			kids++
			if d.Type == sIFDIR {
				subdirs++
			}
			return bad == nil
		}); err != nil || bad != nil {
			return false, errors.Join(err, bad)
		}
		i.Entries, i.Nlink = kids, uint32(2+subdirs)
		if ino != RootIno && len(names) == 1 {
			i.Parent = names[0].Parent
		}
	}
	if i == was {
		return false, nil
	}
	return true, tx.PutInode(i)
}

// lostFound is where what has no name gets one, in the vault it belongs to.
const lostFound = "lost+found"

// rescue names an inode that lost its name.
func rescue(tx *Tx, ino uint64) (bool, error) {
	i, err := tx.Inode(ino)
	if err != nil {
		return false, missing(err)
	}
	orphan, err := tx.has(key1(tOrphan, ino))
	if err != nil || orphan {
		return false, err
	}
	if names, err := tx.Parents(ino); err != nil || len(names) > 0 {
		return false, err
	}
	if i.Vault == i.Ino {
		return false, errors.New("it is a vault's directory")
	}
	now := time.Now().UnixNano()
	d, err := tx.Lookup(i.Vault, lostFound)
	if errors.Is(err, ErrNotExist) {
		var dir Inode
		if dir, err = tx.Create(i.Vault, lostFound, Inode{Mode: sIFDIR | 0o700}, now); err == nil {
			d.Ino = dir.Ino
		}
	}
	if err != nil {
		return false, fmt.Errorf("%s in vault directory %d: %w", lostFound, i.Vault, err)
	}
	e := Dirent{Parent: d.Ino, Name: fmt.Sprintf("#%d", ino), Ino: ino, Type: i.Mode & sIFMT, Cookie: tx.NextID()}
	if err := tx.putDirent(&e); err != nil {
		return false, err
	}
	if _, err := recount(tx, ino); err != nil {
		return false, err
	}
	_, err = recount(tx, d.Ino)
	return true, err
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
