package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// realistic is how long the service takes.
var realistic = local.Delays{Expedited: 3 * time.Minute, Standard: 4 * time.Hour, Bulk: 8 * time.Hour, Inventory: 4 * time.Hour}

// recallRig is an engine on the embedded store, all of it in a bubble of virtual time.
type recallRig struct {
	t      *testing.T
	srv    *castest.Server
	client *cas.Client
	opts   Options
	e      *Engine
	vault  uint64
	stop   func()
	seen   *changes

	inventories    bool // begin by themselves
	inventoryLimit int  // of archives per job
}

// changes notes what an Observer hears.
type changes struct {
	mu      sync.Mutex
	content map[uint64]int
	attr    map[uint64]int
	entries map[string]int
}

func (c *changes) ContentChanged(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.content[ino]++
}
func (c *changes) AttrChanged(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attr[ino]++
}
func (c *changes) EntryChanged(parent uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[name]++
}

// inBubble runs a test on virtual time.
func inBubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

// newRecallRig starts a service with a vault and an engine on it.
func newRecallRig(t *testing.T, delays local.Delays, change func(o *Options)) *recallRig {
	t.Helper()
	srv := castest.New(t, local.Options{Delays: delays})
	r := &recallRig{
		t: t, srv: srv, client: srv.Client(t),
		seen: &changes{content: map[uint64]int{}, attr: map[uint64]int{}, entries: map[string]int{}},
	}
	r.opts = Options{
		StateDir: filepath.Join(t.TempDir(), "state"), Client: r.client, Observer: r.seen, Settle: -1,
		StagingSize: 1 << 30, CacheSize: 1 << 30, MinFree: -1, Logger: recallLogger(t), virtualTime: true,
	}
	if change != nil {
		change(&r.opts)
	}
	if _, err := r.client.CreateVault(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
	})
	return r
}

func recallLogger(t *testing.T) *slog.Logger {
	if os.Getenv("CASFS_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// start opens the state directory and runs the engine.
func (r *recallRig) start() {
	r.t.Helper()
	e, err := Open(r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.e = e
	e.recall.noInventory, e.recall.inventoryLimit = !r.inventories, r.inventoryLimit
	if err := e.Probe(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	r.stop = func() {
		r.stop = nil
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		if err := e.Close(); err != nil {
			r.t.Errorf("Close: %v", err)
		}
	}
	a, err := e.Lookup(r.t.Context(), catalog.RootIno, "v")
	if err != nil {
		r.t.Fatal(err)
	}
	r.vault = a.Ino
}

// restart ends the engine and opens its state directory again.
func (r *recallRig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// blob returns n bytes that depend on name.
func blob(name string, n int) []byte {
	var seed [32]byte
	copy(seed[:], name)
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// write makes a file of the vault's root, or of dir.
func (r *recallRig) write(name string, data []byte) uint64 { return r.writeIn(r.vault, name, data) }

func (r *recallRig) writeIn(dir uint64, name string, data []byte) uint64 {
	r.t.Helper()
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, Caller{}, dir, name, 0o644, OpenFlags{Read: true, Write: true})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, Caller{}, data, 0); err != nil {
		r.t.Fatal(err)
	}
	h.Release()
	return a.Ino
}

// cold archives everything and drops the local copies.
func (r *recallRig) cold(inos ...uint64) {
	r.t.Helper()
	ctx := context.Background()
	if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
		r.t.Fatal(err)
	}
	if len(inos) == 0 {
		inos = []uint64{r.vault}
	}
	res, err := r.e.Evict(ctx, inos, true)
	if err != nil || len(res.Skipped) > 0 {
		r.t.Fatalf("Evict: %+v, %v", res, err)
	}
}

// coldFile makes a file that is only in the vault.
func (r *recallRig) coldFile(name string, n int) (uint64, []byte) {
	r.t.Helper()
	data := blob(name, n)
	ino := r.write(name, data)
	r.cold(ino)
	return ino, data
}

// read reads a range through a new handle.
func (r *recallRig) read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error) {
	h, err := r.e.Open(ctx, Caller{}, ino, OpenFlags{Read: true})
	if err != nil {
		return nil, err
	}
	defer h.Release()
	b := make([]byte, n)
	m, err := h.ReadAt(ctx, Caller{}, b, off)
	return b[:m], err
}

// want reads a range and compares it.
func (r *recallRig) want(ino uint64, data []byte, off int64, n int) {
	r.t.Helper()
	got, err := r.read(context.Background(), ino, off, n)
	if err != nil {
		r.t.Fatalf("reading %d+%d: %v", off, n, err)
	}
	if want := data[off:min(off+int64(n), int64(len(data)))]; !bytes.Equal(got, want) {
		r.t.Fatalf("wrong bytes at %d+%d", off, n)
	}
}

// state returns user.cas.state.
func (r *recallRig) state(ino uint64) string {
	r.t.Helper()
	s, err := r.e.Stat(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.State
}

// jobs returns how many jobs were asked for.
func (r *recallRig) jobs(want int) {
	r.t.Helper()
	if got := r.srv.Count(cas.OpInitiateJob); got != want {
		r.t.Errorf("%d jobs were asked for, want %d", got, want)
	}
}

// retrievals returns the records.
func (r *recallRig) retrievals() (all []catalog.Retrieval) {
	r.t.Helper()
	synctest.Wait()
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		for rec, err := range tx.Retrievals() {
			if err != nil {
				return err
			}
			all = append(all, rec)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func TestReadersJoinOneJob(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 5<<20+7)
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s before", got)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { r.want(ino, data, int64(i)*(256<<10), 300<<10) })
		}
		wg.Wait()
		if d := time.Since(began); d < 4*time.Hour || d > 4*time.Hour+2*time.Minute {
			t.Errorf("it took %v", d)
		}
		r.jobs(1)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s afterwards", got)
		}
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
		if r.seen.attr[ino] == 0 {
			t.Error("the kernel was not told")
		}
		// 4 h at a minute each, and the first minutes denser.
		if n := r.srv.Count(cas.OpListJobs); n > 320 {
			t.Errorf("%d lists of jobs", n)
		}
		if n := r.srv.Count(cas.OpDescribeJob); n != 0 {
			t.Errorf("%d jobs were described", n)
		}
	})
}

func TestInterruptedReadLeavesTheRecallGoing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 1<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.read(ctx, ino, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 0, 1<<20)
		r.jobs(1)
	})
}

func TestRecallWait(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.RecallWait = time.Hour })
		ino, data := r.coldFile("f", 1<<20)
		for i := range 4 {
			if _, err := r.read(context.Background(), ino, 0, 10); i < 3 && !errors.Is(err, ErrTimedOut) {
				t.Fatalf("read %d: %v", i, err)
			}
		}
		time.Sleep(time.Hour)
		r.want(ino, data, 0, 1<<20)
		r.jobs(1)
	})
}

func TestStopAdmittingEndsWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 1<<20)
		got := make(chan error, 30)
		for range 30 {
			go func() {
				_, err := r.read(context.Background(), ino, 0, 10)
				got <- err
			}()
		}
		time.Sleep(time.Minute)
		var s Status
		r.e.recall.fill(&s)
		if len(s.Waiters) != 30 || len(s.Retrievals) != 1 || s.Retrievals[0].State != "asked" || s.Waiters[0].ETA == nil || s.Guard.Files != 1 {
			t.Errorf("status %+v", s)
		}
		r.e.StopAdmitting()
		for range 30 {
			if err := <-got; !errors.Is(err, ErrClosing) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestRestartGoesOn(t *testing.T) {
	for _, at := range []time.Duration{time.Second, 2 * time.Hour, 4*time.Hour - time.Second} {
		t.Run(at.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, nil)
				ino, data := r.coldFile("f", 3<<20)
				ctx, cancel := context.WithTimeout(context.Background(), at)
				defer cancel()
				r.read(ctx, ino, 0, 10)
				r.restart()
				r.want(ino, data, 0, 3<<20)
				r.jobs(1)
				if left := r.retrievals(); len(left) != 0 {
					t.Errorf("records are left: %+v", left)
				}
			})
		})
	}
}

func TestAdoptsJobsOfOthers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.InitiateJob(t.Context(), "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: s.Archives[0].ID}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		began := time.Now()
		r.want(ino, data, 0, 3<<20)
		if d := time.Since(began); d > time.Hour+2*time.Minute {
			t.Errorf("it took %v though the job was three hours old", d)
		}
		r.jobs(1)
		// Evicted and read again within the output's life, it costs nothing.
		r.cold(ino)
		began = time.Now()
		r.want(ino, data, 1<<20, 10)
		if d := time.Since(began); d > time.Minute {
			t.Errorf("it took %v though the output was there", d)
		}
		r.jobs(1)
		var st Status
		r.e.recall.fill(&st)
		if st.Guard.Bytes != 0 || st.Guard.Files != 0 {
			t.Errorf("the guard counts adopted jobs: %+v", st.Guard)
		}
	})
}

func TestLostAnswerIsFoundInTheList(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.LoseReply, Count: 1})
		r.want(ino, data, 0, 3<<20)
		r.jobs(1)
	})
}

func TestRequestThatNeverArrivedIsRepeated(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.CutRequest, Bytes: 10, Count: 1})
		r.srv.Inject(castest.Fault{Op: cas.OpListJobs, Kind: castest.Status, HTTPStatus: 500, Skip: 1, Count: 20})
		r.want(ino, data, 0, 3<<20)
		r.jobs(2)
	})
}

func TestExpiredOutputIsAskedForAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		r.read(ctx, ino, 0, 10)
		r.stop()
		time.Sleep(40 * time.Hour) // done after 3, gone after 27
		r.start()
		time.Sleep(time.Minute)
		recs := r.retrievals()
		if len(recs) != 1 || recs[0].Expired != 1 || recs[0].Attempts != 2 {
			t.Errorf("records %+v", recs)
		}
		r.want(ino, data, 0, 3<<20)
		r.jobs(2)
	})
}

func TestFaultsNeverGiveWrongBytes(t *testing.T) {
	for _, test := range []struct {
		name   string
		faults []castest.Fault
		jobs   int
	}{
		{"output gone once", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Count: 1}}, 1}, // the job is in the list
		{"output gone in the middle", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Skip: 3, Count: 1}}, 1},
		{"job gone from the list", []castest.Fault{{Op: cas.OpListJobs, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Skip: 3, Count: 5}}, 1},
		{"reset", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Reset, Count: 20}}, 1},
		{"cut", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 1<<20 + 5, Count: 30}}, 1},
		{"corrupt", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000, Count: 2}}, 1},
		{"wrong hash", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.WrongHash, Count: 2}}, 1},
		{"unavailable", []castest.Fault{{Op: "*", Kind: castest.Status, Probability: 0.3, Count: 200}}, 1},
		{"throttled", []castest.Fault{{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "ThrottlingException", Count: 30}}, 0},
		{"policy", []castest.Fault{{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "PolicyEnforcedException", Count: 3}}, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
				ino, data := r.coldFile("f", 7<<20+123)
				before := r.srv.Count(cas.OpInitiateJob)
				for _, f := range test.faults {
					r.srv.Inject(f)
				}
				r.want(ino, data, 0, 8<<20)
				if got := r.srv.Count(cas.OpInitiateJob) - before; test.jobs > 0 && test.name != "unavailable" && got != test.jobs {
					t.Errorf("%d jobs, want %d", got, test.jobs)
				}
				if got := r.state(ino); got != "resident" {
					t.Errorf("state %s", got)
				}
				// 8 pieces, and what the faults cost.
				faults := 0
				for _, f := range test.faults {
					faults += f.Count
				}
				if got := r.srv.Count(cas.OpJobOutput); got > 8+faults {
					t.Errorf("%d requests for output after at most %d faults", got, faults)
				}
			})
		})
	}
}

// TestOutputNeverComes: the service says that jobs are ready, and then breaks off every time, or does not
// know them. That is tried for as long as outputs live, with so many jobs and no more, and explained when it is given up.
func TestOutputNeverComes(t *testing.T) {
	for _, test := range []struct {
		name     string
		fault    castest.Fault
		jobs     int
		requests int // for output: hours of one every five minutes, each tried a few times
		after    time.Duration
	}{
		{"breaks off", castest.Fault{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 10}, 2, 25 * 13 * 6, 30 * time.Hour},
		{"gone", castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"}, 3, maxFailures, 40 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.RecallWait = time.Hour })
				ino, data := r.coldFile("f", 3<<20)
				mend := r.srv.Inject(test.fault)
				if _, err := r.read(context.Background(), ino, 0, 10); !errors.Is(err, ErrTimedOut) {
					t.Fatalf("got %v", err)
				}
				time.Sleep(test.after)
				r.jobs(test.jobs)
				if got := r.srv.Count(cas.OpJobOutput); got > test.requests {
					t.Errorf("%d requests for output, want at most %d", got, test.requests)
				} else {
					t.Logf("%d requests for output", got)
				}
				if test.name == "gone" { // for good
					all := r.srv.Count("*")
					time.Sleep(48 * time.Hour)
					if got := r.srv.Count("*"); got > all+60 { // the list of vaults, now and then
						t.Errorf("%d requests after it was given up", got-all)
					}
				}
				s, err := r.e.Stat(t.Context(), ino)
				if err != nil || s.State == "damaged" || test.name == "gone" && s.Error == "" {
					t.Errorf("stat %+v, %v", s, err)
				}
				// It is not the archive's fault: when the service is well again, so is the file.
				mend()
				if res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Wait: true}, nil); err != nil || res.Local != 1 {
					t.Errorf("%+v, %v", res, err)
				}
				r.want(ino, data, 0, 4<<20)
			})
		})
	}
}

func TestCorruptForEverIsDamaged(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		ino, data := r.coldFile("f", 7<<20+123)
		remove := r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000})
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s", got)
		}
		if _, err := r.read(context.Background(), ino, 3<<20, 100); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
		r.jobs(1)
		// It stays explained over a restart, and an explicit recall tries again.
		r.restart()
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s after a restart", got)
		}
		remove()
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		if err := r.e.recall.queue(Caller{}, f, "", true); err != nil {
			t.Fatal(err)
		}
		r.want(ino, data, 0, 8<<20)
	})
}

func TestGoneArchiveIsDamaged(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 100)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"})
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		r.jobs(1)
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		r.jobs(1)
	})
}

func TestWindows(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.Window, o.WindowAbove = 1<<20, 4<<20
			o.SingleBelow = 32 << 20
		})
		const size = 20<<20 + 5
		ino, data := r.coldFile("f", size)
		// An isolated read: its window only.
		r.want(ino, data, 9<<20, 100)
		r.jobs(1)
		if got := r.state(ino); got != "partial" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 10<<20-100, 100)
		r.jobs(1)
		// Neighbours wanted at the same time are one job.
		var wg sync.WaitGroup
		for _, off := range []int64{12, 13, 14, 15} {
			wg.Go(func() { r.want(ino, data, off<<20+17, 1000) })
		}
		wg.Wait()
		r.jobs(2)
		// A read over the border of two windows that are no node together: two jobs.
		r.want(ino, data, 18<<20-10, 20)
		r.jobs(4)
		// The tail.
		r.want(ino, data, size-3, 3)
		r.jobs(5)
		// From the beginning: everything.
		r.want(ino, data, 0, 10)
		r.jobs(6)
		time.Sleep(time.Minute)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 0, size)
		r.jobs(6)
		for _, rec := range r.retrievals() {
			t.Errorf("left: %+v", rec)
		}
	})
}

func TestSegments(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 4<<20, 1<<20 })
		ino, data := r.coldFile("f", 10<<20+5)
		r.want(ino, data, 9<<20, 100)
		r.jobs(1)
		r.want(ino, data, 4<<20-10, 20)
		r.jobs(3)
		time.Sleep(time.Minute)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 0, 11<<20)
		r.jobs(3)
	})
}

func TestModes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Recall = RecallDeny })
		ino, data := r.coldFile("f", 1000)
		if _, err := r.read(context.Background(), ino, 0, 10); !errors.Is(err, ErrDenied) {
			t.Errorf("deny: %v", err)
		}
		r.jobs(0)
		r.stop()
		r.opts.Recall = RecallQueue
		r.start()
		for range 3 {
			if _, err := r.read(context.Background(), ino, 0, 10); !errors.Is(err, ErrAgain) {
				t.Errorf("queue: %v", err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Hour)
		r.want(ino, data, 0, 1000)
		r.jobs(1)
	})
}

func TestWritingToAColdFileRecallsIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 2<<20)
		h, err := r.e.Open(context.Background(), Caller{}, ino, OpenFlags{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.WriteAt(context.Background(), Caller{}, []byte("new"), 100); err != nil {
			t.Fatal(err)
		}
		h.Release()
		copy(data[100:], "new")
		r.want(ino, data, 0, 2<<20)
		r.jobs(1)
		r.cold(ino)
		r.want(ino, data, 0, 2<<20)
		r.jobs(2)
	})
}

func TestDeletedWhileRecalled(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 2<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r.read(ctx, ino, 0, 10)
		if err := r.e.Unlink(context.Background(), r.vault, "f"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("records are left: %+v", left)
		}
		// Truncated to nothing while a reader waits: the reader sees the new, empty content.
		ino, _ = r.coldFile("g", 2<<20)
		got := make(chan string)
		go func() {
			b, err := r.read(context.Background(), ino, 0, 10)
			got <- fmt.Sprint(len(b), err)
		}()
		time.Sleep(time.Minute)
		var zero int64
		if _, err := r.e.Setattr(context.Background(), Caller{}, ino, nil, SetAttr{Size: &zero}); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != "0 <nil>" {
			t.Errorf("the reader got %s", s)
		}
	})
}

func TestFailedJobsAreExplained(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		ino, _ := r.coldFile("f", 1000)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		// The service takes the request for an archive deleted today, and then fails.
		if err := r.client.DeleteArchive(t.Context(), "v", s.Archives[0].ID); err != nil {
			t.Fatal(err)
		}
		if _, err := r.read(context.Background(), ino, 0, 10); err == nil || errors.Is(err, ErrTimedOut) {
			t.Fatalf("got %v", err)
		}
		r.jobs(maxFailures)
		for range 3 {
			if _, err := r.read(context.Background(), ino, 0, 10); err == nil {
				t.Error("the second read succeeded")
			}
		}
		if s, err = r.e.Stat(t.Context(), ino); err != nil || s.Error == "" {
			t.Errorf("stat says nothing: %+v, %v", s, err)
		}
		r.restart()
		if _, err := r.read(context.Background(), ino, 0, 10); err == nil {
			t.Error("a read after a restart succeeded")
		}
		r.jobs(maxFailures)
	})
}
