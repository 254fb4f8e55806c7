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
