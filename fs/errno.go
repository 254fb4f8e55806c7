package fs

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/jobs"
)

// errnos is the only table from errors to errno, searched in order. Every error
// the layers below export has its row.
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
	{jobs.ErrReadOnly, syscall.EROFS},
	{jobs.ErrBusy, syscall.EBUSY},

	// The service answers a system call only for mkdir and rmdir of a vault.
	{cas.ErrNotEmpty, syscall.EBUSY},
	{cas.ErrAccessDenied, syscall.EACCES},
	{cas.ErrCredentials, syscall.EACCES},
	{cas.ErrLimit, syscall.EDQUOT},
	{cas.ErrInvalid, syscall.EINVAL},
	{cas.ErrPolicy, syscall.EREMOTE},

	{errors.ErrUnsupported, syscall.EOPNOTSUPP},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},

	// Nothing a program could do about. What of the local disk lies below them may say more.
	{jobs.ErrDamaged, syscall.EIO},
	{jobs.ErrUpload, syscall.EIO},
	{jobs.ErrClosing, syscall.EIO},
	{jobs.ErrPending, syscall.EIO},
	{catalog.ErrDamaged, syscall.EIO},
	{catalog.ErrFormat, syscall.EIO},
	{catalog.ErrInUse, syscall.EIO},
	{catalog.ErrClosed, syscall.EIO},
	{content.ErrNotExist, syscall.EIO},
	{content.ErrWrongKind, syscall.EIO},
	{content.ErrNotVerified, syscall.EIO},
	{cas.ErrNotFound, syscall.EIO},
	{cas.ErrClockSkew, syscall.EIO},
	{cas.ErrThrottled, syscall.EIO},
	{cas.ErrUnavailable, syscall.EIO},
	{cas.ErrDigest, syscall.EIO},
	{cas.ErrNotReady, syscall.EIO},
	{cas.ErrJobFailed, syscall.EIO},
	{cas.ErrExpired, syscall.EIO},
	{cas.ErrTooLarge, syscall.EIO},
	{cas.ErrEmpty, syscall.EIO},
	{cas.ErrMismatch, syscall.EIO},
	{cas.ErrUnknown, syscall.EIO},
	{cas.ErrProtocol, syscall.EIO},
	{cas.ErrUnverifiable, syscall.EIO},

	// Last, for it also is what package os says of a local file that is missing.
	{jobs.ErrStale, syscall.ESTALE},
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
	e := syscall.EIO
	for _, row := range errnos {
		if errors.Is(err, row.err) {
			e = row.errno
			break
		}
	}
	var local syscall.Errno
	if (e == syscall.EIO || e == syscall.ESTALE) && errors.As(err, &local) {
		e = syscall.EIO
		if l, ok := localErrnos[local]; ok {
			e = l
		}
	}
	return e
}

// fail turns the failure of op on ino, or on name in the directory ino, into the
// errno to answer, and logs it. An inode that is gone, asked for by number and
// not by name, is ESTALE: the kernel then looks the path up again.
func (m *Mount) fail(c *call, op string, ino uint64, name string, err error) fuse.Status {
	e := errno(c, err)
	if e == syscall.ENOENT && name == "" {
		e = syscall.ESTALE
	}
	level := slog.LevelInfo
	switch e {
	case syscall.ENOENT, syscall.ENODATA, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ESTALE:
		return fuse.Status(e) // programs look for these all the time
	case syscall.EINTR:
		level = slog.LevelDebug
	case syscall.EIO, syscall.ENOSPC, syscall.EREMOTE, syscall.EAGAIN, syscall.ETIMEDOUT, syscall.EBUSY, syscall.EACCES, syscall.EDQUOT:
		level = slog.LevelWarn
	}
	if !m.log.Enabled(c, level) {
		return fuse.Status(e)
	}
	who := c.caller()
	m.log.LogAttrs(c, level, "call failed",
		slog.String("op", op),
		slog.String("path", m.path(ino, name)),
		slog.String("errno", unix.ErrnoName(e)),
		slog.String("reason", err.Error()),
		slog.Uint64("pid", uint64(who.PID)),
		slog.Uint64("uid", uint64(who.UID)))
	return fuse.Status(e)
}

// path returns a path of the inode, or of name in it, for people.
func (m *Mount) path(ino uint64, name string) string {
	return path.Join(m.dir, m.engine.Path(ino), name)
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
