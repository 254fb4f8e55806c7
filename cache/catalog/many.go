package catalog

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// Listing is an entry of a directory with what stat(2) shows of it.
type Listing struct {
	Dirent
	Inode   Inode   // Ino 0: the entry names nothing
	Version Version // of a regular file; V 0: none
}

// ReadDirPlus is ReadDir with inodes and versions, for View only. Files made one after
// the other have numbers, and so keys, near each other: reading them in the order of their
// numbers with one iterator takes a tenth of the time of looking each up.
func (tx *Tx) ReadDirPlus(dir uint64, after uint64, limit int) ([]Listing, error) {
	names, err := tx.ReadDir(dir, after, limit)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	list := make([]Listing, len(names))
	order := make([]int, len(names))
	for i, d := range names {
		list[i].Dirent = d
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(list[a].Ino, list[b].Ino) })
	key := make([]byte, 0, 17)
	err = tx.inOrder(tInode, len(order), func(i int) []byte {
		return appendKey(key[:0], tInode, list[order[i]].Ino)
	}, func(i int, k, v []byte) (err error) {
		list[order[i]].Inode, err = decodeInode(k, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	order = slices.DeleteFunc(order, func(i int) bool { return list[i].Inode.Version == 0 || list[i].Inode.Mode&sIFMT != sIFREG })
	err = tx.inOrder(tVersion, len(order), func(i int) []byte {
		n := &list[order[i]].Inode
		return appendKey(key[:0], tVersion, n.Ino, n.Version)
	}, func(i int, k, v []byte) (err error) {
		list[order[i]].Version, err = decodeVersion(k, v)
		return err
	})
	return list, err
}

// near is how many keys are passed by before the iterator is placed anew.
const near = 8

// inOrder reads n records whose keys ascend. Those that do not exist are left out.
func (tx *Tx) inOrder(table byte, n int, key func(i int) []byte, found func(i int, key, val []byte) error) error {
	if n == 0 {
		return nil
	}
	if tx.o != nil {
		return errUpdate
	}
	it := tx.base.NewIterator(badger.IteratorOptions{Prefix: []byte{table}})
	defer it.Close()
	placed := false
	for i := range n {
		k := key(i)
		order := -1
		if placed {
			for range near {
				if !it.Valid() {
					break
				}
				if order = bytes.Compare(it.Item().Key(), k); order >= 0 {
					break
				}
				it.Next()
			}
		}
		if !placed || order < 0 {
			it.Seek(k)
			placed = true
			if !it.Valid() {
				return nil // the rest lies behind
			}
			order = bytes.Compare(it.Item().Key(), k)
		}
		if order != 0 {
			continue
		}
		if err := it.Item().Value(func(v []byte) error { return found(i, k, v) }); err != nil {
			return err
		}
	}
	return nil
}
