package catalog

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

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
			err = w.add(&badger.Entry{Key: e.key, Value: e.val})
		case dirtyDelete:
			err = w.del(e.key)
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
