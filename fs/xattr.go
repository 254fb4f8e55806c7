package fs

import (
	"context"
	"strings"
	"syscall"

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

func (n *node) Getxattr(ctx context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	if !stored(name) {
		return 0, syscall.EOPNOTSUPP
	}
	c, end := begin(ctx)
	defer end()
	var value []byte
	var err error
	if name == controlAttr {
		value = []byte(n.m.control)
		if len(value) == 0 {
			err = catalog.ErrNoAttr
		}
	} else {
		value, err = n.m.engine.Getxattr(c, n.ino(), name)
	}
	if err != nil {
		return 0, n.fail(c, "getxattr "+name, "", err)
	}
	return copyOut(dest, value)
}

func (n *node) Setxattr(ctx context.Context, name string, value []byte, flags uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	var err error
	switch {
	case name == controlAttr:
		err = catalog.ErrPerm
	case len(value) > maxXattr:
		return syscall.E2BIG
	case !stored(name):
		return syscall.EOPNOTSUPP // cp -p and others try for every file: no log line
	default:
		create, replace := flags&unix.XATTR_CREATE != 0, flags&unix.XATTR_REPLACE != 0
		// The request's memory is used again after the call.
		err = n.m.engine.Setxattr(c, c.caller(), n.ino(), name, append([]byte(nil), value...), create, replace)
	}
	if err != nil {
		return n.fail(c, "setxattr "+name, "", err)
	}
	return 0
}

func (n *node) Removexattr(ctx context.Context, name string) syscall.Errno {
	if !stored(name) {
		return syscall.EOPNOTSUPP
	}
	c, end := begin(ctx)
	defer end()
	err := catalog.ErrPerm
	if name != controlAttr {
		err = n.m.engine.Removexattr(c, n.ino(), name)
	}
	if err != nil {
		return n.fail(c, "removexattr "+name, "", err)
	}
	return 0
}

func (n *node) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	names, err := n.m.engine.Listxattr(c, n.ino())
	if err != nil {
		return 0, n.fail(c, "listxattr", "", err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	if len(list) > maxXattr {
		return 0, syscall.E2BIG
	}
	return copyOut(dest, list)
}

// copyOut answers a query: with a dest too small for value, its size and ERANGE.
func copyOut(dest, value []byte) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}
