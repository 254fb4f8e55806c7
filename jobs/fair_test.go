package jobs

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// inUse counts the buffers handed out.
func (b *buffers) inUse() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Huge files, more of them than may upload at once, over a link on which each part takes ten seconds: small ones
// that come meanwhile have places and buffers of their own, and so have the huge ones while small ones come without end.
func TestFairOverASlowLink(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Settle, o.virtualTime = time.Hour, true
			o.Parts, o.Uploads, o.SegmentSize, o.StreamAbove = 4, 4, 1<<30, 1<<40
		})
		defer r.close()
		ctx := context.Background()
		for op, d := range map[string]time.Duration{cas.OpUploadPart: 10 * time.Second, cas.OpUploadArchive: time.Second} {
			r.srv.Inject(castest.Fault{Op: op, Kind: castest.Delay, Delay: d})
		}
		var wg sync.WaitGroup
		var huge []uint64
		for i := range 3 {
			_, h, err := r.e.Create(ctx, someone, r.vault, fmt.Sprintf("huge%d", i), 0o644, OpenFlags{Write: true})
			r.must(err)
			_, err = h.WriteAt(ctx, someone, []byte("the end"), 45<<20)
			r.must(err)
			h.Release()
			huge = append(huge, h.Ino())
		}
		sctx, cancel := context.WithCancel(ctx)
		wg.Go(func() { r.e.Sync(sctx, huge, nil) })
		time.Sleep(95 * time.Second)
		parts := r.srv.Count(cas.OpUploadPart)
		if parts != 40 {
			t.Errorf("%d parts in the first 95 s: the huge files have all of the link while nobody else wants it", parts)
		}

		// With half of four buffers and at least two of four places 60 small ones take half a minute, and ten seconds to begin.
		var small []uint64
		for i := range 60 {
			small = append(small, r.write(fmt.Sprintf("small%d", i), pattern(300<<10, uint64(i))))
		}
		at := time.Now()
		r.must(r.e.Sync(ctx, small, nil))
		took := time.Since(at)
		if took > 45*time.Second {
			t.Errorf("60 small files took %v beside huge ones", took)
		}
		// Meanwhile the huge ones had the other half.
		sent := r.srv.Count(cas.OpUploadPart) - parts
		if want := int(took/(10*time.Second)) * 2; sent < want {
			t.Errorf("%d parts of huge files in %v, want %d", sent, took, want)
		}
		t.Logf("60 small files took %v, and %d parts were sent meanwhile", took, sent)

		// Small ones without end.
		stop := make(chan struct{})
		var count atomic.Int64
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					ino := r.write(fmt.Sprintf("more%d-%d", w, i), pattern(300<<10, uint64(i)))
					r.must(r.e.Sync(ctx, []uint64{ino}, nil))
					count.Add(1)
				}
			})
		}
		parts = r.srv.Count(cas.OpUploadPart)
		time.Sleep(60 * time.Second)
		n, m := r.srv.Count(cas.OpUploadPart)-parts, count.Load()
		if n < 10 || m < 60 {
			t.Errorf("%d parts of huge files and %d small ones in a minute, want 10 and 60", n, m)
		}
		t.Logf("%d parts of huge files and %d small files in a minute", n, m)
		close(stop)
		cancel()
		wg.Wait()
	})
}

// What uploads hold in memory is as much as --parts says, however long or many the files are.
func TestMemoryIsBounded(t *testing.T) {
	var m runtime.MemStats
	heap := func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&m)
		partMemory.mu.Lock()
		defer partMemory.mu.Unlock()
		return int64(m.HeapAlloc) + partMemory.used
	}
	measure := func(long int64, many int) (most int64, w *wire) {
		r, w := wireRig(t, func(o *Options) { o.Parts, o.SegmentSize, o.StreamAbove = 4, 1<<30, 1<<40 })
		defer r.close()
		ctx := context.Background()
		_, h, err := r.e.Create(ctx, someone, r.vault, "long", 0o644, OpenFlags{Write: true})
		r.must(err)
		_, err = h.WriteAt(ctx, someone, []byte("the end"), long)
		r.must(err)
		h.Release()
		small := pattern(500<<10, 1)
		for i := range many {
			r.write(fmt.Sprintf("small%d", i), small)
		}
		before := heap()
		var requests, top atomic.Int64
		w.held = func() {
			if requests.Add(1)%2 == 0 {
				top.Store(max(top.Load(), heap()))
			}
		}
		r.must(r.e.Sync(ctx, nil, nil))
		return top.Load() - before, w
	}
	little, _ := measure(16<<20, 8)
	much, w := measure(96<<20, 48)
	t.Logf("%d bytes of memory for 20 MiB, %d for 120 MiB; %d bytes of bodies at once", little, much, w.most)
	const may = 4<<20 + 8*tiny
	if w.most > may {
		t.Errorf("%d bytes of bodies on their way at once, %d may be", w.most, may)
	}
	if much > little+4<<20 || much > may+16<<20 {
		t.Errorf("%d bytes of memory for 120 MiB, %d for 20 MiB", much, little)
	}
}

// TestLastSmallFileGivesItsHalfBack: big files get all buffers as soon as there is no small one any more, not with the next part that is sent.
func TestLastSmallFileGivesItsHalfBack(t *testing.T) {
	b := newBuffers(4, 4096)
	b.count(1)
	held, err := b.get(context.Background(), 2, true)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		more, err := b.get(context.Background(), 2, true)
		b.put(more, true)
		got <- err
	}()
	eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.waits) == 1
	})
	b.count(-1)
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the other half although nobody else wants it")
	}
	b.put(held, true)
}
