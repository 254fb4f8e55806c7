package catalog

import (
	"bytes"
	"errors"
	"iter"
	"slices"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
)

// maybeSnapshot starts a snapshot when the journal has grown enough. Its cost
// is kept in proportion: rewriting everything for every 64 MiB would be out of it for a large catalog.
func (c *Catalog) maybeSnapshot() {
	size := c.j.Size()
	if size < max(c.o.SnapshotEvery, c.snapBytes.Load()/2) && c.j.Segments() < maxSegments || size < c.snapNext.Load() {
		return
	}
	if !c.snapBusy.CompareAndSwap(false, true) {
		return
	}
	c.keeper.Add(1)
	go func() {
		defer c.keeper.Done()
		defer c.snapBusy.Store(false)
		if err := c.snapshot(); err != nil && !errors.Is(err, ErrClosed) {
			c.snapNext.Store(size + c.o.SnapshotEvery/4)
			c.log.Error("catalog snapshot failed; it will be tried again", "err", err)
		}
	}()
}

// Snapshot writes a snapshot now. It runs beside Updates and Views.
func (c *Catalog) Snapshot() error { return c.snapshot() }

func (c *Catalog) snapshot() error {
	c.snapping.Lock()
	defer c.snapping.Unlock()
	ts, err := c.views.begin()
	if err != nil {
		return err
	}
	defer c.views.end(ts)
	if snaps := c.j.Snapshots(); ts == 0 || slices.Contains(snaps, ts) {
		return nil
	}
	if err := c.guard.snapshotRoom(c.j.SnapshotBytes() + c.j.Size()); err != nil {
		return err
	}
	if err := c.j.WriteSnapshot(ts, c.dump(ts)); err != nil {
		return err
	}
	c.snapNext.Store(0)
	c.snapBytes.Store(c.j.SnapshotBytes())
	return c.writeMark()
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
