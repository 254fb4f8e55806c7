package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// TestRecallOnADiskThatOthersFill: while others hold the room that a recall needs nothing is asked of the service for it, also not when
// the job's output has expired meanwhile, and what it waits for is told. With room again it goes on by itself, with one more job.
func TestRecallOnADiskThatOthersFill(t *testing.T) {
	dir := smallDisk(t)
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.StateDir, o.MinFree, o.CacheSize, o.StagingSize = filepath.Join(dir, "state"), 120<<20, 128<<20, 64<<20
		})
		ctx := context.Background()
		ino, data := r.coldFile("f", 10<<20)
		ended := make(chan RecallResult, 1)
		go func() {
			res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
			if !errors.Is(err, ErrClosing) {
				t.Errorf("%+v, %v", res, err)
			}
			ended <- res
		}()
		time.Sleep(time.Hour)
		fillDisk(t, dir, 90<<20) // below --min-free, and enough for the catalog
		explained := func(want string) {
			t.Helper()
			s, err := r.e.Stat(ctx, ino)
			if err != nil || s.State != "recalling" || !strings.Contains(s.Explain, want) || s.ETA != nil {
				t.Errorf("%+v, %v", s, err)
			}
			st, err := r.e.Status(ctx)
			if err != nil || len(st.Retrievals) != 1 || !strings.Contains(st.Retrievals[0].Error, want) {
				t.Errorf("%+v, %v", st.Retrievals, err)
			}
		}
		time.Sleep(4 * time.Hour)
		explained("room")
		time.Sleep(22 * time.Hour)
		explained("room")
		r.jobs(1)
		time.Sleep(80 * time.Hour)
		explained("expired")
		recs := r.retrievals()
		if len(recs) != 1 || recs[0].Expired != 1 || recs[0].JobID != "" {
			t.Errorf("records %+v", recs)
		}
		r.jobs(1)
		if n := r.srv.Count(cas.OpJobOutput); n != 0 {
			t.Errorf("%d outputs were asked for", n)
		}
		r.restart()
		time.Sleep(10 * time.Hour)
		explained("room")
		r.jobs(1)
		<-ended // the command ended with the program

		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		time.Sleep(2 * time.Second) // the disk is looked at once a second
		r.want(ino, data, 0, len(data))
		if took := time.Since(at); took > 4*time.Hour+5*time.Minute {
			t.Errorf("it took %v", took)
		}
		r.jobs(2)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
	})
}

// TestDiskFillsInTheMiddleOfARecall: room is looked for now and then, and what has come stays.
func TestDiskFillsInTheMiddleOfARecall(t *testing.T) {
	dir := smallDisk(t)
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.StateDir, o.MinFree, o.CacheSize, o.Fetches = filepath.Join(dir, "state"), 120<<20, 128<<20, 1
		})
		rc := r.e.recall
		ino, data := r.coldFile("f", 40<<20) // two pieces
		tries := 0
		rc.mu.Lock()
		check := rc.audit
		rc.audit = func() {
			check()
			tries++
		}
		rc.mu.Unlock()
		var once sync.Once
		r.e.atPoints(func(point string) {
			if point == "recall.verified" {
				once.Do(func() { fillDisk(t, dir, 90<<20) })
			}
		})
		ended := make(chan RecallResult, 1)
		go func() {
			res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
			if err != nil {
				t.Error(err)
			}
			ended <- res
		}()
		time.Sleep(6 * time.Hour)
		rc.mu.Lock()
		before := tries
		rc.mu.Unlock()
		time.Sleep(10 * time.Hour)
		rc.mu.Lock()
		if n := tries - before; n < 300 || n > 600 {
			t.Errorf("room was looked for %d times in ten hours", n)
		}
		rc.mu.Unlock()
		if s, err := r.e.Stat(t.Context(), ino); err != nil || s.State != "recalling" || s.Progress != 0.8 || s.ETA != nil || !strings.Contains(s.Explain, "waits for room") {
			t.Errorf("%+v, %v", s, err)
		}
		time.Sleep(30 * time.Hour)
		r.jobs(1)
		if recs := r.retrievals(); len(recs) != 1 || recs[0].Expired != 1 || recs[0].State != catalog.Wanted {
			t.Errorf("records %+v", recs)
		}
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		if res := <-ended; res.Local != 1 || res.Failed != 0 {
			t.Errorf("%+v", res)
		}
		if took := time.Since(at); took > 4*time.Hour+5*time.Minute {
			t.Errorf("it took %v", took)
		}
		r.jobs(2)
		if n := r.srv.Count(cas.OpJobOutput); n != 2 {
			t.Errorf("%d outputs were asked for, want 2", n)
		}
		r.want(ino, data, 0, len(data))
	})
}

// TestRecallBegunOnAFullDisk: it is queued, and begins when there is room. What it waits for is told meanwhile, and it can be cancelled;
// what will never fit fails at once.
func TestRecallBegunOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.StateDir, o.MinFree, o.CacheSize, o.StagingSize = filepath.Join(dir, "state"), 120<<20, 128<<20, 64<<20
		})
		ctx := context.Background()
		ino, data := r.coldFile("f", 10<<20)
		other, _ := r.coldFile("other", 11<<20)
		fillDisk(t, dir, 90<<20) // below --min-free, and enough for the catalog
		time.Sleep(2 * time.Second)
		res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}}, nil)
		if err != nil || res.Pending != 1 || res.Failed != 0 || !strings.Contains(res.Waits, "bytes of its disk are free") {
			t.Fatalf("%+v, %v", res, err)
		}
		if res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{other}}, nil); err != nil || res.Pending != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		if _, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{other}, Cancel: true}, nil); err != nil {
			t.Fatal(err)
		}
		ended := make(chan RecallResult, 1)
		var mu sync.Mutex
		said := ""
		wait := func() {
			res, _ := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Wait: true}, func(p Progress) {
				mu.Lock()
				defer mu.Unlock()
				if p.Waits != "" {
					said = p.Waits
				}
			})
			ended <- res
		}
		go wait()
		time.Sleep(10 * time.Hour)
		mu.Lock()
		if !strings.Contains(said, "room for 10485760 bytes") || !strings.Contains(said, "are kept free") {
			t.Errorf("who waits is told %q", said)
		}
		mu.Unlock()
		if s, err := r.e.Status(ctx); err != nil || s.RecallsQueued != 2 || !strings.Contains(s.RecallsWait, "room for 10485760 bytes") {
			t.Errorf("%+v, %v", s, err)
		}
		r.restart()
		<-ended // the command ended with the program
		go wait()
		time.Sleep(time.Hour)
		r.jobs(0)

		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		if res := <-ended; res.Local != 1 || res.Failed != 0 {
			t.Errorf("%+v", res)
		}
		if took := time.Since(at); took > 4*time.Hour+5*time.Minute {
			t.Errorf("it took %v", took)
		}
		r.jobs(1)
		r.want(ino, data, 0, len(data))
		if s, err := r.e.Status(ctx); err != nil || s.RecallsQueued != 0 || s.RecallsWait != "" {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// TestRecallLargerThanTheDisk: what would not fit on an empty disk does not wait for one, however large the cache may become.
func TestRecallLargerThanTheDisk(t *testing.T) {
	dir := smallDisk(t) // of 400 MiB
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheDir, o.MinFree, o.CacheSize = filepath.Join(dir, "cache"), 380<<20, 1<<40
		})
		ino, _ := r.coldFile("f", 30<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
		if err != nil || res.Failed != 1 || len(res.Failures) != 1 || !strings.Contains(res.Failures[0].Reason, "do not fit") {
			t.Errorf("%+v, %v", res, err)
		}
		r.jobs(0)
	})
}
