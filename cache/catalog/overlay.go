package catalog

import (
	"bytes"
	"slices"
)

// An entry is what the committer knows of a key: what badger holds, or what the
// batch being built will put there.
type entry struct {
	key    []byte // never changed
	val    []byte
	st     entryState
	listed bool   // in overlay.dirty
	saved  uint64 // serial of the Update that last noted its former state
}

type entryState uint8

const (
	cleanAbsent entryState = iota
	cleanPresent
	dirtyPut
	dirtyDelete
)

func (s entryState) dirty() bool { return s >= dirtyPut }

func (s entryState) present() bool { return s == cleanPresent || s == dirtyPut }

// overlay lies over badger while Updates run. Only the committer writes to
// badger, so what it has read or written stays true afterwards: the clean
// entries are a cache.
type overlay struct {
	m     map[string]*entry
	bytes int
	dirty []*entry
	// The dirty keys by table in order, for iteration; fresh ones are sorted in when somebody iterates.
	tables [256]struct{ sorted, fresh []*entry }
	used   []byte // tables that are not empty
	undo   []undo
}

// undo is an entry's state before the Update that is running.
type undo struct {
	e   *entry
	val []byte
	st  entryState
}

const (
	maxCached      = 1 << 15
	maxCachedBytes = 8 << 20
)

func (o *overlay) entry(key []byte) *entry { return o.m[string(key)] }

// learn caches what badger holds; nil for nothing. It keeps key and val.
func (o *overlay) learn(key, val []byte) *entry {
	e := &entry{key: key, val: val}
	if val != nil {
		e.st = cleanPresent
	}
	if o.m == nil {
		o.m = make(map[string]*entry)
	}
	o.m[string(key)] = e
	o.bytes += len(key) + len(val)
	return e
}

// set changes a key for the Update with that serial; nil deletes. It keeps key and val.
func (o *overlay) set(key, val []byte, serial uint64) {
	e := o.entry(key)
	if e == nil {
		e = o.learn(key, nil)
	}
	if e.saved != serial {
		e.saved = serial
		o.undo = append(o.undo, undo{e, e.val, e.st})
	}
	e.val = val
	o.bytes += len(val)
	if val == nil {
		e.st = dirtyDelete
	} else {
		e.st = dirtyPut
	}
	if !e.listed {
		e.listed = true
		o.dirty = append(o.dirty, e)
		t := &o.tables[e.key[0]]
		if len(t.sorted)+len(t.fresh) == 0 {
			o.used = append(o.used, e.key[0])
		}
		t.fresh = append(t.fresh, e)
	}
}

// from returns the batch's entries of a table from a key on, in order, those rolled back among them.
func (o *overlay) from(table byte, key []byte) []*entry {
	t := &o.tables[table]
	if len(t.fresh) > 0 {
		t.sorted = append(t.sorted, t.fresh...)
		t.fresh = t.fresh[:0]
		slices.SortFunc(t.sorted, func(a, b *entry) int { return bytes.Compare(a.key, b.key) })
	}
	i, _ := slices.BinarySearchFunc(t.sorted, key, func(e *entry, key []byte) int { return bytes.Compare(e.key, key) })
	return t.sorted[i:]
}

// rollback undoes what the Update that is running has set.
func (o *overlay) rollback() {
	for _, u := range o.undo {
		u.e.val, u.e.st = u.val, u.st
	}
	o.undo = o.undo[:0]
}

// applied turns the batch into cache, once badger holds it.
func (o *overlay) applied() {
	for _, e := range o.dirty {
		switch e.st {
		case dirtyPut:
			e.st = cleanPresent
		case dirtyDelete:
			e.st = cleanAbsent
		}
		e.listed = false
	}
	o.endBatch()
	if len(o.m) > maxCached || o.bytes > maxCachedBytes {
		o.m, o.bytes = nil, 0
	}
}

// drop forgets the batch and the cache.
func (o *overlay) drop() {
	o.m, o.bytes = nil, 0
	o.endBatch()
}

func (o *overlay) endBatch() {
	clear(o.dirty)
	o.dirty = o.dirty[:0]
	clear(o.undo)
	o.undo = o.undo[:0]
	for _, t := range o.used {
		clear(o.tables[t].sorted)
		clear(o.tables[t].fresh[:cap(o.tables[t].fresh)])
		o.tables[t].sorted = o.tables[t].sorted[:0]
		o.tables[t].fresh = o.tables[t].fresh[:0]
	}
	o.used = o.used[:0]
}
