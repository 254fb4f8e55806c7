package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into sockaddr_un on Linux.
const maxSocketPath = 107

// ShortPath returns a name for the socket at path that fits into a socket
// address: path itself, or one through a descriptor of its directory, which
// stays valid until release is called.
func ShortPath(path string) (short string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, base := filepath.Split(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
	return short, sync.OnceFunc(func() { unix.Close(fd) }), nil
}

// Listen makes a unix socket of mode 0600 at path, replacing a dead one. The
// caller must hold a lock that says no other process serves it. Closing
// the listener removes the socket; established connections live on.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	short, release, err := ShortPath(path)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		release()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Between bind and chmod the socket has the umask's mode; its directory is 0700,
	// and nobody is accepted before Serve.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		release()
		return nil, err
	}
	return &listener{UnixListener: l, release: release}, nil
}

type listener struct {
	*net.UnixListener
	release func()
}

// Close also lets go of the directory descriptor, after the socket was removed through it.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.release()
	return err
}

// DialSocket connects to the unix socket at path, however long its name.
func DialSocket(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := ShortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}
