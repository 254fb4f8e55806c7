package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// tree answers the kernel's requests. The kernel's number for an inode is the
// catalog's, so that there is no table of nodes: a request says all there is to know, and
// the engine answers it. What is not here is not supported (ENOSYS, which the kernel
// remembers and answers by itself from then on): O_TMPFILE and statx, for which it asks GETATTR,
// locks, which are its own, and ACCESS, which default_permissions leaves to it.
type tree struct {
	fuse.RawFileSystem
	m       *Mount
	known   known
	files   table[*fileHandle]
	listing table[*dirHandle]
}

var _ fuse.RawFileSystem = (*tree)(nil)

func newTree(m *Mount) *tree {
	return &tree{RawFileSystem: fuse.NewDefaultRawFileSystem(), m: m}
}

func (t *tree) String() string { return "casfs" }

// ino returns the catalog's number of a node: the kernel's own, but the root is always 1 there.
func (t *tree) ino(node uint64) uint64 {
	if node == fuse.FUSE_ROOT_ID {
		return t.m.rootIno
	}
	return node
}

// entry answers with a new reference to the inode of a.
func (t *tree) entry(a jobs.Attr, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: a.Ino, Generation: 1}
	fillAttr(&out.Attr, a)
	out.SetEntryTimeout(cacheFor)
	out.SetAttrTimeout(cacheFor)
	t.known.add(a.Ino)
}

// found is entry for an inode that was there: its attributes were read after the notifier had told
// of so many changes. One of them may have come since, in vain, for the kernel does not know the inode before
// the answer. Then they are read again; what comes from now on finds the reference and is told again.
func (t *tree) found(c *call, told uint64, a jobs.Attr, out *fuse.EntryOut) {
	t.entry(a, out)
	for now := t.m.notify.told.Load(); now != told; now = t.m.notify.told.Load() {
		told = now
		b, err := t.m.engine.Getattr(c, a.Ino)
		if err != nil {
			return // gone: the next call meets that
		}
		fillAttr(&out.Attr, b)
	}
}

func (t *tree) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c := begin(in, cancel)
	defer c.finish()
	dir := t.ino(in.NodeId)
	told := t.m.notify.told.Load()
	err := checkName(name)
	var a jobs.Attr
	if err == nil {
		a, err = t.m.engine.Lookup(c, dir, name)
	}
	if err != nil {
		s := t.m.fail(c, "lookup", dir, name, err)
		if s == fuse.ENOENT {
			*out = fuse.EntryOut{} // node 0: a negative entry, which may be kept as long
			out.SetEntryTimeout(cacheFor)
			s = fuse.OK
		}
		return s
	}
	t.found(c, told, a, out)
	return fuse.OK
}

func (t *tree) Forget(node, n uint64) { t.known.forget(node, n) }

func (t *tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	a, err := t.m.engine.Getattr(c, ino)
	if err != nil {
		_, r := t.known.has(ino)
		if r == nil || r.release != nil {
			return t.m.fail(c, "getattr", ino, "", err)
		}
		a = r.attr
	}
	fillAttr(&out.Attr, a)
	out.SetTimeout(cacheFor)
	return fuse.OK
}

func (t *tree) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	var h *jobs.Handle
	if n, ok := in.GetFh(); ok {
		if fh := t.files.get(n); fh != nil && fh.ino == ino {
			h = fh.h
		}
	}
	a, err := t.m.engine.Setattr(c, c.caller(), ino, h, setAttr(in))
	if err != nil {
		return t.m.fail(c, "setattr", ino, "", err)
	}
	fillAttr(&out.Attr, a)
	out.SetTimeout(cacheFor)
	return fuse.OK
}

func (t *tree) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	c := begin(in, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	target, err := t.m.engine.Readlink(c, ino)
	if err != nil {
		_, r := t.known.has(ino)
		if r == nil || r.release != nil {
			return nil, t.m.fail(c, "readlink", ino, "", err)
		}
		target = r.target
	}
	return []byte(target), fuse.OK
}

func (t *tree) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c := begin(in, cancel)
	defer c.finish()
	s, err := t.m.engine.Statfs(c)
	if err != nil {
		return t.m.fail(c, "statfs", t.ino(in.NodeId), "", err)
	}
	const unit = 4096
	out.Bsize, out.Frsize = unit, unit
	out.Blocks = s.Total / unit
	out.Bfree = s.Free / unit
	out.Bavail = out.Bfree
	out.Files, out.Ffree = s.Files, s.FreeFiles
	out.NameLen = maxName
	return fuse.OK
}

// Ioctl: there are none.
func (t *tree) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// OnUnmount is called when the last request has been answered. An aborted
// mount releases and forgets nothing, so what is still open is given back here.
func (t *tree) OnUnmount() {
	for _, h := range t.files.takeAll() {
		t.m.finish(h)
	}
	t.listing.takeAll()
	t.known.clear()
}

// isSymlink and isFile tell the type of an inode by its mode.
func isSymlink(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFLNK }
func isFile(mode uint32) bool    { return mode&unix.S_IFMT == unix.S_IFREG }
