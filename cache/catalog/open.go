package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/journal"
	"golang.org/x/sys/unix"
)

// idsSkipped is how far NextID jumps after a crash. Files on disk may bear
// numbers whose records a power loss took; they must not be given out again,
// and far fewer are than the journal takes between two marks.
const idsSkipped = 1 << 20

// Open opens or creates the catalog, brings badger up to the journal, rebuilding it
// when missing, older or damaged (with a log line saying so), and creates the account root inode.
// Errors: ErrInUse, ErrFormat, ErrDamaged, ErrNoSpace. When it fails nothing is lost by it.
func Open(o Options) (*Catalog, error) {
	if o.Reserve == 0 {
		o.Reserve = 64 << 20
	}
	if o.MinFree == 0 {
		o.MinFree = DefaultMinFree
	}
	if o.SnapshotEvery == 0 {
		o.SnapshotEvery = 64 << 20
	}
	if o.markEvery == 0 {
		o.markEvery = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Catalog{
		o:       o,
		log:     o.Logger,
		stop:    make(chan struct{}),
		changed: make(chan struct{}, 1),
	}
	c.views.active = make(map[uint64]int)
	c.views.idle.L = &c.views.mu
	c.turns.idle.L = &c.turns.mu
	c.turns.wake = make(chan struct{}, 1)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(filepath.Clean(o.Dir))); err != nil {
		return nil, err
	}
	lock, err := lockDir(c.path("lock"))
	if err != nil {
		return nil, err
	}
	c.lock = lock
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.shutdown(false))
	}
	return c, nil
}

// lockDir makes sure that one process holds the directory. The lock goes with the process, however it ends.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%w: %s is held by process %s", ErrInUse, filepath.Dir(path), strings.TrimSpace(string(b)))
		}
		return nil, os.NewSyscallError("flock", err)
	}
	pid := fmt.Appendf(nil, "%d\n", os.Getpid())
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt(pid, 0)
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) { // the pid is a courtesy; the lock holds without
		f.Close()
		return nil, err
	}
	return f, nil
}

func (c *Catalog) open() error {
	complete, err := c.readFormat()
	if err != nil {
		return err
	}
	m, err := c.readMark()
	if errors.Is(err, ErrFormat) {
		return err
	}
	existed := complete
	if err != nil {
		c.log.Error("catalog's mark is unreadable; the index will be rebuilt", "err", err)
		c.damage = append(c.damage, fmt.Sprintf("%s was unreadable (%v) and has been written again", c.path("mark"), err))
		existed = true
	}
	exists, err := journal.Exists(c.path("journal"))
	if err != nil {
		return err
	}
	if !exists {
		if err := c.checkNew(existed, m); err != nil {
			return err
		}
	}
	jo := journal.Options{Dir: c.path("journal"), SegmentSize: c.o.segmentSize, Logger: c.log}
	if existed {
		jo.Stable = 1 // the root directory's record was, before format was written
	}
	if m != nil {
		jo.Stable = max(jo.Stable, m.Seq)
	}
	c.guard = newGuard(c.o, c.log)
	if err := c.guard.start(); err != nil {
		return err
	}
	if err := c.noteKept(); err != nil {
		return err
	}
	c.j, err = journal.Open(jo)
	if errors.Is(err, journal.ErrDamaged) {
		why := err
		if m, err = c.replaceJournal(m, why); err == nil {
			c.j, err = journal.Open(jo)
		}
	}
	switch {
	case errors.Is(err, journal.ErrFormat):
		return fmt.Errorf("%w: %w", ErrFormat, err)
	case errors.Is(err, journal.ErrDamaged):
		return fmt.Errorf("%w: %w. %s", ErrDamaged, err, c.advice())
	case err != nil:
		return err
	}
	c.id = c.j.ID()
	c.snapBytes.Store(c.j.SnapshotBytes())
	last := c.j.Last()
	if m != nil && last > 0 && m.ID != c.id {
		return fmt.Errorf("%w: %s is of catalog %s, the journal of %s. %s", ErrDamaged, c.path("mark"), m.ID, c.id, c.advice())
	}
	clean := m != nil && m.Clean && m.Seq == last
	if last == 0 {
		err = c.create()
	} else {
		err = c.openExisting(m, last)
	}
	if err != nil {
		return err
	}
	s, err := readState(c.db)
	if err != nil && last > 0 {
		return err
	}
	c.stats.Store(&s.stats)
	c.views.publish(last)
	if c.nextID, err = c.readNextID(clean); err != nil {
		return err
	}
	// From here on the index changes, if only by badger's own housekeeping.
	if err := c.writeMark(); err != nil {
		return err
	}
	c.committer.Add(1)
	go c.commitLoop()
	c.keeper.Add(1)
	go c.keepMark()
	if err := c.finish(complete); err != nil {
		c.quiesce()
		return err
	}
	return nil
}

// checkNew refuses to begin an empty catalog where there was one.
func (c *Catalog) checkNew(existed bool, m *mark) error {
	_, err := os.Stat(filepath.Join(c.path("index"), "MANIFEST"))
	indexed := err == nil
	// Only a creation that was cut short leaves an index with a mark of nothing and no format.
	if existed || m != nil && m.Seq > 0 || m == nil && indexed {
		return fmt.Errorf("%w: %s is missing, and with it the catalog. %s", ErrDamaged, c.path("journal"), c.advice())
	}
	return nil
}

// create begins an index without records.
func (c *Catalog) create() error {
	for _, dir := range []string{c.path("index"), c.path("index.new")} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := c.writeMark(); err != nil {
		return err
	}
	var err error
	c.db, err = openIndex(c.path("index"), c.log, c.o.NoCompaction)
	return err
}

// openExisting opens the index if it is to be trusted and rebuilds it otherwise.
func (c *Catalog) openExisting(m *mark, last uint64) error {
	reason, err := c.tryIndex(m, last)
	if err != nil || reason == "" {
		return err
	}
	c.rebuilt = reason
	if reason != noIndex && (m == nil || m.Clean) {
		c.damage = append(c.damage, fmt.Sprintf("the catalog's index was not to be trusted (%s); it has been made anew from the journal", reason))
	}
	start := time.Now()
	if err := c.rebuild(reason); err != nil {
		return err
	}
	if c.db, err = openIndex(c.path("index"), c.log, c.o.NoCompaction); err != nil {
		return fmt.Errorf("index just rebuilt: %w", err)
	}
	c.log.Warn("catalog's index is rebuilt", "records", last, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// noIndex is an index that was deleted, which anybody may do.
const noIndex = "index is missing"

// noteKept tells of damaged journals that were replaced and are kept.
func (c *Catalog) noteKept() error {
	entries, err := os.ReadDir(c.o.Dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "journal.damaged.") {
			continue
		}
		dir := c.path(e.Name())
		c.damage = append(c.damage, fmt.Sprintf("the catalog's journal was once found damaged and made anew from the index, which was intact; "+
			"the damaged one is kept in %s: delete it when nobody wants to know what happened to it", dir))
	}
	return err
}

// tryIndex opens the index, or says why it must be rebuilt.
func (c *Catalog) tryIndex(m *mark, last uint64) (reason string, err error) {
	dir := c.path("index")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return noIndex, nil
	}
	if m == nil {
		return "it is not known how the catalog was closed", nil
	}
	if !m.Clean {
		return "catalog was not closed", nil
	}
	// Before badger sees them: over some damage it panics where nobody can recover, over some it is silent.
	sums, err := sumIndex(dir, nil, false)
	if err != nil {
		return "", err
	}
	if diff := compareIndex(m, sums); diff != "" {
		return "index is damaged: " + diff, nil
	}
	db, err := openIndex(dir, c.log, c.o.NoCompaction)
	if err != nil {
		return fmt.Sprintf("index cannot be opened: %v", err), nil
	}
	s, err := readState(db)
	switch {
	case err != nil:
		reason = fmt.Sprintf("index is unreadable: %v", err)
	case s.id != c.id:
		reason = fmt.Sprintf("index is of catalog %s", s.id)
	case s.seq != last:
		reason = fmt.Sprintf("index is at record %d, the journal at %d", s.seq, last)
	default:
		c.db = db
		c.sums = make(map[string]fileSum, len(sums))
		for _, s := range sums {
			c.sums[s.Name] = s
		}
		return "", nil
	}
	if err := closeIndex(db); err != nil {
		c.log.Warn("closing the index that will be replaced", "err", err)
	}
	return reason, nil
}

// readNextID returns the first number to give out.
func (c *Catalog) readNextID(clean bool) (uint64, error) {
	next := uint64(firstID)
	err := c.View(func(tx *Tx) error {
		n, err := load(tx, counterKey, decodeNumber)
		if errors.Is(err, ErrNotExist) {
			return nil
		}
		next = max(next, n)
		if !clean {
			next += idsSkipped
		}
		return err
	})
	return next, err
}

// finish creates the root directory or makes sure that it is there.
func (c *Catalog) finish(complete bool) error {
	err := c.View(func(tx *Tx) error { _, err := tx.Inode(RootIno); return err })
	if err == nil && complete && !c.formatSpoilt {
		return nil
	}
	if errors.Is(err, ErrNotExist) {
		if complete {
			return fmt.Errorf("%w: the root directory has no record. %s", ErrDamaged, c.advice())
		}
		_, err = c.Update(func(tx *Tx) error {
			now := time.Now().UnixNano()
			return errors.Join(tx.PutInode(Inode{
				Ino: RootIno, Parent: RootIno, Mode: sIFDIR | 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
				Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now,
			}), tx.PutMeta(metaPins, pinsKept))
		})
	}
	if err != nil {
		return err
	}
	if err := c.Barrier(context.Background(), 0); err != nil {
		return err
	}
	if err := c.writeMark(); err != nil {
		return err
	}
	return c.writeFormat()
}

// keepMark writes how far the journal is durable, now and then while it grows:
// it bounds what the loss of the journal's end could hide.
func (c *Catalog) keepMark() {
	defer c.keeper.Done()
	for {
		select {
		case <-c.stop:
			return
		case <-c.changed:
		}
		t := time.NewTimer(c.o.markEvery)
		select {
		case <-c.stop:
			t.Stop()
			return
		case <-t.C:
		}
		c.guard.look()
		if err := c.Barrier(context.Background(), 0); err != nil {
			continue // logged by the journal, and every Update fails from now on
		}
		if err := c.writeMark(); err != nil {
			c.log.Warn("writing the catalog's mark", "err", err)
		}
	}
}
