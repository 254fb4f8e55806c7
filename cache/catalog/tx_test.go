package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
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
