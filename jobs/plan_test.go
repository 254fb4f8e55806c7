package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

func TestWindows(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// TestTiers: what is asked for with each --tier, by a read and by a recall.
func TestTiers(t *testing.T) {
	const big = cas.MaxExpedited
	for _, c := range []struct {
		tier     string
		n        int64
		explicit bool
		refused  bool // the service did not take Expedited
		want     cas.Tier
	}{
		{"standard", 10, false, false, cas.Standard},
		{"bulk", 10, false, false, cas.Bulk},
		{"expedited", big - 1, false, false, cas.Expedited},
		{"expedited", big, false, false, cas.Standard},
		{"expedited", 10, true, false, cas.Expedited},
		{"expedited", 10, false, true, cas.Standard},
		{"auto", big - 1, false, false, cas.Expedited}, // somebody waits
		{"auto", big, false, false, cas.Standard},
		{"auto", 10, false, true, cas.Standard},
		{"auto", 10, true, false, cas.Bulk},
	} {
		rt := &retrieval{rec: catalog.Retrieval{Tier: c.tier, Len: c.n, Explicit: c.explicit}, standard: c.refused}
		if got := rt.tier(); got != c.want {
			t.Errorf("%+v: %s is asked for", c, got)
		}
	}
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "auto" })
		ino, data := r.coldFile("read", 1000)
		began := time.Now()
		r.want(ino, data, 0, 1000)
		if d := time.Since(began); d > 5*time.Minute {
			t.Errorf("a small file took %v", d)
		}
		ino, _ = r.coldFile("recalled", 1000)
		for _, tier := range []string{"", "expedited"} { // the second asks for nothing: it is on its way
			if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Tier: tier}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		got := make(map[cas.Tier]int)
		for j, err := range r.client.Jobs(t.Context(), "v", cas.JobFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			got[j.Tier]++
		}
		if len(got) != 2 || got[cas.Expedited] != 1 || got[cas.Bulk] != 1 {
			t.Errorf("jobs by tier: %v", got)
		}
	})
}
