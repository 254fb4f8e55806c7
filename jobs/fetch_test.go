package jobs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// TestRangesComeInParallel: Fetches ranges of one output are on their way at a time.
func TestRangesComeInParallel(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Fetches = 12<<20, 3 }) // pieces of 1 MiB
		ino, data := r.coldFile("f", 7<<20+5)
		let := r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Hold})
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Hour)
		defer cancel()
		read := make(chan error)
		go func() {
			_, err := r.read(ctx, ino, 0, 100)
			read <- err
		}()
		time.Sleep(4*time.Hour + time.Minute)
		synctest.Wait()
		if got := r.srv.Count(cas.OpJobOutput); got != 3 {
			t.Errorf("%d ranges are on their way, want 3", got)
		}
		let()
		if err := <-read; err != nil {
			t.Error(err)
		}
		r.want(ino, data, 0, len(data))
		r.jobs(1)
		if got := r.srv.Count(cas.OpJobOutput); got != 8 {
			t.Errorf("%d ranges were fetched, want 8", got)
		}
	})
}

// TestRestartFetchesWhatIsMissing: what was verified before a stop is not fetched again, nor is another job asked for.
func TestRestartFetchesWhatIsMissing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize, o.Fetches, o.BandwidthDown, o.Tier = 24<<20, 2, 64<<10, "expedited" // pieces of 2 MiB, half a minute each
		})
		const pieces = 10
		ino, data := r.coldFile("f", pieces*2<<20)
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		if _, err := r.read(ctx, ino, int64(len(data))-1, 1); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil || s.State != "recalling" || s.Progress <= 0 || s.Progress >= 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		r.restart()
		r.want(ino, data, 0, len(data))
		r.jobs(1)
		if got := r.srv.Count(cas.OpJobOutput); got > pieces+2 { // and those under way at the stop
			t.Errorf("%d ranges were fetched, of %d", got, pieces)
		}
	})
}

// TestRoomBesideAnotherPiece: room is made for one piece while another of the same retrieval finds none, and says so, and while a
// recall of the file is asked for.
func TestRoomBesideAnotherPiece(t *testing.T) {
	r := newRig(t, nil)
	rc := r.e.recall
	rt := rc.newRetrieval(catalog.Archive{Num: 1}, catalog.Extent{}, 0, catalog.Retrieval{})
	noted := make(chan struct{})
	go func() {
		defer close(noted)
		rc.mu.Lock()
		defer rc.mu.Unlock()
		rt.streaming, rt.large = false, false // as fetchFailedLocked and open do
		rt.rec.Explicit = false               // as makeExplicitLocked sets it
	}()
	if rc.dropForRange(&flight{rt: rt, large: true}, 4096) {
		t.Error("room was made for what is not recalled")
	}
	release, err := rc.makeRoom(context.Background(), &flight{rt: rt}, 4096)
	r.must(err)
	release()
	<-noted
}
