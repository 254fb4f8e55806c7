package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func problems(t testing.TB, c *Catalog, repair bool) []string {
	t.Helper()
	var found []string
	if err := c.Check(context.Background(), repair, func(p string) { found = append(found, p) }); err != nil {
		t.Fatal(err)
	}
	return found
}

// furnish fills every table.
func furnish(t testing.TB, c *Catalog) (v uint64) {
	t.Helper()
	v = populate(t, c, "v", 50)
	update(t, c, func(tx *Tx) error {
		var bad error
		must := func(err error) { bad = errors.Join(bad, err) }
		d, err := tx.Create(v, "dir", Inode{Mode: sIFDIR | 0o755}, 1)
		must(err)
		for k := range 10 {
			f, err := tx.Create(d.Ino, fmt.Sprint("f", k), Inode{Mode: sIFREG | 0o644}, 1)
			must(err)
			_, err = tx.Link(f.Ino, v, fmt.Sprint("link", k), 1)
			must(err)
			n := tx.NextID()
			must(tx.PutArchive(Archive{Num: n, Vault: v, ID: fmt.Sprint("id", k), Intent: fmt.Sprint("in", k), State: Live, Size: 10}))
			must(tx.PutVersion(Version{Ino: f.Ino, V: 1, State: Archived, Local: tx.NextID(), Size: 10, Extents: []Extent{{n, 0, 10}}}))
			must(tx.PutVersion(Version{Ino: f.Ino, V: 2, State: Staged, Local: tx.NextID(), Size: 20}))
			f, err = tx.Inode(f.Ino)
			must(err)
			f.Version, f.Size = 2, 20
			must(tx.PutInode(f))
			must(tx.SetXattr(f.Ino, "user.x", []byte("y"), false, false))
			must(tx.PutUpload(Upload{Intent: fmt.Sprint("in", k), Ino: f.Ino}))
			must(tx.PutRetrieval(Retrieval{ID: tx.NextID()}))
			must(tx.PutArchive(Archive{Num: tx.NextID(), Vault: v, ID: fmt.Sprint("tr", k), State: Trash, Deadline: int64(k)}))
		}
		must(tx.PutMeta("m", []byte("x")))
		_, err = tx.Unlink(v, "file000001", 2)
		must(err)
		return bad
	})
	return v
}

func TestCheckFindsNothing(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := furnish(t, c)
	for range 2 {
		if got := problems(t, c, false); got != nil {
			t.Fatalf("%q", got)
		}
		if err := c.Snapshot(); err != nil {
			t.Fatal(err)
		}
		update(t, c, func(tx *Tx) error { // changed and deleted since the snapshot
			if _, err := tx.Unlink(v, "file000002", 3); err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			return tx.PutMeta("m", []byte("z"))
		})
	}
	if got := problems(t, c, true); got != nil {
		t.Fatalf("%q", got)
	}
}

// What badger alone got wrong is taken from the journal.
func TestCheckMendsIndex(t *testing.T) {
	for name, snapshot := range map[string]bool{"records": false, "snapshot": true} {
		t.Run(name, func(t *testing.T) {
			c := mustOpen(t, small(t.TempDir()))
			v := furnish(t, c)
			if snapshot {
				if err := c.Snapshot(); err != nil {
					t.Fatal(err)
				}
				update(t, c, func(tx *Tx) error { return tx.PutMeta("n", []byte("y")) })
			}
			txn := c.db.NewTransactionAt(c.views.published(), true)
			name := keyName(tName, v, "file000003")
			item, err := txn.Get(name)
			if err != nil {
				t.Fatal(err)
			}
			good, _ := item.ValueCopy(nil)
			bad := bytes.Clone(good)
			bad[1] ^= 1
			for _, err := range []error{
				txn.Set(name, bad),
				txn.Delete(keyName(tName, v, "file000004")),
				txn.Set(keyName(tName, v, "never"), good),
				txn.CommitAt(c.views.published(), nil),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			got := strings.Join(problems(t, c, false), "\n")
			for _, want := range []string{"file000003\" differs", "file000004\" is missing", "never\" should not be there"} {
				if !strings.Contains(got, want) {
					t.Errorf("not reported: %s in\n%s", want, got)
				}
			}
			if got := problems(t, c, true); len(got) == 0 {
				t.Error("nothing reported while mending")
			}
			if got := problems(t, c, false); got != nil {
				t.Errorf("after mending: %q", got)
			}
			view(t, c, func(tx *Tx) error {
				if _, err := tx.Lookup(v, "never"); !errors.Is(err, ErrNotExist) {
					t.Errorf("Lookup: %v", err)
				}
				_, err := tx.Lookup(v, "file000004")
				return err
			})
		})
	}
}

// What is wrong in the records themselves is mended where nothing is lost by it.
func TestCheckMendsTree(t *testing.T) {
	entry := func(tx *Tx, v uint64, name string) Dirent {
		d, err := tx.Lookup(v, name)
		if err != nil {
			panic(err)
		}
		return d
	}
	type kase struct {
		name   string
		spoil  func(tx *Tx, v uint64) error
		says   string
		mended bool
		then   func(tx *Tx, v uint64) error // what must hold afterwards
	}
	for _, k := range []kase{
		{"listing lost", func(tx *Tx, v uint64) error {
			return tx.del(key2(tEntry, v, entry(tx, v, "file000005").Cookie))
		}, "can be looked up but is not listed", true, nil},
		{"name lost", func(tx *Tx, v uint64) error {
			return tx.del(keyName(tName, v, "file000005"))
		}, "is listed but cannot be looked up", true, func(tx *Tx, v uint64) error {
			_, err := tx.Lookup(v, "file000005")
			return err
		}},
		{"parent index lost", func(tx *Tx, v uint64) error {
			d := entry(tx, v, "file000005")
			return tx.del(key3(tParent, d.Ino, v, d.Cookie))
		}, "its inode does not know of it", true, nil},
		{"parent index stray", func(tx *Tx, v uint64) error {
			return tx.put(key3(tParent, entry(tx, v, "file000005").Ino, v, 1<<40), nil)
		}, "where it is not", true, nil},
		{"link count", func(tx *Tx, v uint64) error {
			i, err := tx.Inode(entry(tx, v, "link3").Ino)
			i.Nlink = 7
			return errors.Join(err, tx.PutInode(i))
		}, "has 2 names but says 7", true, func(tx *Tx, v uint64) error {
			i, err := tx.Inode(entry(tx, v, "link3").Ino)
			if i.Nlink != 2 {
				return fmt.Errorf("nlink %d", i.Nlink)
			}
			return err
		}},
		{"directory's counts", func(tx *Tx, v uint64) error {
			i, err := tx.Inode(v)
			i.Entries, i.Nlink = 3, 9
			return errors.Join(err, tx.PutInode(i))
		}, "but says 3, 7 and 1", true, nil},
		{"no name", func(tx *Tx, v uint64) error {
			d := entry(tx, v, "file000005")
			i, err := tx.Inode(v)
			i.Entries--
			return errors.Join(err, tx.PutInode(i), tx.deleteDirent(&d))
		}, "has no name", true, func(tx *Tx, v uint64) error {
			list, err := tx.ReadDir(entry(tx, v, lostFound).Ino, 0, 10)
			if len(list) != 1 {
				return fmt.Errorf("%v, %v in lost+found", list, err)
			}
			return err
		}},
		{"orphan with a name", func(tx *Tx, v uint64) error {
			return tx.PutOrphan(entry(tx, v, "file000005").Ino)
		}, "is to be reclaimed but has 1 names", true, func(tx *Tx, v uint64) error {
			o, err := tx.Orphans()
			if len(o) != 1 {
				return fmt.Errorf("%d orphans", len(o))
			}
			return err
		}},
		{"name of nothing", func(tx *Tx, v uint64) error {
			return tx.DeleteInode(entry(tx, v, "file000005").Ino)
		}, "which does not exist", true, func(tx *Tx, v uint64) error {
			if _, err := tx.Lookup(v, "file000005"); !errors.Is(err, ErrNotExist) {
				return fmt.Errorf("Lookup: %v", err)
			}
			return nil
		}},
		{"content without inode", func(tx *Tx, v uint64) error {
			return tx.del(key1(tInode, entry(tx, v, "link3").Ino))
		}, "which does not exist", true, func(tx *Tx, v uint64) error {
			i, err := tx.Inode(entry(tx, v, "link3").Ino)
			if i.Version != 2 || i.Size != 20 || i.Nlink != 2 {
				return fmt.Errorf("%+v", i)
			}
			return err
		}},
		{"directory without inode", func(tx *Tx, v uint64) error {
			return tx.del(key1(tInode, entry(tx, v, "dir").Ino))
		}, "which does not exist", true, func(tx *Tx, v uint64) error {
			i, err := tx.Inode(entry(tx, v, "dir").Ino)
			if i.Entries != 10 || i.Nlink != 2 {
				return fmt.Errorf("%+v", i)
			}
			return err
		}},
		{"staged index lost", func(tx *Tx, v uint64) error {
			return tx.del(key2(tStaged, entry(tx, v, "link3").Ino, 2))
		}, "is missing from index 's'", true, nil},
		{"staged index stray", func(tx *Tx, v uint64) error {
			return tx.put(key2(tStaged, entry(tx, v, "link3").Ino, 1), nil)
		}, "which stands for nothing", true, nil},
		{"local index stray", func(tx *Tx, v uint64) error {
			return tx.put(key3(tLocal, 7, 7, 7), nil)
		}, "which stands for nothing", true, nil},
		{"archive index lost", func(tx *Tx, v uint64) error {
			a, err := tx.ArchiveByID(v, "id3")
			return errors.Join(err, tx.del(intentKey(&a)))
		}, "is missing from index 'n'", true, nil},
		{"trash index stray", func(tx *Tx, v uint64) error {
			a, err := tx.ArchiveByID(v, "id3")
			a.State = Trash
			return errors.Join(err, tx.put(trashKey(&a), nil))
		}, "which stands for nothing", true, nil},
		{"vault name stray", func(tx *Tx, v uint64) error {
			key := keyString(tVaultName, "other")
			return tx.put(key, encodeNumber(key, v))
		}, "which stands for nothing", true, nil},
		{"counter", func(tx *Tx, v uint64) error {
			return tx.put(counterKey, encodeNumber(counterKey, 20))
		}, "the next number to give out is 20", true, nil},
		{"counts", func(tx *Tx, v uint64) error {
			tx.delta.Files += 5
			return tx.PutMeta("x", []byte("y"))
		}, "but the counts say", true, nil},
		{"archive lost", func(tx *Tx, v uint64) error {
			a, err := tx.ArchiveByID(v, "id3")
			return errors.Join(err, tx.DeleteArchive(a.Num))
		}, "of which there is no record", false, nil},
		{"content lost", func(tx *Tx, v uint64) error {
			return tx.DeleteVersion(entry(tx, v, "link3").Ino, 2)
		}, "has content 2, of which there is no record", false, nil},
		{"loop", func(tx *Tx, v uint64) error {
			d := entry(tx, v, "dir")
			e, err := tx.Create(d.Ino, "sub", Inode{Mode: sIFDIR}, 1)
			if err != nil {
				return err
			}
			if _, _, err := tx.Rename(v, "dir", v, "dir2", 0, 1); err != nil {
				return err
			}
			d = entry(tx, v, "dir2")
			i, err1 := tx.Inode(v)
			i.Entries--
			i.Nlink--
			err2 := tx.deleteDirent(&d)
			d.Parent, d.Cookie = e.Ino, tx.NextID()
			j, err3 := tx.Inode(d.Ino)
			j.Parent = e.Ino
			e.Nlink++
			e.Entries++
			return errors.Join(err1, err2, err3, tx.putDirent(&d), tx.PutInode(i), tx.PutInode(j), tx.PutInode(e))
		}, "is below itself", false, nil},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			c := mustOpen(t, small(t.TempDir()))
			v := furnish(t, c)
			update(t, c, func(tx *Tx) error { return k.spoil(tx, v) })
			got := problems(t, c, false)
			if !strings.Contains(strings.Join(got, "\n"), k.says) {
				t.Fatalf("%q, want %q", got, k.says)
			}
			problems(t, c, true)
			got = problems(t, c, true) // one thing mended may show another
			if k.mended {
				got = problems(t, c, false)
			}
			if k.mended != (got == nil) {
				t.Errorf("after mending: %q", got)
			}
			if k.then != nil {
				view(t, c, func(tx *Tx) error { return k.then(tx, v) })
			}
		})
	}
}

func TestCheckSnapshots(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	furnish(t, c)
	if err := c.Snapshot(); err != nil {
		t.Fatal(err)
	}
	change(t, nth(t, o.Dir, "journal/snap-*", -1), flip(.5))
	if got := problems(t, c, false); len(got) != 1 || !strings.Contains(got[0], "snapshot: ") {
		t.Fatalf("%q", got)
	}
	update(t, c, func(tx *Tx) error { return tx.PutMeta("n", []byte("y")) })
	problems(t, c, true)
	if got := c.j.Snapshots(); len(got) != 1 || got[0] != c.Stats().Seq {
		t.Errorf("snapshots %v after mending, want one of %d", got, c.Stats().Seq)
	}
	if got := problems(t, c, false); got != nil {
		t.Errorf("after mending: %q", got)
	}
}

func TestCheckEndsWithContext(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	populate(t, c, "v", 1000)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Check(ctx, false, func(string) {}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
