package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"
)

// rebuild makes a new index from snapshot and journal in place of what is there.
// The old one goes only when the new one is complete, or when there is no room
// for both and the journal was found able to replace it.
func (c *Catalog) rebuild(reason string) error {
	last := c.j.Last()
	c.log.Warn("rebuilding the catalog's index from its journal", "reason", reason, "records", last)
	dir, old := c.path("index.new"), c.path("index")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	// What is written: the pairs once in tables, once in compaction.
	need := 2*(c.j.SnapshotBytes()+c.j.Size()) + c.guard.minFree/2
	if c.guard.free() < need {
		if err := c.sources(); err != nil {
			return err
		}
		if err := os.RemoveAll(old); err != nil {
			return err
		}
		if free := c.guard.free(); free < need {
			return fmt.Errorf("%w: the index must be rebuilt (%s) and needs %d bytes, the disk has %d", ErrNoSpace, reason, need, free)
		}
	}
	snap, err := c.fill(dir, last)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	for _, seq := range c.j.Snapshots() {
		if seq > snap { // found damaged
			if err := c.j.DropSnapshot(seq); err != nil {
				return err
			}
		}
	}
	return syncDir(c.o.Dir)
}

// fill builds an index in dir that holds everything up to last, and returns the snapshot it began with.
func (c *Catalog) fill(dir string, last uint64) (snap uint64, err error) {
	db, err := openIndex(dir, c.log, c.o.NoCompaction)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, closeIndex(db)) }()
	snap, err = c.fillSnapshot(db)
	if err != nil {
		return 0, c.hopeless(err)
	}
	seq := snap
	w := db.NewManagedWriteBatch()
	defer w.Cancel()
	for rec, err := range c.j.Replay(seq) {
		if err != nil {
			return 0, c.hopeless(err)
		}
		for _, op := range rec.Ops {
			if op.Value == nil {
				err = w.DeleteAt(op.Key, rec.Seq)
			} else {
				err = w.SetEntryAt(&badger.Entry{Key: op.Key, Value: op.Value}, rec.Seq)
			}
			if err != nil {
				return 0, err
			}
		}
		seq = rec.Seq
	}
	if seq != last {
		return 0, c.hopeless(fmt.Errorf("%w: it goes to %d, but its records only to %d", journal.ErrGap, last, seq))
	}
	if err := w.Flush(); err != nil {
		return 0, err
	}
	s := state{id: c.id, seq: last}
	txn := db.NewTransactionAt(last, true)
	defer txn.Discard()
	if s.stats, err = countAll(&Tx{base: txn}); err != nil {
		return 0, err
	}
	s.stats.Seq = last
	if err := txn.Set(stateKey, encodeState(&s)); err != nil {
		return 0, err
	}
	return snap, txn.CommitAt(last, nil)
}

// fillSnapshot writes the newest snapshot into an empty index, in tables of
// their final place: through logs and compactions it would take several times as long.
func (c *Catalog) fillSnapshot(db *badger.DB) (seq uint64, err error) {
	w := db.NewStreamWriter()
	if err := w.Prepare(); err != nil {
		return 0, err
	}
	flushed := false
	defer func() {
		if !flushed {
			w.Cancel()
		}
	}()
	buf := z.NewBuffer(1<<20, "snapshot")
	defer func() { err = errors.Join(err, buf.Release()) }()
	var last []byte
	kv := &pb.KV{Version: 1} // older than any record that is not part of it
	seq, err = c.j.LoadSnapshot(func(op journal.Op) error {
		if bytes.Compare(op.Key, last) <= 0 {
			return fmt.Errorf("%w: snapshot is not in order at %q", journal.ErrDamaged, op.Key)
		}
		last, kv.Key, kv.Value = op.Key, op.Key, op.Value
		badger.KVToBuffer(kv, buf)
		if buf.LenNoPadding() < 1<<20-64<<10 {
			return nil
		}
		err := w.Write(buf)
		buf.Reset()
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := w.Write(buf); err != nil {
		return 0, err
	}
	flushed = true
	return seq, w.Flush()
}

// sources reads everything a rebuild would, to see that it can.
func (c *Catalog) sources() error {
	seq, err := c.j.LoadSnapshot(func(journal.Op) error { return nil })
	if err != nil {
		return err
	}
	for _, err := range c.j.Replay(seq) {
		if err != nil {
			return c.hopeless(err)
		}
	}
	return nil
}

// hopeless explains a journal that cannot rebuild the index.
func (c *Catalog) hopeless(err error) error {
	if !errors.Is(err, journal.ErrDamaged) && !errors.Is(err, journal.ErrGap) {
		return err
	}
	return fmt.Errorf("%w: the index must be rebuilt, but the journal cannot: %w. %s", ErrDamaged, err, c.advice())
}

func (c *Catalog) advice() string {
	return fmt.Sprintf("Nothing was changed. Restore %s from a copy, or move %s away and mount again: "+
		"the tree then comes back from the vault's inventories, and staging files without a record are kept", c.path("journal"), c.o.Dir)
}

// replaceJournal makes a new journal from the index, when a clean close left
// that complete and not a byte of it has changed since. The damaged one is kept
// beside it. It returns the mark that is true then, or the damage if nothing can be done.
func (c *Catalog) replaceJournal(m *mark, damage error) (*mark, error) {
	if m == nil || !m.Clean {
		return m, damage
	}
	sums, err := sumIndex(c.path("index"), nil, false)
	if err != nil || compareIndex(m, sums) != "" {
		return m, damage
	}
	if c.db, err = openIndex(c.path("index"), c.log, c.o.NoCompaction); err != nil {
		return m, damage
	}
	// Badger changed its files by being opened; what is in them is the same.
	defer func() { c.db = nil }()
	s, err := readState(c.db)
	if err != nil || s.id != m.ID || s.seq != m.Seq {
		return m, errors.Join(damage, closeIndex(c.db))
	}
	dir, fresh := c.path("journal"), c.path("journal.new")
	err = os.RemoveAll(fresh)
	if err == nil {
		err = journal.Create(journal.Options{Dir: fresh}, m.ID, m.Seq, c.dump(m.Seq))
	}
	if err := errors.Join(err, closeIndex(c.db)); err != nil {
		return m, errors.Join(damage, err)
	}
	kept := ""
	for n := 1; ; n++ {
		kept = c.path(fmt.Sprintf("journal.damaged.%d", n))
		if _, err := os.Lstat(kept); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	// In one step: there is always a journal.
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
		return m, errors.Join(damage, os.NewSyscallError("renameat2", err))
	}
	if err := errors.Join(os.Rename(fresh, kept), syncDir(c.o.Dir)); err != nil {
		return m, err
	}
	c.rebuilt = fmt.Sprintf("%v; a new journal was made from the index, which is intact; the damaged one is kept in %s", damage, kept)
	c.damage = append(c.damage, fmt.Sprintf("the catalog's journal is damaged (%v); a new one was made from the index, which is intact. The damaged one is kept in %s", damage, kept))
	c.log.Error("catalog's journal is damaged; a new one was made from the index, which is intact", "err", damage, "kept", kept)
	c.id = m.ID
	if err := c.writeCleanMark(m.Seq); err != nil {
		return m, err
	}
	return c.readMark()
}
