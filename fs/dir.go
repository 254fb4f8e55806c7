package fs

import (
	"context"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/jobs"
)

// dirNode is a directory: the account's root, a vault's, or one below.
type dirNode struct{ node }

// entry fills out with a and returns the Inode for it: the one the library has
// under that name, or a new one (which the library exchanges for an existing
// one of the same number: hard links).
func (n *dirNode) entry(c *call, name string, a jobs.Attr, out *fuse.EntryOut) *fusefs.Inode {
	fillAttr(&out.Attr, a)
	id := fusefs.StableAttr{Ino: a.Ino, Mode: a.Mode & unix.S_IFMT, Gen: 1}
	if child := n.GetChild(name); child != nil && child.StableAttr() == id {
		return child
	}
	return n.NewInode(c, n.m.newNode(a.Mode), id)
}

func (n *dirNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	if err := checkName(name); err != nil {
		return nil, n.fail(c, "lookup", name, err)
	}
	a, err := n.m.engine.Lookup(c, n.ino(), name)
	if err != nil {
		return nil, n.fail(c, "lookup", name, err)
	}
	return n.entry(c, name, a, out), 0
}

// Create makes and opens a file. The kernel sends it only for a name it
// believes absent; when the name has appeared since, a program that did not ask for O_EXCL
// gets the existing file after the kernel has looked again (ESTALE).
func (n *dirNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	if err := checkName(name); err != nil {
		return nil, nil, 0, n.fail(c, "create", name, err)
	}
	f := openFlags(flags)
	a, h, err := n.m.engine.Create(c, c.caller(), n.ino(), name, mode, f)
	if err != nil {
		e := n.fail(c, "create", name, err)
		if e == syscall.EEXIST && flags&unix.O_EXCL == 0 {
			e = syscall.ESTALE
		}
		return nil, nil, 0, e
	}
	child := n.entry(c, name, a, out)
	fh, fuseFlags := n.m.handle(c, child.Operations().(inode).base(), h, f)
	return child, fh, fuseFlags, 0
}

func (n *dirNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	return n.add(ctx, "mkdir", name, out, func(c *call) (jobs.Attr, error) {
		return n.m.engine.Mkdir(c, c.caller(), n.ino(), name, mode)
	})
}

func (n *dirNode) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	return n.add(ctx, "mknod", name, out, func(c *call) (jobs.Attr, error) {
		return n.m.engine.Mknod(c, c.caller(), n.ino(), name, mode, dev)
	})
}

func (n *dirNode) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	return n.add(ctx, "symlink", name, out, func(c *call) (jobs.Attr, error) {
		return n.m.engine.Symlink(c, c.caller(), n.ino(), name, target)
	})
}

func (n *dirNode) Link(ctx context.Context, target fusefs.InodeEmbedder, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	ino := target.(inode).base().ino()
	return n.add(ctx, "link", name, out, func(c *call) (jobs.Attr, error) {
		return n.m.engine.Link(c, ino, n.ino(), name)
	})
}

// add is the common part of the calls that give a name to an inode.
func (n *dirNode) add(ctx context.Context, op, name string, out *fuse.EntryOut, do func(*call) (jobs.Attr, error)) (*fusefs.Inode, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	if err := checkName(name); err != nil {
		return nil, n.fail(c, op, name, err)
	}
	a, err := do(c)
	if err != nil {
		return nil, n.fail(c, op, name, err)
	}
	return n.entry(c, name, a, out), 0
}

// Tmpfile refuses O_TMPFILE; ENOSYS is remembered by the kernel, which answers
// EOPNOTSUPP from then on by itself.
func (n *dirNode) Tmpfile(context.Context, uint32, uint32, *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.ENOSYS
}

func (n *dirNode) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, "unlink", name, n.m.engine.Unlink)
}

func (n *dirNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, "rmdir", name, n.m.engine.Rmdir)
}

func (n *dirNode) remove(ctx context.Context, op, name string, do func(context.Context, uint64, string) error) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := checkName(name); err != nil {
		return n.fail(c, op, name, err)
	}
	done := n.remember(c, name)
	err := do(c, n.ino(), name)
	done(err == nil)
	if err != nil {
		return n.fail(c, op, name, err)
	}
	return 0
}

func (n *dirNode) Rename(ctx context.Context, name string, newParent fusefs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := checkName(name); err != nil {
		return n.fail(c, "rename", name, err)
	}
	if err := checkName(newName); err != nil {
		return n.fail(c, "rename", name, err)
	}
	if flags&^(catalog.RenameNoReplace|catalog.RenameExchange) != 0 {
		return n.fail(c, "rename", name, catalog.ErrInvalid)
	}
	to := newParent.(*dirNode)
	done := func(bool) {}
	if flags == 0 {
		done = to.remember(c, newName)
	}
	err := n.m.engine.Rename(c, n.ino(), name, to.ino(), newName, flags)
	done(err == nil)
	if err != nil {
		return n.fail(c, "rename", name, err)
	}
	return 0
}

// OpendirHandle lets the kernel keep the listing: it drops it when the
// directory changes through this mount, and EntryChanged drops it otherwise.
func (n *dirNode) OpendirHandle(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return &dirHandle{n: n}, fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE, 0
}

// listChunk is how many entries are fetched at once: enough to make the fetch
// cheap, few enough to keep nothing large in memory for a listing of any size.
const listChunk = 1000

// Directory offsets. An entry's offset is the catalog's cookie moved up by
// two, so that "." and ".." have offsets of their own; it never changes while the name exists.
const (
	afterDot    = 1
	afterDotDot = 2
)

// dirHandle streams a listing. The library calls it under a lock of its own.
//
// READDIRPLUS asks for each entry's attributes right after the entry. They are
// fetched together for as many entries as the last such request took, and are good for the
// request they were fetched in only: while it lasts the kernel changes no name in the
// directory, and takes no attributes from it that it changed meanwhile.
type dirHandle struct {
	n     *dirNode
	off   uint64       // of the last entry handed out
	last  jobs.Entry   // that entry
	ahead []jobs.Entry // fetched, not yet handed out
	end   bool         // nothing after ahead

	plus    context.Context // the request attrs are for; nil: entries without attributes are wanted
	asked   bool            // last's attributes were
	attr    jobs.Attr       // last's
	attrs   []jobs.Attr     // ahead's
	took    int             // entries of that request so far
	request int             // and of the one before
}

// leastPlus is how many entries are fetched with attributes at least.
const leastPlus = 16

func (h *dirHandle) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	switch h.off {
	case 0:
		h.off = afterDot
		return &fuse.DirEntry{Name: ".", Ino: h.n.ino(), Mode: unix.S_IFDIR, Off: h.off}, 0
	case afterDot:
		c, end := begin(ctx)
		defer end()
		up := h.n.ino()
		if !h.n.IsRoot() {
			a, err := h.n.m.engine.Getattr(c, up)
			if err != nil {
				return nil, h.n.fail(c, "readdir", "", err)
			}
			up = a.Parent
		}
		h.off = afterDotDot
		return &fuse.DirEntry{Name: "..", Ino: up, Mode: unix.S_IFDIR, Off: h.off}, 0
	}
	if h.plus != nil && !(h.asked && h.more(ctx)) {
		h.noPlus()
	}
	if h.plus != nil {
		return h.next(), 0
	}
	if len(h.ahead) == 0 && !h.end {
		c, end := begin(ctx)
		defer end()
		list, err := h.n.m.engine.ReadDir(c, h.n.ino(), h.off-afterDotDot, listChunk)
		if err != nil {
			return nil, h.n.fail(c, "readdir", "", err)
		}
		h.ahead, h.end = list, len(list) < listChunk
	}
	if len(h.ahead) == 0 {
		// What is added from here on is found by a listing that starts again or seeks.
		return nil, 0
	}
	return h.next(), 0
}

// next hands out the first entry of ahead; nil at the end.
func (h *dirHandle) next() *fuse.DirEntry {
	if len(h.ahead) == 0 {
		return nil
	}
	h.last, h.ahead, h.asked = h.ahead[0], h.ahead[1:], false
	if h.plus != nil {
		h.attr, h.attrs = h.attrs[0], h.attrs[1:]
		h.took++
	}
	h.off = h.last.Cookie + afterDotDot
	return &fuse.DirEntry{Name: h.last.Name, Ino: h.last.Ino, Mode: h.last.Type, Off: h.off}
}

// more makes sure that ahead holds the next entry with attributes as of this request,
// unless there is none; false when that failed.
func (h *dirHandle) more(ctx context.Context) bool {
	if h.plus == ctx && len(h.ahead) > 0 {
		return true
	}
	return h.fetch(ctx, h.last.Cookie)
}

// fetch fetches entries after a cookie, with attributes.
func (h *dirHandle) fetch(ctx context.Context, after uint64) bool {
	if h.plus != ctx {
		h.request, h.took = h.took, 0
	}
	c, end := begin(ctx)
	defer end()
	list, attrs, err := h.n.m.engine.ReadDirPlus(c, h.n.ino(), after, max(h.request-h.took+1, leastPlus))
	if err != nil {
		h.noPlus()
		return false
	}
	h.plus, h.ahead, h.attrs, h.end = ctx, list, attrs, false
	return true
}

// noPlus goes back to entries without attributes.
func (h *dirHandle) noPlus() {
	h.plus, h.ahead, h.attrs, h.end, h.took = nil, nil, nil, false, 0
}

// Seekdir continues after the entry of offset off; 0 starts again.
func (h *dirHandle) Seekdir(_ context.Context, off uint64) syscall.Errno {
	h.noPlus()
	h.off, h.last, h.asked = off, jobs.Entry{}, false
	if off >= afterDotDot {
		h.last.Cookie = off - afterDotDot
	}
	return 0
}

// Lookup serves READDIRPLUS: it is called after the entry was handed out, or,
// when that did not fit into the reply, in the request that follows.
func (h *dirHandle) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	if name != h.last.Name {
		return h.n.Lookup(ctx, name, out) // the library repeats a reply that was lost
	}
	if h.plus != ctx {
		// The first one of this request: begin with this entry, if it is still there.
		if !h.fetch(ctx, h.last.Cookie-1) || len(h.ahead) == 0 || h.ahead[0].Name != name {
			h.noPlus()
			return h.n.Lookup(ctx, name, out)
		}
		h.next()
	}
	h.asked = true
	if h.attr.Ino == 0 {
		return h.n.Lookup(ctx, name, out)
	}
	c, end := begin(ctx)
	defer end()
	return h.n.entry(c, name, h.attr, out), 0
}

func (h *dirHandle) Releasedir(context.Context, uint32) {}

func (h *dirHandle) Fsyncdir(ctx context.Context, _ uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := h.n.m.engine.FsyncDir(c, h.n.ino()); err != nil {
		return h.n.fail(c, "fsync", "", err)
	}
	return 0
}
