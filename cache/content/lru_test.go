package content

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The order of use survives a restart.
func TestOrderSurvives(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	for id := uint64(1); id <= 4; id++ {
		must(t, staged(t, s, id, random(4096, id)).Close())
		must(t, s.Promote(id))
		// As if used that many hours ago.
		old := time.Now().Add(-time.Duration(id) * time.Hour)
		must(t, os.Chtimes(s.path(inState, id, ""), old, time.Time{}))
	}
	must(t, s.Close())
	s = openStore(t, Options{StateDir: dir})
	s.Touch(3)
	s.Touch(99)
	must(t, s.Close())
	var order []uint64
	s = openStore(t, Options{StateDir: dir, CacheLimit: 16 << 10, Evict: func(id uint64) error {
		order = append(order, id)
		return s.Remove(id)
	}})
	mtime := time.Unix(0, s.nodes[3].mtime)
	if time.Since(mtime) > time.Minute {
		t.Errorf("Touch changed mtime to %v", mtime)
	}
	s.Shrink(12 << 10)
	if fmt.Sprint(order) != "[4 2 1]" {
		t.Errorf("evicted in order %v", order)
	}
	s.Shrink(0)
	s.Shrink(1 << 40)
	if len(s.List()) != 0 {
		t.Error(s.List())
	}
}

// A file whose bytes just came is not the next to go, however long ago it was begun.
func TestFetchedIsUsed(t *testing.T) {
	var s *Store
	s = openStore(t, Options{CacheLimit: 2 * mib, Evict: func(id uint64) error { return s.Remove(id) }})
	f, err := s.CreateContent(1, mib)
	must(t, err)
	g, err := s.CreateContent(2, mib)
	must(t, err)
	must(t, g.WriteVerified(random(mib, 2), 0))
	must(t, g.Close())
	must(t, f.WriteVerified(random(mib, 1), 0))
	must(t, f.Close())
	s.Shrink(mib)
	if _, err := s.Stat(1); err != nil {
		t.Error("the file fetched last went first")
	}
}

// Evict may keep stubs; a file that has nothing left to give does not keep the evictor busy.
func TestEvictToStubs(t *testing.T) {
	var s *Store
	var calls atomic.Int32
	s = openStore(t, Options{CacheLimit: 4 * mib, Evict: func(id uint64) error {
		calls.Add(1)
		return withFile(s, id, func(f *File) error { return f.Drop(64<<10, 1<<40) })
	}})
	for id := uint64(1); id <= 20; id++ {
		release, err := s.ReserveContent(bg, mib)
		must(t, err)
		f, err := s.CreateContent(id, mib)
		must(t, err)
		must(t, f.WriteVerified(random(mib, id), 0))
		must(t, f.Close())
		release()
	}
	if n := calls.Load(); n > 40 {
		t.Errorf("Evict called %d times", n)
	}
	must(t, withFile(s, 1, func(f *File) error {
		p := make([]byte, 64<<10)
		_, err := f.ReadVerified(p, 0)
		same(t, p, random(mib, 1)[:64<<10])
		return err
	}))
	// The stubs stay, so the whole cache can never be had.
	_, err := s.ReserveContent(bg, 4*mib)
	wantErr(t, err, ErrNoSpace)
}

// Several ranges at once: while one fdatasync is under way others come, and the next serves all of them.
func TestWriteVerifiedConcurrently(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	var syncs atomic.Int32
	begun, end := make(chan struct{}), make(chan struct{})
	s.hook = func(step string) error {
		if step == "verified.datasync" && syncs.Add(1) == 1 {
			close(begun)
			<-end
		}
		return nil
	}
	data := random(32*mib, 1)
	f, err := s.CreateContent(1, int64(len(data)))
	must(t, err)
	var wg sync.WaitGroup
	write := func(i int) {
		wg.Go(func() {
			off := int64(i) * mib
			if err := f.WriteVerified(data[off:off+mib], off); err != nil {
				t.Error(err)
			}
			if !f.Verified(off, mib) {
				t.Error("returned, but not verified")
			}
		})
	}
	write(0)
	<-begun
	for i := range 31 {
		write(i + 1)
	}
	eventually(t, "the others have written", func() bool {
		f.o.mu.Lock()
		defer f.o.mu.Unlock()
		return f.o.batch != nil && f.o.batch.set.covers(mib, 31*mib)
	})
	close(end)
	wg.Wait()
	if n := syncs.Load(); n != 2 {
		t.Errorf("%d fdatasyncs for 32 ranges, 31 of them at once", n)
	}
	same(t, contents(t, f), data)
	must(t, f.Close())
	if e, _ := s.Stat(1); !e.Complete {
		t.Errorf("%+v", e)
	}
}

// Readers by ReadVerified never see what a Drop leaves, and a range written before a Drop is not recorded after it.
func TestDropRaces(t *testing.T) {
	s := openStore(t, Options{})
	data := bytes.Repeat([]byte{0xaa}, 4*mib)
	f, err := s.CreateContent(1, int64(len(data)))
	must(t, err)
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	var hits atomic.Int64
	for range 2 {
		readers.Go(func() {
			p := make([]byte, 64<<10)
			for off := int64(0); ; off = (off + 64<<10) % (4 * mib) {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := f.ReadVerified(p, off); err == nil {
					hits.Add(1)
					if !bytes.Equal(p, data[:len(p)]) {
						t.Error("zeros served as verified")
						return
					}
				} else if !errors.Is(err, ErrNotVerified) {
					t.Error(err)
					return
				}
			}
		})
	}
	for w := range 4 {
		writers.Go(func() {
			off := int64(w) * mib
			for range 20 {
				if err := f.WriteVerified(data[off:off+mib], off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Go(func() {
		for i := range 40 {
			if err := f.Drop(int64(i%4)*mib, mib); err != nil {
				t.Error(err)
			}
		}
	})
	writers.Wait()
	close(stop)
	readers.Wait()
	if hits.Load() == 0 {
		t.Log("no read fell on verified bytes")
	}
	must(t, f.Close())
}

// Damaged records: content goes, staging stays and every hole counts as dropped.
func TestDamagedRecords(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	for id := uint64(1); id <= 4; id++ {
		f, err := s.CreateContent(id, 2*mib)
		must(t, err)
		must(t, f.WriteVerified(random(mib, id), 0))
		must(t, f.Close())
	}
	f := staged(t, s, 5, random(4*mib, 5))
	must(t, f.DropUploaded(mib, mib))
	must(t, f.Close())
	flip := func(path string) {
		b, err := os.ReadFile(path)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
	}
	flip(s.path(inState, 1, mapSuffix))
	must(t, os.Remove(s.path(inState, 2, mapSuffix)))
	must(t, os.Truncate(s.path(inState, 3, partSuffix), mib))
	flip(s.path(inStaging, 5, punchedSuffix))
	must(t, os.WriteFile(s.dirs[inStaging]+"/05/notes.txt", nil, 0o600))
	must(t, os.WriteFile(s.path(inState, 4, mapSuffix)+tmpSuffix, nil, 0o600))
	must(t, s.Close())

	s = openStore(t, Options{StateDir: dir})
	if l := s.List(); len(l) != 2 {
		t.Errorf("%+v", l)
	}
	must(t, withFile(s, 4, func(f *File) error {
		if !f.Verified(0, mib) {
			t.Error("an intact part was dropped")
		}
		return nil
	}))
	must(t, withFile(s, 5, func(f *File) error {
		if f.Verified(mib, mib) || !f.Verified(0, mib) || !f.Verified(2*mib, 2*mib) {
			t.Error(f.VerifiedRanges())
		}
		_, err := f.ReadAt(make([]byte, mib), mib)
		wantErr(t, err, ErrPunched)
		return nil
	}))
	if _, err := os.Stat(s.dirs[inStaging] + "/05/notes.txt"); err != nil {
		t.Error("a foreign file was removed")
	}
}

// An fsync that failed is not forgotten: what the kernel could not write, a later fsync would call clean.
func TestSyncErrorStays(t *testing.T) {
	s := openStore(t, Options{})
	f := staged(t, s, 1, make([]byte, 4096))
	o := f.o
	wantErr(t, o.sync("x", func(int) error { return unix.EIO }), unix.EIO)
	wantErr(t, f.Sync(), unix.EIO)
	must(t, f.Close())
	f, err := s.Open(1)
	must(t, err)
	wantErr(t, f.Sync(), unix.EIO)
	wantErr(t, s.Promote(1), unix.EIO)
	must(t, f.Truncate(0))
	must(t, f.Sync())
	must(t, f.Close())
}

func TestQuarantine(t *testing.T) {
	s := openStore(t, Options{})
	data := random(5000, 1)
	for i, want := range []string{"staging-0000000000000007", "staging-0000000000000007.1"} {
		f := staged(t, s, 7, data)
		path, err := s.Quarantine(7)
		must(t, err)
		if got := s.stateDir + "/lost+found/" + want; path != got {
			t.Errorf("%d: %s, want %s", i, path, got)
		}
		same(t, contents(t, f), data)
		must(t, f.Close())
		b, err := os.ReadFile(path)
		must(t, err)
		same(t, b, data)
	}
	if u := s.Usage(); u.StagingBytes != 0 {
		t.Errorf("%+v", u)
	}
	_, err := s.Quarantine(7)
	wantErr(t, err, ErrNotExist)
	must(t, staged(t, s, 8, data).Close())
	must(t, s.Promote(8))
	_, err = s.Quarantine(8)
	wantErr(t, err, ErrWrongKind)
}

// Open, Remove, Promote, Demote, Close of the same numbers from many goroutines.
func TestConcurrentMoves(t *testing.T) {
	s := openStore(t, Options{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 60 {
				id := uint64(i%5 + 1)
				var err error
				switch (w + i) % 6 {
				case 0:
					var f *File
					if f, err = s.CreateStaging(id); err == nil {
						_, err = f.WriteAt(bg, make([]byte, 8192), 0)
						f.Close()
					}
				case 1:
					err = s.Promote(id)
				case 2:
					err = s.Demote(id)
				case 3:
					err = withFile(s, id, func(f *File) error {
						f.Kind()
						f.Verified(0, 1)
						f.VerifiedRanges()
						_, err := f.WriteAt(bg, make([]byte, 4096), 8192)
						return err
					})
				case 4:
					if i%3 == 0 {
						err = s.Remove(id)
					}
				case 5:
					s.List()
					s.Touch(id)
					_, err = s.Stat(id)
				}
				if err != nil && !errors.Is(err, ErrNotExist) && !errors.Is(err, os.ErrExist) && !errors.Is(err, ErrWrongKind) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range s.List() {
		must(t, s.Remove(e.ID))
	}
	if u := s.Usage(); u.StagingBytes != 0 || u.CacheBytes != 0 {
		t.Errorf("%+v", u)
	}
}
