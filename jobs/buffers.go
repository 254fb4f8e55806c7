package jobs

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/casfs/casfs/cas"
)

// buffers hands out the part buffers that bound the memory of uploads. Big
// files may hold at most half of them while there are small ones, so one huge file does not
// starve ten thousand small ones. (While small ones wait for a buffer would not do: between two of
// them each buffer would go to a big one, for as long as a part takes.)
type buffers struct {
	size  int64 // of each
	total int
	small atomic.Int64 // small files that want buffers, now or soon

	mu    sync.Mutex
	free  [][]byte
	used  int
	big   int // of used, those held by big files
	waits []*bufWait
	idle  *time.Timer // gives the memory back
}

// bufIdle is how long buffers nobody uses are kept: between two segments of a stream they
// are wanted again at once.
const bufIdle = 5 * time.Second

type bufWait struct {
	n    int
	big  bool
	got  chan struct{}
	done bool
}

func newBuffers(n int, size int64) *buffers { return &buffers{size: size, total: n} }

// get waits for n buffers, or until ctx ends.
func (b *buffers) get(ctx context.Context, n int, big bool) ([][]byte, error) {
	n = min(n, b.total)
	b.mu.Lock()
	w := &bufWait{n: n, big: big, got: make(chan struct{})}
	b.waits = append(b.waits, w)
	b.grantLocked()
	b.mu.Unlock()
	select {
	case <-w.got:
	case <-ctx.Done():
		b.mu.Lock()
		if !w.done {
			for i, x := range b.waits {
				if x == w {
					b.waits = append(b.waits[:i], b.waits[i+1:]...)
					break
				}
			}
			b.grantLocked()
			b.mu.Unlock()
			return nil, ctx.Err()
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([][]byte, 0, n)
	for range n {
		if k := len(b.free); k > 0 {
			out = append(out, b.free[k-1])
			b.free[k-1] = nil
			b.free = b.free[:k-1]
		} else {
			out = append(out, takePartMemory(b.size))
		}
	}
	return out, nil
}

// put gives buffers back; big as in get.
func (b *buffers) put(bufs [][]byte, big bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, bufs...)
	b.used -= len(bufs)
	if big {
		b.big -= len(bufs)
	}
	b.grantLocked()
	if b.used > 0 {
		return
	}
	if b.idle == nil {
		b.idle = time.AfterFunc(bufIdle, b.drop)
	} else {
		b.idle.Reset(bufIdle)
	}
}

// drop gives the memory back when nobody uses it.
func (b *buffers) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used == 0 {
		givePartMemory(b.free)
		b.free = nil
	}
}

// count notes that there is one small file more or less.
func (b *buffers) count(n int64) {
	if b.small.Add(n) == 0 {
		b.mu.Lock()
		b.grantLocked()
		b.mu.Unlock()
	}
}

// grantLocked serves waiters in order, but lets small ones pass big ones that are at their half.
func (b *buffers) grantLocked() {
	small := b.small.Load() > 0
	for _, w := range b.waits {
		small = small || !w.big
	}
	half := max(b.total/2, 1)
	kept := b.waits[:0]
	blocked := false
	for _, w := range b.waits {
		switch {
		case blocked, b.used+w.n > b.total:
			// Whoever needs several is not starved by those who need one.
			blocked = blocked || !w.big
			kept = append(kept, w)
		case w.big && small && b.big+w.n > half:
			kept = append(kept, w)
		default:
			b.used += w.n
			if w.big {
				b.big += w.n
			}
			w.done = true
			close(w.got)
		}
	}
	clear(b.waits[len(kept):])
	b.waits = kept
}

// pieces is a request body in several buffers.
type pieces struct {
	bufs [][]byte // all full but the last
	size int64
}

func (p pieces) Size() int64 { return p.size }

func (p pieces) ReadAt(b []byte, off int64) (int, error) {
	var n int
	each := int64(len(p.bufs[0]))
	for n < len(b) {
		if off >= p.size {
			return n, io.EOF
		}
		buf := p.bufs[off/each]
		m := copy(b[n:min(int64(len(b)), int64(n)+p.size-off)], buf[off%each:])
		n += m
		off += int64(m)
	}
	return n, nil
}

// paced is a body whose reading obeys the bandwidth limit and is counted.
type paced struct {
	cas.Body
	ctx   context.Context
	limit *rate.Limiter
}

func (p paced) ReadAt(b []byte, off int64) (int, error) {
	for from := 0; from < len(b); {
		n := min(len(b)-from, p.limit.Burst())
		if err := p.limit.WaitN(p.ctx, n); err != nil {
			return 0, err
		}
		from += n
	}
	return p.Body.ReadAt(b, off)
}

// pace applies the bandwidth limit to a body.
func (u *uploader) pace(ctx context.Context, b cas.Body) cas.Body {
	if u.limit == nil {
		return b
	}
	return paced{b, ctx, u.limit}
}
