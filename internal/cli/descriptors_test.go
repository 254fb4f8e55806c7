package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/casfs/casfs/cas/local"
)

// shortListener has no descriptor for the first connection.
type shortListener struct {
	net.Listener
	failed bool
}

func (l *shortListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// When there were no descriptors for a moment, the store is reached again.
func TestStoreAfterLackOfDescriptors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s := &localStore{dir: t.TempDir(), log: log}
	s.opts = local.Options{Dir: s.dir, NoSync: true, Logger: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer s.Close()
	if err := s.reach(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(s.dir, "own"))
	if err != nil {
		t.Fatal(err)
	}
	s.own = l
	s.wg.Go(func() { s.accept(&shortListener{Listener: l}) })
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
