package jobs

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// sumLocked counts what is on its way anew.
func (r *recaller) sumLocked() (sum onWay) {
	for _, rts := range r.byKey {
		for _, rt := range rts {
			one := onWayOf(rt)
			sum.bytes += one.bytes
			sum.explicit += one.explicit
			sum.held += one.held
			sum.crowded += one.crowded
		}
	}
	return sum
}

// watchCounts holds what is kept against what is there, after every change. Called before the engine runs.
func (r *recaller) watchCounts(t *testing.T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.audit = func() {
		if got, want := r.onWay, r.sumLocked(); got != want {
			t.Errorf("%+v is kept, %+v is on its way", got, want)
		}
	}
	r.audit()
}

// TestCountsAreKept drives retrievals through all that can become of them, with the rig's check of the counts after each change.
func TestCountsAreKept(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize, o.Tier, o.PollMax, o.GuardFiles = 12<<20, "expedited", time.Hour, -1
			o.PartSize, o.SegmentSize, o.SingleBelow, o.Window, o.WindowAbove = 1<<20, 2<<20, 1<<20, 1<<20, 1<<20
		})
		inos := r.coldFiles(8, 5<<20)
		data := make(map[uint64][]byte)
		for i, ino := range inos {
			data[ino] = blob(fmt.Sprintf("f%03d", i), 5<<20)
		}
		rng := rand.New(rand.NewPCG(1, 3))
		for _, f := range []castest.Fault{
			{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 100}, {Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 10},
			{Op: cas.OpInitiateJob, Kind: castest.LoseReply}, {Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"},
		} {
			f.Probability = 0.1
			r.srv.Inject(f)
		}
		for i := range 60 {
			ino := inos[rng.IntN(len(inos))]
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(600))*time.Second)
			var err error
			switch i % 6 {
			case 0:
				_, err = r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
			case 1:
				_, err = r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Cancel: true}, nil)
			case 2:
				_, err = r.e.Evict(ctx, []uint64{ino}, false)
			default:
				off := rng.Int64N(5<<20 - 1000)
				var got []byte
				if got, err = r.read(ctx, ino, off, 1000); err == nil && !bytes.Equal(got, data[ino][off:off+1000]) {
					t.Errorf("wrong bytes at %d", off)
				}
			}
			cancel()
			if err != nil && ctx.Err() == nil {
				t.Logf("%d: %v", i, err)
			}
			if i%25 == 24 {
				r.restart()
			}
		}
		r.e.recall.mu.Lock()
		seen := r.e.recall.onWay
		r.e.recall.mu.Unlock()
		// All of it ends, and the counts with it.
		if _, err := r.e.Recall(context.Background(), RecallRequest{Cancel: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(72 * time.Hour)
		for _, rec := range r.retrievals() {
			if rec.State != catalog.Failed {
				t.Errorf("left: %+v", rec)
			}
		}
		r.e.recall.mu.Lock()
		defer r.e.recall.mu.Unlock()
		if r.e.recall.onWay != (onWay{}) {
			t.Errorf("%+v is on its way when nothing is; before, %+v", r.e.recall.onWay, seen)
		}
	})
}
