package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// RecallMode says what a read of cold bytes does.
type RecallMode string

// The recall modes (design: --recall).
const (
	RecallAuto  RecallMode = "auto"  // the read waits
	RecallQueue RecallMode = "queue" // open starts the retrieval and fails with ErrAgain
	RecallDeny  RecallMode = "deny"  // open fails with ErrDenied
)

// Options configure an Engine. Zero values mean the defaults in brackets.
type Options struct {
	StateDir string
	CacheDir string // content files; "" StateDir
	Client   *cas.Client
	Vault    string // mount only this vault; "" all
	ReadOnly bool
	Logger   *slog.Logger
	Observer Observer // may be nil, or set later by SetObserver

	// Writing.
	Settle                          time.Duration // [30s]; negative: none
	FsyncVault                      bool          // fsync returns when archived
	SegmentSize                     int64         // [64 GiB]
	StreamAbove                     int64         // [1 GiB]
	PartSize                        int64         // [16 MiB]
	SingleBelow                     int64         // one Upload Archive up to this size [32 MiB]
	Uploads                         int           // versions uploading at once [8]
	Parts                           int           // part buffers in flight in all, which bounds memory [8]
	BandwidthUp, BandwidthDown      int64         // bytes/s, 0 none
	StagingSize, CacheSize, MinFree int64         // as in content.Options
	StagingWait                     time.Duration // [10m]
	TrashAge                        time.Duration // after upload [90 d]; negative: delete at once
	TrashFromDelete                 bool          // TrashAge counts from the deletion, not the upload
	UID, GID                        uint32        // owner of vault directories found at the service

	// Reading.
	Recall           RecallMode                 // [auto]
	Tier             string                     // "standard" [default], "bulk", "expedited", "auto"
	RecallWait       time.Duration              // [24h]
	GuardFiles       int                        // [100]; negative: no limit
	GuardBytes       int64                      // per 24 h [100 GiB]; negative: no limit
	DenyComm         []string                   // command name patterns (path.Match) that may not recall
	Window           int64                      // [64 MiB]
	WindowAbove      int64                      // isolated reads ask for windows in archives above this [1 GiB]
	Stub             int64                      // head and tail kept by automatic eviction [64 KiB]; negative: none
	Fetches          int                        // ranges downloading at once [4]
	PollMin, PollMax time.Duration              // [0.5s, 60s]
	JobTime          map[cas.Tier]time.Duration // what jobs take, for estimates until one was measured [the service's hours]
	Capacity         int64                      // statfs [1 PiB]
	VaultRefresh     time.Duration              // List Vaults this often [1h]
	ServiceFlags     string                     // with which casfs's verbs reach the same service, for advice; quoted for a shell

	virtualTime bool   // tests that sleep through days: see catalog.Options.NoCompaction
	opening     func() // called by Open between opening the local store and having it
}

// Errors that fs maps to errno; the namespace errors are catalog's.
var (
	ErrDenied   = errors.New("recall denied by policy")               // EREMOTE
	ErrGuard    = errors.New("recall guard: limit reached")           // EREMOTE
	ErrAgain    = errors.New("retrieval started, try again later")    // EAGAIN, only from Open
	ErrTimedOut = errors.New("recall took longer than --recall-wait") // ETIMEDOUT
	ErrDamaged  = errors.New("the vault's copy is damaged or gone")   // EIO
	ErrUpload   = errors.New("upload failed for good")                // EIO, once per failure
	ErrReadOnly = errors.New("read-only mount")                       // EROFS
	ErrBusy     = errors.New("busy")                                  // EBUSY: vault with archives or trash; a local copy that cannot go now
	ErrClosing  = errors.New("casfs is shutting down")                // EIO
	ErrStale    = fs.ErrNotExist                                      // ESTALE: inode is gone
	ErrPending  = errors.New("still pending")                         // control verbs: exit 75
)

// Observer hears of changes the kernel has not caused itself, so that stale
// caches are dropped. Calls come from background goroutines with no lock held.
type Observer interface {
	ContentChanged(ino uint64)               // data pages and attributes
	AttrChanged(ino uint64)                  // attributes only
	EntryChanged(parent uint64, name string) // a name appeared, vanished or changed its inode
}

type noObserver struct{}

func (noObserver) ContentChanged(uint64)       {}
func (noObserver) AttrChanged(uint64)          {}
func (noObserver) EntryChanged(uint64, string) {}

// Engine is the running casfs of one state directory. Safe for concurrent use.
type Engine struct {
	opts    Options // defaults filled in; Observer is never nil
	client  *cas.Client
	catalog *catalog.Catalog
	store   *content.Store
	recall  *recaller
	log     *slog.Logger
	since   time.Time

	settle *settler
	up     *uploader
	bin    *reclaimer

	streamAbove int64 // open files are streamed from this length on

	closing atomic.Bool
	running chan struct{} // closed by Run
	over    chan struct{} // closed by Close
	begin   sync.Once
	end     sync.Once
	// flushes counts the moments when sizes and times moved from a live file to the catalog.
	flushes atomic.Uint64
	// wasRead, when a test sets it, is called between reading the catalog and looking for live files.
	wasRead func()

	// failpoint, when a test sets it, is called between durable steps with the
	// name of the point; a test panics or stops there and opens the state directory anew.
	failpoint atomic.Pointer[func(name string)]

	spare     spares
	vaultNews vaultNews

	filesMu sync.Mutex
	files   map[uint64]*file

	idsMu sync.Mutex
	ids   []uint64 // allocated in the catalog, not handed out yet

	problemsMu sync.Mutex
	problems   map[string]string   // by subject
	failures   map[uint64]*failure // permanent upload failures by inode
	syncs      map[*syncJob]struct{}
	unflushed  map[*file]struct{} // size and times could not be written to the catalog
	flushWake  chan struct{}
	mappings   mappings
}

// failure is a permanent failure to upload a file's version.
type failure struct {
	v    uint64
	err  string
	told bool // an fsync or close has returned it
}

func (o *Options) setDefaults() {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	dur := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	num := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observer == nil {
		o.Observer = noObserver{}
	}
	dur(&o.Settle, 30*time.Second)
	if o.Settle < 0 {
		o.Settle = 0
	}
	def(&o.PartSize, cas.DefaultPart)
	for p := int64(cas.MinPartSize); ; p *= 2 { // the service takes powers of two
		if p >= o.PartSize || p == cas.MaxPartSize {
			o.PartSize = p
			break
		}
	}
	def(&o.SegmentSize, 64<<30)
	// A segment must fit the parts of one upload, and begin and end at part boundaries.
	o.SegmentSize = min(o.SegmentSize, cas.MaxParts*o.PartSize)
	o.SegmentSize = max(o.SegmentSize/o.PartSize, 1) * o.PartSize
	def(&o.StreamAbove, 1<<30)
	def(&o.SingleBelow, 2*o.PartSize)
	num(&o.Uploads, 8)
	num(&o.Parts, 8)
	// A single upload must fit the buffers.
	o.SingleBelow = min(o.SingleBelow, int64(o.Parts)*o.PartSize, o.SegmentSize)
	dur(&o.StagingWait, 10*time.Minute)
	dur(&o.TrashAge, 90*24*time.Hour)

	if o.Recall == "" {
		o.Recall = RecallAuto
	}
	if o.Tier == "" {
		o.Tier = "standard"
	}
	dur(&o.RecallWait, 24*time.Hour)
	num(&o.GuardFiles, 100)
	def(&o.GuardBytes, 100<<30)
	def(&o.Window, 64<<20)
	def(&o.WindowAbove, 1<<30)
	def(&o.Stub, 64<<10)
	num(&o.Fetches, 4)
	dur(&o.PollMin, 500*time.Millisecond)
	dur(&o.PollMax, 60*time.Second)
	def(&o.Capacity, 1<<50)
	dur(&o.VaultRefresh, time.Hour)
}

// Open locks the state directory, opens catalog and local store, and repairs
// what a crash left between them. It contacts nothing. Errors: catalog.ErrInUse, ErrDamaged, ErrFormat.
func Open(o Options) (*Engine, error) {
	o.setDefaults()
	e := &Engine{
		opts:      o,
		client:    o.Client,
		log:       o.Logger,
		since:     time.Now(),
		files:     map[uint64]*file{},
		problems:  map[string]string{},
		failures:  map[uint64]*failure{},
		syncs:     map[*syncJob]struct{}{},
		unflushed: map[*file]struct{}{},
		flushWake: make(chan struct{}, 1),
		mappings:  mappings{wake: make(chan struct{}, 1)},
		running:   make(chan struct{}),
		over:      make(chan struct{}),
	}
	if fn := crashPoint(); fn != nil {
		e.atPoints(fn)
	}
	e.settle = newSettler()
	e.up = newUploader(e)
	e.bin = newReclaimer(e)
	e.recall = newRecaller(e)

	var err error
	e.catalog, err = catalog.Open(catalog.Options{Dir: o.StateDir, Logger: o.Logger, NoCompaction: o.virtualTime})
	if err != nil {
		return nil, fmt.Errorf("opening the catalog in %s: %w", o.StateDir, err)
	}
	for i, text := range e.catalog.Damage() {
		e.problem(fmt.Sprintf("catalog/%d", i), text+". Nothing of the tree is lost; look after the disk of "+o.StateDir)
	}
	stateFree := int64(catalogFree)
	if o.MinFree < 0 {
		stateFree = 0
	}
	// The store begins to evict as soon as it is open; that needs all of the engine, and its observer.
	evict := func(id uint64) error {
		select {
		case <-e.running:
			return e.recall.evictLocal(id)
		case <-e.over:
			return ErrClosing
		}
	}
	store, err := content.Open(content.Options{
		StateFree:    stateFree,
		StateDir:     o.StateDir,
		CacheDir:     o.CacheDir,
		StagingLimit: o.StagingSize,
		CacheLimit:   o.CacheSize,
		MinFree:      o.MinFree,
		StagingWait:  o.StagingWait,
		Evict:        evict,
		Logger:       o.Logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the local store in %s: %w", o.StateDir, err), e.catalog.Close())
	}
	if o.opening != nil {
		o.opening()
	}
	e.store = store
	e.streamAbove = e.streamThreshold()
	if err := e.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("recovering %s: %w", o.StateDir, err), e.Close())
	}
	if err := e.recall.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("loading retrievals of %s: %w", o.StateDir, err), e.Close())
	}
	e.store.OnPressure(e.pressure)
	return e, nil
}

// Run does the background work until ctx ends, then waits for its goroutines; what is unfinished stays recorded.
func (e *Engine) Run(ctx context.Context) error {
	e.begin.Do(func() { close(e.running) })
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	start := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	start(e.recall.run)
	start(e.recall.indexPins)
	start(e.runSettle)
	start(e.up.run)
	start(e.bin.run)
	start(e.runTrash)
	start(e.runVaults)
	start(e.runFlush)
	start(e.runMapped)
	wg.Wait()
	return first
}

// SetObserver sets who hears of changes; before Run.
func (e *Engine) SetObserver(o Observer) {
	if o == nil {
		o = noObserver{}
	}
	e.opts.Observer = o
}

// StopAdmitting makes new writes and recalls fail with ErrClosing and cancels waiting reads (unmount, SIGTERM); uploads go on.
func (e *Engine) StopAdmitting() {
	e.closing.Store(true)
	e.recall.stopAdmitting()
}

// Close closes catalog and store; after Run has returned.
func (e *Engine) Close() error {
	e.filesMu.Lock()
	live := e.files
	e.files = map[uint64]*file{}
	e.filesMu.Unlock()
	for _, f := range live {
		f.closeLocal()
	}
	e.closeSpares()
	e.end.Do(func() { close(e.over) }) // the store waits for who is evicting
	return errors.Join(e.store.Close(), e.catalog.Close())
}

// RootIno is the mount's root directory: the account's, or the vault's with Options.Vault (after Probe or a previous mount).
func (e *Engine) RootIno() (uint64, error) {
	if e.opts.Vault == "" {
		return catalog.RootIno, nil
	}
	var ino uint64
	err := e.catalog.View(func(tx *catalog.Tx) error {
		v, err := tx.VaultByName(e.opts.Vault)
		ino = v.Ino
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("vault %s: %w", e.opts.Vault, err)
	}
	return ino, nil
}

// writable is the check before anything that changes the tree.
func (e *Engine) writable() error {
	if e.opts.ReadOnly {
		return ErrReadOnly
	}
	if e.closing.Load() {
		return ErrClosing
	}
	return nil
}

// catalogFree is what staged bytes leave free of the catalog's disk: then files can be made, renamed and deleted
// when staging is full. Below it other programs have filled the disk.
const catalogFree = catalog.DefaultMinFree + 16<<20

// idBlock is how many numbers are taken from the catalog at once, so that a new
// staging file can have its number before the transaction that records it.
const idBlock = 256

// newLocalID returns a number for a local file that was never used before.
func (e *Engine) newLocalID() (uint64, error) {
	e.idsMu.Lock()
	defer e.idsMu.Unlock()
	if len(e.ids) == 0 {
		ids := make([]uint64, 0, idBlock)
		if _, err := e.catalog.Update(func(tx *catalog.Tx) error {
			ids = ids[:0]
			for range idBlock {
				ids = append(ids, tx.NextID())
			}
			return nil
		}); err != nil {
			return 0, err
		}
		e.ids = ids
	}
	id := e.ids[0]
	e.ids = e.ids[1:]
	return id, nil
}

// atPoints has fn called at every named point from now on.
func (e *Engine) atPoints(fn func(name string)) { e.failpoint.Store(&fn) }

// hit calls the test hook of a named point between durable steps.
func (e *Engine) hit(point string) {
	if fn := e.failpoint.Load(); fn != nil {
		(*fn)(point)
	}
}

// problem records what people must know about, in plain words, until cleared; it is also logged when it is new.
func (e *Engine) problem(subject, text string) {
	e.problemsMu.Lock()
	old := e.problems[subject]
	e.problems[subject] = text
	e.problemsMu.Unlock()
	if old != text {
		e.log.Warn("problem", "subject", subject, "problem", text)
	}
}

func (e *Engine) solved(subject string) {
	e.problemsMu.Lock()
	delete(e.problems, subject)
	e.problemsMu.Unlock()
}

// path names an inode for people: its path from the account root, or its number.
func (e *Engine) path(ino uint64) string {
	var p string
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		p, err = tx.Path(ino)
		return err
	})
	if err != nil {
		return fmt.Sprintf("inode %d", ino)
	}
	return "/" + p
}

// Path returns one path of an inode below the mount's root, for people; its number when it has none.
func (e *Engine) Path(ino uint64) string {
	p := e.path(ino)
	if e.opts.Vault == "" {
		return p
	}
	// A vault's tree is the root.
	if rest, ok := strings.CutPrefix(p, "/"+e.opts.Vault); ok && (rest == "" || rest[0] == '/') {
		return rest
	}
	return p
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
