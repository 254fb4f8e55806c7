package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"github.com/dgraph-io/badger/v4"
)

// Tx reads, and in Update changes, the catalog. Reads and iterations in Update see its own changes.
// Getters return ErrNotExist for what is absent. An iteration may be broken off,
// and in Update what it goes over may be changed meanwhile.
type Tx struct {
	c      *Catalog
	base   *badger.Txn
	o      *overlay // nil in View
	serial uint64
	delta  Stats // what this Update adds to the counts
}

// maxValue keeps every value inside badger's tables: a value log would need collecting, and its damage shows nowhere.
const maxValue = 256 << 10

// get returns the value of a key, nil when absent. It is valid until the next call.
func (tx *Tx) get(key []byte) ([]byte, error) {
	if tx.o != nil {
		if e := tx.o.entry(key); e != nil {
			if e.st.present() {
				return e.val, nil
			}
			return nil, nil
		}
	}
	item, err := tx.base.Get(key)
	if err == badger.ErrKeyNotFound {
		if tx.o != nil {
			tx.o.learn(key, nil)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tx.o != nil {
		v, err := item.ValueCopy(nil)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = []byte{}
		}
		tx.o.learn(key, v)
		return v, nil
	}
	var v []byte
	err = item.Value(func(b []byte) error { v = b; return nil })
	if v == nil {
		v = []byte{}
	}
	return v, err
}

func (tx *Tx) has(key []byte) (bool, error) {
	v, err := tx.get(key)
	return v != nil, err
}

var (
	errView   = errors.New("change in View")
	errUpdate = errors.New("for View only")
)

func (tx *Tx) put(key, val []byte) error {
	if tx.o == nil {
		return errView
	}
	if len(val) > maxValue || len(key) > 4096 {
		return fmt.Errorf("%w: record of %d bytes", ErrInvalid, len(val)+len(key))
	}
	if val == nil {
		val = []byte{}
	}
	tx.o.set(key, val, tx.serial)
	return nil
}

func (tx *Tx) del(key []byte) error {
	if tx.o == nil {
		return errView
	}
	tx.o.set(key, nil, tx.serial)
	return nil
}

// move changes an index: the entry from goes, to comes; nil for none.
func (tx *Tx) move(from, to []byte) error {
	if from != nil && bytes.Equal(from, to) {
		return nil
	}
	if from != nil {
		if err := tx.del(from); err != nil {
			return err
		}
	}
	if to != nil {
		return tx.put(to, nil)
	}
	return nil
}

// scan calls fn with the pairs below prefix whose key is at least from, in
// order, until fn returns false. fn must not change the transaction; key and value are valid during the call.
func (tx *Tx) scan(prefix, from []byte, fn func(key, val []byte) bool) error {
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	var own []*entry
	if tx.o != nil {
		own = tx.o.from(prefix[0], from)
	}
	// ownBefore hands out the batch's own entries up to a key; false when fn has had enough.
	ownBefore := func(key []byte) bool {
		for len(own) > 0 && (key == nil || bytes.Compare(own[0].key, key) < 0) {
			e := own[0]
			if !bytes.HasPrefix(e.key, prefix) {
				own = nil
				return true
			}
			own = own[1:]
			if e.st == dirtyPut && !fn(e.key, e.val) {
				return false
			}
		}
		return true
	}
	it := tx.base.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		key := item.Key()
		if !ownBefore(key) {
			return nil
		}
		if len(own) > 0 && bytes.Equal(own[0].key, key) {
			e := own[0]
			own = own[1:]
			if e.st.dirty() {
				if e.st == dirtyPut && !fn(key, e.val) {
					return nil
				}
				continue
			}
		}
		more := true
		if err := item.Value(func(v []byte) error { more = fn(key, v); return nil }); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
	ownBefore(nil)
	return nil
}

// first returns the first key below prefix, nil for none.
func (tx *Tx) first(prefix []byte) (key []byte, err error) {
	err = tx.scan(prefix, prefix, func(k, _ []byte) bool {
		key = bytes.Clone(k)
		return false
	})
	return key, err
}

const chunk = 256

// each iterates over the pairs below prefix in chunks, so that whoever uses it may
// change the transaction between two steps and no iterator stays open. get makes the result
// from a pair; it may read the transaction, and skips the pair by returning ErrNotExist.
func each[T any](tx *Tx, prefix []byte, get func(key, val []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		type pair struct{ key, val []byte }
		var pairs []pair
		for from := prefix; ; {
			pairs = pairs[:0]
			err := tx.scan(prefix, from, func(k, v []byte) bool {
				pairs = append(pairs, pair{bytes.Clone(k), bytes.Clone(v)})
				return len(pairs) < chunk
			})
			if err != nil {
				yield(none, err)
				return
			}
			for _, p := range pairs {
				v, err := get(p.key, p.val)
				if errors.Is(err, ErrNotExist) {
					continue
				}
				if !yield(v, err) || err != nil {
					return
				}
			}
			if len(pairs) < chunk {
				return
			}
			from = after(pairs[len(pairs)-1].key)
		}
	}
}

func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// load reads and decodes a record.
func load[T any](tx *Tx, key []byte, decode func(key, b []byte) (T, error)) (T, error) {
	b, err := tx.get(key)
	if err == nil && b == nil {
		err = ErrNotExist
	}
	if err != nil {
		var none T
		return none, err
	}
	return decode(key, b)
}

// loadOld is load for what a change replaces: nil when absent.
func loadOld[T any](tx *Tx, key []byte, decode func(key, b []byte) (T, error)) (*T, error) {
	v, err := load(tx, key, decode)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// firstID leaves room below for the root inode and for listings' "." and "..".
const firstID = 16

// NextID allocates a number never used before (inodes, archives, retrievals, local files).
// Numbers of an Update that failed or was lost to a power failure are not used again.
// It is for Update only and panics in View.
func (tx *Tx) NextID() uint64 {
	if tx.o == nil {
		panic(errView)
	}
	id := tx.c.nextID
	tx.c.nextID++
	tx.o.set(counterKey, encodeNumber(counterKey, tx.c.nextID), tx.serial)
	return id
}
