package jobs

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// arrivals reads each file once it is local, as a program that restores does, and compares it.
type arrivals struct {
	*changes
	r    *recallRig
	mu   sync.Mutex
	want map[uint64][]byte
	got  map[uint64]int
	wg   sync.WaitGroup
}

func (a *arrivals) AttrChanged(ino uint64) {
	a.mu.Lock()
	data, ok := a.want[ino]
	a.mu.Unlock()
	if !ok {
		return
	}
	e := a.r.e
	h, err := e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
	if err != nil {
		a.r.t.Errorf("opening %d: %v", ino, err)
		return
	}
	defer h.Release()
	if !h.Local() {
		return
	}
	b := make([]byte, len(data))
	if _, err := h.ReadAt(context.Background(), Caller{}, b, 0); err != nil || !bytes.Equal(b, data) {
		a.r.t.Errorf("file %d: wrong bytes, or %v", ino, err)
	}
	a.mu.Lock()
	a.got[ino]++
	a.mu.Unlock()
}

// manyFiles makes n cold files of up to size bytes in ten directories.
func manyFiles(r *recallRig, n, size int) (map[uint64][]byte, int64) {
	r.t.Helper()
	var dirs []uint64
	for i := range 10 {
		a, err := r.e.Mkdir(context.Background(), Caller{}, r.vault, fmt.Sprintf("d%d", i), 0o755)
		if err != nil {
			r.t.Fatal(err)
		}
		dirs = append(dirs, a.Ino)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	files := make(map[uint64][]byte)
	var total int64
	for i := range n {
		name := fmt.Sprintf("f%d", i)
		data := blob(name, 1+rng.IntN(size))
		files[r.writeIn(dirs[i%10], name, data)] = data
		total += int64(len(data))
		if i%100 == 99 {
			r.cold()
		}
	}
	r.cold()
	return files, total
}

func TestRecallInWaves(t *testing.T) {
	for _, test := range []struct {
		tier  string
		files int
		cache int64
	}{{"standard", 200, 4 << 20}, {"bulk", 100, 2 << 20}} {
		if os.Getenv("CASFS_WAVES") != "" { // the long form, minutes under the race detector
			test.files, test.cache = 5*test.files, 4*test.cache
		}
		t.Run(test.tier, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var a *arrivals
				r := newRecallRig(t, realistic, func(o *Options) {
					o.CacheSize = test.cache
					o.PollMax = 10 * time.Minute // a test hears of it soon enough
					a = &arrivals{got: map[uint64]int{}, changes: o.Observer.(*changes)}
					o.Observer = a
				})
				a.r = r
				files, total := manyFiles(r, test.files, 300<<10)
				if total < 5*r.opts.CacheSize {
					t.Fatalf("only %d bytes", total)
				}
				a.mu.Lock()
				a.want = files
				a.mu.Unlock()
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan RecallResult)
				go func() {
					res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Tier: test.tier, Wait: true}, nil)
					if err == nil {
						t.Error("the first recall was not interrupted")
					}
					done <- res
				}()
				time.Sleep(30 * time.Hour)
				var peak int64
				for _, rec := range r.retrievals() {
					peak += rec.Len
				}
				if peak > r.opts.CacheSize {
					t.Errorf("%d bytes are on their way, the cache takes %d", peak, r.opts.CacheSize)
				}
				// The command is interrupted, the program is killed; it is away longer than outputs live.
				cancel()
				first := <-done
				if first.Local == 0 || first.Pending == 0 || first.Local+first.Pending != int64(test.files) {
					t.Errorf("interrupted with %+v", first)
				}
				asked := r.srv.Count(cas.OpInitiateJob)
				lost := 0
				for _, rec := range r.retrievals() {
					if rec.State == catalog.Asked {
						lost++
					}
				}
				r.stop()
				time.Sleep(33 * time.Hour)
				r.start()
				for range 400 {
					time.Sleep(time.Hour)
					r.e.recall.mu.Lock()
					n := len(r.e.recall.waves.bulks)
					r.e.recall.mu.Unlock()
					if n == 0 {
						break
					}
				}
				synctest.Wait()
				if left := r.retrievals(); len(left) > 0 {
					t.Errorf("%d records are left, first %+v", len(left), left[0])
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				for ino := range files {
					if a.got[ino] != 1 {
						t.Fatalf("file %d came %d times", ino, a.got[ino])
					}
				}
				if asked <= lost || lost == 0 {
					t.Errorf("%d asked, %d of them lost", asked, lost)
				}
				r.jobs(test.files + lost)
			})
		})
	}
}

func TestRecallVerb(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 64 << 20 })
		a, dataA := r.coldFile("a", 1<<20)
		b, dataB := r.coldFile("b", 3<<20)
		big := r.write("big", blob("big", 100<<20))
		r.cold(big)
		r.write("warm", []byte("warm"))
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{r.vault}}, nil); err == nil {
			t.Error("a directory was recalled without -r")
		}
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{a, b}}, nil)
		if err != nil || res.Pending != 2 || res.Local != 0 || res.Bytes != 4<<20 {
			t.Errorf("%+v, %v", res, err)
		}
		r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 100 << 10, Count: 10})
		var last Progress
		res, err = r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Wait: true}, func(p Progress) { last = p })
		if err != nil || res.Pending != 0 || res.Local != 3 || res.Failed != 1 || len(res.Failures) != 1 || res.Failures[0].Path != r.e.recall.pathOf(big) {
			t.Errorf("%+v, %v", res, err)
		}
		if last.FilesDone != 4 || last.FilesTotal != 4 {
			t.Errorf("progress ended at %+v", last)
		}
		r.jobs(2)
		r.want(a, dataA, 0, 1<<20)
		r.want(b, dataB, 0, 3<<20)
		// A range of the big one.
		res, err = r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{big}, Off: 10, Len: 100, Wait: true}, nil)
		if err != nil || res.Local != 1 || res.Bytes != 100 {
			t.Errorf("a range: %+v, %v", res, err)
		}
		r.jobs(3)
	})
}

func TestRecallRange(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize, o.Window, o.WindowAbove = 16<<20, 1<<20, 4<<20
		})
		ino, data := r.coldFile("f", 40<<20+5)
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Off: 9<<20 + 5, Len: 2 << 20, Wait: true}, nil)
		if err != nil || res.Local != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		r.jobs(2) // [9,10) and [10,12) MiB
		r.want(ino, data, 9<<20+5, 2<<20)
		r.jobs(2)
	})
}

func TestRecallCancel(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 8 << 20 })
		manyFiles(r, 60, 1<<20)
		ended := make(chan RecallResult)
		go func() {
			res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Wait: true}, nil)
			if err != nil {
				t.Error(err)
			}
			ended <- res
		}()
		time.Sleep(time.Hour)
		asked := r.srv.Count(cas.OpInitiateJob)
		if asked == 0 || asked == 60 {
			t.Fatalf("%d jobs in the first wave", asked)
		}
		if s, err := r.e.Status(t.Context()); err != nil || s.RecallsQueued != int64(60-asked) || len(s.Retrievals) != asked {
			t.Errorf("%d asked; status: %d queued, %d retrievals, %v", asked, s.RecallsQueued, len(s.Retrievals), err)
		}
		// One directory is taken out, then everything.
		d0, err := r.e.Lookup(t.Context(), r.vault, "d0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{d0.Ino}, Recursive: true, Cancel: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Hour)
		res, err := r.e.Recall(t.Context(), RecallRequest{Cancel: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res := <-ended; res.Local == 0 {
			t.Errorf("the cancelled recall ended with %+v", res)
		}
		asked = r.srv.Count(cas.OpInitiateJob)
		r.restart()
		time.Sleep(40 * time.Hour)
		if left := r.retrievals(); len(left) > 0 || int(res.Pending) > asked {
			t.Errorf("cancelled with %+v; left %+v", res, left)
		}
		r.jobs(asked)
	})
}
