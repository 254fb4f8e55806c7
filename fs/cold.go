package fs

import (
	"context"
	"syscall"
)

// coldHandle is an open file the kernel must not read behind our back: some of
// its bytes are only in the vault, or another handle has settled how this
// inode's I/O is done. It must never have a method PassthroughFd.
type coldHandle struct{ open }

func (h *coldHandle) Release(ctx context.Context) syscall.Errno {
	h.n.m.release(ctx, h)
	return 0
}
