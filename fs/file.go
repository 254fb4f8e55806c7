package fs

import (
	"context"
	"sync"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/jobs"
)

// fileNode is a regular file.
type fileNode struct{ node }

// openFlags translates open(2)'s flags. Creating and truncating are decided by
// the request; O_APPEND's offsets come from the kernel. O_NONBLOCK means nothing, as on
// any regular file: tar, rsync, grep and file(1) open everything with it, for fear of fifos.
func openFlags(flags uint32) jobs.OpenFlags {
	mode := flags & unix.O_ACCMODE
	return jobs.OpenFlags{
		Read:     mode != unix.O_WRONLY,
		Write:    mode == unix.O_WRONLY || mode == unix.O_RDWR,
		Append:   flags&unix.O_APPEND != 0,
		Truncate: flags&unix.O_TRUNC != 0,
		Sync:     flags&unix.O_DSYNC != 0, // O_SYNC contains it
		// Who opens for writing only will write; but for touch and truncate, which say O_NONBLOCK.
		Whole: mode == unix.O_WRONLY && flags&(unix.O_TRUNC|unix.O_NONBLOCK) == 0,
	}
}

func (n *fileNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	f := openFlags(flags)
	h, err := n.m.engine.Open(c, c.caller(), n.ino(), f)
	if err != nil {
		return nil, 0, n.fail(c, "open", "", err)
	}
	fh, fuseFlags := n.m.handle(c, &n.node, h, f)
	return fh, fuseFlags, 0
}

// copyLimit bounds what one COPY_FILE_RANGE request moves, so that a request
// ends before anyone wonders; programs ask for the rest.
const copyLimit = 16 << 20

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// CopyFileRange copies inside the daemon. Without it the kernel would copy
// through a pipe, 64 KiB and two requests at a time.
func (n *fileNode) CopyFileRange(ctx context.Context, fhIn fusefs.FileHandle, offIn uint64, out *fusefs.Inode, fhOut fusefs.FileHandle, offOut, length, flags uint64) (uint32, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	from, ok1 := fhIn.(*fileHandle)
	to, ok2 := fhOut.(*fileHandle)
	if !ok1 || !ok2 || flags != 0 {
		return 0, n.fail(c, "copy_file_range", "", catalog.ErrInvalid)
	}
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	length = min(length, copyLimit)
	var done uint64
	for done < length {
		buf := (*bp)[:min(length-done, uint64(len(*bp)))]
		nr, err := from.h.ReadAt(c, c.caller(), buf, int64(offIn+done))
		if err == nil && nr > 0 {
			nr, err = to.h.WriteAt(c, c.caller(), buf[:nr], int64(offOut+done))
		}
		if err != nil {
			if done > 0 {
				break // the next request meets the error again and reports it
			}
			return 0, n.fail(c, "copy_file_range", "", err)
		}
		done += uint64(nr)
		if nr < len(buf) {
			break
		}
	}
	return uint32(done), 0
}
