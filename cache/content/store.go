package content

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Store is open for one process. Safe for concurrent use.
type Store struct {
	dirs         [places]string
	stateDir     string
	log          *slog.Logger
	evict        func(id uint64) error
	stagingLimit int64
	cacheLimit   int64
	stagingWait  time.Duration

	// hook, when a test sets it, runs before every durable step and may fail it.
	hook func(step string) error

	wg sync.WaitGroup // evictor, pressure callbacks

	shards  [places][shards]atomic.Uint32
	movable bool // inCache can be reached from staging by rename
	reserve reserve

	mu     sync.Mutex
	closed bool
	nodes  map[uint64]*node
	lru    lruList
	space
	eviction
}

// node is what the store knows of a local file whether it is open or not.
type node struct {
	id uint64

	// Guarded by Store.mu; kind, place and partial change only while the file's
	// io lock is held for writing as well, so either lock is enough to read them.
	kind    Kind
	place   place
	partial bool // content that is not complete: has a .part name and a .map

	// Guarded by Store.mu.
	gone    bool     // removed; its bytes go with the last File
	charged [2]int64 // by account
	size    int64    // as of the last close
	mtime   int64    // ns
	atime   int64    // ns; last use as the disk has it
	open    *open    // nil: no File and no operation
	lruLinks

	// named says that the name the file has survives power loss.
	named atomic.Bool
	// failed is the first error of fsync. It stays as long as the number: the kernel
	// reports it once, forgets, and from then on calls pages clean that were never written.
	failed atomic.Pointer[error]

	// The sets are replaced, never changed, under the file's io lock, and read without lock.
	verified atomic.Pointer[ranges] // partial content only
	punched  atomic.Pointer[ranges] // staging: dropped parts; nil: none
}

func (n *node) total() int64 { return n.charged[acctStaging] + n.charged[acctCache] }

// open is the state shared by all Files of one number. Lock order: dropping, meta, io, path, mu, Store.mu.
type open struct {
	s    *Store
	n    *node
	refs int // Store.mu

	// meta serialises everything that changes records or names; it is held over fsync.
	meta sync.Mutex
	// dropping keeps WriteVerified out while a range is being dropped.
	dropping sync.RWMutex
	// io is held, for reading by whoever reads or writes bytes, for writing (never
	// over fsync or a wait) by whoever takes bytes away or changes the kind.
	io sync.RWMutex
	// path is held while the file has no settled name: opening, renaming, removing.
	path sync.Mutex
	fd   atomic.Int64 // -1: not open yet
	old  []int        // descriptors of the file's earlier place, kept for who has them from Fd

	gen     atomic.Uint64 // counts changes, before they are made
	recount atomic.Bool   // charges may differ from allocation

	mu      sync.Mutex
	charges blockMap
	batch   *verifyBatch
}

// Open creates the directories, lists what is there (only names and stat, no data is read).
// Content whose range records are unreadable is dropped; staging is never dropped.
// Parts of staging files that DropUploaded recorded are dropped again.
func Open(o Options) (*Store, error) {
	s := &Store{
		stateDir:     o.StateDir,
		log:          o.Logger,
		evict:        o.Evict,
		stagingLimit: o.StagingLimit,
		cacheLimit:   o.CacheLimit,
		stagingWait:  o.StagingWait,
		nodes:        make(map[uint64]*node),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.stagingWait == 0 {
		s.stagingWait = 10 * time.Minute
	}
	s.dirs[inStaging] = filepath.Join(o.StateDir, "staging")
	s.dirs[inState] = filepath.Join(o.StateDir, "content")
	if o.CacheDir != "" && !sameDir(o.CacheDir, o.StateDir) {
		s.dirs[inCache] = filepath.Join(o.CacheDir, "content")
	}
	for _, d := range s.dirs {
		if d == "" {
			continue
		}
		if err := makeDir(d); err != nil {
			return nil, fmt.Errorf("local store: %w", noSpace(err))
		}
	}
	if err := s.probe(inState); errors.Is(err, unix.EXDEV) {
		return nil, fmt.Errorf("local store: %s and %s are on different file systems, so that what is archived could never leave staging: "+
			"both must be plain directories of %s (to have everything elsewhere, move that with what is in it; recalled files can be elsewhere with another cache directory). Nothing was changed",
			s.dirs[inStaging], s.dirs[inState], o.StateDir)
	}
	if err := s.openSpace(o.StateDir, o.MinFree, o.StateFree); err != nil {
		return nil, fmt.Errorf("local store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("local store: %w", err)
	}
	s.movable = s.cache == s.state && s.dirs[inCache] != "" && s.probe(inCache) == nil
	s.reserve.path = filepath.Join(s.dirs[inStaging], "reserve")
	s.reserve.fill()
	s.mu.Lock()
	s.kickLocked()
	s.mu.Unlock()
	return s, nil
}

// probe finds out whether staging files can be renamed into a place: EXDEV says that they cannot. The device
// number does not say: a bind mount has the same.
func (s *Store) probe(to place) error {
	from, name := filepath.Join(s.dirs[inStaging], "probe"), filepath.Join(s.dirs[to], "probe")
	defer os.Remove(from)
	defer os.Remove(name)
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		return err
	}
	return os.Rename(from, name)
}

func sameDir(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// Close ends background work and fails everybody who waits for room with
// os.ErrClosed. Files that are still open stay usable until closed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	s.closed = true
	s.closeSpaceLocked()
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// step is called before everything that changes the disk in a way a restart can see.
func (s *Store) step(name string) error {
	if s.hook == nil {
		return nil
	}
	return s.hook(name)
}

// List returns all local files.
func (s *Store) List() []Entry {
	s.mu.Lock()
	list := make([]Entry, 0, len(s.nodes))
	var live []uint64
	for _, n := range s.nodes {
		if n.gone {
			continue
		}
		if n.open != nil {
			live = append(live, n.id)
			continue
		}
		list = append(list, n.entryLocked())
	}
	s.mu.Unlock()
	for _, id := range live {
		if e, err := s.Stat(id); err == nil {
			list = append(list, e)
		}
	}
	return list
}

func (n *node) entryLocked() Entry {
	return Entry{
		ID: n.id, Kind: n.kind, Complete: !n.partial && n.punched.Load() == nil,
		Size: n.size, Allocated: n.total(), Mtime: time.Unix(0, n.mtime),
	}
}

// Stat returns one entry. Errors: ErrNotExist.
func (s *Store) Stat(id uint64) (Entry, error) {
	s.mu.Lock()
	n := s.nodes[id]
	if n == nil || n.gone {
		s.mu.Unlock()
		return Entry{}, ErrNotExist
	}
	if n.open == nil {
		e := n.entryLocked()
		s.mu.Unlock()
		return e, nil
	}
	o := n.open
	o.refs++
	s.mu.Unlock()
	defer s.release(o)
	var st unix.Stat_t
	err := o.stat(&st)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.gone {
		return Entry{}, ErrNotExist
	}
	e := n.entryLocked()
	if err == nil {
		e.Size, e.Allocated, e.Mtime = st.Size, st.Blocks*512, time.Unix(st.Mtim.Unix())
	}
	return e, err
}

// hold returns the shared state of id with a reference on it.
func (s *Store) hold(id uint64) (*open, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[id]
	if n == nil || n.gone {
		return nil, ErrNotExist
	}
	return s.holdLocked(n), nil
}

func (s *Store) holdLocked(n *node) *open {
	if n.open == nil {
		n.open = &open{s: s, n: n}
		n.open.fd.Store(-1)
	}
	n.open.refs++
	return n.open
}

// release gives a reference back. The last one settles the account with the
// file system: blocks are counted as allocated, not as written.
func (s *Store) release(o *open) {
	for {
		s.mu.Lock()
		if o.refs > 1 || o.fd.Load() < 0 || o.n.gone || !o.recount.Load() {
			break
		}
		s.mu.Unlock()
		o.io.Lock()
		if err := o.recountLocked(); err != nil {
			s.log.Warn("cannot stat a local file", "id", o.n.id, "err", err)
		}
		o.io.Unlock()
	}
	o.refs--
	if o.refs > 0 {
		s.mu.Unlock()
		return
	}
	n := o.n
	n.open = nil
	gone := n.gone // who removes it from here on has an open of his own, and gives back what it held
	s.mu.Unlock()
	for _, fd := range append(o.old, int(o.fd.Load())) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.mu.Lock()
	if gone {
		s.doomed--
		s.unchargeLocked(n, n.total())
	}
	if n.kind == Content && !n.gone { // a file that was open may be evictable now
		n.notBefore, n.refused = 0, 0
		s.progress++
	}
	s.roomLocked()
	s.mu.Unlock()
}

// goneLocked marks a file that its holders still have open.
func (s *Store) goneLocked(n *node) {
	n.gone = true
	s.doomed++
}

// lockMeta locks meta for an operation on a number that must still exist.
func (o *open) lockMeta() error {
	o.meta.Lock()
	if o.isGone() {
		o.meta.Unlock()
		return ErrNotExist
	}
	return nil
}

func (o *open) isGone() bool {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	return o.n.gone
}

// ensureOpen opens the data file once for all Files of the number.
func (o *open) ensureOpen() error {
	if o.fd.Load() >= 0 {
		return nil
	}
	o.path.Lock()
	defer o.path.Unlock()
	if o.fd.Load() >= 0 {
		return nil
	}
	o.s.mu.Lock()
	gone, path := o.n.gone, o.s.dataPath(o.n)
	o.s.mu.Unlock()
	if gone {
		return ErrNotExist
	}
	fd, err := openFile(path, 0)
	if err != nil {
		return err
	}
	o.fd.Store(int64(fd))
	return nil
}

func openFile(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, noSpace(&fs.PathError{Op: "open", Path: path, Err: err})
		}
		return fd, nil
	}
}

func (o *open) stat(st *unix.Stat_t) error {
	if err := o.ensureOpen(); err != nil {
		return err
	}
	return unix.Fstat(int(o.fd.Load()), st)
}

// Open opens a local file of either kind. Errors: ErrNotExist.
func (s *Store) Open(id uint64) (*File, error) {
	o, err := s.hold(id)
	if err != nil {
		return nil, err
	}
	if err := o.ensureOpen(); err != nil {
		s.release(o)
		return nil, err
	}
	return newFile(o), nil
}

func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}
