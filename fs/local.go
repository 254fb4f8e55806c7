package fs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// localHandle is an open file whose local file is handed to the kernel, which
// reads it without asking. The engine keeps that file whole and in its place until
// the handle is released.
type localHandle struct {
	open
	fd int
}

// PassthroughFd is called once, when the kernel opens the first handle of an inode.
func (h *localHandle) PassthroughFd() (int, bool) { return h.fd, true }

func (h *localHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if !h.write {
		h.n.m.refused()
	}
	return h.open.Read(ctx, dest, off)
}

func (h *localHandle) Release(ctx context.Context) syscall.Errno {
	h.n.m.release(ctx, h)
	return 0
}
