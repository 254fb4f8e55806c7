package jobs

import "context"

// OpenFlags of a handle, from open(2).
type OpenFlags struct {
	Read, Write bool
	Append      bool
	Truncate    bool
	Sync        bool // O_SYNC or O_DSYNC: every write is on stable disk before it returns
	NonBlock    bool
}

// Handle is an open regular file. It keeps the inode alive until Release.
type Handle struct{ impl handleImpl }

type handleImpl struct{}

// Create makes a regular file and opens it. Errors: catalog.ErrExist and the namespace's.
func (e *Engine) Create(ctx context.Context, c Caller, parent uint64, name string, mode uint32, f OpenFlags) (Attr, *Handle, error) {
	panic("unimplemented")
}

// Open opens a regular file. In mode queue, or with NonBlock, a cold file starts
// its retrieval and fails with ErrAgain; deny, guard and denied commands fail with ErrDenied/ErrGuard. In mode auto it does not wait: reads do.
// Opening for writing without Truncate does not recall either: the first Write or Truncate does.
func (e *Engine) Open(ctx context.Context, c Caller, ino uint64, f OpenFlags) (*Handle, error) {
	panic("unimplemented")
}

// Local reports whether every byte is local, verified, and will stay so until Release:
// then reads and writes never wait for a recall and Fd may be handed to the kernel. It is decided at Open and never changes for this handle.
func (h *Handle) Local() bool { panic("unimplemented") }

// Fd returns a descriptor of the local file for passthrough, or -1 when the file must
// not be read or written behind the engine's back (cold, streaming with punched parts, empty).
func (h *Handle) Fd() int { panic("unimplemented") }

func (h *Handle) Ino() uint64 { panic("unimplemented") }

// ReadAt reads up to len(p) bytes; n < len(p) only at the end of the file. It
// waits for a recall of cold ranges until ctx ends (returning ctx's error), ErrTimedOut, ErrDamaged, ErrGuard, ErrDenied.
func (h *Handle) ReadAt(ctx context.Context, c Caller, p []byte, off int64) (int, error) {
	panic("unimplemented")
}

// WriteAt writes all of p or fails; the first write to archived content makes a new version, recalling it first unless the file is
// empty. It waits for staging room. Errors: content.ErrNoSpace, ErrPunched, ErrClosing and ReadAt's.
func (h *Handle) WriteAt(ctx context.Context, c Caller, p []byte, off int64) (int, error) {
	panic("unimplemented")
}

// Allocate is fallocate(2).
func (h *Handle) Allocate(ctx context.Context, c Caller, mode uint32, off, n int64) error {
	panic("unimplemented")
}

// Seek answers SEEK_DATA (3) and SEEK_HOLE (4); cold bytes are data. io.EOF for ENXIO.
func (h *Handle) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	panic("unimplemented")
}

// Flush reports, once, a permanent upload failure of the file. It commits nothing.
func (h *Handle) Flush(ctx context.Context) error { panic("unimplemented") }

// Fsync makes data, size, mtime and name of the file survive power loss; with
// Options.FsyncVault it waits until the version is archived and recorded.
func (h *Handle) Fsync(ctx context.Context, datasync bool) error { panic("unimplemented") }

// Release closes the handle. The release of the last write handle starts the settle clock.
func (h *Handle) Release() { panic("unimplemented") }
