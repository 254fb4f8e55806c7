package catalog

import (
	"errors"
	"fmt"
	"slices"
)

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
	if err := tx.move(pinKey(old), pinKey(&i)); err != nil {
		return err
	}
	return tx.put(key, encodeInode(key, &i))
}

// putNewInode is PutInode for a number that was just allocated.
func (tx *Tx) putNewInode(i *Inode) error {
	key := key1(tInode, i.Ino)
	tx.countInode(i, 1)
	if err := tx.move(nil, pinKey(i)); err != nil {
		return err
	}
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
	if err := tx.move(pinKey(old), nil); err != nil {
		return err
	}
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

// Lookup finds a name in a directory. Errors: ErrNotExist.
func (tx *Tx) Lookup(parent uint64, name string) (Dirent, error) {
	return load(tx, keyName(tName, parent, name), decodeName)
}

// LastID returns the largest number given out so far: names made from now on get larger cookies.
func (tx *Tx) LastID() (uint64, error) {
	next, err := load(tx, counterKey, decodeNumber)
	if errors.Is(err, ErrNotExist) {
		return firstID - 1, nil
	}
	return next - 1, err
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

// Orphans are inodes whose last name is gone while handles were open; reclaimed at start.
func (tx *Tx) Orphans() ([]uint64, error) {
	return collect(each(tx, []byte{tOrphan}, func(k, _ []byte) (uint64, error) { return num(k, 0), nil }))
}

// PutOrphan notes an inode to be reclaimed.
func (tx *Tx) PutOrphan(ino uint64) error { return tx.put(key1(tOrphan, ino), nil) }

// DeleteOrphan takes the note back.
func (tx *Tx) DeleteOrphan(ino uint64) error { return tx.del(key1(tOrphan, ino)) }
