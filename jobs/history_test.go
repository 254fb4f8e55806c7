package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// entryOf makes up an archive as an inventory lists it.
func entryOf(id string, m Metadata, data []byte, at time.Time) cas.InventoryEntry {
	return cas.InventoryEntry{ArchiveID: id, Size: int64(len(data)), TreeHash: cas.TreeHash(data), CreationDate: at, Description: formatDescription(m)}
}

// merge takes an inventory from its first archive to its end, a few archives at once.
func (r *recallRig) merge(list []cas.InventoryEntry, batch int) {
	r.t.Helper()
	inv := &inventory{ino: r.vault, name: "v", first: true}
	rec := inventoryRecord{Started: time.Now().UnixNano()}
	m := merger{r: r.e.recall, inv: inv, stamp: rec.Started}
	for i, x := range list {
		err := m.add(x)
		if err == nil && ((i+1)%batch == 0 || i+1 == len(list)) {
			err = m.flush()
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.e.recall.finishInventory(inv, rec); err != nil {
		r.t.Fatal(err)
	}
}

// archive returns an archive of the catalog, and whether a file consists of it.
func (r *recallRig) archive(id string) (a catalog.Archive, used bool) {
	r.t.Helper()
	err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		if a, err = tx.ArchiveByID(r.vault, id); errors.Is(err, catalog.ErrNotExist) {
			return nil
		}
		if err == nil {
			used, err = inUse(tx, a)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return a, used
}

// inAnyOrder merges a list in every order, in pieces of several sizes, twice each.
func inAnyOrder(t *testing.T, list func(name string, ino uint64, began time.Time) []cas.InventoryEntry, check func(t *testing.T, r *recallRig, name string)) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		began := time.Now()
		time.Sleep(24 * time.Hour)
		n := uint64(0)
		var permute func(order, rest []int)
		permute = func(order, rest []int) {
			for i, x := range rest {
				permute(append(slices.Clone(order), x), slices.Delete(slices.Clone(rest), i, i+1))
			}
			if len(rest) > 0 {
				return
			}
			for _, batch := range []int{1, len(order)} {
				n++
				name := fmt.Sprint("f", n)
				entries := list(name, 1000+n, began)
				sorted := make([]cas.InventoryEntry, len(entries))
				for i, x := range order {
					sorted[i] = entries[x]
				}
				for again := range 2 {
					time.Sleep(time.Minute)
					r.merge(sorted, batch)
					check(t, r, name)
					if t.Failed() {
						t.Fatalf("in the order %v, %d at once, inventory %d", order, batch, again+1)
					}
				}
			}
		}
		all := make([]int, len(list("", 1, began)))
		for i := range all {
			all[i] = i
		}
		permute(nil, all)
	})
}

// Version 2 was replaced by version 3, and after an older state directory was restored the same bytes were written again, as
// version 2: then they are what the file is, and no second copy of what version 3 replaced.
func TestWrittenAgainAfterRollback(t *testing.T) {
	inAnyOrder(t, func(name string, ino uint64, began time.Time) (list []cas.InventoryEntry) {
		for hour, v := range []uint64{2, 3, 2} {
			data := blob(fmt.Sprint(name, v), 300)
			m := Metadata{Intent: fmt.Sprintf("01234567%s-%d", name, hour), Ino: ino, Born: 7, V: v, Size: 300, Mode: 0o644, Path: name}
			list = append(list, entryOf(fmt.Sprint(name, "-", hour), m, data, began.Add(time.Duration(hour)*time.Hour)))
		}
		return list
	}, func(t *testing.T, r *recallRig, name string) {
		_, first := r.archive(name + "-0")
		last, again := r.archive(name + "-2")
		if third, used := r.archive(name + "-1"); !used || third.State != catalog.Live {
			t.Errorf("version 3: in use %v, state %d", used, third.State)
		}
		if !first && !again {
			t.Errorf("no file holds what was written last; state %d", last.State)
		}
	})
}

// A second copy that was made before the next version goes to the trash with the first, or alone.
func TestUploadedTwiceAndReplaced(t *testing.T) {
	inAnyOrder(t, func(name string, ino uint64, began time.Time) (list []cas.InventoryEntry) {
		for hour, v := range []uint64{2, 2, 3} {
			data := blob(fmt.Sprint(name, v), 300)
			m := Metadata{Intent: fmt.Sprintf("01234567%s-%d", name, hour), Ino: ino, Born: 7, V: v, Size: 300, Mode: 0o644, Path: name}
			list = append(list, entryOf(fmt.Sprint(name, "-", hour), m, data, began.Add(time.Duration(hour)*time.Hour)))
		}
		return list
	}, func(t *testing.T, r *recallRig, name string) {
		for i, want := range []catalog.ArchiveState{catalog.Trash, catalog.Trash, catalog.Live} {
			if a, used := r.archive(fmt.Sprint(name, "-", i)); a.State != want || used != (i == 2) {
				t.Errorf("archive %d: in use %v, state %d", i, used, a.State)
			}
		}
	})
}

// What was sent of a file still being written is all there is of it when its machine died, and an older state directory, which
// knew an older version, went on from there.
func TestStreamOfALostHistoryStays(t *testing.T) {
	inAnyOrder(t, func(name string, ino uint64, began time.Time) (list []cas.InventoryEntry) {
		for hour, v := range []uint64{2, 1, 2} {
			data := blob(fmt.Sprint(name, hour), 300)
			m := Metadata{Intent: fmt.Sprintf("01234567%s-%d", name, hour), Ino: ino, Born: 7, V: v, Size: 300, Mode: 0o644, Path: name}
			if hour == 0 {
				m.Size, m.Segs, m.Set = 400, 2, setOpen
			}
			list = append(list, entryOf(fmt.Sprint(name, "-", hour), m, data, began.Add(time.Duration(hour)*time.Hour)))
		}
		return list
	}, func(t *testing.T, r *recallRig, name string) {
		for i, want := range []catalog.ArchiveState{catalog.Live, catalog.Trash, catalog.Live} {
			if a, used := r.archive(fmt.Sprint(name, "-", i)); a.State != want || used != (i == 2) {
				t.Errorf("archive %d: in use %v, state %d", i, used, a.State)
			}
		}
	})
}

// Of a file that was streamed in many pieces in two histories both are found.
func TestStreamsOfTwoHistories(t *testing.T) {
	const pieces, each = 40, 10
	var g gathering
	for h := range 2 {
		var intents []string
		for i := range pieces {
			intents = append(intents, fmt.Sprint(h, ".", i))
		}
		for i, intent := range intents {
			p := gathered{V: 2, Seg: i, Segs: i + 2, Num: uint64(h*pieces + i + 1), Len: each, Size: pieces * each,
				Created: int64(1 + h*1000 + i), Mtime: 5, Set: setOpen, Off: int64(i * each), Intent: intent}
			if i == pieces-1 {
				p.Segs, p.Set = pieces, setOf(intents)
			}
			g.Parts = append(g.Parts, p)
		}
	}
	for _, order := range []string{"as made", "the other way"} {
		l := g.makings()
		if len(l.list) != 2 {
			t.Fatalf("%d makings", len(l.list))
		}
		for _, k := range l.list {
			if len(k.parts) != pieces {
				t.Errorf("%s: %d archives of the one that ends with %d", order, len(k.parts), k.own[0].Num)
			}
		}
		slices.Reverse(g.Parts)
	}
}

// A gathering begun by the program before descriptions told sets goes on with what that did not note of its archives.
func TestGatheringOfAnEarlierProgram(t *testing.T) {
	t.Parallel()
	// As it was kept.
	type part struct {
		V       uint64
		Seg     int
		Segs    int
		Num     uint64
		Len     int64
		Size    int64
		Created int64 `json:",omitempty"`
		Beside  bool  `json:",omitempty"`
	}
	for _, sets := range []bool{false, true} {
		t.Run(fmt.Sprintf("sets %v", sets), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, nil)
				began := time.Now()
				time.Sleep(24 * time.Hour)
				data := blob("f", 3<<20)
				intents := []string{"0123456700", "0123456701", "0123456702"}
				md := func(i int) Metadata {
					m := Metadata{Intent: intents[i], Ino: 5, Born: 7, V: 2, Size: 3 << 20, Mtime: 11, Mode: 0o644, Seg: i, Segs: 3, Path: "f"}
					if sets {
						m.Set, m.Off = setOf(intents), int64(i)<<20
						if i == 0 { // what it was before it grew
							m.V, m.Size, m.Segs, m.Set, m.Off = 1, 1<<20, 1, "", 0
						}
					}
					return m
				}
				var list []cas.InventoryEntry
				for i := range intents {
					list = append(list, entryOf(fmt.Sprint("a", i), md(i), data[i<<20:(i+1)<<20], began.Add(time.Duration(i)*time.Minute)))
				}
				r.merge(list[:1], 10)
				_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
					key := gatherMeta(r.vault, md(0))
					b, err := tx.Meta(key)
					if err != nil {
						return err
					}
					var g struct {
						Parts  []part
						V      uint64 `json:",omitempty"`
						Ino    uint64 `json:",omitempty"`
						OurV   uint64 `json:",omitempty"`
						Parent uint64 `json:",omitempty"`
						Name   string `json:",omitempty"`
					}
					if err := json.Unmarshal(b, &g); err != nil {
						return err
					}
					if b, err = json.Marshal(g); err != nil {
						return err
					}
					return tx.PutMeta(key, b)
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				r.merge(list, 10)
				if got := r.tree(); len(got) != 1 || got["f"].Size != 3<<20 {
					t.Errorf("%+v", got)
				}
				if n := r.archives(); n[catalog.Live] != 3 {
					t.Errorf("archives %v", n)
				}
			})
		})
	}
}
