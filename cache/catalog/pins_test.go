package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func pinnedIn(t testing.TB, c *Catalog) (inos []uint64) {
	t.Helper()
	view(t, c, func(tx *Tx) error {
		for i, err := range tx.Pinned() {
			if err != nil {
				return err
			}
			inos = append(inos, i.Ino)
		}
		return nil
	})
	return inos
}

// setPin pins or unpins a file of populate's.
func setPin(t testing.TB, c *Catalog, v uint64, k int, on bool) (ino uint64) {
	t.Helper()
	update(t, c, func(tx *Tx) error {
		d, err := tx.Lookup(v, fmt.Sprintf("file%06d", k))
		if err != nil {
			return err
		}
		i, err := tx.Inode(d.Ino)
		if err != nil {
			return err
		}
		ino, i.Pinned = i.Ino, on
		return tx.PutInode(i)
	})
	return ino
}

func wantPinned(t testing.TB, c *Catalog, want ...uint64) {
	t.Helper()
	if got := pinnedIn(t, c); !slices.Equal(got, want) {
		t.Fatalf("pinned: %v, want %v", got, want)
	}
	if got := problems(t, c, false); got != nil {
		t.Fatalf("%q", got)
	}
}

// Pinned inodes are found without reading the others: what was pinned, unpinned and deleted, after every kind of end.
func TestPinned(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	v := populate(t, c, "v", 20)
	wantPinned(t, c)
	a, b, gone, not := setPin(t, c, v, 3, true), setPin(t, c, v, 5, true), setPin(t, c, v, 7, true), setPin(t, c, v, 9, true)
	wantPinned(t, c, a, b, gone, not)
	setPin(t, c, v, 3, true)
	setPin(t, c, v, 9, false)
	update(t, c, func(tx *Tx) error {
		if _, err := tx.Unlink(v, "file000007", 2); err != nil {
			return err
		}
		if err := tx.DeleteOrphan(gone); err != nil {
			return err
		}
		return tx.DeleteInode(gone)
	})
	wantPinned(t, c, a, b)
	mustClose(t, c)
	c = mustOpen(t, o)
	wantPinned(t, c, a, b)
	crash(t, c)
	c = mustOpen(t, o)
	wantPinned(t, c, a, b)
	if err := c.Snapshot(); err != nil {
		t.Fatal(err)
	}
	crash(t, c)
	c = mustOpen(t, o)
	wantPinned(t, c, a, b)
}

// older makes the catalog that of a program which did not index pins.
func older(t testing.TB, c *Catalog) {
	t.Helper()
	pinned := pinnedIn(t, c)
	update(t, c, func(tx *Tx) error {
		for _, ino := range pinned {
			if err := tx.del(key1(tPin, ino)); err != nil {
				return err
			}
		}
		return tx.PutMeta(metaPins, nil)
	})
	if got := pinnedIn(t, c); got != nil {
		t.Fatalf("still indexed: %v", got)
	}
}

// A catalog of before there was the index gets it, however it was closed. Without room, or cut short, it can be used all the same, and gets it later.
func TestPinsOfAnOlderCatalog(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	v := populate(t, c, "v", 20)
	a, b := setPin(t, c, v, 3, true), setPin(t, c, v, 5, true)
	index := func(made bool) {
		t.Helper()
		if got, err := c.IndexPins(t.Context()); got != made || err != nil {
			t.Fatalf("made %v, %v", got, err)
		}
	}
	index(false)
	older(t, c)
	mustClose(t, c)
	c = mustOpen(t, o)
	index(true)
	wantPinned(t, c, a, b)
	older(t, c)
	crash(t, c)
	c = mustOpen(t, o)
	d := setPin(t, c, v, 7, true)
	index(true)
	wantPinned(t, c, a, b, d)
	mustClose(t, c)
	c = mustOpen(t, o)
	index(false)
	wantPinned(t, c, a, b, d)

	older(t, c)
	look := func(statfs func(string) (int64, error)) {
		c.guard.mu.Lock()
		c.guard.statfs = statfs
		c.guard.mu.Unlock()
		c.guard.look()
	}
	look((&disk{}).statfs)
	if made, err := c.IndexPins(t.Context()); made || !errors.Is(err, ErrNoSpace) || pinnedIn(t, c) != nil {
		t.Fatalf("without room: %v, %v", made, err)
	}
	look(statfs)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if made, err := c.IndexPins(ctx); made || !errors.Is(err, context.Canceled) {
		t.Fatalf("cut short: %v, %v", made, err)
	}
	index(true)
	wantPinned(t, c, a, b, d)
}

// What an older program pins or unpins meanwhile is mended by a check; nothing that is not pinned counts as pinned.
func TestPinsAfterAnOlderProgram(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 20)
	a, b := setPin(t, c, v, 3, true), setPin(t, c, v, 5, true)
	update(t, c, func(tx *Tx) error {
		for ino, on := range map[uint64]bool{a: true, b: false} { // without the index
			i, err := tx.Inode(ino)
			if err != nil {
				return err
			}
			i.Pinned = on
			key := key1(tInode, ino)
			if err := tx.put(key, encodeInode(key, &i)); err != nil {
				return err
			}
		}
		return tx.del(key1(tPin, a))
	})
	if got := pinnedIn(t, c); got != nil {
		t.Fatalf("pinned: %v", got)
	}
	if got := problems(t, c, true); len(got) != 2 {
		t.Fatalf("%q", got)
	}
	wantPinned(t, c, a)
}
