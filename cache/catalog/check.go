package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"

	"github.com/casfs/casfs/cache/journal"
	"github.com/dgraph-io/badger/v4"
)

// Check compares badger with snapshot and journal and the tree with itself
// (dangling entries, wrong nlink, versions without inode …), reporting each problem; repair mends what loses nothing.
// What it mends it mends by Updates, each of which looks again first: the catalog may be in use.
// A problem that was mended says so. Check reads everything; ctx ends it early. Its error says why it could not finish, not what it found.
func (c *Catalog) Check(ctx context.Context, repair bool, report func(problem string)) error {
	k := &checker{c: c, ctx: ctx, repair: repair, report: report}
	damaged, err := k.journal()
	if err != nil {
		return err
	}
	if err := k.tree(); err != nil {
		return err
	}
	if damaged && repair {
		// Set aside, so that the new one has an older one beside it in the end.
		for _, seq := range k.bad {
			if err := c.j.DropSnapshot(seq); err != nil {
				return err
			}
		}
		if err := c.Snapshot(); err != nil {
			return err
		}
		report("a new snapshot was written")
	}
	return nil
}

// checker is one run of Check.
type checker struct {
	c      *Catalog
	ctx    context.Context
	repair bool
	report func(string)
	steps  int
	bad    []uint64 // damaged snapshots
}

// problem reports one and mends it if it can be. fix looks again, in an Update, and returns false when it finds nothing to mend.
func (k *checker) problem(fix func(tx *Tx) (bool, error), format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if fix == nil || !k.repair {
		k.report(text)
		return nil
	}
	var mended bool
	_, err := k.c.Update(func(tx *Tx) (err error) {
		mended, err = fix(tx)
		return err
	})
	switch {
	case err != nil:
		k.report(fmt.Sprintf("%s; not mended: %v", text, err))
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrReadOnly) {
			return err
		}
	case mended:
		k.report(text + "; mended")
	default:
		k.report(text + "; gone meanwhile")
	}
	return nil
}

// pause looks at ctx now and then.
func (k *checker) pause() error {
	if k.steps++; k.steps%1024 != 0 {
		return nil
	}
	return k.ctx.Err()
}

// journal compares what badger holds with what snapshot and journal say it should, and reads every snapshot.
func (k *checker) journal() (damaged bool, err error) {
	c := k.c
	c.snapping.Lock() // nothing is removed meanwhile
	defer c.snapping.Unlock()
	bad := map[uint64]bool{}
	c.j.CheckSnapshots(func(seq uint64, err error) {
		bad[seq] = true
		k.bad = append(k.bad, seq)
		k.report(fmt.Sprintf("snapshot: %v", err))
	})
	var from uint64
	for _, seq := range c.j.Snapshots() {
		if !bad[seq] {
			from = max(from, seq)
		}
	}
	ts, err := c.views.begin()
	if err != nil {
		return false, err
	}
	defer c.views.end(ts)
	diffs, err := k.compare(from, ts)
	if errors.Is(err, journal.ErrGap) || errors.Is(err, journal.ErrDamaged) {
		k.report(fmt.Sprintf("journal: %v", err))
		return true, nil // a new snapshot of the index mends it
	}
	if err != nil || len(diffs) == 0 {
		return len(bad) > 0, err
	}
	for _, d := range diffs {
		if !k.repair {
			k.report(d.String())
		}
	}
	if k.repair {
		err = k.mendIndex(diffs, ts)
	}
	return len(bad) > 0, err
}

// diff is a key of which badger and journal hold different values.
type diff struct {
	key        string
	has, wants bool
}

func (d diff) String() string {
	switch {
	case !d.has:
		return fmt.Sprintf("index: record %q is missing", d.key)
	case !d.wants:
		return fmt.Sprintf("index: record %q should not be there", d.key)
	}
	return fmt.Sprintf("index: record %q differs from the journal", d.key)
}

// later holds, for the keys changed since a snapshot, what they should be.
type later struct {
	seed maphash.Seed
	sums map[string]uint64 // 0: deleted
	keys []string          // in order, not yet passed
}

func (l *later) sum(v []byte) uint64 { return maphash.Bytes(l.seed, v) | 1 }

// compare reads badger as of ts beside the snapshot of from with the records up to ts.
func (k *checker) compare(from, ts uint64) ([]diff, error) {
	c := k.c
	l := later{seed: maphash.MakeSeed(), sums: map[string]uint64{}}
	for rec, err := range c.j.Replay(from) {
		if err == nil {
			err = k.pause()
		}
		if err != nil {
			return nil, err
		}
		if rec.Seq > ts {
			break
		}
		for _, op := range rec.Ops {
			if op.Value == nil {
				l.sums[string(op.Key)] = 0
			} else {
				l.sums[string(op.Key)] = l.sum(op.Value)
			}
		}
	}
	l.keys = slices.Sorted(maps.Keys(l.sums))

	txn := c.db.NewTransactionAt(ts, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	it.Rewind()
	var diffs []diff
	// expect is called for every key that should be there, in order.
	expect := func(key []byte, sum uint64) error {
		if err := k.pause(); err != nil {
			return err
		}
		for ; it.Valid(); it.Next() {
			switch n := bytes.Compare(it.Item().Key(), key); {
			case n < 0:
				if !bytes.Equal(it.Item().Key(), stateKey) {
					diffs = append(diffs, diff{key: string(it.Item().Key()), has: true})
				}
				continue
			case n > 0:
				diffs = append(diffs, diff{key: string(key), wants: true})
				return nil
			}
			err := it.Item().Value(func(v []byte) error {
				if l.sum(v) != sum {
					diffs = append(diffs, diff{key: string(key), has: true, wants: true})
				}
				return nil
			})
			it.Next()
			return err
		}
		diffs = append(diffs, diff{key: string(key), wants: true})
		return nil
	}
	// laterBefore expects what the records say of keys before key.
	laterBefore := func(key []byte) error {
		for len(l.keys) > 0 && (key == nil || l.keys[0] < string(key)) {
			next := l.keys[0]
			l.keys = l.keys[1:]
			if s := l.sums[next]; s != 0 {
				if err := expect([]byte(next), s); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if from > 0 {
		var last []byte
		seq, err := c.j.LoadSnapshot(func(op journal.Op) error {
			if bytes.Compare(op.Key, last) <= 0 && last != nil {
				return fmt.Errorf("%w: snapshot is not in order at %q", ErrDamaged, op.Key)
			}
			last = op.Key
			if err := laterBefore(op.Key); err != nil {
				return err
			}
			sum := l.sum(op.Value)
			if len(l.keys) > 0 && l.keys[0] == string(op.Key) {
				l.keys = l.keys[1:]
				if sum = l.sums[string(op.Key)]; sum == 0 {
					return nil
				}
			}
			return expect(op.Key, sum)
		})
		if err != nil {
			return nil, err
		}
		if seq != from {
			return nil, fmt.Errorf("snapshot of %d read instead of %d", seq, from)
		}
	}
	if err := laterBefore(nil); err != nil {
		return nil, err
	}
	for ; it.Valid(); it.Next() {
		if !bytes.Equal(it.Item().Key(), stateKey) {
			diffs = append(diffs, diff{key: string(it.Item().Key()), has: true})
		}
	}
	return diffs, nil
}

// mendIndex writes what the journal holds of these keys again, unless a record after ts did.
func (k *checker) mendIndex(diffs []diff, ts uint64) error {
	want := make(map[string][]byte, len(diffs))
	for _, d := range diffs {
		want[d.key] = nil
	}
	note := func(op journal.Op) error {
		if _, ok := want[string(op.Key)]; ok {
			want[string(op.Key)] = op.Value
		}
		return nil
	}
	seq, err := k.c.j.LoadSnapshot(note)
	if err != nil {
		return err
	}
	for rec, err := range k.c.j.Replay(seq) {
		if err != nil {
			return err
		}
		if rec.Seq > ts {
			break
		}
		for _, op := range rec.Ops {
			note(op)
		}
	}
	for part := range slices.Chunk(diffs, 1000) {
		if err := k.ctx.Err(); err != nil {
			return err
		}
		changed := map[string]bool{}
		_, err := k.c.Update(func(tx *Tx) error {
			for rec, err := range k.c.j.Replay(ts) {
				if err != nil {
					return err
				}
				for _, op := range rec.Ops {
					changed[string(op.Key)] = true
				}
			}
			for _, d := range part {
				var err error
				if v := want[d.key]; changed[d.key] {
					continue
				} else if v != nil {
					err = tx.put([]byte(d.key), v)
				} else {
					err = tx.del([]byte(d.key))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		for _, d := range part {
			switch {
			case err != nil:
				k.report(fmt.Sprintf("%s; not mended: %v", d, err))
			case changed[d.key]:
				k.report(d.String() + "; gone meanwhile")
			default:
				k.report(d.String() + "; mended")
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
