package catalog

import (
	"errors"
	"fmt"
)

// Rename flags, as in renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Rename moves a name, replacing newName as POSIX says; replaced is the inode that
// lost a name (Ino 0 for none; Nlink 0: orphan for the caller, as with Unlink;
// a replaced directory is gone already). Vaults cannot be renamed: ErrPerm. Renaming onto another link of the same inode does nothing.
// With RenameExchange replaced is the other inode, which lost nothing. A name that is replaced, or changed within its directory, keeps its place in listings.
// Errors: ErrNotExist, ErrNotDir, ErrIsDir, ErrNotEmpty, ErrExist, ErrLoop, ErrXDev, ErrPerm, ErrInvalid, ErrNameTooLong.
func (tx *Tx) Rename(parent uint64, name string, newParent uint64, newName string, flags uint32, now int64) (moved, replaced Inode, err error) {
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return moved, replaced, fmt.Errorf("%w: rename flags %#x", ErrInvalid, flags)
	}
	p, from, i, err := tx.named(parent, name)
	if err != nil {
		return Inode{}, replaced, err
	}
	q, err := tx.dir(newParent)
	if err != nil {
		return Inode{}, replaced, err
	}
	if err := checkName(newName); err != nil {
		return Inode{}, replaced, err
	}
	to, err := tx.find(newParent, newName)
	if err != nil {
		return Inode{}, replaced, err
	}
	switch {
	case flags&RenameNoReplace != 0 && to != nil:
		err = ErrExist
	case flags&RenameExchange != 0 && to == nil:
		err = ErrNotExist
	case parent == RootIno || newParent == RootIno:
		err = ErrPerm
	case p.Vault != q.Vault:
		err = ErrXDev
	}
	if err != nil {
		return Inode{}, replaced, err
	}
	if to != nil && to.Ino == i.Ino {
		return i, replaced, nil
	}
	var old Inode
	if to != nil {
		if old, err = tx.Inode(to.Ino); err != nil {
			return Inode{}, replaced, fmt.Errorf("%w: inode %d: %w", ErrDamaged, to.Ino, err)
		}
	}
	if parent != newParent {
		if i.isDir() {
			if err := tx.checkLoop(i.Ino, &q); err != nil {
				return Inode{}, replaced, err
			}
		}
		if flags&RenameExchange != 0 && old.isDir() {
			if err := tx.checkLoop(old.Ino, &p); err != nil {
				return Inode{}, replaced, err
			}
		}
	}
	if flags&RenameExchange != 0 {
		return tx.exchange(&p, &q, &from, to, &i, &old, now)
	}
	if to != nil {
		switch {
		case i.isDir() && !old.isDir():
			err = ErrNotDir
		case !i.isDir() && old.isDir():
			err = ErrIsDir
		case old.isDir() && old.Entries > 0:
			err = ErrNotEmpty
		}
		if err != nil {
			return Inode{}, replaced, err
		}
	}
	subdir := 0
	if i.isDir() {
		subdir = 1
	}
	dst := Dirent{Parent: newParent, Name: newName, Ino: i.Ino, Type: from.Type}
	if err := tx.deleteDirent(&from); err != nil {
		return Inode{}, replaced, err
	}
	dir := &q
	if parent == newParent {
		dir = &p // one directory, one record
	}
	touch(&p, -1, -subdir, now)
	switch {
	case to != nil:
		dst.Cookie = to.Cookie
		if err := tx.deleteDirent(to); err != nil {
			return Inode{}, replaced, err
		}
		gone := 0
		if old.isDir() {
			gone = 1
			if err := tx.DeleteInode(old.Ino); err != nil {
				return Inode{}, replaced, err
			}
			old.Nlink = 0
		} else if err := tx.dropLink(&old, now); err != nil {
			return Inode{}, replaced, err
		}
		touch(dir, -1, -gone, now)
	case parent == newParent:
		// Keeping its place spares a program that renames while it lists from meeting the entry again and again.
		dst.Cookie = from.Cookie
	default:
		dst.Cookie = tx.NextID()
	}
	touch(dir, 1, subdir, now)
	if err := tx.putDirent(&dst); err != nil {
		return Inode{}, replaced, err
	}
	i.Ctime = now
	if i.isDir() {
		i.Parent = newParent
	}
	if err := tx.PutInode(i); err != nil {
		return Inode{}, replaced, err
	}
	return i, old, tx.putDirs(&p, dir)
}

// putDirs stores the two directories of a rename, which may be one.
func (tx *Tx) putDirs(p, q *Inode) error {
	if p.Ino != q.Ino {
		if err := tx.PutInode(*p); err != nil {
			return err
		}
	}
	return tx.PutInode(*q)
}

// exchange lets two entries change what they name.
func (tx *Tx) exchange(p, q *Inode, from, to *Dirent, i, old *Inode, now int64) (Inode, Inode, error) {
	if err := errors.Join(tx.deleteDirent(from), tx.deleteDirent(to)); err != nil {
		return Inode{}, Inode{}, err
	}
	from.Ino, to.Ino = to.Ino, from.Ino
	from.Type, to.Type = to.Type, from.Type
	if err := errors.Join(tx.putDirent(from), tx.putDirent(to)); err != nil {
		return Inode{}, Inode{}, err
	}
	i.Ctime, old.Ctime = now, now
	subdirs := 0 // that p gains and q loses
	if i.isDir() {
		i.Parent = q.Ino
		subdirs--
	}
	if old.isDir() {
		old.Parent = p.Ino
		subdirs++
	}
	if p.Ino == q.Ino {
		subdirs = 0
		touch(q, 0, 0, now)
	} else {
		touch(p, 0, subdirs, now)
		touch(q, 0, -subdirs, now)
	}
	return *i, *old, errors.Join(tx.PutInode(*i), tx.PutInode(*old), tx.putDirs(p, q))
}

// checkLoop refuses a directory that is dir or above it.
func (tx *Tx) checkLoop(ino uint64, dir *Inode) error {
	at := *dir
	for depth := 0; ; depth++ {
		switch {
		case at.Ino == ino:
			return ErrLoop
		case at.Ino == RootIno:
			return nil
		case depth == maxDepth:
			return fmt.Errorf("%w: directory %d is below itself", ErrDamaged, dir.Ino)
		}
		var err error
		if at, err = tx.Inode(at.Parent); err != nil {
			return fmt.Errorf("%w: directory above %d: %w", ErrDamaged, dir.Ino, err)
		}
	}
}
