// Package fs is the go-fuse tree: it translates system calls into calls of
// jobs.Engine and decides nothing that outlives a call.
package fs

import (
	"context"
	"log/slog"

	"github.com/casfs/casfs/jobs"
)

// Options configure a mount.
type Options struct {
	Mountpoint    string
	FSName        string // first column of /proc/mounts
	AllowOther    bool
	ReadOnly      bool
	Debug         bool
	MaxBackground int  // 0: 256
	Passthrough   bool // offer it; false switches it off
	Logger        *slog.Logger
	// Control is the control socket's path, told by the virtual xattr user.cas.control on any inode.
	Control string
}

// Mount is a mounted tree.
type Mount struct{ impl mountImpl }

type mountImpl struct{}

// New mounts the engine's tree and returns when the kernel answers requests. It
// becomes e's observer. Errors name what to do: /dev/fuse missing, mount point missing, busy or stale (ErrStaleMount), fusermount3 missing.
func New(e *jobs.Engine, o Options) (*Mount, error) { panic("unimplemented") }

// Check looks at the mount point before anything is opened: missing, not a
// directory, already a mount (ErrBusyMount), stale (ErrStaleMount), /dev/fuse missing.
func Check(o Options) error { panic("unimplemented") }

// CleanStale lazily unmounts a dead casfs mount.
func CleanStale(mountpoint string) error { panic("unimplemented") }

// Wait blocks until the file system is unmounted, by anyone.
func (m *Mount) Wait() { panic("unimplemented") }

// Unmount detaches the mount. With open files it fails with ErrBusyMount unless lazy,
// which detaches at once and lets open descriptors work on until Wait returns.
func (m *Mount) Unmount(lazy bool) error { panic("unimplemented") }

// Abort ends everything at once (second signal).
func (m *Mount) Abort() error { panic("unimplemented") }

// PassthroughState says in words whether passthrough is in use.
func (m *Mount) PassthroughState() string { panic("unimplemented") }

// Paths: Find returns mount point and control socket of the casfs mount that path lies in.
func Find(ctx context.Context, path string) (mountpoint, control string, err error) {
	panic("unimplemented")
}
