package jobs

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
)

// used returns the bytes of the cache.
func (r *recallRig) used() int64 { return r.e.store.Usage().CacheBytes }

func TestEvictRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ctx := context.Background()
		staged := r.write("staged", []byte("staged"))
		evict := func(ino uint64) string {
			res, err := r.e.Evict(ctx, []uint64{ino}, false)
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Skipped) == 0 {
				return fmt.Sprint(res.Files)
			}
			return res.Skipped[0].Reason
		}
		if got := evict(staged); got != errNotArchived.Error() {
			t.Errorf("staged: %s", got)
		}
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		h, err := r.e.Open(ctx, Caller{}, staged, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := evict(staged); got != errInUseNow.Error() {
			t.Errorf("open: %s", got)
		}
		h.Release()
		h, err = r.e.Open(ctx, Caller{}, staged, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(300*time.Millisecond, h.Release)
		if got := evict(staged); got != "1" {
			t.Errorf("just closed: %s", got)
		}
		r.want(staged, []byte("staged"), 0, 6)
		if err := r.e.Setxattr(ctx, Caller{}, staged, "user.cas.pin", []byte("1"), false, false); err != nil {
			t.Fatal(err)
		}
		if got := evict(staged); got != errPinned.Error() {
			t.Errorf("pinned: %s", got)
		}
		if err := r.e.Setxattr(ctx, Caller{}, staged, "user.cas.pin", []byte("0"), false, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // until the recall is over
		if got := evict(staged); got != "1" {
			t.Errorf("archived: %s", got)
		}
		if got := evict(staged); got != "0" {
			t.Errorf("cold: %s", got)
		}
		if r.seen.content[staged] == 0 {
			t.Error("the kernel was not told")
		}
		if got := r.used(); got != 0 {
			t.Errorf("%d bytes are left", got)
		}
	})
}

func TestCacheLimitHoldsAndStubsStay(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier = 64<<20, "expedited" })
		const size = 6 << 20
		inos := r.coldFiles(20, size)
		for i, ino := range inos {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), size), 0, size)
			if got := r.used(); got > r.opts.CacheSize {
				t.Fatalf("%d bytes after file %d", got, i)
			}
		}
		r.jobs(20)
		// The first files lost their middle, not their ends.
		data := blob("f001", size)
		if got := r.state(inos[1]); got != "partial" {
			t.Errorf("state %s", got)
		}
		r.want(inos[1], data, 0, 64<<10)
		r.want(inos[1], data, size-64<<10, 64<<10)
		r.jobs(20)
		// Recent ones are whole; a pinned one never goes.
		if got := r.state(inos[19]); got != "resident" {
			t.Errorf("state %s of the last", got)
		}
		if err := r.e.Setxattr(t.Context(), Caller{}, inos[19], "user.cas.pin", []byte("1"), false, false); err != nil {
			t.Fatal(err)
		}
		for i, ino := range inos[1:16] {
			r.want(ino, blob(fmt.Sprintf("f%03d", i+1), size), 0, size)
		}
		if got := r.state(inos[19]); got != "resident" {
			t.Errorf("state %s of the pinned", got)
		}
		// A restart keeps what was verified.
		n := r.srv.Count(cas.OpJobOutput)
		r.restart()
		r.want(inos[19], blob("f019", size), 0, size)
		r.want(inos[15], blob("f015", size), 0, size)
		if got := r.srv.Count(cas.OpJobOutput); got != n {
			t.Errorf("%d ranges were fetched again", got-n)
		}
	})
}

// TestStubsOfDeletedFiles: what is kept of the ends of files is counted no more when they are deleted or overwritten, else no other file's would be kept some day.
func TestStubsOfDeletedFiles(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier, o.PollMin = 8<<20, "expedited", 20*time.Second })
		const size = 100 << 10 // less than their stubs
		inos := r.coldFiles(20, size)
		for i, ino := range inos {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), size), 0, size)
		}
		r.e.store.Shrink(r.opts.CacheSize) // some are spared
		counted := func() (n int, bytes int64) {
			r.e.recall.mu.Lock()
			defer r.e.recall.mu.Unlock()
			return len(r.e.recall.stubs), r.e.recall.stubBytes
		}
		if n, _ := counted(); n == 0 {
			t.Fatal("nothing is kept")
		}
		for i := range inos {
			name := fmt.Sprintf("f%03d", i)
			if i%2 == 0 {
				a, err := r.e.Lookup(t.Context(), r.vault, name)
				if err != nil {
					t.Fatal(err)
				}
				var zero int64
				if _, err := r.e.Setattr(t.Context(), Caller{}, a.Ino, nil, SetAttr{Size: &zero}); err != nil {
					t.Fatal(err)
				}
			} else if err := r.e.Unlink(t.Context(), r.vault, name); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n, bytes := counted(); n != 0 || bytes != 0 {
			t.Errorf("%d bytes of %d files are counted that are gone", bytes, n)
		}
	})
}

func TestManySmallFilesFitTheCache(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize, o.Tier, o.PollMin = 8<<20, "expedited", time.Minute
		})
		inos := r.coldFiles(150, 100<<10)
		for i, ino := range inos {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), 100<<10), 0, 100<<10)
			if got := r.used(); got > r.opts.CacheSize {
				t.Fatalf("%d bytes after file %d", got, i)
			}
		}
		r.jobs(150)
	})
}

func TestFileLargerThanTheCacheStreams(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 32 << 20 })
		const size = 150<<20 + 17
		ino, data := r.coldFile("f", size)
		h, err := r.e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		// Two readers at different places, and one that jumps about.
		var wg sync.WaitGroup
		read := func(off int64, n int) {
			b := make([]byte, n)
			m, err := h.ReadAt(context.Background(), Caller{}, b, off)
			if err != nil || m != min(n, int(size-off)) || !bytes.Equal(b[:m], data[off:off+int64(m)]) {
				t.Errorf("at %d: %d bytes, %v, or wrong ones", off, m, err)
			}
			if got := r.used(); got > r.opts.CacheSize {
				t.Errorf("%d bytes in the cache", got)
			}
		}
		for _, from := range []int64{0, 60 << 20} {
			wg.Go(func() {
				for off := from; off < size; off += 1 << 20 {
					read(off, 1<<20)
				}
			})
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, 4))
			for range 20 {
				read(rng.Int64N(size-1000), 1000)
			}
		})
		wg.Wait()
		r.jobs(1)
		// Nobody reads: it ends by itself.
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
		// Within the output's life the job is found again.
		read(size-100, 100)
		r.jobs(1)
		if _, err := h.WriteAt(context.Background(), Caller{}, []byte("x"), 0); err == nil {
			t.Error("a file that does not fit could be changed")
		}
	})
}

func TestOutputsFlowWhileTheCacheIsCrowded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		const size = 5 << 20
		inos := r.coldFiles(12, size)
		var wg sync.WaitGroup
		for i, ino := range inos {
			wg.Go(func() { r.want(ino, blob(fmt.Sprintf("f%03d", i), size), 0, size) })
		}
		wg.Wait()
		r.jobs(12)
	})
}

func TestBandwidthDown(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.BandwidthDown, o.Tier = 1<<20, "expedited" })
		ino, data := r.coldFile("f", 100<<20)
		// What is waited for comes first; the rest takes its time.
		r.want(ino, data, 99<<20, 100)
		time.Sleep(30 * time.Second)
		if got := r.state(ino); got != "recalling" {
			t.Errorf("state %s", got)
		}
		time.Sleep(time.Minute)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 0, 1<<20)
	})
}

func TestReadersNeverSeeDroppedRanges(t *testing.T) {
	t.Parallel()
	// A small cache, many readers, files coming and going: every byte is right.
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier = 16<<20, "expedited" })
		const n, size = 10, 3 << 20
		inos := r.coldFiles(n, size)
		blobs := make([][]byte, n)
		for i := range blobs {
			blobs[i] = blob(fmt.Sprintf("f%03d", i), size)
		}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 9))
				for range 60 {
					i := rng.IntN(n)
					off := rng.IntN(size - 70000)
					got, err := r.read(context.Background(), inos[i], int64(off), 70000)
					if err != nil || !bytes.Equal(got, blobs[i][off:off+70000]) {
						t.Errorf("file %d at %d: %v or wrong bytes", i, off, err)
						return
					}
					if rng.IntN(10) == 0 {
						if _, err := r.e.Evict(context.Background(), []uint64{inos[rng.IntN(n)]}, false); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if n := r.srv.Count(cas.OpInitiateJob); n > 40 {
			t.Errorf("%d jobs", n)
		}
	})
}

// TestSmallerCacheAtStart: what is over the cache's limit when a mount starts is evicted, but not before all of the engine is there.
func TestSmallerCacheAtStart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Stub = -1 })
		for i := range 4 {
			r.write(fmt.Sprint("f", i), blob("f", 1<<20))
		}
		if err := r.e.Sync(t.Context(), []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		r.opts.CacheSize = 2 << 20
		r.opts.opening = synctest.Wait // eviction comes as far as it can
		r.restart()
		synctest.Wait()
		if use := r.e.store.Usage(); use.CacheBytes > 2<<20 {
			t.Errorf("%d bytes in a cache of 2 MiB", use.CacheBytes)
		}
	})
}
