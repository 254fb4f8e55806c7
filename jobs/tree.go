package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// Caller is who makes a system call.
type Caller struct {
	UID, GID uint32
	PID      uint32 // 0: unknown
}

// in reports whether the caller is a member of a group, or above groups. Supplementary ones
// are not told with a call; those of a process that cannot be seen count as none.
func (c Caller) in(gid uint32) bool {
	if c.UID == 0 || c.GID == gid {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		if groups, ok := bytes.CutPrefix(line, []byte("Groups:")); ok {
			return slices.Contains(strings.Fields(string(groups)), strconv.FormatUint(uint64(gid), 10))
		}
	}
	return false
}

// Attr is what stat(2) shows. Blocks counts 512-byte units held locally (never 0 when Size is not).
type Attr struct {
	Ino, Parent                 uint64
	Mode, UID, GID, Rdev, Nlink uint32
	Size, Blocks                int64
	Atime, Mtime, Ctime, Btime  int64 // ns
}

// SetAttr are changes; nil fields stay. A time may be the zero time.Time never: now is resolved by the caller.
type SetAttr struct {
	Mode, UID, GID *uint32
	Size           *int64
	Atime, Mtime   *time.Time
	KillPriv       bool // clear setuid/setgid as a write would; directories keep them
}

// Entry is one name of a directory listing.
type Entry struct {
	Name   string
	Ino    uint64
	Type   uint32 // S_IFMT bits
	Cookie uint64
}

// Statfs is the mount's capacity in bytes.
type Statfs struct{ Total, Free, Files, FreeFiles uint64 }

// The namespace calls: each is one catalog transaction; none contacts the service
// except Mkdir and Rmdir of a vault in the account root. Errors are catalog's, ErrReadOnly, ErrBusy, ctx's.

// attrOf is what the catalog alone knows; Blocks are the caller's.
func attrOf(i catalog.Inode) Attr {
	a := Attr{
		Ino: i.Ino, Parent: i.Parent, Mode: i.Mode, UID: i.UID, GID: i.GID, Rdev: i.Rdev, Nlink: i.Nlink,
		Size: i.Size, Atime: i.Atime, Mtime: i.Mtime, Ctime: i.Ctime, Btime: i.Btime,
	}
	switch i.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		a.Size, a.Blocks = dirSize, dirSize/512
	case syscall.S_IFLNK:
		a.Size = int64(len(i.Target))
	}
	return a
}

// dirSize is the size of every directory.
const dirSize = 4096

// blocks is st_blocks of a file: what is held locally, but never 0 for a file
// with bytes, since tar -S takes that for a file of zeros.
func blocks(size, local int64) int64 {
	if size == 0 {
		return 0
	}
	return max((local+511)/512, 1)
}

// attr returns the attributes of an inode as read from the catalog, with what its live file
// knows better. A file that was live when the catalog was read may be so no more: then what it knew is in
// the catalog now, and that is read again. flushes is Engine.flushes from before the reading.
func (e *Engine) attr(i catalog.Inode, v catalog.Version, flushes uint64) (Attr, error) {
	if i.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return attrOf(i), nil
	}
	if e.wasRead != nil {
		e.wasRead()
	}
	for {
		if f := e.live(i.Ino); f != nil {
			f.mu.Lock()
			a := f.attrLocked()
			f.mu.Unlock()
			f.put()
			return a, nil
		}
		now := e.flushes.Load()
		if now == flushes {
			break
		}
		flushes = now
		err := e.catalog.View(func(tx *catalog.Tx) (err error) {
			i, v, err = inodeTx(tx, i.Ino)
			return err
		})
		if err != nil {
			return Attr{}, err
		}
	}
	a := attrOf(i)
	var local int64
	if v.Local != 0 {
		if x, err := e.store.Stat(v.Local); err == nil {
			local = x.Allocated
		}
	}
	a.Blocks = blocks(i.Size, local)
	return a, nil
}

// inodeTx reads an inode and, for a file, its current version.
func inodeTx(tx *catalog.Tx, ino uint64) (i catalog.Inode, v catalog.Version, err error) {
	i, err = tx.Inode(ino)
	if err == nil && i.Version != 0 && i.Mode&syscall.S_IFMT == syscall.S_IFREG {
		v, err = tx.Version(ino, i.Version)
	}
	return i, v, err
}

// failed notes a namespace call that failed and returns err. The line for people is fs's.
func (e *Engine) failed(op string, ino uint64, name string, err error) error {
	if err != nil {
		e.log.Debug(op, "in", e.path(ino), "name", name, "err", err)
	}
	return err
}

// Lookup finds a name. Errors: catalog.ErrNotExist, catalog.ErrNotDir.
func (e *Engine) Lookup(ctx context.Context, parent uint64, name string) (Attr, error) {
	var i catalog.Inode
	var v catalog.Version
	flushes := e.flushes.Load()
	err := e.catalog.View(func(tx *catalog.Tx) error {
		d, err := tx.Lookup(parent, name)
		if err != nil {
			return err
		}
		i, v, err = inodeTx(tx, d.Ino)
		return err
	})
	if err != nil {
		return Attr{}, err
	}
	a, err := e.attr(i, v, flushes)
	a.Parent = parent
	return a, err
}

// Find is Lookup of what the directory alone knows. Errors: catalog.ErrNotExist, catalog.ErrNotDir.
func (e *Engine) Find(ctx context.Context, parent uint64, name string) (Entry, error) {
	var d catalog.Dirent
	err := e.catalog.View(func(tx *catalog.Tx) (err error) {
		d, err = tx.Lookup(parent, name)
		return err
	})
	return Entry{Name: d.Name, Ino: d.Ino, Type: d.Type, Cookie: d.Cookie}, err
}

// Getattr returns attributes. Errors: catalog.ErrNotExist.
func (e *Engine) Getattr(ctx context.Context, ino uint64) (Attr, error) {
	if f := e.live(ino); f != nil {
		f.mu.Lock()
		a := f.attrLocked()
		f.mu.Unlock()
		f.put()
		return a, nil
	}
	flushes := e.flushes.Load()
	var i catalog.Inode
	var v catalog.Version
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		i, v, err = inodeTx(tx, ino)
		return err
	})
	if err != nil {
		return Attr{}, err
	}
	return e.attr(i, v, flushes)
}

// Setattr changes attributes. A size change of a cold file to other than 0 recalls it first (under the recall policy, waits).
// h is the handle it was called through, nil for none.
func (e *Engine) Setattr(ctx context.Context, c Caller, ino uint64, h *Handle, s SetAttr) (Attr, error) {
	a, err := e.setattr(ctx, c, ino, s)
	if err != nil && ctx.Err() == nil {
		e.failed("setattr", ino, "", err)
	}
	return a, err
}

func (e *Engine) setattr(ctx context.Context, c Caller, ino uint64, s SetAttr) (Attr, error) {
	if err := e.writable(); err != nil {
		return Attr{}, err
	}
	f, err := e.acquire(ino)
	switch {
	case errors.Is(err, catalog.ErrIsDir), errors.Is(err, catalog.ErrInvalid):
		if s.Size != nil {
			return Attr{}, err
		}
		now := time.Now()
		var i catalog.Inode
		_, err := e.catalog.Update(func(tx *catalog.Tx) error {
			var err error
			if i, err = tx.Inode(ino); err != nil {
				return err
			}
			s.apply(c, &i, now)
			if s.Mode != nil || s.UID != nil || s.GID != nil {
				if err := rootSetTx(tx, i, now); err != nil {
					return err
				}
			}
			return tx.PutInode(i)
		})
		if err != nil {
			return Attr{}, err
		}
		return attrOf(i), nil
	case err != nil:
		return Attr{}, err
	}
	defer f.put()
	if s.Size != nil {
		err := f.truncate(ctx, c, *s.Size)
		f.mu.Lock()
		f.settleLocked() // also when it failed: perhaps after it had made a new version
		f.mu.Unlock()
		if err != nil {
			return Attr{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return Attr{}, ErrStale
	}
	now := time.Now()
	if s.Mtime != nil && f.local != nil && f.ver.State == catalog.Staged {
		// A staged file's mtime is its staging file's, also after a crash.
		if err := f.local.SetMtime(*s.Mtime); err != nil {
			return Attr{}, err
		}
		f.mtimeSet++
	}
	onlyTimes := s.Mode == nil && s.UID == nil && s.GID == nil && !s.KillPriv
	if onlyTimes && f.writers > 0 && f.ver.State == catalog.Staged && f.local != nil {
		// cp -p and tar do this before every close: the Release records it, and the mtime survives a crash already.
		s.apply(c, &f.inode, now)
		f.dirty = true
		e.quiet(ino)
		return f.attrLocked(), nil
	}
	if err := f.flushLocked(); err != nil {
		return Attr{}, err
	}
	if s.changes() {
		var i catalog.Inode
		_, err := e.catalog.Update(func(tx *catalog.Tx) error {
			var err error
			if i, err = tx.Inode(ino); err != nil {
				return err
			}
			s.apply(c, &i, now)
			return tx.PutInode(i)
		})
		if err != nil {
			return Attr{}, err
		}
		f.adoptLocked(i)
	}
	e.quiet(ino)
	return f.attrLocked(), nil
}

func (s SetAttr) changes() bool {
	return s.Mode != nil || s.UID != nil || s.GID != nil || s.Atime != nil || s.Mtime != nil || s.KillPriv
}

// apply changes everything but the size, for c, and reports whether mode or owner are others now.
func (s SetAttr) apply(c Caller, i *catalog.Inode, now time.Time) bool {
	old := *i
	if s.KillPriv && i.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		i.Mode &^= syscall.S_ISUID
		// Without the group's execute bit it is a mark only, which members may leave.
		if i.Mode&syscall.S_ISGID != 0 && (i.Mode&syscall.S_IXGRP != 0 || !c.in(i.GID)) {
			i.Mode &^= syscall.S_ISGID
		}
	}
	if s.Mode != nil {
		i.Mode = i.Mode&syscall.S_IFMT | *s.Mode&07777
	}
	if s.UID != nil {
		i.UID = *s.UID
	}
	if s.GID != nil {
		i.GID = *s.GID
	}
	if s.Atime != nil {
		i.Atime = s.Atime.UnixNano()
	}
	if s.Mtime != nil {
		i.Mtime = s.Mtime.UnixNano()
	}
	i.Ctime = max(i.Ctime, now.UnixNano())
	return i.Mode != old.Mode || i.UID != old.UID || i.GID != old.GID
}

// make creates an inode other than a regular file that is opened.
func (e *Engine) make(op string, parent uint64, name string, template catalog.Inode) (Attr, error) {
	if err := e.writable(); err != nil {
		return Attr{}, err
	}
	var i catalog.Inode
	_, err := e.catalog.Update(func(tx *catalog.Tx) error {
		var err error
		i, err = tx.Create(parent, name, template, time.Now().UnixNano())
		return err
	})
	if err != nil {
		return Attr{}, e.failed(op, parent, name, err)
	}
	a := attrOf(i)
	a.Parent = parent
	return a, nil
}

// Mkdir makes a directory; in the account root a vault, which contacts the service and ends with ctx.
func (e *Engine) Mkdir(ctx context.Context, c Caller, parent uint64, name string, mode uint32) (Attr, error) {
	if parent == catalog.RootIno {
		if err := e.writable(); err != nil {
			return Attr{}, err
		}
		a, err := e.mkVault(ctx, c, name, mode)
		return a, e.failed("mkdir", parent, name, err)
	}
	return e.make("mkdir", parent, name, catalog.Inode{Mode: syscall.S_IFDIR | mode&07777, UID: c.UID, GID: c.GID})
}

// Mknod makes a fifo, socket, device or an empty regular file.
func (e *Engine) Mknod(ctx context.Context, c Caller, parent uint64, name string, mode, rdev uint32) (Attr, error) {
	if mode&syscall.S_IFMT == 0 {
		mode |= syscall.S_IFREG
	}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		return Attr{}, catalog.ErrInvalid
	}
	return e.make("mknod", parent, name, catalog.Inode{Mode: mode & (syscall.S_IFMT | 07777), UID: c.UID, GID: c.GID, Rdev: rdev})
}

// Symlink makes a symbolic link.
func (e *Engine) Symlink(ctx context.Context, c Caller, parent uint64, name, target string) (Attr, error) {
	return e.make("symlink", parent, name, catalog.Inode{Mode: syscall.S_IFLNK | 0o777, UID: c.UID, GID: c.GID, Target: target})
}

// Readlink returns a symbolic link's target. Errors: catalog.ErrInvalid.
func (e *Engine) Readlink(ctx context.Context, ino uint64) (string, error) {
	var i catalog.Inode
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		i, err = tx.Inode(ino)
		return err
	})
	if err == nil && i.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		err = catalog.ErrInvalid
	}
	return i.Target, err
}

// Link adds a name to an inode that has one. Errors: catalog.ErrXDev, ErrExist, ErrMaxLinks.
func (e *Engine) Link(ctx context.Context, ino, parent uint64, name string) (Attr, error) {
	if err := e.writable(); err != nil {
		return Attr{}, err
	}
	flushes := e.flushes.Load()
	var i catalog.Inode
	var v catalog.Version
	_, err := e.catalog.Update(func(tx *catalog.Tx) error {
		old, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		if old.Nlink == 0 {
			return catalog.ErrNotExist // on its way out
		}
		if _, err = tx.Link(ino, parent, name, time.Now().UnixNano()); err != nil {
			return err
		}
		i, v, err = inodeTx(tx, ino)
		return err
	})
	if err != nil {
		return Attr{}, e.failed("link", parent, name, err)
	}
	e.refresh(ino)
	a, err := e.attr(i, v, flushes)
	a.Parent = parent
	return a, err
}

// refresh makes the live file of ino, if there is one, see what a transaction did to its inode.
func (e *Engine) refresh(ino uint64) {
	if f := e.live(ino); f != nil {
		f.reload()
		f.put()
	}
}

// unnamedTx is what the transaction that took the last name of an inode does
// with it: files wait, as orphans, for their last handle and the reclaimer.
func unnamedTx(tx *catalog.Tx, i catalog.Inode) error {
	if i.Ino == 0 || i.Nlink > 0 || i.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return nil
	}
	if i.Mode&syscall.S_IFMT == syscall.S_IFREG {
		return tx.PutOrphan(i.Ino)
	}
	if err := tx.DeleteOrphan(i.Ino); err != nil && !errors.Is(err, catalog.ErrNotExist) {
		return err
	}
	return tx.DeleteInode(i.Ino)
}

// lostName does the rest after the transaction.
func (e *Engine) lostName(i catalog.Inode) {
	if i.Ino == 0 || i.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return
	}
	e.refresh(i.Ino)
	if i.Nlink == 0 {
		e.up.cancel(i.Ino)
		e.bin.add(i.Ino)
	}
}

// Unlink removes a name of a non-directory. The bytes go when the last name and
// handle are gone; archives go to the trash.
func (e *Engine) Unlink(ctx context.Context, parent uint64, name string) error {
	if err := e.writable(); err != nil {
		return err
	}
	var i catalog.Inode
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		var err error
		if i, err = tx.Unlink(parent, name, time.Now().UnixNano()); err != nil {
			return err
		}
		return unnamedTx(tx, i)
	})
	if err != nil {
		return e.failed("unlink", parent, name, err)
	}
	e.lostName(i)
	return nil
}

// Rmdir removes an empty directory; in the account root a vault, which contacts the service.
// Errors: catalog.ErrNotEmpty, ErrBusy for a vault that holds archives or trash.
func (e *Engine) Rmdir(ctx context.Context, parent uint64, name string) error {
	if err := e.writable(); err != nil {
		return err
	}
	if parent == catalog.RootIno {
		return e.failed("rmdir", parent, name, e.rmVault(ctx, name))
	}
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		_, err := tx.Rmdir(parent, name, time.Now().UnixNano())
		return err
	})
	return e.failed("rmdir", parent, name, err)
}

// Rename moves a name, as renameat2(2) with NOREPLACE or EXCHANGE. Content belongs to inodes, so
// nothing else is touched, whatever the file is doing.
func (e *Engine) Rename(ctx context.Context, parent uint64, name string, newParent uint64, newName string, flags uint32) error {
	if err := e.writable(); err != nil {
		return err
	}
	if flags&^(catalog.RenameNoReplace|catalog.RenameExchange) != 0 {
		return catalog.ErrInvalid
	}
	var moved, replaced catalog.Inode
	_, err := e.catalog.Update(func(tx *catalog.Tx) error {
		var err error
		moved, replaced, err = tx.Rename(parent, name, newParent, newName, flags, time.Now().UnixNano())
		if err != nil {
			return err
		}
		return unnamedTx(tx, replaced)
	})
	if err != nil {
		return e.failed("rename", parent, fmt.Sprintf("%s -> %s", name, newName), err)
	}
	e.lostName(replaced)
	if moved.Mode&syscall.S_IFMT == syscall.S_IFREG {
		e.refresh(moved.Ino)
		e.quiet(moved.Ino)
	}
	return nil
}

// LastCookie returns the largest cookie any name has now. A listing that goes no further comes to an
// end even when names are added to the directory as fast as it is read.
func (e *Engine) LastCookie() (last uint64, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) (err error) {
		last, err = tx.LastID()
		return err
	})
	return last, err
}

// ReadDir returns up to limit entries with Cookie > after, without "." and "..".
func (e *Engine) ReadDir(ctx context.Context, dir, after uint64, limit int) ([]Entry, error) {
	var list []Entry
	err := e.catalog.View(func(tx *catalog.Tx) error {
		names, err := tx.ReadDir(dir, after, limit)
		if err != nil {
			return err
		}
		list = make([]Entry, len(names))
		for i, d := range names {
			list[i] = Entry{Name: d.Name, Ino: d.Ino, Type: d.Type, Cookie: d.Cookie}
		}
		return nil
	})
	return list, err
}

// ReadDirPlus is ReadDir with the attributes of each entry. What it returns belongs
// together; it must not be kept longer than the request it is for. An entry whose inode is gone has none (Ino 0).
func (e *Engine) ReadDirPlus(ctx context.Context, dir, after uint64, limit int) ([]Entry, []Attr, error) {
	flushes := e.flushes.Load()
	var found []catalog.Listing
	err := e.catalog.View(func(tx *catalog.Tx) (err error) {
		found, err = tx.ReadDirPlus(dir, after, limit)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	list, attrs := make([]Entry, len(found)), make([]Attr, len(found))
	for i := range found {
		d := &found[i]
		list[i] = Entry{Name: d.Name, Ino: d.Ino, Type: d.Type, Cookie: d.Cookie}
		if d.Inode.Ino != 0 {
			if attrs[i], err = e.attr(d.Inode, d.Version, flushes); err != nil {
				attrs[i] = Attr{} // gone meanwhile, or worth a look of its own
				continue
			}
			attrs[i].Parent = dir
		}
	}
	return list, attrs, nil
}

// FsyncDir makes everything done to the directory so far survive power loss.
func (e *Engine) FsyncDir(ctx context.Context, ino uint64) error {
	return e.catalog.Barrier(ctx, 0)
}

// Statfs tells the mount's capacity: large, less what is stored, and never full.
func (e *Engine) Statfs(ctx context.Context) (Statfs, error) {
	st := e.catalog.Stats()
	const files = 1 << 40
	free := max(e.opts.Capacity-st.LiveBytes, 1<<30)
	return Statfs{
		Total:     uint64(max(e.opts.Capacity, st.LiveBytes+free)),
		Free:      uint64(free),
		Files:     files,
		FreeFiles: uint64(max(files-st.Inodes, 1)),
	}, nil
}
