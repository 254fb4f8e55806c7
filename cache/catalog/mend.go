package catalog

import (
	"errors"
	"fmt"
	"time"
)

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
