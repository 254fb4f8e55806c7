package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// Tx reads, and in Update changes, the catalog. Reads and iterations in Update see its own changes.
// Getters return ErrNotExist for what is absent. An iteration may be broken off,
// and in Update what it goes over may be changed meanwhile.
type Tx struct {
	c      *Catalog
	base   *badger.Txn
	o      *overlay // nil in View
	serial uint64
	delta  Stats // what this Update adds to the counts
}

// maxValue keeps every value inside badger's tables: a value log would need collecting, and its damage shows nowhere.
const maxValue = 256 << 10

// get returns the value of a key, nil when absent. It is valid until the next call.
func (tx *Tx) get(key []byte) ([]byte, error) {
	if tx.o != nil {
		if e := tx.o.entry(key); e != nil {
			if e.st.present() {
				return e.val, nil
			}
			return nil, nil
		}
	}
	item, err := tx.base.Get(key)
	if err == badger.ErrKeyNotFound {
		if tx.o != nil {
			tx.o.learn(key, nil)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tx.o != nil {
		v, err := item.ValueCopy(nil)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = []byte{}
		}
		tx.o.learn(key, v)
		return v, nil
	}
	var v []byte
	err = item.Value(func(b []byte) error { v = b; return nil })
	if v == nil {
		v = []byte{}
	}
	return v, err
}

func (tx *Tx) has(key []byte) (bool, error) {
	v, err := tx.get(key)
	return v != nil, err
}

var errView = errors.New("change in View")

func (tx *Tx) put(key, val []byte) error {
	if tx.o == nil {
		return errView
	}
	if len(val) > maxValue || len(key) > 4096 {
		return fmt.Errorf("%w: record of %d bytes", ErrInvalid, len(val)+len(key))
	}
	if val == nil {
		val = []byte{}
	}
	tx.o.set(key, val, tx.serial)
	return nil
}

func (tx *Tx) del(key []byte) error {
	if tx.o == nil {
		return errView
	}
	tx.o.set(key, nil, tx.serial)
	return nil
}

// move changes an index: the entry from goes, to comes; nil for none.
func (tx *Tx) move(from, to []byte) error {
	if from != nil && bytes.Equal(from, to) {
		return nil
	}
	if from != nil {
		if err := tx.del(from); err != nil {
			return err
		}
	}
	if to != nil {
		return tx.put(to, nil)
	}
	return nil
}

// scan calls fn with the pairs below prefix whose key is at least from, in
// order, until fn returns false. fn must not change the transaction; key and value are valid during the call.
func (tx *Tx) scan(prefix, from []byte, fn func(key, val []byte) bool) error {
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	var own []string
	if tx.o != nil {
		own = tx.o.keys(prefix[0], string(from))
	}
	// ownBefore hands out the batch's own entries up to a key; false when fn has had enough.
	ownBefore := func(key []byte) bool {
		for len(own) > 0 && (key == nil || own[0] < string(key)) {
			k := own[0]
			if len(k) < len(prefix) || k[:len(prefix)] != string(prefix) {
				own = nil
				return true
			}
			own = own[1:]
			if e := tx.o.m[k]; e.st == dirtyPut && !fn([]byte(k), e.val) {
				return false
			}
		}
		return true
	}
	it := tx.base.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		key := item.Key()
		if !ownBefore(key) {
			return nil
		}
		if len(own) > 0 && own[0] == string(key) {
			e := tx.o.m[own[0]]
			own = own[1:]
			if e.st.dirty() {
				if e.st == dirtyPut && !fn(key, e.val) {
					return nil
				}
				continue
			}
		}
		more := true
		if err := item.Value(func(v []byte) error { more = fn(key, v); return nil }); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
	ownBefore(nil)
	return nil
}

// first returns the first key below prefix, nil for none.
func (tx *Tx) first(prefix []byte) (key []byte, err error) {
	err = tx.scan(prefix, prefix, func(k, _ []byte) bool {
		key = bytes.Clone(k)
		return false
	})
	return key, err
}

const chunk = 256

// each iterates over the pairs below prefix in chunks, so that whoever uses it may
// change the transaction between two steps and no iterator stays open. get makes the result
// from a pair; it may read the transaction, and skips the pair by returning ErrNotExist.
func each[T any](tx *Tx, prefix []byte, get func(key, val []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		type pair struct{ key, val []byte }
		var pairs []pair
		for from := prefix; ; {
			pairs = pairs[:0]
			err := tx.scan(prefix, from, func(k, v []byte) bool {
				pairs = append(pairs, pair{bytes.Clone(k), bytes.Clone(v)})
				return len(pairs) < chunk
			})
			if err != nil {
				yield(none, err)
				return
			}
			for _, p := range pairs {
				v, err := get(p.key, p.val)
				if errors.Is(err, ErrNotExist) {
					continue
				}
				if !yield(v, err) || err != nil {
					return
				}
			}
			if len(pairs) < chunk {
				return
			}
			from = after(pairs[len(pairs)-1].key)
		}
	}
}

func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// load reads and decodes a record.
func load[T any](tx *Tx, key []byte, decode func(key, b []byte) (T, error)) (T, error) {
	b, err := tx.get(key)
	if err == nil && b == nil {
		err = ErrNotExist
	}
	if err != nil {
		var none T
		return none, err
	}
	return decode(key, b)
}

// loadOld is load for what a change replaces: nil when absent.
func loadOld[T any](tx *Tx, key []byte, decode func(key, b []byte) (T, error)) (*T, error) {
	v, err := load(tx, key, decode)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// firstID leaves room below for the root inode and for listings' "." and "..".
const firstID = 16

// NextID allocates a number never used before (inodes, archives, retrievals, local files).
// Numbers of an Update that failed or was lost to a power failure are not used again.
// It is for Update only and panics in View.
func (tx *Tx) NextID() uint64 {
	if tx.o == nil {
		panic(errView)
	}
	id := tx.c.nextID
	tx.c.nextID++
	tx.o.set(counterKey, encodeNumber(counterKey, tx.c.nextID), tx.serial)
	return id
}

// ---- inodes ----

// Inode returns an inode. Errors: ErrNotExist.
func (tx *Tx) Inode(ino uint64) (Inode, error) {
	return load(tx, key1(tInode, ino), decodeInode)
}

// PutInode stores an inode as it is.
func (tx *Tx) PutInode(i Inode) error {
	if i.Ino == 0 {
		return fmt.Errorf("%w: inode 0", ErrInvalid)
	}
	key := key1(tInode, i.Ino)
	old, err := loadOld(tx, key, decodeInode)
	if err != nil {
		return err
	}
	tx.countInode(old, -1)
	tx.countInode(&i, 1)
	return tx.put(key, encodeInode(key, &i))
}

// putNewInode is PutInode for a number that was just allocated.
func (tx *Tx) putNewInode(i *Inode) error {
	key := key1(tInode, i.Ino)
	tx.countInode(i, 1)
	return tx.put(key, encodeInode(key, i))
}

// DeleteInode removes an inode with its xattrs, not its versions.
func (tx *Tx) DeleteInode(ino uint64) error {
	key := key1(tInode, ino)
	old, err := loadOld(tx, key, decodeInode)
	if err != nil || old == nil {
		return err
	}
	tx.countInode(old, -1)
	names, err := tx.Xattrs(ino)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := tx.del(keyName(tXattr, ino, name)); err != nil {
			return err
		}
	}
	return tx.del(key)
}

// ---- names ----

// Lookup finds a name in a directory. Errors: ErrNotExist.
func (tx *Tx) Lookup(parent uint64, name string) (Dirent, error) {
	return load(tx, keyName(tName, parent, name), decodeName)
}

// ReadDir returns up to limit entries of dir with Cookie > after, by cookie.
// Cookies of entries are at least 16.
func (tx *Tx) ReadDir(dir uint64, after uint64, limit int) ([]Dirent, error) {
	if after == 1<<64-1 || limit <= 0 {
		return nil, nil
	}
	var list []Dirent
	var bad error
	err := tx.scan(key1(tEntry, dir), key2(tEntry, dir, after+1), func(k, v []byte) bool {
		var d Dirent
		if d, bad = decodeEntry(k, v); bad != nil {
			return false
		}
		list = append(list, d)
		return len(list) < limit
	})
	return list, errors.Join(err, bad)
}

// Parents returns the entries that name ino (hard links have several); for paths shown to people.
func (tx *Tx) Parents(ino uint64) ([]Dirent, error) {
	return collect(each(tx, key1(tParent, ino), func(k, _ []byte) (Dirent, error) {
		return load(tx, key2(tEntry, num(k, 1), num(k, 2)), decodeEntry)
	}))
}

// maxDepth ends a climb that damage made endless.
const maxDepth = 1 << 16

// Path returns one path of ino from the account root, without leading slash ("vault/dir/name"); ErrNotExist when unlinked.
func (tx *Tx) Path(ino uint64) (string, error) {
	var names []string
	for depth := 0; ino != RootIno; depth++ {
		key, err := tx.first(key1(tParent, ino))
		if err != nil {
			return "", err
		}
		if key == nil {
			return "", ErrNotExist
		}
		d, err := load(tx, key2(tEntry, num(key, 1), num(key, 2)), decodeEntry)
		if err != nil {
			return "", err
		}
		if depth == maxDepth {
			return "", fmt.Errorf("%w: directory %d is below itself", ErrDamaged, ino)
		}
		names = append(names, d.Name)
		ino = d.Parent
	}
	n := 0
	for _, name := range names {
		n += len(name) + 1
	}
	b := make([]byte, 0, n)
	for _, name := range slices.Backward(names) {
		if len(b) > 0 {
			b = append(b, '/')
		}
		b = append(b, name...)
	}
	return string(b), nil
}

func (tx *Tx) putDirent(d *Dirent) error {
	key := keyName(tName, d.Parent, d.Name)
	if err := tx.put(key, encodeName(key, d)); err != nil {
		return err
	}
	key = key2(tEntry, d.Parent, d.Cookie)
	if err := tx.put(key, encodeEntry(key, d)); err != nil {
		return err
	}
	return tx.put(key3(tParent, d.Ino, d.Parent, d.Cookie), nil)
}

func (tx *Tx) deleteDirent(d *Dirent) error {
	return errors.Join(
		tx.del(keyName(tName, d.Parent, d.Name)),
		tx.del(key2(tEntry, d.Parent, d.Cookie)),
		tx.del(key3(tParent, d.Ino, d.Parent, d.Cookie)))
}

// ---- orphans ----

// Orphans are inodes whose last name is gone while handles were open; reclaimed at start.
func (tx *Tx) Orphans() ([]uint64, error) {
	return collect(each(tx, []byte{tOrphan}, func(k, _ []byte) (uint64, error) { return num(k, 0), nil }))
}

// PutOrphan notes an inode to be reclaimed.
func (tx *Tx) PutOrphan(ino uint64) error { return tx.put(key1(tOrphan, ino), nil) }

// DeleteOrphan takes the note back.
func (tx *Tx) DeleteOrphan(ino uint64) error { return tx.del(key1(tOrphan, ino)) }

// ---- extended attributes and settings ----

// Xattr returns the caller's own copy of an attribute. Errors: ErrNoAttr.
func (tx *Tx) Xattr(ino uint64, name string) ([]byte, error) {
	v, err := load(tx, keyName(tXattr, ino, name), decodeBytes)
	if errors.Is(err, ErrNotExist) {
		err = ErrNoAttr
	}
	return v, err
}

// SetXattr stores an attribute; create and replace are XATTR_CREATE (ErrExist) and XATTR_REPLACE (ErrNoAttr).
func (tx *Tx) SetXattr(ino uint64, name string, value []byte, create, replace bool) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("%w: attribute name of %d bytes", ErrInvalid, len(name))
	}
	key := keyName(tXattr, ino, name)
	has, err := tx.has(key)
	switch {
	case err != nil:
		return err
	case has && create:
		return ErrExist
	case !has && replace:
		return ErrNoAttr
	}
	return tx.put(key, encodeBytes(key, value))
}

// RemoveXattr removes an attribute. Errors: ErrNoAttr.
func (tx *Tx) RemoveXattr(ino uint64, name string) error {
	key := keyName(tXattr, ino, name)
	has, err := tx.has(key)
	if err == nil && !has {
		err = ErrNoAttr
	}
	if err != nil {
		return err
	}
	return tx.del(key)
}

// Xattrs lists the names of an inode's attributes in order.
func (tx *Tx) Xattrs(ino uint64) ([]string, error) {
	var names []string
	prefix := key1(tXattr, ino)
	err := tx.scan(prefix, prefix, func(k, _ []byte) bool {
		names = append(names, string(k[9:]))
		return true
	})
	return names, err
}

// Meta is a small named value (daily byte counts of the guard, allowances, settings). Errors: ErrNotExist.
func (tx *Tx) Meta(name string) ([]byte, error) {
	return load(tx, keyString(tMeta, name), decodeBytes)
}

// PutMeta stores a named value; nil removes it.
func (tx *Tx) PutMeta(name string, value []byte) error {
	key := keyString(tMeta, name)
	if value == nil {
		return tx.del(key)
	}
	return tx.put(key, encodeBytes(key, value))
}
