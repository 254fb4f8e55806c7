package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/jobs"
)

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
		// Who opens for writing will write; but for touch and truncate, which say O_NONBLOCK.
		Whole: mode != unix.O_RDONLY && flags&(unix.O_TRUNC|unix.O_NONBLOCK) == 0,
	}
}

func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino, f := t.ino(in.NodeId), openFlags(in.Flags)
	h, err := t.m.engine.Open(c, c.caller(), ino, f)
	if err != nil {
		return t.m.fail(c, "open", ino, "", err)
	}
	t.opened(ino, h, f, out)
	return fuse.OK
}

// opened answers with a new handle.
func (t *tree) opened(ino uint64, h *jobs.Handle, f jobs.OpenFlags, out *fuse.OpenOut) {
	fh := &fileHandle{ino: ino, h: h, flags: f}
	*out = fuse.OpenOut{}
	fh.backing, out.OpenFlags = t.m.way(ino, h, f)
	out.BackingID = fh.backing
	out.Fh = t.files.add(fh)
}

// Release gives the handle back to the engine: the kernel does not use it any more.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if fh := t.files.take(in.Fh); fh != nil {
		t.m.finish(fh)
	}
}

// copyLimit bounds what one COPY_FILE_RANGE request moves, so that a request
// ends before anyone wonders; programs ask for the rest.
const copyLimit = 16 << 20

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// CopyFileRange copies inside the daemon. Without it the kernel would copy
// through a pipe, 64 KiB and two requests at a time.
func (t *tree) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	from, to := t.files.get(in.FhIn), t.files.get(in.FhOut)
	if from == nil || to == nil || in.Flags != 0 {
		return 0, t.m.fail(c, "copy_file_range", ino, "", catalog.ErrInvalid)
	}
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	length := min(in.Len, copyLimit)
	var done uint64
	for done < length {
		buf := (*bp)[:min(length-done, uint64(len(*bp)))]
		n, err := from.h.ReadAt(c, c.caller(), buf, int64(in.OffIn+done))
		if err == nil && n > 0 {
			n, err = to.h.WriteAt(c, c.caller(), buf[:n], int64(in.OffOut+done))
		}
		if err != nil {
			if done > 0 {
				break // the next request meets the error again and reports it
			}
			return 0, t.m.fail(c, "copy_file_range", ino, "", err)
		}
		done += uint64(n)
		if n < len(buf) {
			break
		}
	}
	return uint32(done), fuse.OK
}
