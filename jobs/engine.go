// Package jobs is the engine: work that outlives a system call, and every
// change that touches local files, catalog and service together. fs calls it
// for each operation; everything that takes long runs here, under Run, bounded, and is picked up again after a crash.
package jobs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// Recall says what a read of cold bytes does.
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

	// Reading.
	Recall           RecallMode    // [auto]
	Tier             string        // "standard" [default], "bulk", "expedited", "auto"
	RecallWait       time.Duration // [24h]
	GuardFiles       int           // [100]; negative: no limit
	GuardBytes       int64         // per 24 h [100 GiB]; negative: no limit
	DenyComm         []string      // command name patterns (path.Match) that may not recall
	Window           int64         // [64 MiB]
	WindowAbove      int64         // isolated reads ask for windows in archives above this [1 GiB]
	Stub             int64         // head and tail kept by automatic eviction [64 KiB]; negative: none
	Fetches          int           // ranges downloading at once [4]
	PollMin, PollMax time.Duration // [0.5s, 60s]
	Capacity         int64         // statfs [1 PiB]
	VaultRefresh     time.Duration // List Vaults this often [1h]
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
	ErrBusy     = errors.New("busy")                                  // EBUSY: vault with archives or trash
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

// Engine is the running casfs of one state directory. Safe for concurrent use.
type Engine struct {
	opts    Options
	client  *cas.Client
	catalog *catalog.Catalog
	store   *content.Store
	recall  *recaller
	log     *slog.Logger

	filesMu sync.Mutex
	files   map[uint64]*file
}

// Open locks the state directory, opens catalog and local store, and repairs
// what a crash left between them. It contacts nothing. Errors: catalog.ErrInUse, ErrDamaged, ErrFormat.
func Open(o Options) (*Engine, error) { panic("unimplemented") }

// Probe asks the service for the vault list and merges it; it is the mount's
// check that endpoint, credentials and clock are right. Errors are cas's. With
// Options.Vault, a vault that does not exist is cas.ErrNotFound.
func (e *Engine) Probe(ctx context.Context) error { panic("unimplemented") }

// Run does the background work until ctx ends, then waits for its goroutines; what is unfinished stays recorded.
func (e *Engine) Run(ctx context.Context) error { panic("unimplemented") }

// SetObserver sets who hears of changes; before Run.
func (e *Engine) SetObserver(o Observer) { panic("unimplemented") }

// StopAdmitting makes new writes and recalls fail with ErrClosing and cancels waiting reads (unmount, SIGTERM); uploads go on.
func (e *Engine) StopAdmitting() { panic("unimplemented") }

// Close closes catalog and store; after Run has returned.
func (e *Engine) Close() error { panic("unimplemented") }

// RootIno is the mount's root directory: the account's, or the vault's with Options.Vault (after Probe or a previous mount).
func (e *Engine) RootIno() (uint64, error) { panic("unimplemented") }
