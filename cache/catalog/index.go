package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"strings"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/ristretto/v2/z"
)

// memTable is the size of badger's tables in memory, of which it has two.
const memTable = 8 << 20

// indexOptions keep badger small. Syncing is the journal's business, and a
// single committer has no conflicts.
func indexOptions(dir string, log *slog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithSyncWrites(false).
		WithDetectConflicts(false).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(4).
		WithNumCompactors(2).
		WithValueThreshold(512 << 10). // above maxValue: nothing ever goes to the value log
		WithValueLogFileSize(64 << 20).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithBaseTableSize(512 << 10). // the largest are 32 times as large, and are built in memory
		WithIndexCacheSize(16 << 20).
		WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.OnTableRead).
		WithNumGoroutines(1)
}

// openIndex opens badger; its panics over damaged files become errors.
func openIndex(dir string, log *slog.Logger) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("badger panics: %v", p)
		}
	}()
	return badger.OpenManaged(indexOptions(dir, log))
}

func closeIndex(db *badger.DB) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger panics: %v", p)
		}
	}()
	return db.Close()
}

// badgerLog passes on what somebody may have to act on.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any) { l.log.Error("badger: " + message(f, a)) }

func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("badger: " + message(f, a)) }

func (l badgerLog) Infof(f string, a ...any) { l.log.Debug("badger: " + message(f, a)) }

func (l badgerLog) Debugf(string, ...any) {}

func message(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }

// readState returns what an index says of itself.
func readState(db *badger.DB) (s state, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger panics: %v", p)
		}
	}()
	txn := db.NewTransactionAt(1<<64-1, false)
	defer txn.Discard()
	item, err := txn.Get(stateKey)
	if err != nil {
		return s, err
	}
	err = item.Value(func(b []byte) error {
		s, err = decodeState(b)
		return err
	})
	return s, err
}

// dump iterates over everything the journal knows, as of ts.
func (c *Catalog) dump(ts uint64) iter.Seq2[journal.Op, error] {
	return func(yield func(journal.Op, error) bool) {
		txn := c.db.NewTransactionAt(ts, false)
		defer txn.Discard()
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if c.snapStop.Load() {
				yield(journal.Op{}, ErrClosed)
				return
			}
			item := it.Item()
			if bytes.Equal(item.Key(), stateKey) {
				continue
			}
			more := true
			err := item.Value(func(v []byte) error {
				more = yield(journal.Op{Key: item.Key(), Value: v}, nil)
				return nil
			})
			if err != nil {
				yield(journal.Op{}, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

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
	db, err := openIndex(dir, c.log)
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

// countAll makes the counts from the records.
func countAll(tx *Tx) (Stats, error) {
	var s Stats
	var bad error
	err := tx.scan([]byte{tInode}, nil, func(k, v []byte) bool {
		var i Inode
		if i, bad = decodeInode(k, v); bad != nil {
			return false
		}
		s.countInode(&i, 1)
		return true
	})
	if err := errors.Join(err, bad); err != nil {
		return s, err
	}
	for v, err := range tx.StagedVersions() {
		if err != nil {
			return s, err
		}
		s.countVersion(&v, 1)
	}
	return s, nil
}
