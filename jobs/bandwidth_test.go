package jobs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
)

// wire watches the bodies that go to the service.
type wire struct {
	under http.RoundTripper
	held  func() // when set, is called at the beginning of every request

	mu       sync.Mutex
	sent     []sent
	inflight int64
	most     int64 // bytes of bodies on their way at once
}

type sent struct {
	at time.Time
	n  int64
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("X-Cas-Content-Sha256") == "" {
		return w.under.RoundTrip(req)
	}
	if w.held != nil {
		w.held()
	}
	w.mu.Lock()
	w.inflight += req.ContentLength
	w.most = max(w.most, w.inflight)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.inflight -= req.ContentLength
		w.mu.Unlock()
	}()
	again := req.Clone(req.Context())
	again.Body = &wireBody{req.Body, w}
	return w.under.RoundTrip(again)
}

type wireBody struct {
	io.ReadCloser
	w *wire
}

func (b *wireBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 32<<10)]) // as net/http does
	b.w.mu.Lock()
	b.w.sent = append(b.w.sent, sent{time.Now(), int64(n)})
	b.w.mu.Unlock()
	return n, err
}

// fastest is the most that was sent within any period of d.
func (w *wire) fastest(d time.Duration) (most int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sum int64
	first := 0
	for _, s := range w.sent {
		sum += s.n
		for s.at.Sub(w.sent[first].at) > d {
			sum -= w.sent[first].n
			first++
		}
		most = max(most, sum)
	}
	return most
}

func (w *wire) bytes() (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sent {
		n += s.n
	}
	return n
}

// wireRig is newRig with all requests through a wire.
func wireRig(t testing.TB, change func(*Options)) (*rig, *wire) {
	var w *wire
	r := newRig(t, func(o *Options) {
		if change != nil {
			change(o)
		}
		o.Settle = time.Hour // Sync says when
	})
	r.close()
	w = &wire{under: r.srv.Transport()}
	cr := r.srv.Store.Credentials()
	c, err := cas.New(cas.Options{
		Endpoint: "http://cas.test", AppID: cr.AppID, Transport: w,
		Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey},
	})
	r.must(err)
	t.Cleanup(c.Close)
	r.o.Client = c
	r.open()
	return r, w
}

// All uploads together send as fast as --bwlimit-up says: single ones, parts and streams.
func TestBandwidthUp(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	inBubble(t, func(t *testing.T) {
		r, w := wireRig(t, func(o *Options) { o.BandwidthUp, o.virtualTime, o.StreamAbove = limit, true, 24<<20 })
		defer r.close()
		ctx := context.Background()
		var size int64
		for i := range 40 { // by one request, with a buffer and without
			n := []int{50 << 10, 700 << 10}[i%2]
			r.write(fmt.Sprintf("small%d", i), pattern(n, uint64(i)))
			size += int64(n)
		}
		for i := range 3 { // in parts
			r.write(fmt.Sprintf("parts%d", i), pattern(9<<20, uint64(i)))
			size += 9 << 20
		}
		began := time.Now()
		r.must(r.e.Sync(ctx, nil, nil))
		took := time.Since(began)
		if n := w.bytes(); n != size {
			t.Errorf("%d bytes were sent of %d", n, size)
		}
		ideal := time.Duration(float64(size) / limit * float64(time.Second))
		if took < ideal-time.Second || took > ideal+ideal/20 {
			t.Errorf("%d bytes took %v, not %v", size, took, ideal)
		}
		t.Logf("%d bytes at %d B/s took %v (%v)", size, limit, took, ideal)

		// A file that is being written has no limit of its own.
		before := w.bytes()
		_, h, err := r.e.Create(ctx, someone, r.vault, "stream", 0o644, OpenFlags{Write: true})
		r.must(err)
		began = time.Now()
		r.writeAll(h, pattern(30<<20, 1), 0)
		other := r.write("other", pattern(5<<20, 2))
		var wg sync.WaitGroup
		wg.Go(func() { r.must(r.e.Sync(ctx, []uint64{other}, nil)) })
		time.Sleep(20 * time.Second)
		n := w.bytes() - before
		if at := float64(n) / time.Since(began).Seconds(); at < 0.9*limit || at > 1.1*limit {
			t.Errorf("%d bytes in %v beside a stream", n, time.Since(began))
		}
		h.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		wg.Wait()
		// Never more than the limit, and the tenth of a second that may have been saved.
		for _, d := range []time.Duration{time.Second, 10 * time.Second} {
			if most, may := w.fastest(d), int64(d.Seconds()*limit)+limit/10+64<<10; most > may {
				t.Errorf("%d bytes within %v, %d may be", most, d, may)
			}
		}
	})
}

// An upload that waits for its share ends at once when its file changes or goes, and when the program ends.
func TestBandwidthUpIsLeftAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, w := wireRig(t, func(o *Options) { o.BandwidthUp, o.virtualTime = 1<<10, true }) // half an hour for 2 MiB
		ctx := context.Background()
		sizes := map[string]int{"single": 1 << 20, "parts": 5 << 20}
		for name, size := range sizes {
			ino := r.write(name, pattern(size, 1))
			failed := make(chan error, 1)
			sctx, cancel := context.WithCancel(ctx)
			go func() { failed <- r.e.Sync(sctx, []uint64{ino}, nil) }()
			time.Sleep(time.Minute)
			if _, _, ok := r.e.up.active(ino); !ok {
				t.Errorf("%s is not being uploaded", name)
			}
			cancel()
			<-failed
			r.must(r.e.Unlink(ctx, r.vault, name))
			synctest.Wait() // not a moment passes
			if _, _, ok := r.e.up.active(ino); ok {
				t.Errorf("%s is still being uploaded", name)
			}
		}
		if n := r.e.up.bufs.inUse(); n > 0 {
			t.Errorf("%d buffers", n)
		}
		if n := w.bytes(); n > 3*64<<10+2*60<<10 {
			t.Errorf("%d bytes were sent in two minutes", n)
		}
		for name, size := range sizes {
			r.write(name, pattern(size, 1))
		}
		sctx, cancel := context.WithCancel(ctx)
		go r.e.Sync(sctx, nil, nil)
		time.Sleep(time.Minute)
		cancel()
		began := time.Now()
		r.close()
		if d := time.Since(began); d > 0 {
			t.Errorf("the end took %v", d)
		}
	})
}
