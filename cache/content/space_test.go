package content

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// bubble runs fn with virtual time and a store of its own.
func bubble(t *testing.T, o Options, fn func(t *testing.T, s *Store)) {
	t.Helper()
	o.StateDir = memDir(t)
	o.MinFree = -1
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(o)
		must(t, err)
		fn(t, s)
		s.Close()
	})
}

func TestThrottledWriters(t *testing.T) {
	bubble(t, Options{StagingLimit: mib, StagingWait: time.Minute}, func(t *testing.T, s *Store) {
		var pressed atomic.Int32
		s.OnPressure(func() { pressed.Add(1) })
		full := staged(t, s, 1, make([]byte, mib))
		defer full.Close()
		synctest.Wait()
		if pressed.Load() != 1 {
			t.Errorf("pressure %d times at 100 %%", pressed.Load())
		}
		// What is charged already needs no room.
		start := time.Now()
		_, err := full.WriteAt(bg, make([]byte, mib), 0)
		must(t, err)
		if d := time.Since(start); d != 0 {
			t.Errorf("overwriting waited %v", d)
		}
		f, err := s.CreateStaging(2)
		must(t, err)
		defer f.Close()

		n, err := f.WriteAt(bg, make([]byte, 4096), 0)
		wantErr(t, err, ErrNoSpace)
		if d := time.Since(start); n != 0 || d != time.Minute {
			t.Errorf("%d bytes, waited %v", n, d)
		}
		if got := pressed.Load(); got < 30 {
			t.Errorf("pressure called %d times in a minute of waiting", got)
		}
		start = time.Now()
		_, err = f.WriteAt(bg, make([]byte, mib+1), 0)
		wantErr(t, err, ErrNoSpace)
		if d := time.Since(start); d != 0 {
			t.Errorf("an impossible write waited %v", d)
		}
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		_, err = f.WriteAt(ctx, make([]byte, 4096), 0)
		wantErr(t, err, context.DeadlineExceeded)
		if d := time.Since(start); d != time.Second {
			t.Errorf("waited %v", d)
		}
		if u := s.Usage(); u.Throttled != 0 || u.StagingBytes != mib {
			t.Errorf("%+v", u)
		}
	})
}

// First come, first served, also when a later one needs less.
func TestThrottleOrder(t *testing.T) {
	bubble(t, Options{StagingLimit: mib}, func(t *testing.T, s *Store) {
		full := staged(t, s, 100, make([]byte, mib))
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 8 {
			f, err := s.CreateStaging(uint64(i + 1))
			must(t, err)
			wg.Go(func() {
				defer f.Close()
				size := 4096 * (1 + (i+1)%2*63)
				if _, err := f.WriteAt(bg, make([]byte, size), 0); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				if err := f.Truncate(0); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // it stands in the queue
		}
		if got := s.Usage().Throttled; got != 8 {
			t.Errorf("%d throttled", got)
		}
		// Room for one of the big ones at a time, and for all the small.
		must(t, full.Truncate(mib-64*4096))
		wg.Wait()
		for i, v := range order {
			if i/2 != v/2 {
				t.Fatalf("served in order %v", order)
			}
		}
		must(t, full.Close())
	})
}

// Every way of making room wakes a writer at once.
func TestThrottleWakes(t *testing.T) {
	for name, free := range map[string]func(s *Store, f *File) error{
		"truncate": func(s *Store, f *File) error { return f.Truncate(0) },
		"remove": func(s *Store, f *File) error {
			if err := s.Remove(f.ID()); err != nil {
				return err
			}
			return f.Close()
		},
		"promote":    func(s *Store, f *File) error { return s.Promote(f.ID()) },
		"drop":       func(s *Store, f *File) error { return f.DropUploaded(0, mib/2) },
		"punch":      func(s *Store, f *File) error { return f.Allocate(bg, punchMode, 0, mib/2) },
		"quarantine": func(s *Store, f *File) error { _, err := s.Quarantine(f.ID()); f.Close(); return err },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Options{StagingLimit: mib, CacheLimit: mib}, func(t *testing.T, s *Store) {
				full := staged(t, s, 1, make([]byte, mib))
				f, err := s.CreateStaging(2)
				must(t, err)
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := f.WriteAt(bg, make([]byte, 4096), 0)
					done <- err
				}()
				synctest.Wait()
				must(t, free(s, full))
				must(t, <-done)
				if d := time.Since(start); d != 0 {
					t.Errorf("woken after %v", d)
				}
				f.Close()
				full.Close()
			})
		})
	}
}

// A small write does not overtake a big one that waits, though there would be room for it.
func TestNoOvertaking(t *testing.T) {
	bubble(t, Options{StagingLimit: mib}, func(t *testing.T, s *Store) {
		full := staged(t, s, 1, make([]byte, mib/2))
		f, err := s.CreateStaging(2)
		must(t, err)
		g, err := s.CreateStaging(3)
		must(t, err)
		var big, small atomic.Bool
		go func() {
			if _, err := f.WriteAt(bg, make([]byte, mib), 0); err != nil {
				t.Error(err)
			}
			big.Store(true)
		}()
		synctest.Wait()
		go func() {
			if _, err := g.WriteAt(bg, make([]byte, 4096), 0); err != nil {
				t.Error(err)
			}
			small.Store(true)
		}()
		synctest.Wait()
		if small.Load() || s.Usage().Throttled != 2 {
			t.Error("the small write overtook")
		}
		must(t, full.Truncate(0))
		synctest.Wait()
		if !big.Load() || small.Load() {
			t.Errorf("big %v, small %v", big.Load(), small.Load())
		}
		must(t, f.Truncate(0))
		synctest.Wait()
		if !small.Load() {
			t.Error("not woken")
		}
		f.Close()
		g.Close()
		full.Close()
	})
}

// While a file is open, its charge follows what is allocated, whatever is done to it.
func TestChargeOfOpenFile(t *testing.T) {
	s := openStore(t, Options{StateDir: memDir(t), StagingLimit: 8 * mib, StagingWait: -1})
	f, err := s.CreateStaging(1)
	must(t, err)
	defer f.Close()
	want := func(n int64) {
		t.Helper()
		if got := s.Usage().StagingBytes; got != n {
			t.Errorf("charged %d, want %d", got, n)
		}
	}
	write := func(off, n int64) {
		t.Helper()
		_, err := f.WriteAt(bg, make([]byte, n), off)
		must(t, err)
	}
	write(0, 4*mib)
	want(4 * mib)
	write(mib, mib)
	want(4 * mib)
	must(t, f.Truncate(mib))
	want(mib)
	write(0, 2*mib)
	want(2 * mib)
	must(t, f.Allocate(bg, punchMode, 0, mib))
	want(mib)
	write(0, 1)
	want(mib + 4096)
	write(100*mib-1, 2) // two blocks
	want(mib + 3*4096)
	must(t, f.Allocate(bg, unix.FALLOC_FL_KEEP_SIZE, 200*mib, mib))
	want(2*mib + 3*4096)
	must(t, f.Truncate(100*mib))
	want(mib + 2*4096)
	wantErr(t, f.Allocate(bg, 0, 0, 1<<50), ErrNoSpace)
	must(t, f.Allocate(bg, 0, 0, 7*mib))
	want(7*mib + 4096)
	// What comes in by a shared mapping or the descriptor is counted at the next Sync.
	must(t, f.Truncate(0))
	_, err = unix.Pwrite(f.Fd(), make([]byte, mib), 0)
	must(t, err)
	want(0)
	must(t, f.Sync())
	want(mib)
}

// A promoted file that does not fit the cache keeps writers waiting until something was evicted.
func TestPromoteBeyondCacheLimit(t *testing.T) {
	var s *Store
	var pinned atomic.Bool
	pinned.Store(true)
	evict := func(id uint64) error {
		if pinned.Load() {
			return errors.New("pinned")
		}
		return s.Remove(id)
	}
	bubble(t, Options{StagingLimit: 2 * mib, CacheLimit: mib, Evict: evict}, func(t *testing.T, s1 *Store) {
		s = s1
		must(t, staged(t, s, 1, make([]byte, mib)).Close())
		must(t, s.Promote(1))
		must(t, staged(t, s, 2, make([]byte, mib)).Close())
		must(t, s.Promote(2))
		f := staged(t, s, 3, make([]byte, mib))
		done := make(chan error, 1)
		go func() {
			_, err := f.WriteAt(bg, make([]byte, mib), mib)
			done <- err
		}()
		synctest.Wait()
		if u := s.Usage(); u.Throttled != 1 || u.CacheBytes+u.StagingBytes != 3*mib {
			t.Errorf("%+v", u)
		}
		pinned.Store(false)
		must(t, <-done) // the tick asks again
		if _, err := s.Stat(1); err == nil {
			t.Error("not evicted")
		}
		if _, err := s.Stat(2); err != nil {
			t.Error("evicted more than needed")
		}
		f.Close()
	})
}

// Demoted bytes stay with the cache: appending to a file bigger than the staging pool works.
func TestDemoteBorrowsFromCache(t *testing.T) {
	dir := t.TempDir()
	o := Options{StateDir: dir, StagingLimit: mib, CacheLimit: 8 * mib, StagingWait: -1}
	s := openStore(t, o)
	f, err := s.CreateContent(1, 4*mib)
	must(t, err)
	must(t, f.WriteVerified(random(4*mib, 1), 0))
	must(t, s.Demote(1))
	check := func(staged, cache int64) {
		t.Helper()
		if u := s.Usage(); u.StagingBytes != staged || u.CacheBytes != cache {
			t.Errorf("%+v", u)
		}
	}
	check(0, 4*mib)
	_, err = f.WriteAt(bg, make([]byte, mib/2), 4*mib)
	must(t, err)
	_, err = f.WriteAt(bg, make([]byte, 4*mib), 0)
	must(t, err)
	check(mib/2, 4*mib)
	_, err = f.WriteAt(bg, make([]byte, mib), 8*mib)
	wantErr(t, err, ErrNoSpace)
	must(t, f.Close())
	check(mib/2, 4*mib)
	must(t, s.Close())
	// After a restart nobody knows who admitted what; neither limit is exceeded.
	s = openStore(t, o)
	check(mib, 3*mib+mib/2)
	must(t, s.Promote(1))
	check(0, 4*mib+mib/2)
	must(t, s.Remove(1))
	check(0, 0)
}

func TestReserveContent(t *testing.T) {
	var s *Store
	refuse := map[uint64]bool{}
	evicted := []uint64{}
	evict := func(id uint64) error {
		if refuse[id] {
			return errors.New("open")
		}
		evicted = append(evicted, id)
		return s.Remove(id)
	}
	bubble(t, Options{CacheLimit: 4 * mib, Evict: evict}, func(t *testing.T, s1 *Store) {
		s = s1
		for id := uint64(1); id <= 4; id++ {
			release, err := s.ReserveContent(bg, mib)
			must(t, err)
			f, err := s.CreateContent(id, mib)
			must(t, err)
			must(t, f.WriteVerified(make([]byte, mib), 0))
			release()
			release()
			must(t, f.Close())
		}
		start := time.Now()
		// The least recently used one refuses: the next goes.
		refuse[1] = true
		release, err := s.ReserveContent(bg, mib)
		must(t, err)
		if fmt.Sprint(evicted) != "[2]" {
			t.Errorf("evicted %v", evicted)
		}
		// Everybody refuses, but room is promised to somebody: wait for him.
		refuse[3], refuse[4] = true, true
		done := make(chan error, 1)
		var second func()
		go func() {
			var err error
			second, err = s.ReserveContent(bg, mib)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		release()
		must(t, <-done)
		second()
		// Nobody holds anything, everybody refuses.
		_, err = s.ReserveContent(bg, 2*mib)
		wantErr(t, err, ErrNoSpace)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("took %v", d)
		}
		if u := s.Usage(); u.CacheBytes != 3*mib || u.Reserved != 0 {
			t.Errorf("%+v", u)
		}
		// Waiting ends with the context.
		release, err = s.ReserveContent(bg, mib)
		must(t, err)
		ctx, cancel := context.WithTimeout(bg, time.Hour)
		defer cancel()
		_, err = s.ReserveContent(ctx, mib)
		wantErr(t, err, context.DeadlineExceeded)
		release()
		// Without reservation the limit holds as well.
		f, err := s.CreateContent(9, 2*mib)
		must(t, err)
		must(t, f.WriteVerified(make([]byte, mib), 0))
		wantErr(t, f.WriteVerified(make([]byte, mib), mib), ErrNoSpace)
		must(t, f.Close())
	})
}

// What a release gives back is never needed by somebody else's reservation.
func TestReleaseOfOthersWrites(t *testing.T) {
	s := openStore(t, Options{CacheLimit: 4 * mib})
	relA, err := s.ReserveContent(bg, 2*mib)
	must(t, err)
	relB, err := s.ReserveContent(bg, 2*mib)
	must(t, err)
	f, err := s.CreateContent(1, 4*mib)
	must(t, err)
	must(t, f.WriteVerified(make([]byte, 2*mib), 0)) // A's or B's? B's, it turns out
	relB()
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := s.ReserveContent(ctx, mib); err == nil {
		t.Error("A's room was given away")
	}
	must(t, f.WriteVerified(make([]byte, mib), 2*mib))
	if u := s.Usage(); u.CacheBytes != 4*mib || u.Reserved != mib {
		t.Errorf("%+v", u)
	}
	must(t, f.WriteVerified(make([]byte, mib), 3*mib))
	relA()
	if u := s.Usage(); u.CacheBytes != 4*mib || u.Reserved != 0 {
		t.Errorf("%+v", u)
	}
	must(t, f.Close())
}

// Nor is more kept than may be needed.
func TestReleaseKeepsNoMore(t *testing.T) {
	s := openStore(t, Options{CacheLimit: 4 * mib})
	relA, err := s.ReserveContent(bg, 2*mib)
	must(t, err)
	relB, err := s.ReserveContent(bg, mib)
	must(t, err)
	f, err := s.CreateContent(1, 2*mib)
	must(t, err)
	must(t, f.WriteVerified(make([]byte, 2*mib), 0))
	relB() // at most one of the two was B's
	if u := s.Usage(); u.Reserved != mib {
		t.Errorf("%+v", u)
	}
	relA()
	must(t, f.Close())
}

// allocated sums what local files occupy.
func allocated(t testing.TB, dir string) (sum int64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || len(d.Name()) < 16 {
			return err
		}
		if suffix := d.Name()[16:]; suffix != "" && suffix != partSuffix {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	}))
	return sum
}

// Many writers, recalls and evictions: neither limit is exceeded at any instant, on disk or on paper.
func TestLimitsHold(t *testing.T) {
	const stagingLimit, cacheLimit = 6 * mib, 6 * mib
	dir := memDir(t)
	var s *Store
	s = openStore(t, Options{
		StateDir: dir, StagingLimit: stagingLimit, CacheLimit: cacheLimit, StagingWait: time.Minute,
		Evict: func(id uint64) error {
			if id%7 == 0 && rand.IntN(2) == 0 {
				return errors.New("busy")
			}
			return s.Remove(id)
		},
	})
	ids := atomic.Uint64{}
	stop := make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			u := s.Usage()
			if u.StagingBytes > stagingLimit || u.StagingBytes+u.CacheBytes > stagingLimit+cacheLimit {
				t.Errorf("over the limit: %+v", u)
				return
			}
			// Files that move while the walk runs may be counted twice, so each tree by itself: a
			// promoted file may take the cache over its limit at the expense of staging.
			if got := allocated(t, filepath.Join(dir, "staging")); got > stagingLimit {
				t.Errorf("staging occupies %d", got)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	for w := range 6 {
		work.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			buf := make([]byte, mib)
			for range rounds {
				id := ids.Add(1)
				if w%2 == 0 {
					f, err := s.CreateStaging(id)
					if err != nil {
						t.Error(err)
						return
					}
					for range rnd.IntN(4) {
						off := rnd.Int64N(4 * mib)
						if _, err := f.WriteAt(bg, buf[:rnd.IntN(mib/2)+1], off); err != nil {
							t.Error(err)
						}
					}
					if rnd.IntN(3) == 0 {
						if err := f.Truncate(rnd.Int64N(mib)); err != nil {
							t.Error(err)
						}
					}
					f.Close()
					if rnd.IntN(2) == 0 {
						err = s.Promote(id)
					} else {
						err = s.Remove(id)
					}
					if err != nil {
						t.Error(err)
					}
					continue
				}
				size := int64(rnd.IntN(2*mib) + 1)
				release, err := s.ReserveContent(bg, size)
				if errors.Is(err, ErrNoSpace) {
					continue // all that was left refused
				}
				if err != nil {
					t.Error(err)
					return
				}
				f, err := s.CreateContent(id, size)
				if err != nil {
					t.Error(err)
					return
				}
				for off := int64(0); off < size; off += mib {
					// Being fetched it may be evicted: the file stays usable while open.
					if err := f.WriteVerified(buf[:min(mib, size-off)], off); err != nil {
						t.Error(err)
					}
				}
				f.Close()
				release()
			}
		})
	}
	work.Wait()
	close(stop)
	watch.Wait()
	s.Shrink(cacheLimit)
	want := allocated(t, dir)
	u := s.Usage()
	if u.Reserved != 0 || u.Throttled != 0 {
		t.Errorf("%+v", u)
	}
	sameFootprint(t, dir, want, u.StagingBytes+u.CacheBytes)
}
