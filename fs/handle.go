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

// fileHandle is an open regular file.
type fileHandle struct {
	n       *node
	h       *jobs.Handle
	flags   jobs.OpenFlags
	backing int32 // the kernel's number of the local file it uses itself; 0: none
}

// handle wraps an engine handle for the request c, whose reply bridge completes.
func (m *Mount) handle(c *call, n *node, h *jobs.Handle, f jobs.OpenFlags) (*fileHandle, uint32) {
	fh := &fileHandle{n: n, h: h, flags: f}
	var flags uint32
	fh.backing, flags = m.way(n.ino(), h, f)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opening[c.fc.Done()] = fh // the one thing that request and context share
	return fh, flags
}

// finish gives the handle back once neither kernel nor library use it.
func (m *Mount) finish(fh *fileHandle) {
	ino := fh.n.ino()
	m.unway(ino, fh)
	mapped := fh.backing != 0 && fh.flags.Write
	if mapped {
		m.mu.Lock()
		m.stale[ino]++
		m.mu.Unlock()
	}
	fh.h.Release()
	if mapped {
		// Stores into a shared mapping went to the backing file, past what the kernel
		// keeps of this inode: its pages, size and times.
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

func (h *fileHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	n, err := h.h.ReadAt(c, c.caller(), dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		if n > 0 {
			// What is there is good; the next read meets the error again.
			return fuse.ReadResultData(dest[:n]), 0
		}
		return nil, h.n.fail(c, "read", "", err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *fileHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	n, err := h.h.WriteAt(c, c.caller(), data, off)
	if err != nil && n == 0 {
		return 0, h.n.fail(c, "write", "", err)
	}
	return uint32(n), 0
}

// Flush is close(2) of one descriptor: it reports what is known already and
// commits nothing, for it comes early, often, and cancelled when the writer was killed.
func (h *fileHandle) Flush(ctx context.Context) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := h.h.Flush(c); err != nil {
		return h.n.fail(c, "close", "", err)
	}
	return 0
}

func (h *fileHandle) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	const datasync = 1
	if err := h.h.Fsync(c, flags&datasync != 0); err != nil {
		return h.n.fail(c, "fsync", "", err)
	}
	return 0
}

func (h *fileHandle) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	c, end := begin(ctx)
	defer end()
	if err := h.h.Allocate(c, c.caller(), mode, int64(off), int64(size)); err != nil {
		return h.n.fail(c, "fallocate", "", err)
	}
	return 0
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (h *fileHandle) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, h.n.fail(c, "lseek", "", catalog.ErrInvalid)
	}
	pos, err := h.h.Seek(c, int64(off), int(whence))
	if errors.Is(err, io.EOF) {
		return 0, syscall.ENXIO
	}
	if err != nil {
		return 0, h.n.fail(c, "lseek", "", err)
	}
	return uint64(pos), 0
}
