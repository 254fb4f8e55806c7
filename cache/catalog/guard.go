package catalog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// guard keeps badger away from a full disk: it writes through mmap, so a page
// without a block behind it kills the process. Changes are refused below
// minFree. Below half of that the reserve is given up, for what badger's own
// goroutines still have to write; it is taken again, and changes go on, when there is room for both.
type guard struct {
	dir              string
	minFree, reserve int64
	log              *slog.Logger
	statfs           func(dir string) (free int64, err error)

	mu      sync.Mutex
	avail   int64 // at the last look, less what was written since
	looked  time.Time
	changes int
	held    bool // the reserve exists
	refused bool // for the log: one line when it begins, one when it ends
}

const (
	lookEvery   = 250 * time.Millisecond
	lookChanges = 64
	// freshFor is how old a look may be when badger is about to write: in a
	// millisecond no program writes more than minFree.
	freshFor = time.Millisecond
	// spread is how many bytes on disk a byte of a change becomes: journal, log, table, compaction.
	spread = 4
)

func newGuard(o Options, log *slog.Logger) *guard {
	return &guard{dir: o.Dir, minFree: o.MinFree, reserve: o.Reserve, log: log, statfs: statfs}
}

func statfs(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

func (g *guard) path() string { return filepath.Join(g.dir, "reserve") }

// start takes the reserve, or gives it up, before badger is opened.
func (g *guard) start() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if st, err := os.Stat(g.path()); err == nil {
		g.held = st.Size() == g.reserve
	}
	if err := g.lookLocked(); err != nil {
		return err
	}
	// Badger begins a log and may write a table at once, and wants to be closed again.
	if g.avail < closeBytes {
		return fmt.Errorf("%w: %s free in %s, %s are needed to open it", ErrNoSpace, size(g.avail), g.dir, size(closeBytes))
	}
	return nil
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// check says whether a change may be made now.
func (g *guard) check(reclaim bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changes++
	if g.changes >= lookChanges || g.avail < g.minFree || time.Since(g.looked) >= lookEvery {
		if err := g.lookLocked(); err != nil {
			return err
		}
	}
	limit := g.limitLocked(reclaim)
	if g.avail >= limit {
		if !reclaim && g.refused {
			g.refused = false
			g.log.Warn("catalog takes changes again", "free", size(g.avail))
		}
		return nil
	}
	if !g.refused {
		g.refused = true
		g.log.Error("disk is nearly full: catalog takes no changes", "dir", g.dir, "free", size(g.avail), "needed", size(limit))
	}
	return g.shortLocked(limit)
}

// limitLocked is what must be free for a change.
func (g *guard) limitLocked(reclaim bool) int64 {
	switch {
	case reclaim:
		return g.minFree / 4
	case !g.held && g.reserve > 0:
		return g.minFree + g.reserve
	}
	return g.minFree
}

func (g *guard) shortLocked(limit int64) error {
	return fmt.Errorf("%w: %s free in %s, %s needed", ErrNoSpace, size(g.avail), g.dir, size(limit))
}

// refusal is what check would say now.
func (g *guard) refusal() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.lookLocked(); err != nil {
		return err
	}
	if limit := g.limitLocked(false); g.avail < limit {
		return g.shortLocked(limit)
	}
	return nil
}

// lookLocked asks the file system and keeps or gives up the reserve.
func (g *guard) lookLocked() error {
	free, err := g.statfs(g.dir)
	if err != nil {
		return err
	}
	if g.held && free < g.minFree/2 {
		if err := os.Remove(g.path()); err != nil {
			g.log.Error("giving up the catalog's disk reserve", "err", err)
		} else {
			g.held = false
			g.log.Error("disk is nearly full: the catalog's reserve is given up", "dir", g.dir, "free", size(free), "reserve", size(g.reserve))
			if free, err = g.statfs(g.dir); err != nil {
				return err
			}
		}
	} else if !g.held && g.reserve > 0 && free >= g.minFree+g.reserve {
		if err := g.takeLocked(); err != nil {
			g.log.Warn("reserving disk space for the catalog", "err", err)
		} else if free, err = g.statfs(g.dir); err != nil {
			return err
		}
	}
	g.avail, g.looked, g.changes = free, time.Now(), 0
	return nil
}

// takeLocked creates the reserve.
func (g *guard) takeLocked() error {
	f, err := os.OpenFile(g.path(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, g.reserve)
	if err == unix.EOPNOTSUPP {
		err = fill(f, g.reserve)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(g.path()))
	}
	g.held = true
	return nil
}

// fill allocates by writing, for file systems that cannot otherwise.
func fill(f *os.File, n int64) error {
	b := make([]byte, 1<<20)
	for off := int64(0); off < n; off += int64(len(b)) {
		if _, err := f.WriteAt(b[:min(int64(len(b)), n-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// look asks the file system now, for badger's own goroutines are about to write.
func (g *guard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.lookLocked(); err != nil {
		g.log.Error("asking for free disk space", "err", err)
	}
}

// closable says whether badger can write its memory to disk. The reserve is given up for it if need be.
func (g *guard) closable() bool {
	g.look()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.avail >= closeBytes
}

// closeBytes is what badger may write when it is closed: its tables in memory, once more.
const closeBytes = 4 * memTable

// room refuses a batch that is large for what is left now.
func (g *guard) room(n int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.looked) >= freshFor {
		if err := g.lookLocked(); err != nil {
			return err
		}
	}
	if n*spread > g.avail-g.minFree/8 {
		return fmt.Errorf("%w: a change of %s, %s free", ErrNoSpace, size(n), size(g.avail))
	}
	return nil
}

// wrote counts what went to disk since the last look.
func (g *guard) wrote(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.avail -= n * spread
}

// snapshotRoom refuses a snapshot that would bring the guard down.
func (g *guard) snapshotRoom(n int64) error {
	if free := g.free(); free < n+2*g.minFree {
		return fmt.Errorf("%w: a snapshot of about %s, %s free", ErrNoSpace, size(n), size(free))
	}
	return nil
}

// free asks the file system; what it does not know counts as none.
func (g *guard) free() int64 {
	n, err := g.statfs(g.dir)
	if err != nil {
		g.log.Error("asking for free disk space", "err", err)
		return 0
	}
	return n
}
