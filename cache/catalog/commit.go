package catalog

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
)

// request is one Update on its way through the committer.
type request struct {
	fn      func(*Tx) error
	reclaim bool
	done    chan struct{}

	seq   uint64
	err   error
	ops   []journal.Op
	delta Stats
	saw   bool // ran on top of changes of its batch
}

const (
	maxBatch      = 256
	maxBatchBytes = 1 << 20
	maxSegments   = 128 // every start that changes something adds one
)

// Update runs fn alone among Updates and commits what it changed as one journal
// record. It returns after the record is in the journal (survives kill -9) and
// visible to View; seq is for Barrier. When fn returns an error nothing is changed and the error is returned as it is.
// fn may be run on the committer's goroutine; it must be quick, must not block, and must not call Update.
// A panic in fn becomes an error. Errors: ErrNoSpace, ErrReadOnly, ErrClosed.
func (c *Catalog) Update(fn func(tx *Tx) error) (seq uint64, err error) {
	return c.submit(&request{fn: fn, done: make(chan struct{})})
}

// Reclaim is Update for changes that give disk space back (recording an
// eviction, deleting a file): it is still allowed when the guard refuses
// Updates with ErrNoSpace, until the disk is nearly full.
func (c *Catalog) Reclaim(fn func(tx *Tx) error) (seq uint64, err error) {
	return c.submit(&request{fn: fn, done: make(chan struct{}), reclaim: true})
}

func (c *Catalog) submit(r *request) (uint64, error) {
	c.enqueue.RLock()
	if c.closed {
		c.enqueue.RUnlock()
		return 0, ErrClosed
	}
	c.queue <- r
	c.enqueue.RUnlock()
	<-r.done
	return r.seq, r.err
}

// commitLoop is the committer: it alone writes to journal and badger.
func (c *Catalog) commitLoop() {
	defer func() {
		// An fn that ends its goroutine (testing's FailNow) must not take everybody else along.
		if len(c.inFlight) > 0 {
			c.overlay.drop()
			for _, r := range c.inFlight {
				r.err = fmt.Errorf("an Update ended the committer's goroutine")
				close(r.done)
			}
			c.inFlight = c.inFlight[:0]
			go c.commitLoop()
			return
		}
		c.committer.Done()
	}()
	for r := range c.queue {
		c.inFlight = append(c.inFlight, r)
		c.commitBatch()
		for _, r := range c.inFlight {
			close(r.done)
		}
		clear(c.inFlight)
		c.inFlight = c.inFlight[:0]
	}
}

// commitBatch runs the request in flight and those that wait behind it.
func (c *Catalog) commitBatch() {
	base := c.db.NewTransactionAt(c.views.published(), false)
	defer base.Discard()
	c.pending = *c.stats.Load()
	var size int64
	for i := 0; ; i++ {
		r := c.inFlight[i]
		c.run(r, base)
		if r.err == nil {
			c.pending.add(&r.delta)
			for _, op := range r.ops {
				size += int64(len(op.Key) + len(op.Value))
			}
		}
		if len(c.inFlight) == maxBatch || size > maxBatchBytes {
			break
		}
		next, ok := c.poll()
		if !ok {
			break
		}
		c.inFlight = append(c.inFlight, next)
	}
	if err := c.commit(size, c.pending); err != nil {
		c.overlay.drop()
		for _, r := range c.inFlight {
			if r.err == nil || r.saw {
				r.seq, r.err = 0, err
			}
		}
	}
}

// poll takes the next waiting request without waiting.
func (c *Catalog) poll() (*request, bool) {
	select {
	case r, ok := <-c.queue:
		return r, ok
	default:
		return nil, false
	}
}

// run runs one Update on top of the batch and collects what it changed.
func (c *Catalog) run(r *request, base *badger.Txn) {
	if r.err = c.writable(r.reclaim); r.err != nil {
		return
	}
	c.serial++
	tx := &Tx{c: c, base: base, o: &c.overlay, serial: c.serial}
	r.saw = len(c.overlay.dirty) > 0
	c.overlay.undo = c.overlay.undo[:0]
	finished := false
	func() {
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("panic in Update: %v", p)
				c.log.Error("panic in a change of the catalog", "panic", p, "stack", string(debug.Stack()))
			}
		}()
		r.err = r.fn(tx)
		finished = true
	}()
	if !finished || r.err != nil {
		c.overlay.rollback()
		return
	}
	r.delta = tx.delta
	r.ops = make([]journal.Op, 0, len(c.overlay.undo))
	for _, u := range c.overlay.undo {
		op := journal.Op{Key: []byte(u.e.key)}
		if u.e.st == dirtyPut {
			op.Value = u.e.val
		}
		r.ops = append(r.ops, op)
	}
}

// writable says why no change is possible, if so.
func (c *Catalog) writable(reclaim bool) error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return c.guard.check(reclaim)
}

// commit writes the batch to the journal, then to badger. On an error nothing of it is visible.
func (c *Catalog) commit(size int64, stats Stats) error {
	last := c.views.published()
	var batches [][]journal.Op
	for _, r := range c.inFlight {
		if r.err == nil && len(r.ops) > 0 {
			batches = append(batches, r.ops)
			last++
		}
		r.seq = last // nothing changed: what it saw is what is there up to here
	}
	if len(batches) == 0 {
		c.overlay.applied()
		return nil
	}
	if err := c.guard.room(size); err != nil {
		return err
	}
	var seq uint64
	var err error
	if c.appendHook != nil {
		err = c.appendHook()
	}
	if err == nil {
		seq, err = c.j.Append(batches)
	}
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		if errors.Is(err, journal.ErrFailed) {
			return fmt.Errorf("%w: %w", ErrReadOnly, err)
		}
		return err
	}
	c.guard.wrote(size)
	if seq != last {
		err = fmt.Errorf("journal is at %d, index at %d", seq, last)
	} else {
		stats.Seq = seq
		err = c.apply(seq, stats)
	}
	if err != nil {
		// The record is in the journal, so the change comes true at the next
		// start; until then this process shows what was before it.
		err = fmt.Errorf("%w: index: %w", ErrReadOnly, err)
		c.failed.Store(&err)
		c.log.Error("catalog index failed; no more changes until the next start, which rebuilds it", "err", err)
		return err
	}
	c.overlay.applied()
	c.stats.Store(&stats)
	c.db.SetDiscardTs(c.views.publish(seq))
	select {
	case c.changed <- struct{}{}:
	default:
	}
	c.maybeSnapshot()
	return nil
}

// apply writes the batch to badger under seq as timestamp. Views see nothing of it until that is published.
func (c *Catalog) apply(seq uint64, stats Stats) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if c.applyHook != nil {
		c.applyHook()
	}
	w := &applier{db: c.db, seq: seq}
	for _, e := range c.overlay.dirty {
		switch e.st {
		case dirtyPut:
			err = w.add(&badger.Entry{Key: []byte(e.key), Value: e.val})
		case dirtyDelete:
			err = w.del([]byte(e.key))
		}
		if err != nil {
			return err
		}
	}
	s := state{id: c.id, seq: seq, stats: stats}
	if err := w.add(&badger.Entry{Key: stateKey, Value: encodeState(&s)}); err != nil {
		return err
	}
	return w.commit()
}

// applier writes any number of entries under one timestamp.
type applier struct {
	db  *badger.DB
	seq uint64
	txn *badger.Txn
}

func (w *applier) each(f func() error) error {
	if w.txn == nil {
		w.txn = w.db.NewTransactionAt(w.seq, true)
	}
	err := f()
	if err == badger.ErrTxnTooBig {
		if err := w.commit(); err != nil {
			return err
		}
		w.txn = w.db.NewTransactionAt(w.seq, true)
		err = f()
	}
	return err
}

func (w *applier) add(e *badger.Entry) error {
	return w.each(func() error { return w.txn.SetEntry(e) })
}

func (w *applier) del(key []byte) error {
	return w.each(func() error { return w.txn.Delete(key) })
}

func (w *applier) commit() error {
	if w.txn == nil {
		return nil
	}
	txn := w.txn
	w.txn = nil
	return txn.CommitAt(w.seq, nil)
}

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
	return c.writeMark(mark{Seq: c.j.Durable()})
}
