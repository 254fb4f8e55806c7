package jobs

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// segmented are options for files of many archives of a MiB each, and read-ahead of at least four of them.
func segmented(cache int64, change func(o *Options)) func(o *Options) {
	return func(o *Options) {
		o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 1<<20, 1<<20
		o.Window, o.WindowAbove, o.CacheSize = 1<<20, 4<<20, cache
		o.PollMax = 10 * time.Minute // hours of a list a minute are most of what a test would do
		if change != nil {
			change(o)
		}
	}
}

// reader reads a file from one end to the other, as cp does, and compares it.
type reader struct {
	r    *recallRig
	h    *Handle
	data []byte
	off  int
}

func (r *recallRig) reader(ino uint64, data []byte) *reader {
	r.t.Helper()
	h, err := r.e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return &reader{r: r, h: h, data: data}
}

// next reads 128 KiB.
func (d *reader) next() {
	d.r.t.Helper()
	b := make([]byte, 128<<10)
	n, err := d.h.ReadAt(context.Background(), Caller{}, b, int64(d.off))
	if err != nil || n == 0 || !bytes.Equal(b[:n], d.data[d.off:min(d.off+len(b), len(d.data))]) {
		d.r.t.Fatalf("at %d: %d bytes, %v, or wrong ones", d.off, n, err)
	}
	if got := d.r.used(); got > d.r.opts.CacheSize {
		d.r.t.Fatalf("%d bytes in the cache at %d", got, d.off)
	}
	d.off += n
}

// to reads up to an offset.
func (d *reader) to(end int) {
	d.r.t.Helper()
	for d.off < end {
		d.next()
	}
}

// TestSequentialReadOfManyArchives: who reads a file of 64 archives, four times as large as the cache, from one end to
// the other waits for a few jobs, not for 64 one after the other; and each is asked for once.
func TestSequentialReadOfManyArchives(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, segmented(16<<20, nil))
		const n = 64
		ino, data := r.coldFile("f", n<<20)
		began := time.Now()
		d := r.reader(ino, data)
		d.to(n << 20)
		took := time.Since(began)
		d.h.Release()
		r.jobs(n)
		if took > 9*4*time.Hour {
			t.Errorf("it took %v", took)
		}
		if got := r.srv.Count(cas.OpJobOutput); got > n+n/4 {
			t.Errorf("%d ranges were fetched, of %d", got, n)
		}
		t.Logf("%v, %d outputs read", took, r.srv.Count(cas.OpJobOutput))
		var st Status
		r.e.recall.fill(&st)
		if st.Guard.Bytes == 0 || st.Guard.Bytes >= n<<20 { // in 24 hours
			t.Errorf("the guard counts %d bytes", st.Guard.Bytes)
		}
		// What was dropped behind the reader is held against its tree hash again when it comes again.
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		synctest.Wait()
		f.mu.Lock()
		r.e.recall.mu.Lock()
		for num := range r.e.recall.checked {
			if ext, off, _ := extentOf(f.ver, num); !f.local.Verified(off, ext.Len) {
				t.Errorf("archive %d counts as checked and is not local", num)
			}
		}
		r.e.recall.mu.Unlock()
		f.mu.Unlock()
		// Whatever is left ends by itself.
		time.Sleep(3 * time.Hour)
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
	})
}

// TestReadAheadIsBounded: what is asked for ahead of a reader grows with what it has read, and fits in the cache.
func TestReadAheadIsBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, segmented(32<<20, nil))
		const n = 64
		ino, data := r.coldFile("f", n<<20)
		most := 0
		d := r.reader(ino, data)
		defer d.h.Release()
		for d.off < n<<20 {
			d.next()
			synctest.Wait()
			ahead := r.srv.Count(cas.OpInitiateJob)<<20 - d.off
			if limit := max(d.off, 4<<20) + 2<<20; ahead > limit {
				t.Fatalf("%d bytes ahead of %d", ahead, d.off)
			}
			most = max(most, ahead)
		}
		if most > int(r.opts.CacheSize) || most < int(r.opts.CacheSize/2) {
			t.Errorf("at most %d bytes ahead with a cache of %d", most, r.opts.CacheSize)
		}
		r.jobs(n)
	})
}

// TestOnlySequentialReadersReadAhead: small reads here and there, and the beginning of a file, ask for the archives they are in and for no other.
func TestOnlySequentialReadersReadAhead(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, segmented(128<<20, nil))
		const n = 64
		ino, data := r.coldFile("f", n<<20)
		h, err := r.e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		touched := make(map[int]bool)
		read := func(off, n int) {
			t.Helper()
			b := make([]byte, n)
			if m, err := h.ReadAt(context.Background(), Caller{}, b, int64(off)); err != nil || !bytes.Equal(b[:m], data[off:off+n]) {
				t.Fatalf("at %d: %v, or wrong bytes", off, err)
			}
			touched[off>>20], touched[(off+n-1)>>20] = true, true
		}
		read(0, 100)
		read(0, 64<<10)
		rng := rand.New(rand.NewPCG(5, 6))
		for range 40 {
			// A record, and then its index in the other half, as backup programs read.
			off := rng.IntN(n<<20 - 64<<10)
			read(off, 4<<10)
			read(off+4<<10, 16<<10)
			read((off+n<<19)%(n<<20-64<<10), 1<<10)
		}
		r.jobs(len(touched))
	})
}

// TestReadAheadHoldsBack: where reads may not recall as they like, read-ahead does not either, and never fails a read.
func TestReadAheadHoldsBack(t *testing.T) {
	const n = 12
	for _, test := range []struct {
		name   string
		change func(o *Options)
		ahead  int // archives asked for while the second is read
	}{
		{"as it likes", nil, 4},
		{"files", func(o *Options) { o.GuardFiles = 6 }, 3}, // half of them
		{"one file", func(o *Options) { o.GuardFiles = 1 }, 0},
		{"bytes", func(o *Options) { o.GuardBytes = 4 << 20 }, 2}, // two are read
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, segmented(128<<20, test.change))
				ino, data := r.coldFile("f", n<<20)
				d := r.reader(ino, data)
				defer d.h.Release()
				d.to(1 << 20) // all of the first
				synctest.Wait()
				d.to(3 << 19)
				synctest.Wait() // what is still being checked counts for the guard
				d.to(2 << 20)
				synctest.Wait()
				if got := r.srv.Count(cas.OpInitiateJob); got > 2+test.ahead+1 || got < min(2+test.ahead, n) {
					t.Errorf("%d jobs after two archives, want %d ahead", got, test.ahead)
				}
				if got := len(r.e.recall.refusals); got != 0 {
					t.Errorf("%d refusals are told", got)
				}
			})
		})
	}
	t.Run("denied command", func(t *testing.T) {
		fakeProc(t, map[int][3]string{10: {"updatedb", "10", "/usr/bin/updatedb"}})
		inBubble(t, func(t *testing.T) {
			r := newRecallRig(t, realistic, segmented(128<<20, func(o *Options) { o.DenyComm = []string{"updatedb"} }))
			ino, _ := r.coldFile("f", n<<20)
			res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Len: 2 << 20, Wait: true}, nil)
			if err != nil || res.Local != 1 {
				t.Fatalf("%+v, %v", res, err)
			}
			h, err := r.e.Open(t.Context(), Caller{PID: 10}, ino, OpenFlags{Read: true})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Release()
			b := make([]byte, 128<<10)
			for off := int64(0); off < 2<<20; off += int64(len(b)) { // what is local everybody may read
				if _, err := h.ReadAt(t.Context(), Caller{PID: 10}, b, off); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := h.ReadAt(t.Context(), Caller{PID: 10}, b, 2<<20); !errors.Is(err, ErrDenied) {
				t.Errorf("got %v", err)
			}
			r.jobs(2)
		})
	})
	for _, mode := range []RecallMode{RecallQueue, RecallDeny} {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, segmented(128<<20, func(o *Options) { o.Recall = mode }))
				ino, data := r.coldFile("f", n<<20)
				res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Len: 2 << 20, Wait: true}, nil)
				if err != nil || res.Local != 1 {
					t.Fatalf("%+v, %v", res, err)
				}
				f, err := r.e.acquire(ino)
				if err != nil {
					t.Fatal(err)
				}
				defer f.put()
				var s sequence
				b := make([]byte, 128<<10)
				for off := int64(0); off < 2<<20; off += int64(len(b)) {
					s.begin(off, r.e.recall.slack())
					if n, err := f.readAt(t.Context(), Caller{}, &s, b, off); err != nil || !bytes.Equal(b[:n], data[off:off+int64(n)]) {
						t.Fatalf("at %d: %v, or wrong bytes", off, err)
					}
					if s.end(off, int64(len(b))) {
						r.e.recall.readAhead(Caller{}, f, &s)
					}
				}
				r.jobs(2)
			})
		})
	}
}

// TestReadAheadThatFails: what was only asked for ahead of a reader and does not come is not asked for again, and the reader, who
// asks himself when he gets there, hears nothing of it.
func TestReadAheadThatFails(t *testing.T) {
	t.Parallel()
	const n = 12
	for _, test := range []struct {
		name  string
		fault castest.Fault
		after time.Duration
		jobs  int // asked for until then
	}{
		{"refused", castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "AccessDeniedException", HTTPStatus: 403}, time.Hour, 1 + 4 + 1},
		{"unknown archive", castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "ResourceNotFoundException", HTTPStatus: 404}, time.Hour, 1 + 4 + 1},
		{"policy", castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "PolicyEnforcedException"}, time.Hour, 1 + 4 + 1},
		{"output gone", castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"}, 6 * time.Hour, 1 + 4 + 1},
		{"corrupt", castest.Fault{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000}, 6 * time.Hour, 1 + 4 + 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, segmented(128<<20, nil))
				ino, data := r.coldFile("f", n<<20)
				r.want(ino, data, 0, 100)
				mend := r.srv.Inject(test.fault)
				d := r.reader(ino, data)
				defer d.h.Release()
				d.to(1 << 20)
				time.Sleep(test.after)
				synctest.Wait()
				if got := r.srv.Count(cas.OpInitiateJob); got > test.jobs || got < 2 {
					t.Errorf("%d jobs were asked for, want at most %d", got, test.jobs)
				}
				if s, err := r.e.Stat(t.Context(), ino); err != nil || s.State != "partial" || s.Error != "" {
					t.Errorf("stat: %+v, %v", s, err)
				}
				if left := r.retrievals(); len(left) != 0 {
					t.Errorf("records are left: %+v", left)
				}
				mend()
				d.to(n << 20)
			})
		})
	}
}

// TestReadAheadOverARestart: the reader is gone, and nobody waits for what was asked for ahead of it. What the service has not
// heard of is not asked for; what it works on comes; and what of that does not come is not asked for again.
func TestReadAheadOverARestart(t *testing.T) {
	t.Parallel()
	const n = 12
	ask := func(kind castest.Kind) castest.Fault {
		return castest.Fault{Op: cas.OpInitiateJob, Kind: kind, Skip: 1}
	}
	throttled, gone := ask(castest.Status), castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"}
	throttled.Code = "ThrottlingException"
	for _, test := range []struct {
		name          string
		before, after *castest.Fault // while it is asked for; after the restart
		jobs, there   int            // asked for in all; archives that are local in the end
	}{
		{"asked", nil, nil, 5, 5},
		{"not asked yet", &throttled, nil, 1, 1},
		{"answers lost", new(ask(castest.LoseReply)), nil, 5, 5},
		{"requests lost", new(ask(castest.Reset)), nil, 1, 1},
		{"asked, and gone", nil, &gone, 5, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, segmented(128<<20, nil))
				ino, data := r.coldFile("f", n<<20)
				mend := func() {}
				if test.before != nil {
					mend = r.srv.Inject(*test.before)
				}
				r.reader(ino, data).to(1 << 20) // and it is never closed
				if got := len(r.retrievals()); got != 4 {
					t.Errorf("%d archives are wanted ahead", got)
				}
				r.stop()
				mend()
				if test.after != nil {
					mend = r.srv.Inject(*test.after)
				}
				r.start()
				time.Sleep(10 * time.Hour)
				if left := r.retrievals(); len(left) != 0 {
					t.Errorf("records are left: %+v", left)
				}
				jobs := 0
				for _, err := range r.client.Jobs(t.Context(), "v", cas.JobFilter{}) {
					if err != nil {
						t.Fatal(err)
					}
					jobs++
				}
				if jobs != test.jobs {
					t.Errorf("%d jobs, want %d", jobs, test.jobs)
				}
				var st Status
				r.e.recall.fill(&st)
				if st.Guard.Files != 0 || st.Guard.Bytes != int64(test.jobs)<<20 {
					t.Errorf("the guard counts %d files and %d bytes, want none and %d", st.Guard.Files, st.Guard.Bytes, test.jobs<<20)
				}
				s, err := r.e.Stat(t.Context(), ino)
				if err != nil || s.State != "partial" || s.Error != "" || s.LocalBytes>>20 != int64(test.there) {
					t.Errorf("%d archives are there, want %d: %+v, %v", s.LocalBytes>>20, test.there, s, err)
				}
				mend()
				d := r.reader(ino, data)
				defer d.h.Release()
				d.to(n << 20)
			})
		})
	}
}

// TestReaderLeavesBeforeItIsAskedFor: what was only meant to be asked for ahead of a reader is not, when he has gone.
func TestReaderLeavesBeforeItIsAskedFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, segmented(128<<20, nil))
		ino, data := r.coldFile("f", 8<<20)
		r.want(ino, data, 0, 100)
		list := r.srv.Inject(castest.Fault{Op: cas.OpListJobs, Kind: castest.Hold})
		d := r.reader(ino, data)
		d.to(1 << 20)
		if n := len(r.retrievals()); n == 0 {
			t.Error("nothing was to be asked for ahead of him: this tests nothing")
		}
		d.h.Release()
		list()
		time.Sleep(5 * time.Hour)
		r.jobs(1)
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
	})
}

// TestReadersInAFileOfManyArchives: several readers at different places of a file several times as large as the cache: every byte
// is right, no read waits longer than for one job, and no archive is asked for again and again. (How much is asked for ahead of each depends
// on who comes first: the cache may be full of what another one has brought.)
func TestReadersInAFileOfManyArchives(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, segmented(16<<20, func(o *Options) { o.GuardFiles = -1 }))
		const n = 32
		ino, data := r.coldFile("f", n<<20)
		const wait = 4*time.Hour + 11*time.Minute // and until the next look at the list
		began := time.Now()
		promptly := func(off int, began time.Time) {
			if d := time.Since(began); d > wait {
				t.Errorf("at %d: it took %v", off, d)
			}
		}
		var wg sync.WaitGroup
		for _, from := range []int{0, 12 << 20} {
			wg.Go(func() {
				h, err := r.e.Open(context.Background(), Caller{}, ino, OpenFlags{Read: true})
				if err != nil {
					t.Error(err)
					return
				}
				defer h.Release()
				b := make([]byte, 256<<10)
				for off := from; off < n<<20; off += len(b) {
					began := time.Now()
					if m, err := h.ReadAt(context.Background(), Caller{}, b, int64(off)); err != nil || !bytes.Equal(b[:m], data[off:off+m]) {
						t.Errorf("at %d: %v, or wrong bytes", off, err)
						return
					}
					promptly(off, began)
				}
			})
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, 8))
			for range 10 {
				off, began := rng.IntN(n<<20-1000), time.Now()
				got, err := r.read(context.Background(), ino, int64(off), 1000)
				if err != nil || !bytes.Equal(got, data[off:off+1000]) {
					t.Errorf("at %d: %v, or wrong bytes", off, err)
				}
				promptly(off, began)
			}
		})
		wg.Wait()
		t.Logf("%v, %d jobs", time.Since(began), r.srv.Count(cas.OpInitiateJob))
		// The second reader is a day or so ahead of the first, whose archives may have to be asked for again.
		if got := r.srv.Count(cas.OpInitiateJob); got > 2*n {
			t.Errorf("%d jobs for %d archives", got, n)
		}
		time.Sleep(30 * time.Hour)
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
	})
}

// TestSequence: what counts as reading on, and where a handle reads.
func TestSequence(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const slack = 100
		var s sequence
		run := func(next, bytes int64) {
			t.Helper()
			if n, b, _ := s.run(0); n != next || b != bytes {
				t.Errorf("come to %d with %d bytes, want %d with %d", n, b, next, bytes)
			}
		}
		reading := func(want int64, ok bool) {
			t.Helper()
			if pos, got := s.reading(time.Now()); got != ok || ok && pos != want {
				t.Errorf("reads at %d, %v, want %d, %v", pos, got, want, ok)
			}
		}
		read := func(off, n int64) {
			s.begin(off, slack)
			s.end(off, n)
		}
		reading(0, false)
		read(1000, 50)
		run(1050, 50)
		read(1050, 50)
		read(1150, 50) // two that overtook each other
		read(1100, 50)
		run(1200, 150)
		read(1100, 50) // and one that is repeated
		run(1200, 150)
		read(1250, 10) // a small gap
		run(1260, 160)
		s.askedTo(5000)
		read(100, 10) // elsewhere
		run(110, 10)
		if _, _, asked := s.run(0); asked != 0 {
			t.Errorf("asked up to %d in another run", asked)
		}
		reading(110, true)
		time.Sleep(streamIdle)
		reading(0, false)
		s.begin(500, slack)
		time.Sleep(5 * streamIdle) // it waits
		reading(500, true)
		s.end(500, 0)
		reading(500, true)
		run(500, 0)
		s.begin(500, slack)
		if !s.end(500, 0) {
			t.Error("a reader that came this far is not thought of")
		}
		s.run(1000)
		s.begin(500, slack)
		if s.end(500, 10) {
			t.Error("it is thought of again before the reader came farther")
		}
	})
}
