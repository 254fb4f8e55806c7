package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/casfs/casfs/jobs"
)

// The kernel does the I/O of an inode in one of two ways at a time. While a
// passthrough handle is open, an open of any other kind fails with EIO. While a handle is open whose
// pages are cached, or may be through a shared mapping, a passthrough open fails with EIO; a
// direct I/O handle that cannot be mapped is no obstacle. And all passthrough handles of
// an inode must have the same backing file.

// ways counts the open handles of one inode by the way of their I/O.
type ways struct {
	through int   // passthrough
	backing int32 // their backing file's number in the kernel
	cached  int   // others that have or may get cached pages
}

// way decides how a new handle does its I/O and counts it. It returns the
// number of the backing file, 0 for none, and the flags for the kernel:
//
//   - local, for reading: passthrough, or through the page cache where that is not possible;
//   - local, for writing: passthrough with direct I/O, so that each write still reaches the engine;
//   - otherwise: direct I/O, so that a read that waits for a recall locks no page.
//
// The engine's Local follows the kernel's rules; what can still fail is the
// registration, hence the count.
func (m *Mount) way(ino uint64, h *jobs.Handle, f jobs.OpenFlags) (backing int32, flags uint32) {
	flags = fuse.FOPEN_KEEP_CACHE
	if f.Write || !h.Local() {
		flags |= fuse.FOPEN_DIRECT_IO
	}
	if !f.Write {
		flags |= fuse.FOPEN_NOFLUSH // nothing to report at close
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale[ino] > 0 {
		flags &^= fuse.FOPEN_KEEP_CACHE
	}
	w := m.ways[ino]
	if fd := h.Fd(); fd >= 0 {
		if w.through == 0 && w.cached == 0 && m.passthrough {
			w.backing = m.register(fd)
		}
		if w.backing != 0 {
			w.through++
			m.ways[ino] = w
			return w.backing, flags&^fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PASSTHROUGH
		}
	}
	if f.Read {
		w.cached++
		m.ways[ino] = w
	}
	return 0, flags
}

// unway undoes what way counted.
func (m *Mount) unway(ino uint64, h *fileHandle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.ways[ino]
	switch {
	case h.backing != 0:
		if w.through--; w.through == 0 {
			m.server.UnregisterBackingFd(w.backing)
			w.backing = 0
		}
	case h.flags.Read:
		w.cached--
	}
	if w == (ways{}) {
		delete(m.ways, ino)
	} else {
		m.ways[ino] = w
	}
}

// register hands a local file to the kernel. Called with m.mu held.
func (m *Mount) register(fd int) int32 {
	id, errno := m.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	switch errno {
	case 0:
		m.through = true
		return id
	case syscall.EPERM, syscall.ELOOP, syscall.EOPNOTSUPP, syscall.EINVAL:
		m.passthrough = false // it will not be otherwise for the next file
		m.refusal = errno
		m.log.Info("passthrough is not used", "reason", m.passthroughState())
	default:
		m.log.Warn("a file is read through the page cache and not directly", "errno", errno.Error())
	}
	return 0
}

// PassthroughState says in words whether passthrough is in use.
func (m *Mount) PassthroughState() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.passthroughState()
}

func (m *Mount) passthroughState() string {
	switch {
	case !m.asked:
		return "switched off"
	case m.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0:
		return "not available: it needs Linux 6.9 or later"
	case m.refusal == syscall.EPERM:
		return "not available: it needs root (CAP_SYS_ADMIN)"
	case m.refusal == syscall.ELOOP:
		return "not available: the state directory is on a stacked file system (overlayfs)"
	case m.refusal != 0:
		return "refused by the kernel: " + m.refusal.Error()
	case m.through:
		return "in use"
	}
	return "available, not used yet"
}
