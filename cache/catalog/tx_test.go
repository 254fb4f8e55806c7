package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A View begun while an Update is running does not wait for it, and sees nothing of it.
func TestViewDoesNotWaitForUpdate(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := c.Update(func(tx *Tx) error {
			_, err := tx.Create(v, "slow", Inode{Mode: sIFREG}, 1)
			close(inside)
			<-leave
			return err
		})
		done <- err
	}()
	<-inside
	lookup := func() (err error) {
		view(t, c, func(tx *Tx) error { _, err = tx.Lookup(v, "slow"); return nil })
		return err
	}
	if err := lookup(); !errors.Is(err, ErrNotExist) {
		t.Errorf("before it is committed: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := lookup(); err != nil {
		t.Errorf("after it is answered: %v", err)
	}
}

// A View sees one moment, whatever is committed while it lasts.
func TestViewIsConsistent(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 10)
	view(t, c, func(tx *Tx) error {
		populate(t, c, "w", 500)
		update(t, c, func(tx *Tx) error {
			_, err := tx.Unlink(v, "file000003", 1)
			return err
		})
		if list, err := tx.ReadDir(v, 0, 100); err != nil || len(list) != 10 {
			t.Errorf("%d entries, %v; want the 10 of the beginning", len(list), err)
		}
		if _, err := tx.VaultByName("w"); !errors.Is(err, ErrNotExist) {
			t.Errorf("VaultByName: %v, want ErrNotExist", err)
		}
		return nil
	})
	if got := countFiles(t, c, "v"); got != 9 {
		t.Errorf("%d files, want 9", got)
	}
}

// Views hold in spite of everything that is written and thrown away below them.
func TestOldViewSurvivesCompaction(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error { return tx.PutMeta("m", []byte("old")) })
	view(t, c, func(tx *Tx) error {
		for k := range 150 { // several tables' worth, of one key
			update(t, c, func(tx *Tx) error {
				for i := range 3 {
					if err := tx.PutMeta(fmt.Sprint("m", i), bytes.Repeat([]byte{byte(k)}, 100<<10)); err != nil {
						return err
					}
				}
				return tx.PutMeta("m", fmt.Append(nil, k))
			})
		}
		if err := c.db.Flatten(1); err != nil {
			t.Fatal(err)
		}
		got, err := tx.Meta("m")
		if string(got) != "old" {
			t.Errorf("%q, want old", got)
		}
		return err
	})
}

func TestConcurrentUpdatesAreMerged(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	const workers, each = 16, 40
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for k := range each {
				name := fmt.Sprintf("%d-%d", w, k)
				seq, err := c.Update(func(tx *Tx) error {
					_, err := tx.Create(v, name, Inode{Mode: sIFREG}, 1)
					if k%4 == 3 {
						return errors.Join(err, errors.New("no"))
					}
					return err
				})
				if (err != nil) != (k%4 == 3) {
					t.Errorf("%s: %v", name, err)
				}
				if k%8 == 0 {
					if err := c.Barrier(context.Background(), seq); err != nil {
						t.Error(err)
					}
				}
				c.View(func(tx *Tx) error {
					if _, err := tx.Lookup(v, name); (err != nil) != (k%4 == 3) {
						t.Errorf("%s after its Update: %v", name, err)
					}
					return nil
				})
			}
		})
	}
	wg.Wait()
	if got, want := c.Stats().Files, int64(workers*each*3/4); got != want {
		t.Errorf("%d files, want %d", got, want)
	}
	if got := problems(t, c, false); got != nil {
		t.Errorf("%q", got)
	}
}

// An Update that ends its goroutine (as testing's FailNow does) leaves nothing
// behind, and those whom it was merged with are told.
func TestUpdateGoexit(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	leave := func(tx *Tx) error {
		if err := tx.PutMeta("m", []byte("x")); err != nil {
			return err
		}
		runtime.Goexit()
		return nil
	}
	var alone sync.WaitGroup
	alone.Go(func() {
		c.Update(leave)
		t.Error("Update returned")
	})
	alone.Wait()
	check := func() {
		t.Helper()
		update(t, c, func(tx *Tx) error {
			if _, err := tx.Meta("m"); !errors.Is(err, ErrNotExist) {
				t.Errorf("Meta: %v, want ErrNotExist", err)
			}
			return tx.PutMeta("n", []byte("x"))
		})
	}
	check()
	// While this one runs the others queue, and are merged.
	inside, outside := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		c.Update(func(tx *Tx) error { close(inside); <-outside; return nil })
	})
	<-inside
	var failed atomic.Int64
	for k := range 10 {
		wg.Go(func() {
			fn := func(tx *Tx) error { return tx.PutMeta("n", []byte("y")) }
			if k == 5 {
				fn = leave
			}
			if _, err := c.Update(fn); err != nil {
				failed.Add(1)
			}
		})
	}
	for waiting := 0; waiting < 10; runtime.Gosched() {
		c.turns.mu.Lock()
		waiting = len(c.turns.waiting)
		c.turns.mu.Unlock()
	}
	close(outside)
	wg.Wait()
	if failed.Load() == 0 {
		t.Error("nobody was told")
	}
	check()
}

func TestClosed(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	mustClose(t, c)
	mustClose(t, c)
	if _, err := c.Update(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Update: %v", err)
	}
	if err := c.View(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("View: %v", err)
	}
	if err := c.Snapshot(); !errors.Is(err, ErrClosed) {
		t.Errorf("Snapshot: %v", err)
	}
	c.Stats()
}

func TestUpdateWithoutChange(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	before := c.Stats().Seq
	seq := update(t, c, func(tx *Tx) error { _, err := tx.Inode(RootIno); return err })
	if seq != before || c.Stats().Seq != before {
		t.Errorf("seq %d, %d; want %d", seq, c.Stats().Seq, before)
	}
}

func TestChangeInView(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	view(t, c, func(tx *Tx) error {
		if err := tx.PutMeta("m", []byte("x")); err == nil {
			t.Error("PutMeta in View succeeds")
		}
		return nil
	})
}

// An Update larger than a badger transaction (13 107 keys, 1.2 MB) is still one change.
func TestLargeUpdate(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	var v uint64
	big := func(fail error) func(tx *Tx) error {
		return func(tx *Tx) error {
			i, err := tx.Create(RootIno, "v", Inode{Mode: sIFDIR | 0o755}, 1)
			if err != nil {
				return err
			}
			v = i.Ino
			for k := range 6000 {
				if _, err := tx.Create(v, fmt.Sprintf("file%06d", k), Inode{Mode: sIFREG}, 1); err != nil {
					return err
				}
			}
			return errors.Join(fail, tx.PutVault(Vault{Ino: v, Name: "v"}))
		}
	}
	boom := errors.New("boom")
	if _, err := c.Update(big(boom)); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if got := c.Stats().Inodes; got != 1 {
		t.Errorf("%d inodes after an Update that failed", got)
	}
	update(t, c, big(nil))
	check := func() {
		t.Helper()
		if got := countFiles(t, c, "v"); got != 6000 {
			t.Fatalf("%d files", got)
		}
	}
	check()
	crash(t, c)
	c = mustOpen(t, o)
	check()
}

// Iterations in Update see its own changes in their place, in every combination with what is stored.
func TestIterationSeesOwnChanges(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	r := rand.New(rand.NewPCG(3, 4))
	want := map[string]string{}
	for range 30 {
		update(t, c, func(tx *Tx) error {
			for range 20 {
				key := fmt.Sprintf("user.%03d", r.IntN(80))
				switch _, has := want[key]; {
				case has && r.IntN(2) == 0:
					delete(want, key)
					if err := tx.RemoveXattr(RootIno, key); err != nil {
						return err
					}
				default:
					want[key] = fmt.Sprint(r.IntN(1000))
					if err := tx.SetXattr(RootIno, key, []byte(want[key]), false, false); err != nil {
						return err
					}
				}
				var keys []string
				for k := range want {
					keys = append(keys, k)
				}
				slices.Sort(keys)
				if got, err := tx.Xattrs(RootIno); err != nil || !slices.Equal(got, keys) {
					return fmt.Errorf("%v, %v; want %v", got, err, keys)
				}
			}
			return nil
		})
	}
}

// What an iteration goes over may be removed and added meanwhile.
func TestChangeWhileIterating(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	const n = 3*chunk + 7
	update(t, c, func(tx *Tx) error {
		for k := range uint64(n) {
			if err := tx.PutVersion(Version{Ino: 100 + k, V: 1, State: Staged, Local: k + 1, Size: 10}); err != nil {
				return err
			}
		}
		return nil
	})
	if s := c.Stats(); s.StagedFiles != n || s.StagedBytes != 10*n {
		t.Errorf("%+v", s)
	}
	update(t, c, func(tx *Tx) error {
		seen := 0
		for v, err := range tx.StagedVersions() {
			if err != nil {
				return err
			}
			seen++
			switch v.Ino % 3 {
			case 0:
				err = tx.DeleteVersion(v.Ino, v.V)
			case 1:
				v.State = Archived
				err = tx.PutVersion(v)
			}
			if err != nil {
				return err
			}
		}
		if seen != n {
			t.Errorf("%d seen, want %d", seen, n)
		}
		return nil
	})
	view(t, c, func(tx *Tx) error {
		left, err := collect(tx.StagedVersions())
		if len(left) != n/3 || c.Stats().StagedFiles != int64(len(left)) {
			t.Errorf("%d staged, stats %+v", len(left), c.Stats())
		}
		local, err2 := collect(tx.LocalVersions())
		if len(local) < 2*n/3 || !slices.IsSortedFunc(local, func(a, b Version) int { return int(a.Local) - int(b.Local) }) {
			t.Errorf("%d local", len(local))
		}
		for range tx.StagedVersions() {
			break // giving up early is fine
		}
		return errors.Join(err, err2)
	})
}

func TestVersionsAndLocal(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		a := Version{Ino: 50, V: 1, State: Archived, Local: 9, Complete: true, Size: 4}
		if err := tx.PutVersion(a); err != nil {
			return err
		}
		// A content file that is changed becomes the next version's staging file; order must not matter.
		b := Version{Ino: 50, V: 2, State: Staged, Local: 9, Size: 5}
		a.Local = 0
		return errors.Join(tx.PutVersion(b), tx.PutVersion(a))
	})
	view(t, c, func(tx *Tx) error {
		v, err := tx.VersionByLocal(9)
		if v.V != 2 {
			t.Errorf("VersionByLocal: %+v", v)
		}
		all, err2 := tx.Versions(50)
		if len(all) != 2 || all[0].V != 1 || all[1].V != 2 {
			t.Errorf("Versions: %+v", all)
		}
		if _, err := tx.VersionByLocal(8); !errors.Is(err, ErrNotExist) {
			t.Errorf("VersionByLocal(8): %v", err)
		}
		return errors.Join(err, err2)
	})
}

func TestArchives(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		for tx.NextID() < 200 { // the numbers used here
		}
		for k := range uint64(20) {
			a := Archive{Num: 100 + k, Vault: 1 + k%2, ID: fmt.Sprintf("id%d", k), Intent: fmt.Sprintf("in%d", k/2), State: Live}
			if k >= 10 {
				a.State, a.Deadline = Trash, int64(k)-15
			}
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		return nil
	})
	nums := func(all []Archive, err error) (n []uint64) {
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			n = append(n, a.Num)
		}
		return n
	}
	view(t, c, func(tx *Tx) error {
		if a, err := tx.ArchiveByID(1, "id2"); err != nil || a.Num != 102 {
			t.Errorf("ArchiveByID: %+v, %v", a, err)
		}
		for _, id := range []string{"id", "id22", "id3", ""} { // id3 is the other vault's
			if a, err := tx.ArchiveByID(1, id); !errors.Is(err, ErrNotExist) {
				t.Errorf("ArchiveByID(%q): %+v, %v", id, a, err)
			}
		}
		if a, err := tx.ArchiveByIntent("in1"); err != nil || a.Num != 102 {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if a, err := tx.ArchiveByIntent("in5"); err != nil || a.Num != 110 {
			t.Errorf("ArchiveByIntent in the trash: %+v, %v", a, err)
		}
		if a, err := tx.ArchiveByIntent("in"); !errors.Is(err, ErrNotExist) {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if got := nums(collect(tx.TrashUntil(-1))); !slices.Equal(got, []uint64{110, 111, 112, 113, 114}) {
			t.Errorf("TrashUntil(-1): %v", got)
		}
		if got := nums(collect(tx.TrashUntil(100))); len(got) != 10 {
			t.Errorf("TrashUntil(100): %v", got)
		}
		if got := nums(collect(tx.Archives(2))); len(got) != 10 || got[0]%2 != 1 {
			t.Errorf("Archives(2): %v", got)
		}
		if got := nums(collect(tx.Archives(0))); len(got) != 20 {
			t.Errorf("Archives(0): %v", got)
		}
		return nil
	})
	update(t, c, func(tx *Tx) error { // a live one goes before an older one that is not
		a, err := tx.Archive(102)
		a.State = Deleted
		return errors.Join(err, tx.PutArchive(a), tx.DeleteArchive(110), tx.DeleteArchive(110))
	})
	view(t, c, func(tx *Tx) error {
		if a, err := tx.ArchiveByIntent("in1"); err != nil || a.Num != 103 {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if got := nums(collect(tx.TrashUntil(-5))); len(got) != 0 {
			t.Errorf("TrashUntil: %v", got)
		}
		return nil
	})
	if got := problems(t, c, false); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestUploadsRetrievalsVaultsMeta(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		u, r := sampleUpload, sampleRetrieval
		var errs []error
		for k := range 5 {
			u.Intent, r.ID = fmt.Sprint("intent", k), uint64(k+1)
			errs = append(errs, tx.PutUpload(u), tx.PutRetrieval(r),
				tx.PutVault(Vault{Ino: uint64(20 + k), Name: fmt.Sprint("vault", k)}))
		}
		errs = append(errs, tx.DeleteUpload("intent1"), tx.DeleteRetrieval(2), tx.DeleteVault(21),
			tx.PutMeta("m", []byte("x")), tx.PutMeta("n", []byte{}))
		return errors.Join(errs...)
	})
	view(t, c, func(tx *Tx) error {
		us, err1 := collect(tx.Uploads())
		rs, err2 := collect(tx.Retrievals())
		vs, err3 := tx.Vaults()
		if len(us) != 4 || len(rs) != 4 || len(vs) != 4 {
			t.Errorf("%d uploads, %d retrievals, %d vaults; want 4", len(us), len(rs), len(vs))
		}
		for name, err := range map[string]error{
			"Upload":      second(tx.Upload("intent1")),
			"Retrieval":   second(tx.Retrieval(2)),
			"Vault":       second(tx.Vault(21)),
			"VaultByName": second(tx.VaultByName("vault1")),
			"Meta":        second(tx.Meta("other")),
		} {
			if !errors.Is(err, ErrNotExist) {
				t.Errorf("%s of what is not there: %v", name, err)
			}
		}
		if v, err := tx.VaultByName("vault3"); err != nil || v.Ino != 23 {
			t.Errorf("VaultByName: %+v, %v", v, err)
		}
		if b, err := tx.Meta("n"); err != nil || b == nil || len(b) != 0 {
			t.Errorf("Meta: %v, %v", b, err)
		}
		return errors.Join(err1, err2, err3)
	})
	// A vault deleted at the service and made again is found; forgetting the old one does not hide it.
	update(t, c, func(tx *Tx) error {
		return errors.Join(tx.PutVault(Vault{Ino: 40, Name: "vault0"}), tx.DeleteVault(20), tx.PutMeta("m", nil))
	})
	view(t, c, func(tx *Tx) error {
		if v, err := tx.VaultByName("vault0"); err != nil || v.Ino != 40 {
			t.Errorf("VaultByName: %+v, %v", v, err)
		}
		if _, err := tx.Meta("m"); !errors.Is(err, ErrNotExist) {
			t.Errorf("Meta: %v", err)
		}
		return nil
	})
}

func second[T any](_ T, err error) error { return err }

func TestTooLarge(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	for name, fn := range map[string]func(tx *Tx) error{
		"meta":  func(tx *Tx) error { return tx.PutMeta("m", make([]byte, maxValue)) },
		"key":   func(tx *Tx) error { return tx.PutMeta(strings.Repeat("m", 5000), []byte("x")) },
		"xattr": func(tx *Tx) error { return tx.SetXattr(1, strings.Repeat("m", 256), nil, false, false) },
	} {
		if _, err := c.Update(fn); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestReadDirPlus: what it tells is what the getters tell, in whatever order
// names, inodes and versions were made.
func TestReadDirPlus(t *testing.T) {
	c, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var v uint64
	_, err = c.Update(func(tx *Tx) error {
		i, err := tx.Create(RootIno, "vault", Inode{Mode: 0o040755}, 1)
		v = i.Ino
		if err != nil {
			return err
		}
		for n := range 300 {
			mode := uint32(0o100644)
			if n%7 == 0 {
				mode = 0o040755
			}
			i, err := tx.Create(v, fmt.Sprintf("n%d", n), Inode{Mode: mode}, int64(n))
			if err != nil {
				return err
			}
			for range n % 20 {
				tx.NextID() // gaps, some wider than what is passed by
			}
			if mode == 0o100644 && n%3 != 0 {
				i.Version = uint64(n%4 + 1)
				if err := tx.PutVersion(Version{Ino: i.Ino, V: i.Version, State: Archived, Size: int64(n)}); err != nil {
					return err
				}
				if err := tx.PutInode(i); err != nil {
					return err
				}
			}
			if n%11 == 5 && mode == 0o100644 {
				if _, err := tx.Link(i.Ino, v, fmt.Sprintf("link%d", n), 1); err != nil {
					return err
				}
			}
			if n%50 == 9 {
				if _, _, err := tx.Rename(v, "n2", v, "n2", 0, 1); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = c.View(func(tx *Tx) error {
		var after uint64
		seen := 0
		for {
			list, err := tx.ReadDirPlus(v, after, 64)
			if err != nil || len(list) == 0 {
				if seen < 300 {
					t.Errorf("%d entries", seen)
				}
				return err
			}
			for _, l := range list {
				seen++
				after = l.Cookie
				d, err := tx.Lookup(v, l.Name)
				if err != nil || d != l.Dirent {
					t.Errorf("%s: %+v, looked up %+v (%v)", l.Name, l.Dirent, d, err)
				}
				i, err := tx.Inode(l.Ino)
				if err != nil || !reflect.DeepEqual(i, l.Inode) {
					t.Errorf("%s: inode %+v, not %+v (%v)", l.Name, l.Inode, i, err)
				}
				var ver Version
				if i.Version != 0 {
					if ver, err = tx.Version(i.Ino, i.Version); err != nil {
						t.Error(err)
					}
				}
				if !reflect.DeepEqual(ver, l.Version) {
					t.Errorf("%s: version %+v, not %+v", l.Name, l.Version, ver)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
