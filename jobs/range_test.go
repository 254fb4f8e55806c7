package jobs

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
)

// recallRange recalls a range, and reads it without anything being fetched anew.
func (r *recallRig) recallRange(ino uint64, data []byte, off, n int64, within time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour)
	defer cancel()
	began := time.Now()
	res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Off: off, Len: n, Wait: true}, nil)
	if err != nil || res.Local != 1 {
		r.t.Errorf("recall of %d+%d: %+v, %v", off, n, res, err)
		return
	}
	if took := time.Since(began); took > within {
		r.t.Errorf("recall of %d+%d took %v", off, n, took)
	}
	fetched := r.srv.Count(cas.OpJobOutput)
	r.want(ino, data, off, int(n))
	if more := r.srv.Count(cas.OpJobOutput) - fetched; more != 0 {
		r.t.Errorf("of %d+%d %d pieces are not there after the recall", off, n, more)
	}
}

// Ranges of a file of many archives, larger than the cache, are recalled one after the other: what the cache has of earlier ones gives
// way, and nothing of what was just brought.
func TestRecallOfRangesInTurn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 5<<20, 1<<20
			o.CacheSize, o.Tier = 32<<20, "expedited"
		})
		ino, data := r.coldFile("f", 100<<20)
		for i := range int64(5) {
			r.recallRange(ino, data, i*(15<<20), 15<<20, 4*time.Minute)
		}
		r.noneLeft()
	})
}

// A range of an archive that is larger than the cache and streams comes although nobody reads there, and does not give way to
// where its reader was, nor wait for what other streams hold. The recall ends when the range is there; the stream when nobody comes back.
func TestRecallOfARangeOfAStream(t *testing.T) {
	t.Parallel()
	for _, others := range []int{0, 4} {
		t.Run(fmt.Sprint(others), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier = 32<<20, "expedited" })
				ino, data := r.coldFile("f", 100<<20)
				for i, other := range r.coldFiles(others, 100<<20) {
					r.want(other, blob(fmt.Sprintf("f%03d", i), 100<<20), 0, 1000)
				}
				r.want(ino, data, 80<<20, 1000)
				time.Sleep(2 * time.Minute)
				r.recallRange(ino, data, 10<<20, 20<<20, time.Minute)
				r.recallRange(ino, data, 60<<20, 5<<20, time.Minute)
				r.jobs(1 + others)
				time.Sleep(2 * time.Hour)
				r.noneLeft()
			})
		})
	}
}

// A recall does not report a file as local some of which had to give way before the rest of it was there.
func TestRecallOfWhatGaveWay(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 5<<20, 1<<20
			o.CacheSize, o.Tier = 16<<20, "expedited"
		})
		ino, data := r.coldFile("f", 10<<20)
		other, theirs := r.coldFile("other", 12<<20)
		r.want(ino, data, 0, 100)
		time.Sleep(time.Minute)
		type answer struct {
			res RecallResult
			err error
		}
		done := make(chan answer, 1)
		go func() { // four hours for the second archive; the first is here
			res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{ino}, Tier: "standard", Wait: true}, nil)
			done <- answer{res, err}
		}()
		time.Sleep(time.Minute)
		for off := int64(0); off < 12<<20; off += 4 << 20 {
			r.want(other, theirs, off, 4<<20)
		}
		a := <-done
		if state := r.state(ino); a.err != nil || (a.res.Local == 1) != (state == "resident") || a.res.Local+a.res.Failed != 1 {
			t.Errorf("%+v, %v; the file is %s", a.res, a.err, state)
		}
	})
}

// Recalls of ranges of one file that do not fit in the cache together all end, the first of them with all that it is for.
func TestRecallsOfRangesTogether(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 5<<20, 1<<20
			o.CacheSize, o.Tier = 32<<20, "expedited"
		})
		ino, data := r.coldFile("f", 100<<20)
		for off := int64(0); off < 15<<20; off += 5 << 20 {
			r.want(ino, data, off, 5<<20)
		}
		time.Sleep(time.Minute)
		var wg sync.WaitGroup
		recall := func(off, n int64, tier string, local int64) {
			wg.Go(func() {
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Hour)
				defer cancel()
				res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Off: off, Len: n, Tier: tier, Wait: true}, nil)
				if took := time.Since(began); err != nil || int64(res.Local) < local || res.Local+res.Failed != 1 || took > 5*time.Hour {
					t.Errorf("recall of %d+%d: %+v, %v after %v", off, n, res, err, took)
				}
			})
			time.Sleep(time.Minute)
		}
		recall(0, 20<<20, "standard", 1)
		recall(40<<20, 18<<20, "expedited", 0)
		wg.Wait()
		r.want(ino, data, 0, 20<<20)
	})
}
