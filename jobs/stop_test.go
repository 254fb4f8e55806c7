package jobs

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// --drain=stop: what waits to be quiet waits for the next mount.
func TestDrainThatHasEndedBeginsNothing(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ino := r.write("f", []byte("not yet"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	left, err := r.e.Drain(ctx, nil)
	if !errors.Is(err, context.Canceled) || len(left) != 1 || left[0].State != "staged" {
		t.Errorf("left %v, %v", left, err)
	}
	if _, _, ok := r.e.up.active(ino); ok {
		t.Error("an upload was asked for")
	}
	r.close()
	if n := r.srv.Count(cas.OpUploadArchive); n != 0 {
		t.Errorf("%d uploads", n)
	}
}

// A stop does not throw away the answer to a request that makes an archive: the next mount would make another.
func TestStopWaitsForTheAnswer(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	r.close()
	r.openWith(func(*Engine) bool { return false })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	r.stop = func() error { return <-ran }
	go func() { ran <- r.e.Run(ctx) }()

	ino := r.write("f", []byte("once"))
	answer := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Hold})
	r.e.up.enqueue(ino)
	eventually(t, func() bool { return r.srv.Count(cas.OpUploadArchive) == 1 })
	cancel()
	answer()
	r.reopen()
	r.wantState(ino, "resident")
	r.wantArchives(1)
	if n := r.srv.Count(cas.OpUploadArchive); n != 1 {
		t.Errorf("%d uploads", n)
	}
}

// But not for ever, and not for one that nobody wants any more.
func TestStopWaitsNotForEver(t *testing.T) {
	for _, superseded := range []bool{false, true} {
		inBubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			longer, end := linger(ctx)
			defer end()
			begin := time.Now()
			want := answerGrace
			if superseded {
				cancel(errSuperseded)
				want = 0
			} else {
				cancel(nil)
			}
			<-longer.Done()
			if d := time.Since(begin); d != want {
				t.Errorf("superseded %v: ended after %v, want %v", superseded, d, want)
			}
		})
	}
}
