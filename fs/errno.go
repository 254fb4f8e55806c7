package fs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/jobs"
)

// errnos is the only table from errors to errno, searched in order.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{catalog.ErrNotExist, syscall.ENOENT},
	{catalog.ErrExist, syscall.EEXIST},
	{catalog.ErrNotDir, syscall.ENOTDIR},
	{catalog.ErrIsDir, syscall.EISDIR},
	{catalog.ErrNotEmpty, syscall.ENOTEMPTY},
	{catalog.ErrLoop, syscall.EINVAL},
	{catalog.ErrXDev, syscall.EXDEV},
	{catalog.ErrPerm, syscall.EPERM},
	{catalog.ErrNameTooLong, syscall.ENAMETOOLONG},
	{catalog.ErrMaxLinks, syscall.EMLINK},
	{catalog.ErrNoAttr, syscall.ENODATA},
	{catalog.ErrInvalid, syscall.EINVAL},
	{catalog.ErrNoSpace, syscall.ENOSPC},
	{catalog.ErrReadOnly, syscall.EROFS},

	{content.ErrNoSpace, syscall.ENOSPC},
	{content.ErrPunched, syscall.EOPNOTSUPP},

	{jobs.ErrDenied, syscall.EREMOTE},
	{jobs.ErrGuard, syscall.EREMOTE},
	{jobs.ErrAgain, syscall.EAGAIN},
	{jobs.ErrTimedOut, syscall.ETIMEDOUT},
	{jobs.ErrDamaged, syscall.EIO},
	{jobs.ErrUpload, syscall.EIO},
	{jobs.ErrReadOnly, syscall.EROFS},
	{jobs.ErrBusy, syscall.EBUSY},
	{jobs.ErrClosing, syscall.EIO},

	// The service answers a system call only for mkdir and rmdir of a vault.
	{cas.ErrNotEmpty, syscall.EBUSY},
	{cas.ErrAccessDenied, syscall.EACCES},
	{cas.ErrCredentials, syscall.EACCES},
	{cas.ErrLimit, syscall.EDQUOT},
	{cas.ErrInvalid, syscall.EINVAL},
	{cas.ErrPolicy, syscall.EREMOTE},

	{errors.ErrUnsupported, syscall.EOPNOTSUPP},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{fs.ErrNotExist, syscall.ESTALE}, // jobs.ErrStale
}

// localErrnos are those of the local disk that mean the same to the program;
// any other (a staging file that is gone is not the program's ENOENT) is EIO.
var localErrnos = map[syscall.Errno]syscall.Errno{
	syscall.ENOSPC:     syscall.ENOSPC,
	syscall.EDQUOT:     syscall.ENOSPC,
	syscall.EFBIG:      syscall.EFBIG,
	syscall.EOPNOTSUPP: syscall.EOPNOTSUPP,
}

// errno translates err, which is not nil. ctx is the call's: a cancellation is
// EINTR only when the caller caused it.
func errno(ctx context.Context, err error) syscall.Errno {
	if errors.Is(err, context.Canceled) {
		if ctx.Err() != nil {
			return syscall.EINTR
		}
		return syscall.EIO
	}
	for _, e := range errnos[:len(errnos)-1] {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	var local syscall.Errno
	if errors.As(err, &local) {
		if e, ok := localErrnos[local]; ok {
			return e
		}
		return syscall.EIO
	}
	if last := errnos[len(errnos)-1]; errors.Is(err, last.err) {
		return last.errno
	}
	return syscall.EIO
}

// fail turns the failure of op on n, or on name in the directory n, into the
// errno to answer, and logs it. An inode that is gone, asked for by number and
// not by name, is ESTALE: the kernel then looks the path up again.
func (n *node) fail(c *call, op, name string, err error) syscall.Errno {
	e := errno(c, err)
	if e == syscall.ENOENT && name == "" {
		e = syscall.ESTALE
	}
	level := slog.LevelInfo
	switch e {
	case syscall.ENOENT, syscall.ENODATA, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ESTALE:
		return e // programs look for these all the time
	case syscall.EINTR:
		level = slog.LevelDebug
	case syscall.EIO, syscall.ENOSPC, syscall.EREMOTE, syscall.EAGAIN, syscall.ETIMEDOUT, syscall.EBUSY, syscall.EACCES, syscall.EDQUOT:
		level = slog.LevelWarn
	}
	if !n.m.log.Enabled(c, level) {
		return e
	}
	who := c.caller()
	n.m.log.LogAttrs(c, level, "call failed",
		slog.String("op", op),
		slog.String("path", n.path(name)),
		slog.String("errno", unix.ErrnoName(e)),
		slog.String("reason", err.Error()),
		slog.Uint64("pid", uint64(who.PID)),
		slog.Uint64("uid", uint64(who.UID)))
	return e
}

// path returns the last known path of the node, or of name in it, for people.
func (n *node) path(name string) string {
	return path.Join(n.m.dir, n.Path(nil), name)
}

// maxName is what every name in the tree is limited to; the kernel lets names
// of up to 4095 bytes through.
const maxName = 255

func checkName(name string) error {
	if len(name) > maxName {
		return catalog.ErrNameTooLong
	}
	return nil
}
