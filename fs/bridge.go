package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// bridge stands between the server and the library's tree. It sees what the
// tree's methods do not: the number of a handle, the reply to an open, and the
// moment after a release. Passthrough is done here and not by the library, which drops
// the backing file of an inode with the release of any of its handles, also of
// those that never used it: an open under way then fails with EIO.
type bridge struct {
	fuse.RawFileSystem
	m *Mount
}

func (b *bridge) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s := b.RawFileSystem.Open(cancel, in, out)
	b.opened(cancel, s, out)
	return s
}

func (b *bridge) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	s := b.RawFileSystem.Create(cancel, in, name, out)
	b.opened(cancel, s, &out.OpenOut)
	return s
}

// opened completes the reply and remembers the handle under the number the kernel will use.
func (b *bridge) opened(cancel <-chan struct{}, s fuse.Status, out *fuse.OpenOut) {
	m := b.m
	m.mu.Lock()
	h := m.opening[cancel]
	delete(m.opening, cancel)
	if h != nil && s.Ok() {
		m.handles[out.Fh] = h
		out.BackingID = h.backing
	}
	m.mu.Unlock()
	if h != nil && !s.Ok() {
		m.finish(h)
	}
}

// Release gives the handle back to the engine when neither kernel nor library use it any more.
func (b *bridge) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	m := b.m
	m.mu.Lock()
	h := m.handles[in.Fh]
	delete(m.handles, in.Fh) // before the library gives the number out again
	m.mu.Unlock()
	b.RawFileSystem.Release(cancel, in)
	if h != nil {
		m.finish(h)
	}
}

// OnUnmount is called when the last request has been answered. An aborted
// mount releases and forgets nothing, so what is still open is given back here.
func (b *bridge) OnUnmount() {
	b.RawFileSystem.OnUnmount()
	m := b.m
	m.mu.Lock()
	var handles []*fileHandle
	for _, h := range m.handles {
		handles = append(handles, h)
	}
	clear(m.handles)
	var held []*removed
	for r := range m.held {
		held = append(held, r)
	}
	m.mu.Unlock()
	for _, h := range handles {
		m.finish(h)
	}
	for _, r := range held {
		m.drop(r)
	}
}
