package fs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// bridge stands between the server and the library's tree, for the moments
// the tree does not hear of.
type bridge struct {
	fuse.RawFileSystem
	m *Mount
}

// Release gives handles back after the library has dropped the backing file it
// registered for the inode. Were they given back inside the tree's Release, as the
// library offers, an open in between could be given the old backing file for
// bytes the engine has meanwhile put somewhere else.
func (b *bridge) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	b.RawFileSystem.Release(cancel, in)
	b.m.mu.Lock()
	fh, ok := b.m.released[cancel]
	delete(b.m.released, cancel)
	b.m.mu.Unlock()
	if ok {
		b.m.finish(fh)
	}
}

// Open notes whether the kernel reads files itself.
func (b *bridge) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s := b.RawFileSystem.Open(cancel, in, out)
	if out.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0 {
		b.m.through.Store(true)
	}
	return s
}

// release notes, inside the tree's Release, which handle the request is about.
// Request and context share the cancel channel.
func (m *Mount) release(ctx context.Context, fh opened) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.released[ctx.Done()] = fh
}

// OnUnmount is called when the last request has been answered. An aborted
// mount releases and forgets nothing, so what is still open is given back here.
func (b *bridge) OnUnmount() {
	b.RawFileSystem.OnUnmount()
	b.m.mu.Lock()
	var left []opened
	for fh := range b.m.handles {
		left = append(left, fh)
	}
	var held []*removed
	for r := range b.m.held {
		held = append(held, r)
	}
	b.m.mu.Unlock()
	for _, fh := range left {
		b.m.finish(fh)
	}
	for _, r := range held {
		b.m.drop(r)
	}
}
