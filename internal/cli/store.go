package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/cli/version"
	"github.com/casfs/casfs/internal/control"
)

// localStore is the embedded store of --local as this process uses it. Only
// one process can hold a store directory; the others reach it through the
// socket the holder offers there. Which of the two this process is may change
// while it runs: when the holder ends, the next connection opens the store here.
//
// The client talks to a socket of its own in either case, so that what works here works with the cloud.
type localStore struct {
	dir    string
	opts   local.Options
	log    *slog.Logger
	ctx    context.Context // ends when the process lets go of the store
	cancel context.CancelFunc
	own    net.Listener // this process's socket
	wg     sync.WaitGroup

	mu        sync.Mutex
	store     *local.Store // held here; nil: another process holds it
	feed      *feed        // connections for store
	published net.Listener // DIR/socket
	closed    bool
}

// localEndpoint is the embedded store in dir as people are shown it.
func localEndpoint(dir string) string { return "local:" + dir }

// connectLocal opens the embedded store of --local.
func (a *app) connectLocal(log, storeLog *slog.Logger) (*service, error) {
	dir, err := absolute(a.set.Local)
	if err != nil {
		return nil, err
	}
	if !a.makeStore {
		there, err := local.Exists(dir)
		if err != nil {
			return nil, err
		}
		if !there {
			return nil, advise(fmt.Errorf("there is no store in %s", dir), "casfs mount --local, casfs serve and casfs vault create --local make one")
		}
	}
	st, err := openLocal(a.set.storeOptions(dir, storeLog), storeLog)
	if err != nil {
		return nil, err
	}
	a.onExit(func() { st.Close() })
	if !st.holding() {
		for _, name := range []string{"expedited", "standard", "bulk", "inventory", "realistic"} {
			if a.set.from[name] == byFlag {
				a.warn("the store is held by another process, whose delays apply; --%s has no effect", name)
				break
			}
		}
	}
	creds, err := st.credentials()
	if err != nil {
		return nil, err
	}
	opts := cas.Options{
		Endpoint:    "unix://" + st.own.Addr().String(),
		AppID:       creds.AppID,
		Credentials: cas.Credentials{SecretID: creds.SecretID, SecretKey: creds.SecretKey},
		Logger:      log,
		UserAgent:   "casfs/" + version.Version(),
	}
	client, err := cas.New(opts)
	if err != nil {
		return nil, err
	}
	a.onExit(client.Close)
	return &service{client: client, opts: opts, endpoint: localEndpoint(dir), appID: creds.AppID, secretID: creds.SecretID, flags: a.set.serviceFlags(), local: st}, nil
}

// storeOptions are the embedded store's, from the flags that casfs serve and --local share.
func (s *settings) storeOptions(dir string, log *slog.Logger) local.Options {
	o := local.Options{
		Dir:     dir,
		Delays:  local.Delays{Expedited: s.Expedited, Standard: s.Standard, Bulk: s.Bulk, Inventory: s.Inventory},
		Lenient: true,
		Logger:  log,
	}
	if s.Realistic {
		for name, d := range map[string]struct {
			p *time.Duration
			v time.Duration
		}{
			"expedited": {&o.Delays.Expedited, 3 * time.Minute},
			"standard":  {&o.Delays.Standard, 4 * time.Hour},
			"bulk":      {&o.Delays.Bulk, 8 * time.Hour},
			"inventory": {&o.Delays.Inventory, 4 * time.Hour},
		} {
			if s.from[name] == byDefault {
				*d.p = d.v
			}
		}
	}
	return o
}

// openLocal makes the store reachable through its own socket; the error is the
// store's, unless another process holds it and answers.
func openLocal(o local.Options, log *slog.Logger) (*localStore, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	s := &localStore{dir: o.Dir, opts: o, log: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.reach(); err != nil {
		s.cancel()
		return nil, err
	}
	sweepSockets(o.Dir)
	own, err := control.Listen(filepath.Join(o.Dir, ownSocket+strconv.Itoa(os.Getpid())))
	if err != nil {
		s.Close()
		return nil, err
	}
	s.own = own
	s.wg.Go(func() { s.accept(own) })
	return s, nil
}

const (
	publicSocket = "socket"       // offered by the holder to other processes
	ownSocket    = ".casfs-sock-" // and the pid: each process's own
	holderWait   = 10 * time.Second
)

// sweepSockets removes the own sockets of processes that were killed.
func sweepSockets(dir string) {
	names, _ := filepath.Glob(filepath.Join(globEscape(dir), ownSocket+"*"))
	for _, name := range names {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(name), ownSocket))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			os.Remove(name)
		}
	}
}

// jobTime is how long jobs take here; nil when another process holds the store and decides.
func (s *localStore) jobTime() map[cas.Tier]time.Duration {
	if !s.holding() {
		return nil
	}
	d := s.opts.Delays
	return map[cas.Tier]time.Duration{cas.Expedited: d.Expedited, cas.Standard: d.Standard, cas.Bulk: d.Bulk}
}

func (s *localStore) holding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store != nil
}

// reach makes sure that somebody serves the store: another process that answers, or this one.
func (s *localStore) reach() error {
	conn, err := s.connect()
	if conn != nil {
		conn.Close()
	}
	return err
}

// connect returns a connection to the process that holds the store, or nil
// when that is this one, which it may become here. While another process is just starting or ending, it tries again.
func (s *localStore) connect() (net.Conn, error) {
	deadline := time.Now().Add(holderWait)
	for {
		held, err := s.hold()
		if held || err != nil && !errors.Is(err, local.ErrInUse) {
			return nil, err
		}
		conn, derr := control.DialSocket(s.ctx, filepath.Join(s.dir, publicSocket))
		if derr == nil {
			return conn, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w, and it does not answer", err)
		}
		select {
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// hold opens the store here if nobody else holds it, and offers it to others.
func (s *localStore) hold() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, net.ErrClosed
	}
	if s.store != nil {
		return true, nil
	}
	store, err := local.Open(s.opts)
	if err != nil {
		return false, err
	}
	published, err := control.Listen(filepath.Join(s.dir, publicSocket))
	if err != nil {
		store.Close()
		return false, err
	}
	s.store, s.published, s.feed = store, published, newFeed()
	feed := s.feed
	s.wg.Go(func() {
		if err := store.Serve(s.ctx, feed); err != nil && s.ctx.Err() == nil {
			s.log.Error("embedded store stopped", "err", err)
		}
	})
	s.wg.Go(func() {
		for {
			c, err := s.next(published)
			if err != nil {
				return
			}
			feed.put(c)
		}
	})
	return true, nil
}

// next returns the next connection; an error only when there will be no more. For lack of descriptors or memory there is
// none for a moment: whoever connects meanwhile waits in the socket's queue.
func (s *localStore) next(l net.Listener) (net.Conn, error) {
	for {
		c, err := l.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil {
			return c, err
		}
		s.log.Warn("embedded store: accepting a connection", "err", err)
		select {
		case <-s.ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// accept hands the connections of this process's own client to whoever holds the store.
func (s *localStore) accept(l net.Listener) {
	for {
		c, err := s.next(l)
		if err != nil {
			return
		}
		s.wg.Go(func() {
			other, err := s.connect()
			if err != nil {
				s.log.Warn("embedded store cannot be reached", "err", err)
				c.Close()
				return
			}
			if other == nil {
				s.mu.Lock()
				feed := s.feed
				s.mu.Unlock()
				feed.put(c)
				return
			}
			stop := context.AfterFunc(s.ctx, func() { c.Close(); other.Close() })
			defer stop()
			var both sync.WaitGroup
			both.Go(func() { pipe(other, c) })
			both.Go(func() { pipe(c, other) })
			both.Wait()
			c.Close()
			other.Close()
		})
	}
}

// pipe copies one direction and passes on its end.
func pipe(dst, src net.Conn) {
	io.Copy(dst, src)
	if h, ok := dst.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	} else {
		dst.Close()
	}
}

// credentials are the store's account.
func (s *localStore) credentials() (local.Credentials, error) {
	s.mu.Lock()
	store := s.store
	s.mu.Unlock()
	if store != nil {
		return store.Credentials(), nil
	}
	creds, err := readCredentials(filepath.Join(s.dir, "credentials"))
	if errors.Is(err, os.ErrNotExist) {
		err = advise(err, "it was removed; the store gets a new one when the process that has it open ends (casfs umount, or stop casfs serve)")
	}
	return creds, err
}

// Close lets requests in flight finish and releases the store.
func (s *localStore) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	store, published, feed := s.store, s.published, s.feed
	s.mu.Unlock()
	if s.own != nil {
		s.own.Close()
	}
	if published != nil {
		published.Close()
	}
	s.cancel()
	if feed != nil {
		feed.Close()
	}
	s.wg.Wait()
	if store != nil {
		return store.Close()
	}
	return nil
}

// feed is a net.Listener whose connections come from elsewhere.
type feed struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (f *feed) put(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.closed:
		c.Close()
	}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *feed) Addr() net.Addr { return &net.UnixAddr{Name: publicSocket, Net: "unix"} }
