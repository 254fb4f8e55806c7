// Package catalog is the local database of casfs: the tree, the versions of
// its files, the vaults' archives, uploads, retrievals and the trash. Every
// change is one journal record first (package journal), then applied to badger,
// which is only an index: missing, older or damaged, it is rebuilt from
// snapshot and journal. keys.go lists every key prefix; codec.go the encodings.
//
// # Files
//
// In Options.Dir, all written by this package:
//
//	lock      held (flock) by the process that has the catalog open; its pid as text
//	format    version and creation id; written when the first record is durable
//	mark      how far the journal had come for certain; after a clean close also the
//	          checksum of every file of the index. See mark.go
//	journal/  the truth: records and snapshots, see package journal
//	index/    badger; may be deleted while the catalog is closed
//	reserve   disk space given up when the file system is about to be full
//
// # After a crash
//
// Badger is trusted after a clean close if all its files are as they were, and
// never otherwise: it may lose records without an error, and a kill -9 leaves
// no trace of what it should hold. It is then built anew from the newest
// snapshot and the records after it, beside the old one, which it replaces when
// it is complete. The other way round, an index that is to be trusted replaces a
// damaged journal, which is kept as journal.damaged.1 and so on.
package catalog

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
)

// Options configure a Catalog.
type Options struct {
	Dir           string // holds journal/, index/ (badger), reserve and format
	Reserve       int64  // bytes preallocated against a full disk; 0: 64 MiB
	MinFree       int64  // refuse changes below this much free space; 0: DefaultMinFree
	SnapshotEvery int64  // journal bytes between snapshots, at least (half the last snapshot's size if that is more); 0: 64 MiB
	Logger        *slog.Logger
	// NoCompaction is for tests on virtual time (badger's compactors wake every 50 ms, a million times in a night), and
	// for filling a catalog whose index is removed, and so rebuilt, then. A long-lived catalog needs compaction.
	NoCompaction bool

	segmentSize int64         // tests: journal.Options.SegmentSize
	markEvery   time.Duration // tests: how often the mark follows the journal
}

// DefaultMinFree is how much of the disk stays free when Options.MinFree is zero.
const DefaultMinFree = 64 << 20

// Errors. The namespace errors are matched by errors.Is and mapped to errno in package fs.
var (
	ErrNotExist    = errors.New("no such entry")
	ErrExist       = errors.New("entry exists")
	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotEmpty    = errors.New("directory not empty")
	ErrLoop        = errors.New("a directory cannot be moved below itself")
	ErrXDev        = errors.New("different vaults")
	ErrPerm        = errors.New("operation not permitted here")
	ErrNameTooLong = errors.New("name longer than 255 bytes")
	ErrMaxLinks    = errors.New("too many links")
	ErrNoAttr      = errors.New("no such attribute")
	ErrInvalid     = errors.New("invalid argument")
	ErrNoSpace     = errors.New("no room for the catalog")   // guard tripped; reads go on
	ErrInUse       = errors.New("state directory is in use") // wrapped with the other pid
	ErrDamaged     = errors.New("catalog is damaged")        // journal or snapshot cannot rebuild it; says what to do
	ErrFormat      = errors.New("catalog format is newer than this program")
	ErrReadOnly    = errors.New("catalog failed earlier and takes no more changes")
	ErrClosed      = errors.New("catalog is closed")
)

// Catalog is open for one process. Safe for concurrent use.
type Catalog struct {
	o       Options
	log     *slog.Logger
	lock    *os.File
	j       *journal.Journal
	db      *badger.DB
	guard   *guard
	id      string
	rebuilt string
	damage  []string // found at Open and mended
	// formatSpoilt is that the format file has to be written again.
	formatSpoilt bool
	sums         map[string]fileSum // of the index's files when it was opened

	views views

	turns     turns
	committer sync.WaitGroup

	// Of the one whose turn it is.
	overlay   overlay
	serial    uint64
	inFlight  []*request
	pending   Stats // with what the batch adds so far
	batchDone bool  // false while a batch is run and committed
	nextID    uint64

	stats  atomic.Pointer[Stats] // as of the last record applied
	failed atomic.Pointer[error] // set when badger failed after the journal had the record

	keeper  sync.WaitGroup
	stop    chan struct{}
	changed chan struct{} // of one: something to write a mark for
	marking sync.Mutex    // one mark is written at a time, each with no less than the one before

	snapping  sync.Mutex // held while a snapshot is written or a check reads the journal
	snapBusy  atomic.Bool
	snapStop  atomic.Bool
	snapBytes atomic.Int64 // size of the newest
	snapNext  atomic.Int64 // journal size before which no other is tried after one failed

	appendHook func() error // tests: called before the journal
	applyHook  func()       // tests: called between journal and badger
}

// Close stops background work and closes; nothing acknowledged depends on it.
// It waits for Updates and Views under way; later ones fail with ErrClosed.
func (c *Catalog) Close() error {
	if !c.quiesce() {
		return nil
	}
	return c.shutdown(c.failed.Load() == nil)
}

// quiesce ends the goroutines, Updates and Views; false if that was done before.
func (c *Catalog) quiesce() bool {
	if !c.turns.close() {
		return false
	}
	c.snapStop.Store(true)
	c.committer.Wait()
	close(c.stop)
	c.keeper.Wait()
	c.views.close()
	return true
}

// shutdown closes what Open opened. The index is marked clean only if it holds
// everything the journal does.
func (c *Catalog) shutdown(clean bool) error {
	var errs []error
	seq := c.views.published()
	if c.db != nil && !c.guard.closable() {
		// It would write its memory to disk, and the full disk would kill the process.
		c.log.Error("disk is full: the catalog's index is left open and will be rebuilt at the next start", "dir", c.o.Dir)
		clean = false
	} else if c.db != nil {
		err := closeIndex(c.db)
		clean = clean && err == nil
		errs = append(errs, err)
	}
	if c.j != nil {
		err := c.j.Close()
		clean = clean && err == nil && c.j.Last() == seq
		errs = append(errs, err)
	}
	if clean {
		err := c.writeCleanMark(seq)
		if errors.Is(err, errBadTable) {
			// Nothing is lost: the mark says that the index was not closed.
			c.log.Error("catalog's index was damaged while it was open; it will be rebuilt at the next start", "err", err)
			err = nil
		}
		errs = append(errs, err)
	}
	errs = append(errs, c.lock.Close())
	return errors.Join(errs...)
}

// View runs fn on a consistent snapshot. fn must not keep tx. It does not wait for Updates, however slow.
func (c *Catalog) View(fn func(tx *Tx) error) error {
	ts, err := c.views.begin()
	if err != nil {
		return err
	}
	defer c.views.end(ts)
	base := c.db.NewTransactionAt(ts, false)
	defer base.Discard()
	return fn(&Tx{c: c, base: base})
}

// Barrier blocks until everything up to seq (0: everything so far) survives power loss. ctx ends the waiting only.
func (c *Catalog) Barrier(ctx context.Context, seq uint64) error {
	if seq == 0 {
		seq = c.j.Last()
	}
	err := c.j.Barrier(ctx, seq)
	if errors.Is(err, journal.ErrClosed) {
		return ErrClosed
	}
	return err
}

// Durable returns the newest sequence number that survives power loss.
func (c *Catalog) Durable() uint64 { return c.j.Durable() }

// Room returns nil when changes are taken, else ErrNoSpace with what is missing. It asks the file system.
func (c *Catalog) Room() error { return c.guard.refusal() }

// ID returns the catalog's random creation id (hex).
func (c *Catalog) ID() string { return c.id }

// Rebuilt reports why badger (or, from badger, the journal) had to be rebuilt at Open, "" if nothing had.
func (c *Catalog) Rebuilt() string { return c.rebuilt }

// Damage tells, in plain words, what Open found damaged and mended, or what is kept of such damage; nothing of the
// catalog is lost by it. That the index is built anew after a crash is no damage.
func (c *Catalog) Damage() []string { return append(slices.Clone(c.damage), c.j.Damage()...) }

func (c *Catalog) path(name string) string { return filepath.Join(c.o.Dir, name) }
