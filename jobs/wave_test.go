package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// arrivals reads each file as soon as it is told that it came, as a program that restores does, and compares it.
type arrivals struct {
	*changes
	r    *recallRig
	mu   sync.Mutex
	want map[uint64][]byte
	came map[uint64]int // told of
	gone int            // of those, no longer local when they were opened
	wg   sync.WaitGroup
}

func (a *arrivals) AttrChanged(ino uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	data, ok := a.want[ino]
	if !ok {
		return
	}
	a.came[ino]++
	e := a.r.e
	a.wg.Go(func() {
		h, err := e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
		if err != nil {
			a.r.t.Errorf("opening %d: %v", ino, err)
			return
		}
		defer h.Release()
		if !h.Local() {
			s, err := e.Stat(context.Background(), ino)
			a.r.t.Logf("file %d left before it was opened: %+v, %v; %+v", ino, s, err, e.store.Usage())
			a.mu.Lock()
			a.gone++
			a.mu.Unlock()
			return
		}
		b := make([]byte, len(data)+1)
		if n, err := h.ReadAt(context.Background(), Caller{}, b, 0); err != nil || !bytes.Equal(b[:n], data) {
			a.r.t.Errorf("file %d: wrong bytes, or %v", ino, err)
		}
	})
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

// TestRecallInWaves brings a thousand files through a cache a tenth of their size, half of them Standard, half Bulk,
// over a stop longer than outputs live and restarts in between.
func TestRecallInWaves(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const n = 500
		var a *arrivals
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize = 2 << 20
			o.PollMin, o.PollMax = 15*time.Minute, time.Hour // a test hears of it soon enough
			a = &arrivals{came: map[uint64]int{}, changes: o.Observer.(*changes)}
			o.Observer = a
		})
		a.r = r
		files, total := manyFiles(r, n, 90<<10)
		if total < 10*r.opts.CacheSize {
			t.Fatalf("only %d bytes", total)
		}
		a.mu.Lock()
		a.want = files
		a.mu.Unlock()
		halves := make(map[string][]uint64)
		for i := range 10 {
			d, err := r.e.Lookup(t.Context(), r.vault, fmt.Sprintf("d%d", i))
			if err != nil {
				t.Fatal(err)
			}
			tier := []string{"standard", "bulk"}[i%2]
			halves[tier] = append(halves[tier], d.Ino)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan RecallResult)
		for tier, inos := range halves {
			go func() {
				res, err := r.e.Recall(ctx, RecallRequest{Inos: inos, Recursive: true, Tier: tier, Wait: true}, nil)
				if err == nil {
					t.Error("the first recall was not interrupted")
				}
				done <- res
			}()
		}
		time.Sleep(30 * time.Hour)
		var peak int64
		tiers := make(map[string]int)
		for _, rec := range r.retrievals() {
			peak += rec.Len
			tiers[rec.Tier]++
		}
		if peak > r.opts.CacheSize {
			t.Errorf("%d bytes are on their way, the cache takes %d", peak, r.opts.CacheSize)
		}
		if tiers["standard"] == 0 || tiers["bulk"] == 0 {
			t.Errorf("on their way: %v", tiers)
		}
		// The commands are interrupted, the program is stopped; it is away longer than outputs live.
		cancel()
		for range halves {
			if res := <-done; res.Local == 0 || res.Pending == 0 || res.Local+res.Pending != n/2 {
				t.Errorf("interrupted with %+v", res)
			}
		}
		asked := r.srv.Count(cas.OpInitiateJob)
		lost := 0
		for _, rec := range r.retrievals() {
			if rec.State == catalog.Asked {
				lost++
			}
		}
		if asked <= lost || lost == 0 {
			t.Errorf("%d asked, %d of them lost", asked, lost)
		}
		r.stop()
		time.Sleep(33 * time.Hour)
		r.start()
		// From here on restarts cost nothing: jobs that run, or are ready, are found again.
		for hours := 1; ; hours++ {
			time.Sleep(time.Hour)
			r.e.recall.mu.Lock()
			left := len(r.e.recall.waves.bulks) + len(r.e.recall.byKey) // after a restart what was asked for is nobody's
			r.e.recall.mu.Unlock()
			if left == 0 {
				break
			}
			if hours > 1000 {
				t.Fatalf("%d recalls and files are not done", left)
			}
			if hours%26 == 0 {
				synctest.Wait() // nothing is half fetched: outputs are counted
				r.restart()
			}
		}
		synctest.Wait()
		a.wg.Wait()
		if left := r.retrievals(); len(left) > 0 {
			t.Errorf("%d records are left, first %+v", len(left), left[0])
		}
		for ino := range files {
			if a.came[ino] != 1 {
				t.Fatalf("file %d came %d times", ino, a.came[ino])
			}
		}
		if a.gone > n/10 {
			t.Errorf("%d files had to go before anybody could read them", a.gone)
		}
		r.jobs(n + lost)
		if got := r.srv.Count(cas.OpJobOutput); got != n {
			t.Errorf("%d outputs were read, want %d", got, n)
		}
		t.Logf("%d jobs for %d files, %d lists, %d descriptions; %d files left before they were opened", r.srv.Count(cas.OpInitiateJob), n,
			r.srv.Count(cas.OpListJobs), r.srv.Count(cas.OpDescribeJob), a.gone)
	})
}

func TestRecallVerb(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// TestRecallOfARangeWaitsForNoOther: what others have asked for of the same file, or what is on its way beside the range, is not waited for.
func TestRecallOfARangeWaitsForNoOther(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name          string
		before, after int64 // read before or after the recall begins; -1: not
	}{
		{"window elsewhere", 30 << 20, -1},
		{"all of it", -1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) {
					o.CacheSize, o.Window, o.WindowAbove = 128<<20, 1<<20, 4<<20
				})
				ino, data := r.coldFile("f", 40<<20+5)
				var wg sync.WaitGroup
				read := func(off int64) {
					if off >= 0 {
						wg.Go(func() { r.want(ino, data, off, 1000) })
						time.Sleep(time.Second)
					}
				}
				read(test.before)
				wg.Go(func() {
					began := time.Now()
					res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Off: 9 << 20, Len: 2 << 20, Tier: "expedited", Wait: true}, nil)
					if err != nil || res.Local != 1 || res.Bytes != 2<<20 {
						t.Errorf("%+v, %v", res, err)
					}
					if took := time.Since(began); took > 5*time.Minute {
						t.Errorf("it took %v", took)
					}
					r.want(ino, data, 9<<20, 2<<20)
					// What is there already is waited for even less.
					began = time.Now()
					res, err = r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Off: 10 << 20, Len: 100, Wait: true}, nil)
					if err != nil || res.Local != 1 || time.Since(began) > time.Minute {
						t.Errorf("%+v, %v after %v", res, err, time.Since(began))
					}
				})
				time.Sleep(time.Second)
				read(test.after)
				time.Sleep(time.Hour)
				if s, err := r.e.Status(t.Context()); err != nil || len(s.Retrievals) != 1 || len(s.Waiters) != 1 {
					t.Errorf("%+v, %v", s, err)
				}
				wg.Wait()
			})
		})
	}
}

func TestRecallCancel(t *testing.T) {
	t.Parallel()
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

// TestRecallOfAnyNumberOfFiles: what is kept in memory, and recorded, of a recall does not grow with the number of its files.
func TestRecallOfAnyNumberOfFiles(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const n, keep, most = 300, 40, 15
		r := newRecallRig(t, realistic, func(o *Options) { o.PollMax = time.Hour })
		files, _ := manyFiles(r, n, 2<<10)
		rc := r.e.recall
		rc.mu.Lock()
		w := &rc.waves
		w.keep, w.most = keep, most
		check := rc.audit
		var found, asked, tables int
		rc.audit = func() {
			check()
			for _, b := range w.bulks {
				found = max(found, len(b.items))
			}
			asked = max(asked, len(w.inflight))
			tables = max(tables, len(rc.byKey), len(rc.byArc), len(rc.byJob), len(rc.ready), len(rc.dead))
		}
		rc.mu.Unlock()
		records := 0
		done := make(chan RecallResult)
		go func() {
			res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Tier: "expedited", Wait: true}, nil)
			if err != nil {
				t.Error(err)
			}
			done <- res
		}()
		var res RecallResult
		for waiting := true; waiting; {
			select {
			case res = <-done:
				waiting = false
			case <-time.After(2 * time.Minute):
				records = max(records, len(r.retrievals()))
			}
		}
		if res.Local != n {
			t.Errorf("%+v", res)
		}
		r.jobs(n)
		if found > keep || found == 0 || asked > most || asked < most-2 || tables > 2*most || records > most {
			t.Errorf("at most %d files found, %d asked for, %d in a table, %d records; want no more than %d and %d", found, asked, tables, records, keep, most)
		}
		for ino, data := range files {
			r.want(ino, data, 0, len(data))
		}
		rc.mu.Lock()
		defer rc.mu.Unlock()
		if len(rc.byKey)+len(rc.byVault)+len(rc.failed)+len(rc.checked)+len(w.inflight)+len(w.bulks) > 0 {
			t.Errorf("left: %d files, %d vaults, %d failures, %d checked archives, %d and %d of the recall",
				len(rc.byKey), len(rc.byVault), len(rc.failed), len(rc.checked), len(w.inflight), len(w.bulks))
		}
	})
}

// TestRecallCancelOfADirectoryAbove: what is below a directory that is cancelled is not asked for any more, however it was named when
// it was asked for; the rest comes, also after a restart.
func TestRecallCancelOfADirectoryAbove(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 8 << 20 })
		files, _ := manyFiles(r, 60, 1<<20)
		dir := func(name string) uint64 {
			d, err := r.e.Lookup(t.Context(), r.vault, name)
			if err != nil {
				t.Fatal(err)
			}
			return d.Ino
		}
		// By directories; and by a list, some of it in a directory that is cancelled.
		var list, cancelled []uint64
		for ino := range files {
			s, err := r.e.Stat(t.Context(), ino)
			if err != nil {
				t.Fatal(err)
			}
			switch d := path.Base(path.Dir(s.Path)); d {
			case "d0", "d1", "d2":
				list = append(list, ino)
				if d != "d0" {
					cancelled = append(cancelled, ino)
				}
			}
		}
		for _, q := range []RecallRequest{{Inos: []uint64{dir("d3"), dir("d4")}, Recursive: true}, {Inos: list}} {
			if res, err := r.e.Recall(t.Context(), q, nil); err != nil || res.Pending == 0 {
				t.Fatalf("%+v, %v", res, err)
			}
		}
		time.Sleep(time.Hour)
		asked := make(map[uint64]bool)
		for _, rec := range r.retrievals() {
			asked[rec.Ino] = true
		}
		if len(asked) == 0 || len(asked) >= 30 {
			t.Fatalf("%d files in the first wave", len(asked))
		}
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{dir("d1"), dir("d2")}, Recursive: true, Cancel: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Hour)
		r.restart()
		time.Sleep(40 * time.Hour)
		want := 18 // d0, d3, d4
		for _, ino := range cancelled {
			if asked[ino] {
				want++
			}
		}
		r.jobs(want)
		// Everything, by the root of it all.
		d5 := []uint64{dir("d5"), dir("d6"), dir("d7"), dir("d8"), dir("d9")}
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: d5, Recursive: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		before := r.srv.Count(cas.OpInitiateJob)
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{catalog.RootIno}, Recursive: true, Cancel: true}, nil); err != nil {
			t.Fatal(err)
		}
		if s, err := r.e.Status(t.Context()); err != nil || s.RecallsQueued != 0 {
			t.Errorf("%d are queued, %v", s.RecallsQueued, err)
		}
		time.Sleep(40 * time.Hour)
		r.jobs(before)
		if before == want || before >= want+30 {
			t.Errorf("%d jobs before everything was cancelled, %d before that", before, want)
		}
	})
}

// TestWavesInOrder: through a cache that takes a few files at a time a tree comes smallest files first, those of one size directory by
// directory; also when it goes on after a restart.
func TestWavesInOrder(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const dirs, sizes, each = 3, 4, 4 // files of a size in a directory
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.PollMin, o.PollMax = 8<<20, 10*time.Minute, time.Hour })
		var in []uint64
		for d := range dirs {
			a, err := r.e.Mkdir(t.Context(), Caller{}, r.vault, fmt.Sprintf("d%d", d), 0o755)
			if err != nil {
				t.Fatal(err)
			}
			in = append(in, a.Ino)
		}
		keys := make(map[string]waveKey) // by archive
		var files []waveKey
		for i := range dirs * sizes * each { // every size and directory by turns, the largest first
			d, size := in[i%dirs], (sizes-i/dirs%sizes)*300<<10
			name := fmt.Sprintf("f%d", i)
			files = append(files, waveKey{int64(size), d, r.writeIn(d, name, blob(name, size))})
		}
		r.cold()
		for _, k := range files {
			s, err := r.e.Stat(t.Context(), k.Ino)
			if err != nil {
				t.Fatal(err)
			}
			keys[s.Archives[0].ID] = k
		}
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true}, nil); err != nil {
			t.Fatal(err)
		}
		asked := make(map[string]bool)
		var last waveKey
		waves := 0
		for hours := 0; len(asked) < len(files); hours++ {
			if hours == 200 {
				t.Fatalf("%d of %d files were asked for", len(asked), len(files))
			}
			if hours == 9 {
				r.restart()
			}
			synctest.Wait()
			var wave []waveKey
			for j, err := range r.client.Jobs(t.Context(), "v", cas.JobFilter{}) {
				if err != nil {
					t.Fatal(err)
				}
				if !asked[j.ArchiveID] {
					asked[j.ArchiveID] = true
					wave = append(wave, keys[j.ArchiveID])
				}
			}
			slices.SortFunc(wave, compareKeys) // (several requests are on their way at a time)
			if len(wave) > 0 {
				waves++
				if compareKeys(wave[0], last) <= 0 {
					t.Errorf("after %d hours %+v is asked for, after %+v", hours, wave[0], last)
				}
				last = wave[len(wave)-1]
			}
			time.Sleep(time.Hour)
		}
		if waves < 5 {
			t.Errorf("%d waves show no order", waves)
		}
		slices.SortFunc(files, compareKeys)
		if last != files[len(files)-1] || files[0].Size != 300<<10 || files[each].Dir == files[each-1].Dir {
			t.Errorf("the last was %+v of %+v", last, files)
		}
		r.jobs(len(files))
	})
}

// TestWavesFitTheLink: over a slow link no more is asked for at once than can be fetched before outputs expire.
func TestWavesFitTheLink(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const n, size = 12, 8 << 20 // 52 h at 512 bytes/s
		r := newRecallRig(t, realistic, func(o *Options) { o.BandwidthDown, o.PollMax, o.RecallWait = 512, 10*time.Minute, 1000*time.Hour })
		inos := r.coldFiles(n, size)
		began := time.Now()
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: inos, Wait: true}, nil)
		if err != nil || res.Local != n {
			t.Errorf("%+v, %v", res, err)
		}
		t.Logf("%v", time.Since(began))
		r.jobs(n)
	})
}

// notRun opens the rig's state without the work in the background.
func (r *rig) notRun() {
	r.t.Helper()
	r.close()
	r.openWith(func(*Engine) bool { return false })
}

// TestRecallsRecordedBesideEachOther: progress is recorded while somebody asks for another recall; that one is not forgotten.
func TestRecallsRecordedBesideEachOther(t *testing.T) {
	r := newRig(t, nil)
	ino := r.write("f", []byte("f"))
	r.sync()
	r.notRun()
	rc := r.e.recall
	w := &rc.waves
	w.save = true
	saving := func() bool {
		rc.mu.Lock()
		defer rc.mu.Unlock()
		return w.save
	}
	saved := make(chan struct{})
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		go func() {
			defer close(saved)
			rc.saveWaves()
		}()
		for began := time.Now(); saving() && time.Since(began) < 100*time.Millisecond; {
			runtime.Gosched() // it should wait for its turn before it looks
		}
		// As request does.
		b := newBulk(bulkRecord{ID: 7, Chunks: 1}, []uint64{ino})
		rc.mu.Lock()
		w.bulks = append(w.bulks, b)
		rc.mu.Unlock()
		return errors.Join(putInos(tx, 7, b.inos), putRequests(tx, []bulkRecord{b.rec}))
	})
	r.must(err)
	<-saved
	r.notRun()
	if n := len(r.e.recall.waves.bulks); n != 1 {
		t.Errorf("%d recalls are known after a restart, want 1", n)
	}
}

// TestRecallWithoutItsList: a request whose list of files is missing keeps nobody from mounting.
func TestRecallWithoutItsList(t *testing.T) {
	r := newRig(t, nil)
	ino := r.write("f", []byte("f"))
	r.sync()
	r.notRun()
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		return errors.Join(putInos(tx, 8, []uint64{ino}), putRequests(tx, []bulkRecord{{ID: 7, Chunks: 1}, {ID: 8, Chunks: 1}}))
	})
	r.must(err)
	r.notRun()
	if w := &r.e.recall.waves; len(w.bulks) != 1 || w.bulks[0].rec.ID != 8 || w.nextID != 9 {
		t.Errorf("%d recalls, the next is %d", len(w.bulks), w.nextID)
	}
}

// TestProgressIsNotRecordedAllTheTime: not while something waits for its own record, nor while there is no room for any.
func TestProgressIsNotRecordedAllTheTime(t *testing.T) {
	r := newRig(t, nil)
	rc := r.e.recall
	rc.mu.Lock()
	rc.byKey[verKey{1 << 40, 1}] = []*retrieval{{}}
	rc.waves.save = true
	rc.waves.kick()
	rc.mu.Unlock()
	first := r.e.catalog.Durable()
	for began := time.Now(); time.Since(began) < 300*time.Millisecond; {
		r.must(r.e.catalog.Barrier(context.Background(), 0))
		if n := r.e.catalog.Durable() - first; n > 50 {
			t.Fatalf("%d records in %v", n, time.Since(began))
		}
	}
}

// TestRecallEndsWhileItsFilesAreLookedFor: the end of the program does not wait for the walk, nor begin it again and again.
func TestRecallEndsWhileItsFilesAreLookedFor(t *testing.T) {
	r := newRig(t, nil)
	ino := r.write("f", []byte("f"))
	r.sync()
	r.notRun()
	rc := r.e.recall
	rc.waves.bulks = []*bulk{newBulk(bulkRecord{}, []uint64{ino})}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		rc.waveLoop(ctx)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}
