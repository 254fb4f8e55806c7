package jobs

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// settler knows when each staged file nobody writes to is to be uploaded, and
// when a failed upload is tried again. It holds numbers only.
type settler struct {
	mu    sync.Mutex
	items map[uint64]*settleItem
	heap  settleHeap
	wake  chan struct{}
}

type settleItem struct {
	ino   uint64
	due   time.Time
	retry bool // a failed upload: quiet does not matter
	index int
}

func newSettler() *settler {
	return &settler{items: map[uint64]*settleItem{}, wake: make(chan struct{}, 1)}
}

// start sets the time at which ino is uploaded unless something moves it.
func (s *settler) start(ino uint64, due time.Time) { s.set(ino, due, false) }

// retry sets the time of another attempt.
func (s *settler) retry(ino uint64, due time.Time) { s.set(ino, due, true) }

func (s *settler) set(ino uint64, due time.Time, retry bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.items[ino]
	if it == nil {
		it = &settleItem{ino: ino, due: due, retry: retry}
		s.items[ino] = it
		heap.Push(&s.heap, it)
	} else {
		it.due, it.retry = due, retry
		heap.Fix(&s.heap, it.index)
	}
	if it.index == 0 {
		s.kick()
	}
}

// touch moves the time of a file that waits for quiet.
func (s *settler) touch(ino uint64, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.items[ino]; it != nil && !it.retry {
		it.due = due
		heap.Fix(&s.heap, it.index)
	}
}

// drop forgets ino.
func (s *settler) drop(ino uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.items[ino]; it != nil {
		heap.Remove(&s.heap, it.index)
		delete(s.items, ino)
	}
}

// hurry makes everything that waits for quiet due now.
func (s *settler) hurry(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.items {
		if !it.retry && it.due.After(now) {
			it.due = now
		}
	}
	heap.Init(&s.heap)
	s.kick()
}

// waiting counts the files that wait for quiet.
func (s *settler) waiting() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, it := range s.items {
		if !it.retry {
			n++
		}
	}
	return n
}

func (s *settler) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pop returns what is due and when the next will be.
func (s *settler) pop(now time.Time) (due []uint64, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.heap) > 0 {
		it := s.heap[0]
		if it.due.After(now) {
			return due, it.due
		}
		heap.Pop(&s.heap)
		delete(s.items, it.ino)
		due = append(due, it.ino)
	}
	return due, time.Time{}
}

// runSettle hands files to the uploader when they are due.
func (e *Engine) runSettle(ctx context.Context) error {
	if e.opts.ReadOnly {
		return nil
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.settle.wake:
		case <-timer.C:
		}
		due, next := e.settle.pop(time.Now())
		for _, ino := range due {
			e.up.enqueue(ino)
		}
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), 0))
		}
	}
}

// quiet restarts the settle clock of a file that was renamed or given other attributes.
func (e *Engine) quiet(ino uint64) {
	e.settle.touch(ino, time.Now().Add(e.opts.Settle))
}

// pressure is told by the local store that staging fills up: what waits for
// quiet goes now, open files are streamed, and deleted files give their room back.
func (e *Engine) pressure() {
	e.bin.hurryUp()
	e.settle.hurry(time.Now())
	e.streamPressure()
}

type settleHeap []*settleItem

func (h settleHeap) Len() int           { return len(h) }
func (h settleHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h settleHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *settleHeap) Push(x any) {
	it := x.(*settleItem)
	it.index = len(*h)
	*h = append(*h, it)
}
func (h *settleHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
