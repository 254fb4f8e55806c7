package content

// waiter is one place in a queue. err is valid when done is closed.
type waiter struct {
	n          int64
	done       chan struct{}
	err        error
	prev, next *waiter
}

type fifo struct {
	head, tail *waiter
	count      int
}

func (q *fifo) len() int       { return q.count }
func (q *fifo) first() *waiter { return q.head }

func (q *fifo) push(n int64) *waiter {
	w := &waiter{n: n, done: make(chan struct{}), prev: q.tail}
	if q.tail == nil {
		q.head = w
	} else {
		q.tail.next = w
	}
	q.tail = w
	q.count++
	return w
}

func (q *fifo) remove(w *waiter) {
	if w.prev == nil {
		q.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	q.count--
}
