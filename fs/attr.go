package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// cacheFor is how long the kernel may keep names, negative names and
// attributes: nothing else changes the tree, and the engine's own changes are notified.
const cacheFor = 5 * time.Minute

// blockSize is st_blksize of files: stdio reads and writes in pieces of it,
// and a request costs the same for 4 KiB as for this much.
const blockSize = 128 << 10

// fillAttr is the only place where attributes are translated. Blksize must be
// set: without it the library computes Blocks from the size, and they are the local footprint.
func fillAttr(out *fuse.Attr, a jobs.Attr) {
	out.Ino = a.Ino
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	out.Rdev = a.Rdev
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Blocks)
	out.Blksize = 4096
	if a.Mode&unix.S_IFMT == unix.S_IFREG {
		out.Blksize = blockSize
	}
	out.Atime, out.Atimensec = split(a.Atime)
	out.Mtime, out.Mtimensec = split(a.Mtime)
	out.Ctime, out.Ctimensec = split(a.Ctime)
}

// split cuts nanoseconds since 1970 as the kernel wants them: the nanoseconds
// are never negative, so times before 1970 round the seconds down.
func split(ns int64) (sec uint64, nsec uint32) {
	t := time.Unix(0, ns)
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

// setAttr reads a SETATTR request. KillPriv is asked for by the kernel with a
// truncation (CAP_HANDLE_KILLPRIV_V2); with a change of owner it is up to the server.
func setAttr(in *fuse.SetAttrIn) jobs.SetAttr {
	var s jobs.SetAttr
	if v, ok := in.GetMode(); ok {
		s.Mode = &v
	}
	if v, ok := in.GetUID(); ok {
		s.UID = &v
	}
	if v, ok := in.GetGID(); ok {
		s.GID = &v
	}
	if v, ok := in.GetSize(); ok {
		size := int64(v)
		s.Size = &size
	}
	if v, ok := in.GetATime(); ok {
		s.Atime = &v
	}
	if v, ok := in.GetMTime(); ok {
		s.Mtime = &v
	}
	// A request without any field is a change of owner to what it is.
	chown := s.UID != nil || s.GID != nil || s == (jobs.SetAttr{})
	s.KillPriv = in.Valid&fuse.FATTR_KILL_SUIDGID != 0 || chown
	return s
}
