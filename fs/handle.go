package fs

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/jobs"
)

// opened is any open regular file.
type opened interface {
	handle() *jobs.Handle
}

// open is what the handle types have in common.
type open struct {
	n       *node
	h       *jobs.Handle
	write   bool
	through bool // counted as a passthrough handle
}

func (o *open) handle() *jobs.Handle { return o.h }

// uses counts the open handles of an inode by the kernel's way of doing their
// I/O. The kernel keeps one way per inode: while a passthrough handle is open,
// any other open fails with EIO, and the reverse while pages of another handle are
// cached or mapped. So passthrough begins only when nothing else is open.
type uses struct{ plain, through int }

// handle wraps an engine handle in the type that fits and says how the kernel shall use it.
//
//   - not all local: direct I/O (coldHandle), so that a read that waits locks no page;
//   - local, for reading: passthrough (localHandle), else through the page cache;
//   - local, for writing: direct I/O, so that each write reaches the engine; with
//     passthrough only when readers made that the inode's way already.
//
// The types must differ: once an inode has a backing file, the library gives it
// to every handle whose type has PassthroughFd.
func (m *Mount) handle(n *node, h *jobs.Handle, f jobs.OpenFlags) (any, uint32) {
	var flags uint32 = fuse.FOPEN_KEEP_CACHE
	if f.Write {
		flags |= fuse.FOPEN_DIRECT_IO
	} else {
		flags |= fuse.FOPEN_NOFLUSH // nothing to report at close
	}
	o := open{n: n, h: h, write: f.Write}

	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.open[n.ino()]
	fd := -1
	if h.Local() && m.passthrough.Load() {
		fd = h.Fd()
	}
	if fd >= 0 && (u.through > 0 || u.plain == 0 && !f.Write) {
		o.through = true
		u.through++
		m.open[n.ino()] = u
		l := &localHandle{open: o, fd: fd}
		m.handles[l] = struct{}{}
		return l, flags
	}
	u.plain++
	m.open[n.ino()] = u
	if !h.Local() {
		flags |= fuse.FOPEN_DIRECT_IO
	} else if m.stale[n.ino()] > 0 {
		flags &^= fuse.FOPEN_KEEP_CACHE
	}
	c := &coldHandle{open: o}
	m.handles[c] = struct{}{}
	return c, flags
}

// finish gives the handle back once neither kernel nor library use it. fh is the value given out.
func (m *Mount) finish(fh opened) {
	var o *open
	switch h := fh.(type) {
	case *localHandle:
		o = &h.open
	case *coldHandle:
		o = &h.open
	}
	ino := o.n.ino()
	m.mu.Lock()
	delete(m.handles, fh)
	u := m.open[ino]
	if o.through {
		u.through--
	} else {
		u.plain--
	}
	if u == (uses{}) {
		delete(m.open, ino)
	} else {
		m.open[ino] = u
	}
	mapped := o.through && o.write
	if mapped {
		m.stale[ino]++
	}
	m.mu.Unlock()
	o.h.Release()
	if mapped {
		// Stores into a shared mapping went to the backing file, past the kernel's pages and attributes of this inode.
		m.notify.add(change{about{contentChanged, ino, ""}, func() { m.freshened(ino) }})
	}
}

// freshened undoes one count of m.stale.
func (m *Mount) freshened(ino uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale[ino]--; m.stale[ino] == 0 {
		delete(m.stale, ino)
	}
}

func (o *open) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	n, err := o.h.ReadAt(c, c.caller(), dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		if n > 0 {
			// What is there is good; the next read meets the error again.
			return fuse.ReadResultData(dest[:n]), 0
		}
		return nil, o.n.fail(c, "read", "", err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (o *open) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	n, err := o.h.WriteAt(c, c.caller(), data, off)
	if err != nil && n == 0 {
		return 0, o.n.fail(c, "write", "", err)
	}
	return uint32(n), 0
}

// Flush is close(2) of one descriptor: it reports what is known already and
// commits nothing, for it comes early, often, and cancelled when the writer was killed.
func (o *open) Flush(ctx context.Context) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := o.h.Flush(c); err != nil {
		return o.n.fail(c, "close", "", err)
	}
	return 0
}

func (o *open) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	const datasync = 1
	if err := o.h.Fsync(c, flags&datasync != 0); err != nil {
		return o.n.fail(c, "fsync", "", err)
	}
	return 0
}

func (o *open) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := o.h.Allocate(c, c.caller(), mode, int64(off), int64(size)); err != nil {
		return o.n.fail(c, "fallocate", "", err)
	}
	return 0
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (o *open) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, o.n.fail(c, "lseek", "", catalog.ErrInvalid)
	}
	pos, err := o.h.Seek(c, int64(off), int(whence))
	if errors.Is(err, io.EOF) {
		return 0, syscall.ENXIO
	}
	if err != nil {
		return 0, o.n.fail(c, "lseek", "", err)
	}
	return uint64(pos), 0
}
