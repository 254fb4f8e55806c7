package fs

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
)

// controlAttr tells any program inside the mount where the daemon's control socket is.
const controlAttr = "user.cas.control"

// maxXattr is the kernel's limit too, for a value and for a list of names.
const maxXattr = 64 << 10

// stored reports whether an attribute of that name can exist. The others are
// answered without a look: security.capability is asked for on hot paths, and
// with EOPNOTSUPP (and not ENODATA) ls -l, find and cp ask for security.* and
// ACLs once per file system and not once per file.
func stored(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

const notStored = fuse.Status(syscall.EOPNOTSUPP)

func (t *tree) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !stored(name) {
		return 0, notStored
	}
	c := begin(in, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	var value []byte
	var err error
	if name == controlAttr {
		value = []byte(t.m.control)
		if len(value) == 0 {
			err = catalog.ErrNoAttr
		}
	} else {
		value, err = t.m.engine.Getxattr(c, ino, name)
	}
	if err != nil {
		return 0, t.m.fail(c, "getxattr "+name, ino, "", err)
	}
	return copyOut(dest, value)
}

func (t *tree) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	var err error
	switch {
	case name == controlAttr:
		err = catalog.ErrPerm
	case len(value) > maxXattr:
		return fuse.Status(syscall.E2BIG)
	case !stored(name):
		return notStored // cp -p and others try for every file: no log line
	default:
		create, replace := in.Flags&unix.XATTR_CREATE != 0, in.Flags&unix.XATTR_REPLACE != 0
		// The request's memory is used again after the call.
		err = t.m.engine.Setxattr(c, c.caller(), ino, name, append([]byte(nil), value...), create, replace)
	}
	if err != nil {
		return t.m.fail(c, "setxattr "+name, ino, "", err)
	}
	return fuse.OK
}

func (t *tree) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if !stored(name) {
		return notStored
	}
	c := begin(in, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	err := catalog.ErrPerm
	if name != controlAttr {
		err = t.m.engine.Removexattr(c, ino, name)
	}
	if err != nil {
		return t.m.fail(c, "removexattr "+name, ino, "", err)
	}
	return fuse.OK
}

func (t *tree) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c := begin(in, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	names, err := t.m.engine.Listxattr(c, ino)
	if err != nil {
		return 0, t.m.fail(c, "listxattr", ino, "", err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	if len(list) > maxXattr {
		return 0, fuse.Status(syscall.E2BIG)
	}
	return copyOut(dest, list)
}

// copyOut answers a query: with a dest too small for value, its size and ERANGE.
func copyOut(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}
