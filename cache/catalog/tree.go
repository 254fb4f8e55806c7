package catalog

import (
	"errors"
	"fmt"
	"strings"
)

// The bits of st_mode the rules look at, as Linux defines them.
const (
	sIFMT   = 0o170000
	sIFSOCK = 0o140000
	sIFLNK  = 0o120000
	sIFREG  = 0o100000
	sIFBLK  = 0o060000
	sIFDIR  = 0o040000
	sIFCHR  = 0o020000
	sIFIFO  = 0o010000
	sISGID  = 0o002000
)

// maxLinks is ext4's limit.
const maxLinks = 65000

// MaxName is the longest name in bytes.
const MaxName = 255

func (i *Inode) isDir() bool { return i.Mode&sIFMT == sIFDIR }

// checkName refuses what can be no name.
func checkName(name string) error {
	if len(name) > MaxName {
		return ErrNameTooLong
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: name %q", ErrInvalid, name)
	}
	return nil
}

// dir returns a directory's inode. Errors: ErrNotExist, ErrNotDir.
func (tx *Tx) dir(ino uint64) (Inode, error) {
	d, err := tx.Inode(ino)
	if err == nil && !d.isDir() {
		err = ErrNotDir
	}
	return d, err
}

// find is Lookup that answers with nil for what is absent.
func (tx *Tx) find(parent uint64, name string) (*Dirent, error) {
	return loadOld(tx, keyName(tName, parent, name), decodeName)
}

// touch counts entries that came (or went) in a directory and stamps it.
func touch(d *Inode, entries int64, subdirs int, now int64) {
	d.Entries += entries
	d.Nlink = uint32(int64(d.Nlink) + int64(subdirs))
	d.Mtime, d.Ctime = now, now
}

// Create makes a new inode of the given template (Mode, UID, GID, Rdev, Target) below parent and
// links it: setgid directories pass on their group and, to directories, the bit. At RootIno only
// directories are allowed (vaults; ErrPerm otherwise) and PutVault is the caller's. Errors: ErrExist, ErrNotDir, ErrNameTooLong, ErrNotExist,
// ErrInvalid for a name or type that cannot be.
func (tx *Tx) Create(parent uint64, name string, template Inode, now int64) (Inode, error) {
	p, err := tx.dir(parent)
	if err != nil {
		return Inode{}, err
	}
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	i := Inode{
		Vault: p.Vault,
		Mode:  template.Mode,
		UID:   template.UID,
		GID:   template.GID,
		Nlink: 1,
		Atime: now, Mtime: now, Ctime: now, Btime: now,
	}
	subdirs := 0
	switch i.Mode & sIFMT {
	case sIFDIR:
		i.Nlink, i.Parent, subdirs = 2, parent, 1
	case sIFLNK:
		i.Target, i.Size = template.Target, int64(len(template.Target))
	case sIFBLK, sIFCHR:
		i.Rdev = template.Rdev
	case sIFREG, sIFIFO, sIFSOCK:
	default:
		return Inode{}, fmt.Errorf("%w: mode %o", ErrInvalid, i.Mode)
	}
	old, err := tx.find(parent, name)
	switch {
	case err != nil:
		return Inode{}, err
	case old != nil:
		return Inode{}, ErrExist
	case parent == RootIno && !i.isDir():
		return Inode{}, ErrPerm
	}
	if p.Mode&sISGID != 0 {
		i.GID = p.GID
		if i.isDir() {
			i.Mode |= sISGID
		}
	}
	i.Ino = tx.NextID()
	if parent == RootIno {
		i.Vault = i.Ino
	}
	// The number is new and grows, which is all a cookie needs.
	d := Dirent{Parent: parent, Name: name, Ino: i.Ino, Type: i.Mode & sIFMT, Cookie: i.Ino}
	if err := tx.putDirent(&d); err != nil {
		return Inode{}, err
	}
	if err := tx.putNewInode(&i); err != nil {
		return Inode{}, err
	}
	touch(&p, 1, subdirs, now)
	return i, tx.PutInode(p)
}

// Link adds a name. An orphan gets its first again. Errors: ErrXDev, ErrPerm (directories), ErrExist, ErrMaxLinks,
// and those of names.
func (tx *Tx) Link(ino, parent uint64, name string, now int64) (Inode, error) {
	i, err := tx.Inode(ino)
	if err != nil {
		return Inode{}, err
	}
	p, err := tx.dir(parent)
	if err != nil {
		return Inode{}, err
	}
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	old, err := tx.find(parent, name)
	switch {
	case err != nil:
		return Inode{}, err
	case old != nil:
		return Inode{}, ErrExist
	case i.isDir() || parent == RootIno:
		return Inode{}, ErrPerm
	case i.Vault != p.Vault:
		return Inode{}, ErrXDev
	case i.Nlink >= maxLinks:
		return Inode{}, ErrMaxLinks
	}
	if i.Nlink == 0 {
		if err := tx.DeleteOrphan(ino); err != nil {
			return Inode{}, err
		}
	}
	d := Dirent{Parent: parent, Name: name, Ino: ino, Type: i.Mode & sIFMT, Cookie: tx.NextID()}
	if err := tx.putDirent(&d); err != nil {
		return Inode{}, err
	}
	i.Nlink++
	i.Ctime = now
	if err := tx.PutInode(i); err != nil {
		return Inode{}, err
	}
	touch(&p, 1, 0, now)
	return i, tx.PutInode(p)
}

// Unlink removes the name of a non-directory and returns the inode as it is now; with
// Nlink 0 it is left as an orphan for the caller to keep (open handles) or reclaim. Errors: ErrIsDir, ErrNotExist.
func (tx *Tx) Unlink(parent uint64, name string, now int64) (Inode, error) {
	p, d, i, err := tx.named(parent, name)
	if err != nil {
		return Inode{}, err
	}
	if i.isDir() {
		return Inode{}, ErrIsDir
	}
	if err := tx.deleteDirent(&d); err != nil {
		return Inode{}, err
	}
	touch(&p, -1, 0, now)
	if err := tx.PutInode(p); err != nil {
		return Inode{}, err
	}
	return i, tx.dropLink(&i, now)
}

// named returns a directory, an entry of it and what that names.
func (tx *Tx) named(parent uint64, name string) (p Inode, d Dirent, i Inode, err error) {
	if p, err = tx.dir(parent); err != nil {
		return
	}
	if err = checkName(name); err != nil {
		return
	}
	if d, err = tx.Lookup(parent, name); err != nil {
		return
	}
	if i, err = tx.Inode(d.Ino); errors.Is(err, ErrNotExist) {
		err = fmt.Errorf("%w: %q in directory %d names inode %d, which does not exist", ErrDamaged, name, parent, d.Ino)
	}
	return
}

// dropLink counts one name less of a non-directory.
func (tx *Tx) dropLink(i *Inode, now int64) error {
	if i.Nlink > 0 {
		i.Nlink--
	}
	i.Ctime = now
	if i.Nlink == 0 {
		if err := tx.PutOrphan(i.Ino); err != nil {
			return err
		}
	}
	return tx.PutInode(*i)
}

// Rmdir removes an empty directory with its inode and returns what it was. Errors: ErrNotEmpty, ErrNotDir, ErrNotExist.
func (tx *Tx) Rmdir(parent uint64, name string, now int64) (Inode, error) {
	p, d, i, err := tx.named(parent, name)
	switch {
	case err != nil:
		return Inode{}, err
	case !i.isDir():
		return Inode{}, ErrNotDir
	case i.Entries > 0:
		return Inode{}, ErrNotEmpty
	}
	if err := tx.deleteDirent(&d); err != nil {
		return Inode{}, err
	}
	if err := tx.DeleteInode(i.Ino); err != nil {
		return Inode{}, err
	}
	i.Nlink = 0
	touch(&p, -1, -1, now)
	return i, tx.PutInode(p)
}

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
