package jobs

import (
	"context"
	"time"
)

// Caller is who makes a system call.
type Caller struct {
	UID, GID uint32
	PID      uint32 // 0: unknown
}

// Attr is what stat(2) shows. Blocks counts 512-byte units held locally (never 0 when Size is not).
type Attr struct {
	Ino, Parent                 uint64
	Mode, UID, GID, Rdev, Nlink uint32
	Size, Blocks                int64
	Atime, Mtime, Ctime, Btime  int64 // ns
}

// SetAttr are changes; nil fields stay. A time may be the zero time.Time never: now is resolved by the caller.
type SetAttr struct {
	Mode, UID, GID *uint32
	Size           *int64
	Atime, Mtime   *time.Time
	KillPriv       bool // clear setuid/setgid as a write would
}

// Entry is one name of a directory listing.
type Entry struct {
	Name   string
	Ino    uint64
	Type   uint32 // S_IFMT bits
	Cookie uint64
}

// Statfs is the mount's capacity in bytes.
type Statfs struct{ Total, Free, Files, FreeFiles uint64 }

// The namespace calls: each is one catalog transaction; none contacts the service
// except Mkdir and Rmdir of a vault in the account root. Errors are catalog's, ErrReadOnly, ErrBusy, ctx's.

func (e *Engine) Lookup(ctx context.Context, parent uint64, name string) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Getattr(ctx context.Context, ino uint64) (Attr, error) { panic("unimplemented") }

// Setattr changes attributes. A size change of a cold file to other than 0 recalls it first (under the recall policy, waits).
// h is the handle it was called through, nil for none.
func (e *Engine) Setattr(ctx context.Context, c Caller, ino uint64, h *Handle, s SetAttr) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Mkdir(ctx context.Context, c Caller, parent uint64, name string, mode uint32) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Mknod(ctx context.Context, c Caller, parent uint64, name string, mode, rdev uint32) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Symlink(ctx context.Context, c Caller, parent uint64, name, target string) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Readlink(ctx context.Context, ino uint64) (string, error) { panic("unimplemented") }
func (e *Engine) Link(ctx context.Context, ino, parent uint64, name string) (Attr, error) {
	panic("unimplemented")
}
func (e *Engine) Unlink(ctx context.Context, parent uint64, name string) error {
	panic("unimplemented")
}
func (e *Engine) Rmdir(ctx context.Context, parent uint64, name string) error { panic("unimplemented") }
func (e *Engine) Rename(ctx context.Context, parent uint64, name string, newParent uint64, newName string, flags uint32) error {
	panic("unimplemented")
}

// ReadDir returns up to limit entries with Cookie > after, without "." and "..".
func (e *Engine) ReadDir(ctx context.Context, dir, after uint64, limit int) ([]Entry, error) {
	panic("unimplemented")
}

// FsyncDir makes everything done to the directory so far survive power loss.
func (e *Engine) FsyncDir(ctx context.Context, ino uint64) error { panic("unimplemented") }
func (e *Engine) Statfs(ctx context.Context) (Statfs, error)     { panic("unimplemented") }

// Getxattr returns users' attributes and the virtual user.cas.* ones; ListXattr lists users' only.
// SetXattr of user.cas.recall, .evict and .pin acts (recall is queued, not waited for). Errors: catalog.ErrNoAttr, ErrExist, ErrPerm.
func (e *Engine) Getxattr(ctx context.Context, ino uint64, name string) ([]byte, error) {
	panic("unimplemented")
}
func (e *Engine) Setxattr(ctx context.Context, c Caller, ino uint64, name string, value []byte, create, replace bool) error {
	panic("unimplemented")
}
func (e *Engine) Removexattr(ctx context.Context, ino uint64, name string) error {
	panic("unimplemented")
}
func (e *Engine) Listxattr(ctx context.Context, ino uint64) ([]string, error) { panic("unimplemented") }
