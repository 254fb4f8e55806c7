package catalog

import (
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
)

// request is one Update on its way through the committer.
type request struct {
	fn      func(*Tx) error
	reclaim bool
	done    chan struct{} // for those that wait

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
	return c.submit(&request{fn: fn})
}

// Reclaim is Update for changes that give disk space back (recording an
// eviction, deleting a file): it is still allowed when the guard refuses
// Updates with ErrNoSpace, until the disk is nearly full.
func (c *Catalog) Reclaim(fn func(tx *Tx) error) (seq uint64, err error) {
	return c.submit(&request{fn: fn, reclaim: true})
}

func (c *Catalog) submit(r *request) (uint64, error) {
	mine, err := c.turns.take(r)
	if err != nil {
		return 0, err
	}
	if !mine {
		<-r.done
		return r.seq, r.err
	}
	defer c.endTurn()
	c.commitBatch(r, func() *request { return nil })
	return r.seq, r.err
}

// commitLoop is the committer: it serves those who came during another's turn.
func (c *Catalog) commitLoop() {
	ended := false
	defer func() {
		if !ended { // by an fn that ends its goroutine (testing's FailNow): it must not take everybody else along
			c.endTurn()
			go c.commitLoop()
			return
		}
		c.committer.Done()
	}()
	for range c.turns.wake {
		for r := c.turns.next(); r != nil; r = c.turns.next() {
			c.commitBatch(r, c.turns.next)
			c.answer()
		}
		c.turns.pass()
	}
	ended = true
}

// answer tells those of the batch that wait.
func (c *Catalog) answer() {
	for _, r := range c.inFlight {
		if r.done != nil {
			close(r.done)
		}
	}
	clear(c.inFlight)
	c.inFlight = c.inFlight[:0]
}

// endTurn ends a turn, also one that an fn broke off by ending the goroutine.
func (c *Catalog) endTurn() {
	if !c.batchDone {
		c.overlay.drop()
		for _, r := range c.inFlight {
			r.seq, r.err = 0, errors.New("an Update of the same batch ended the goroutine")
		}
	}
	c.answer()
	c.turns.pass()
}

// commitBatch runs a request and those that next finds waiting behind it.
func (c *Catalog) commitBatch(r *request, next func() *request) {
	c.batchDone = false
	base := c.db.NewTransactionAt(c.views.published(), false)
	defer base.Discard()
	c.pending = *c.stats.Load()
	var size int64
	for ; r != nil; r = next() {
		c.inFlight = append(c.inFlight, r)
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
	}
	if err := c.commit(size, c.pending); err != nil {
		c.overlay.drop()
		for _, r := range c.inFlight {
			if r.err == nil || r.saw {
				r.seq, r.err = 0, err
			}
		}
	}
	c.batchDone = true
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
		op := journal.Op{Key: u.e.key}
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
