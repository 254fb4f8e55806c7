package fs

import (
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
	ino     uint64
	h       *jobs.Handle
	flags   jobs.OpenFlags
	backing int32 // the kernel's number of the local file it uses itself; 0: none
}

// finish gives the handle back once neither kernel nor library use it.
func (m *Mount) finish(fh *fileHandle) {
	ino := fh.ino
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
		m.notify.add(change{about: about{contentChanged, ino, ""}, done: func() { m.freshened(ino) }})
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

// request begins a call on an open file; the handle is nil for a number that is not open.
func (t *tree) request(cancel <-chan struct{}, in *fuse.InHeader, n uint64) (*call, *fileHandle) {
	return begin(in, cancel), t.files.get(n)
}

func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, dest []byte) (fuse.ReadResult, fuse.Status) {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return nil, fuse.EBADF
	}
	n, err := fh.h.ReadAt(c, c.caller(), dest, int64(in.Offset))
	// What is there is good; the next read meets the error again.
	if err != nil && n == 0 && !errors.Is(err, io.EOF) {
		return nil, t.m.fail(c, "read", fh.ino, "", err)
	}
	return fuse.ReadResultData(dest[:n]), fuse.OK
}

func (t *tree) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return 0, fuse.EBADF
	}
	n, err := fh.h.WriteAt(c, c.caller(), data, int64(in.Offset))
	if err != nil && n == 0 {
		return 0, t.m.fail(c, "write", fh.ino, "", err)
	}
	return uint32(n), fuse.OK
}

// Flush is close(2) of one descriptor: it reports what is known already and
// commits nothing, for it comes early, often, and cancelled when the writer was killed.
func (t *tree) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return fuse.EBADF
	}
	if err := fh.h.Flush(c); err != nil {
		return t.m.fail(c, "close", fh.ino, "", err)
	}
	return fuse.OK
}

func (t *tree) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return fuse.EBADF
	}
	const datasync = 1
	if err := fh.h.Fsync(c, in.FsyncFlags&datasync != 0); err != nil {
		return t.m.fail(c, "fsync", fh.ino, "", err)
	}
	return fuse.OK
}

func (t *tree) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return fuse.EBADF
	}
	if err := fh.h.Allocate(c, c.caller(), in.Mode, int64(in.Offset), int64(in.Length)); err != nil {
		return t.m.fail(c, "fallocate", fh.ino, "", err)
	}
	return fuse.OK
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (t *tree) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c, fh := t.request(cancel, &in.InHeader, in.Fh)
	defer c.finish()
	if fh == nil {
		return fuse.EBADF
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return t.m.fail(c, "lseek", fh.ino, "", catalog.ErrInvalid)
	}
	pos, err := fh.h.Seek(c, int64(in.Offset), int(in.Whence))
	if errors.Is(err, io.EOF) {
		return fuse.Status(syscall.ENXIO)
	}
	if err != nil {
		return t.m.fail(c, "lseek", fh.ino, "", err)
	}
	out.Offset = uint64(pos)
	return fuse.OK
}
