package jobs

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

func TestReadersJoinOneJob(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 5<<20+7)
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s before", got)
		}
		progress := func(want string) {
			t.Helper()
			if b, err := r.e.Getxattr(t.Context(), ino, "user.cas.progress"); err != nil || string(b) != want {
				t.Errorf("progress %s, %v, want %s", b, err, want)
			}
		}
		progress("0.000")
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
		progress("1.000")
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
	t.Parallel()
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
		synctest.Wait() // the reader has its bytes before the retrieval is through
		var st Status
		r.e.recall.fill(&st)
		if st.Guard.Bytes != 0 || st.Guard.Files != 0 {
			t.Errorf("the guard counts adopted jobs: %+v", st.Guard)
		}
	})
}

// A crash has left records of recalls that nobody needs any more; then the disk is full. It can be mounted all the same.
func TestMountOnAFullDiskForgetsRecalls(t *testing.T) {
	dir := smallDisk(t)
	r := newRig(t, func(o *Options) { o.StateDir = filepath.Join(dir, "state") })
	ino := r.write("f", pattern(300<<10, 1))
	r.sync()
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		v, err := tx.Version(ino, 1)
		if err != nil {
			return err
		}
		return tx.PutRetrieval(catalog.Retrieval{
			ID: tx.NextID(), Archive: v.Extents[0].Archive, VaultName: "v", Len: v.Size, State: catalog.Wanted, Created: time.Now().UnixNano(), Ino: ino, V: 1,
		})
	})
	r.must(err)
	r.close()
	fillDisk(t, dir, 40<<20)
	r.open()
	r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
		for rec, err := range tx.Retrievals() {
			if err != nil {
				return err
			}
			t.Errorf("%+v is left", rec)
		}
		return nil
	}))
}
