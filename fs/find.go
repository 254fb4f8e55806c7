package fs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Find returns mount point and control socket of the casfs mount that path
// lies in. It looks at the mount table first, so that it says ErrNotMounted without touching
// the path, and blocks on the mount's daemon at most until ctx ends. Errors: ErrNotMounted, ErrStaleMount.
func Find(ctx context.Context, path string) (mountpoint, control string, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", "", err
	}
	type answer struct {
		mountpoint, control string
		err                 error
	}
	ch := make(chan answer, 1) // a dead daemon may block us for ever: then the goroutine stays
	go func() {
		m, c, err := find(abs)
		ch <- answer{m, c, err}
	}()
	select {
	case a := <-ch:
		return a.mountpoint, a.control, a.err
	case <-ctx.Done():
		return "", "", fmt.Errorf("%s: the mount does not answer: %w", path, ctx.Err())
	}
}

func find(abs string) (mountpoint, control string, err error) {
	list, err := mounts()
	if err != nil {
		return "", "", err
	}
	e, ok := mountOf(list, abs)
	if !ok || e.fsType != fsType {
		// The path may lead into a mount through a symlink.
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			e, ok = mountOf(list, real)
		}
	}
	if !ok || e.fsType != fsType {
		return "", "", fmt.Errorf("%s: %w", abs, ErrNotMounted)
	}
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(e.dir, controlAttr, buf)
	switch {
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
		return "", "", fmt.Errorf("%s: %w", e.dir, ErrStaleMount)
	case err != nil:
		return "", "", fmt.Errorf("%s: asking for the control socket: %w", e.dir, err)
	}
	return e.dir, string(buf[:n]), nil
}
