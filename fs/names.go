package fs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/jobs"
)

// Create makes and opens a file. The kernel sends it only for a name it
// believes absent; when the name has appeared since, a program that did not ask for O_EXCL
// gets the existing file after the kernel has looked again (ESTALE).
func (t *tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	dir := t.ino(in.NodeId)
	if err := checkName(name); err != nil {
		return t.m.fail(c, "create", dir, name, err)
	}
	f := openFlags(in.Flags)
	a, h, err := t.m.engine.Create(c, c.caller(), dir, name, in.Mode, f)
	if err != nil {
		s := t.m.fail(c, "create", dir, name, err)
		if s == fuse.Status(syscall.EEXIST) && in.Flags&unix.O_EXCL == 0 {
			s = fuse.Status(syscall.ESTALE)
		}
		return s
	}
	t.entry(a, &out.EntryOut)
	t.opened(a.Ino, h, f, &out.OpenOut)
	return fuse.OK
}

func (t *tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.add(cancel, &in.InHeader, "mkdir", name, out, func(c *call, dir uint64) (jobs.Attr, error) {
		return t.m.engine.Mkdir(c, c.caller(), dir, name, in.Mode)
	})
}

func (t *tree) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.add(cancel, &in.InHeader, "mknod", name, out, func(c *call, dir uint64) (jobs.Attr, error) {
		return t.m.engine.Mknod(c, c.caller(), dir, name, in.Mode, in.Rdev)
	})
}

func (t *tree) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return t.add(cancel, in, "symlink", name, out, func(c *call, dir uint64) (jobs.Attr, error) {
		return t.m.engine.Symlink(c, c.caller(), dir, name, target)
	})
}

// Link gives a file another name. One that has just lost its last name is stale: the kernel then looks
// its path up again, and finds what has replaced it.
func (t *tree) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	s := t.add(cancel, &in.InHeader, "link", name, out, func(c *call, dir uint64) (jobs.Attr, error) {
		return t.m.engine.Link(c, t.ino(in.Oldnodeid), dir, name)
	})
	if s == fuse.ENOENT {
		s = fuse.Status(syscall.ESTALE)
	}
	return s
}

// add is the common part of the calls that give a name to an inode.
func (t *tree) add(cancel <-chan struct{}, in *fuse.InHeader, op, name string, out *fuse.EntryOut, do func(c *call, dir uint64) (jobs.Attr, error)) fuse.Status {
	c := begin(in, cancel)
	defer c.finish()
	dir := t.ino(in.NodeId)
	if err := checkName(name); err != nil {
		return t.m.fail(c, op, dir, name, err)
	}
	a, err := do(c, dir)
	if err != nil {
		return t.m.fail(c, op, dir, name, err)
	}
	t.entry(a, out)
	return fuse.OK
}

func (t *tree) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return t.remove(cancel, in, "unlink", name, func(c *call, dir uint64) error {
		return t.m.engine.Unlink(c, dir, name)
	})
}

func (t *tree) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return t.remove(cancel, in, "rmdir", name, func(c *call, dir uint64) error {
		return t.m.engine.Rmdir(c, dir, name)
	})
}

func (t *tree) remove(cancel <-chan struct{}, in *fuse.InHeader, op, name string, do func(c *call, dir uint64) error) fuse.Status {
	c := begin(in, cancel)
	defer c.finish()
	dir := t.ino(in.NodeId)
	if err := checkName(name); err != nil {
		return t.m.fail(c, op, dir, name, err)
	}
	done := t.unname(c, dir, name)
	err := do(c, dir)
	done(err == nil)
	if err != nil {
		return t.m.fail(c, op, dir, name, err)
	}
	return fuse.OK
}

func (t *tree) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	dir, to := t.ino(in.NodeId), t.ino(in.Newdir)
	if err := checkName(name); err != nil {
		return t.m.fail(c, "rename", dir, name, err)
	}
	if err := checkName(newName); err != nil {
		return t.m.fail(c, "rename", dir, name, err)
	}
	if in.Flags&^(catalog.RenameNoReplace|catalog.RenameExchange) != 0 {
		return t.m.fail(c, "rename", dir, name, catalog.ErrInvalid)
	}
	done := func(bool) {}
	if in.Flags == 0 {
		done = t.unname(c, to, newName)
	}
	err := t.m.engine.Rename(c, dir, name, to, newName, in.Flags)
	done(err == nil)
	if err != nil {
		return t.m.fail(c, "rename", dir, name, err)
	}
	return fuse.OK
}

// unname readies what name names in dir for losing that name; done says whether
// it did. What the kernel does not know needs nothing.
func (t *tree) unname(c *call, dir uint64, name string) (done func(ok bool)) {
	nothing := func(bool) {}
	e, err := t.m.engine.Find(c, dir, name)
	if err != nil {
		return nothing
	}
	known, before := t.known.has(e.Ino)
	switch {
	case !known:
		return nothing
	case isFile(e.Type):
		if before != nil {
			return nothing // held already, for another of its names
		}
		r := &removed{release: t.m.engine.Hold(e.Ino)}
		return func(ok bool) {
			if !ok || !t.known.keep(e.Ino, r) {
				r.release()
			}
		}
	}
	r := &removed{}
	if r.attr, err = t.m.engine.Getattr(c, e.Ino); err != nil {
		return nothing
	}
	if isSymlink(e.Type) {
		if r.target, err = t.m.engine.Readlink(c, e.Ino); err != nil {
			return nothing
		}
	}
	r.attr.Nlink = 0
	r.attr.Ctime = time.Now().UnixNano()
	return func(ok bool) {
		if ok {
			t.known.keep(e.Ino, r) // looked at only when the engine knows the inode no more
		}
	}
}
