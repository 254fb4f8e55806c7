package fs

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// node is what all inodes have in common. The kernel's inode, the library's
// Inode and the catalog's inode share one number.
type node struct {
	fusefs.Inode
	m       *Mount
	removed atomic.Pointer[removed]
}

// removed is what the kernel may still ask of an inode whose last name is gone. A local
// file system keeps an inode as long as anyone refers to it, if only a path look-up
// that found the name a moment before a rename replaced it; the catalog drops it at once.
type removed struct {
	attr    jobs.Attr // of anything but a regular file, Nlink 0
	target  string    // of a symlink
	release func()    // lets the engine drop a regular file
}

// inode is any of the node types.
type inode interface {
	fusefs.InodeEmbedder
	base() *node
}

func (n *node) base() *node { return n }

func (n *node) ino() uint64 { return n.StableAttr().Ino }

// newNode makes the node type for a mode.
func (m *Mount) newNode(mode uint32) inode {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return &dirNode{node{m: m}}
	case unix.S_IFREG:
		return &fileNode{node{m: m}}
	case unix.S_IFLNK:
		return &linkNode{node{m: m}}
	}
	return &specialNode{node{m: m}}
}

func (n *node) Getattr(ctx context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	a, err := n.m.engine.Getattr(c, n.ino())
	if err != nil {
		r := n.removed.Load()
		if r == nil || r.release != nil {
			return n.fail(c, "getattr", "", err)
		}
		a = r.attr
	}
	fillAttr(&out.Attr, a)
	out.SetTimeout(cacheFor)
	return 0
}

func (n *node) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	var h *jobs.Handle
	if fh, ok := f.(*fileHandle); ok {
		h = fh.h
	}
	a, err := n.m.engine.Setattr(c, c.caller(), n.ino(), h, setAttr(in, n.IsDir()))
	if err != nil {
		return n.fail(c, "setattr", "", err)
	}
	fillAttr(&out.Attr, a)
	out.SetTimeout(cacheFor)
	return 0
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	s, err := n.m.engine.Statfs(c)
	if err != nil {
		return n.fail(c, "statfs", "", err)
	}
	const unit = 4096
	out.Bsize, out.Frsize = unit, unit
	out.Blocks = s.Total / unit
	out.Bfree = s.Free / unit
	out.Bavail = out.Bfree
	out.Files, out.Ffree = s.Files, s.FreeFiles
	out.NameLen = maxName
	return 0
}

// remember readies the child name of n for losing that name; done says whether
// it did. Children the kernel does not know need nothing.
func (n *dirNode) remember(c *call, name string) (done func(ok bool)) {
	nothing := func(bool) {}
	known := n.GetChild(name)
	if known == nil {
		return nothing
	}
	child := known.Operations().(inode).base()
	r := &removed{}
	if known.Mode() == unix.S_IFREG {
		if child.removed.Load() != nil {
			return nothing // held already, for another of its names
		}
		r.release = n.m.engine.Hold(child.ino())
		n.m.keep(r)
		return func(ok bool) {
			if !ok || !child.removed.CompareAndSwap(nil, r) {
				n.m.drop(r)
			}
		}
	}
	a, err := n.m.engine.Getattr(c, child.ino())
	if err != nil {
		return nothing
	}
	r.attr = a
	r.attr.Nlink = 0
	r.attr.Ctime = time.Now().UnixNano()
	if known.Mode() == unix.S_IFLNK {
		if r.target, err = n.m.engine.Readlink(c, child.ino()); err != nil {
			return nothing
		}
	}
	return func(ok bool) {
		if ok {
			child.removed.Store(r) // looked at only when the engine knows the inode no more
		}
	}
}

// OnForget is called when the kernel has dropped its last reference.
func (n *node) OnForget() {
	if r := n.removed.Swap(nil); r != nil && r.release != nil {
		n.m.drop(r)
	}
}

// keep notes a held file, so that it is dropped at unmount at the latest: the kernel forgets nothing then.
func (m *Mount) keep(r *removed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held[r] = struct{}{}
}

func (m *Mount) drop(r *removed) {
	m.mu.Lock()
	_, kept := m.held[r]
	delete(m.held, r)
	m.mu.Unlock()
	if kept {
		r.release()
	}
}
