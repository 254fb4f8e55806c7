package fs

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// notifier tells the kernel what it must no longer believe. The kernel takes
// locks for that which it also holds while a request waits for us, so
// telling happens on goroutines of the notifier's own.
type notifier struct {
	m    *Mount
	told atomic.Uint64 // changes of content and attributes so far

	mu     sync.Mutex
	wake   *sync.Cond
	queue  []change
	queued map[about]bool // what waits in queue; changes with done are not merged
	closed bool

	workers sync.WaitGroup
}

type changeKind uint8

const (
	contentChanged changeKind = iota + 1
	attrChanged
	entryChanged
)

// about is what an invalidation is about.
type about struct {
	kind changeKind
	ino  uint64 // the parent's for entryChanged
	name string
}

// change is one invalidation; done, when not nil, is called after it.
type change struct {
	about
	done  func()
	tries int
}

// notifiers is how many invalidations may be under way: one can block, when a
// page of the file is being read.
const notifiers = 4

// maxTries bounds how often the kernel is told again of an inode that it ought to know, but does not.
const maxTries = 3

func newNotifier(m *Mount) *notifier {
	n := &notifier{m: m, queued: make(map[about]bool)}
	n.wake = sync.NewCond(&n.mu)
	return n
}

func (n *notifier) start() {
	for range notifiers {
		n.workers.Go(n.run)
	}
}

func (n *notifier) stop() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.wake.Broadcast()
	n.workers.Wait()
}

// ContentChanged, AttrChanged and EntryChanged are jobs.Observer.
func (n *notifier) ContentChanged(ino uint64) { n.add(change{about: about{contentChanged, ino, ""}}) }
func (n *notifier) AttrChanged(ino uint64)    { n.add(change{about: about{attrChanged, ino, ""}}) }
func (n *notifier) EntryChanged(parent uint64, name string) {
	n.add(change{about: about{entryChanged, parent, name}})
}

func (n *notifier) add(c change) {
	if c.kind != entryChanged {
		n.told.Add(1) // before anybody is told: see tree.found
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	if c.done == nil {
		if n.queued[c.about] {
			return
		}
		n.queued[c.about] = true
	}
	n.queue = append(n.queue, c)
	n.wake.Signal()
}

func (n *notifier) run() {
	for {
		n.mu.Lock()
		for len(n.queue) == 0 && !n.closed {
			n.wake.Wait()
		}
		if n.closed {
			n.mu.Unlock()
			return
		}
		c := n.queue[0]
		n.queue = n.queue[1:]
		if c.done == nil {
			// From here on a further change is a new one.
			delete(n.queued, c.about)
		}
		n.mu.Unlock()
		n.tell(c)
		if c.done != nil {
			c.done()
		}
	}
}

func (n *notifier) tell(c change) {
	s := n.m.server
	id := n.m.nodeID(c.ino)
	var status fuse.Status
	switch c.kind {
	case contentChanged:
		status = s.InodeNotify(id, 0, 0) // all pages, and attributes
	case attrChanged:
		status = s.InodeNotify(id, -1, 0)
	case entryChanged:
		status = s.EntryNotify(id, c.name)
		// The kernel may have cached the listing without knowing the name.
		if st := s.InodeNotify(id, 0, 0); status == fuse.ENOENT {
			status = st
		}
	}
	switch syscall.Errno(status) {
	case 0:
	case syscall.ENOENT: // the kernel does not know it, which is as good
		if known, _ := n.m.tree.known.has(c.ino); known && c.kind != entryChanged && c.done == nil && c.tries < maxTries {
			// An answer that names it, with what it was before, may be on its way.
			c.tries++
			time.AfterFunc(time.Millisecond<<(3*c.tries), func() { n.add(c) })
		}
	case syscall.ENODEV, syscall.ENOTCONN, syscall.ENOTDIR: // unmounted, or a number that was a directory
	default:
		n.m.log.Warn("kernel cache not invalidated", "ino", c.ino, "name", c.name, "errno", status.String())
	}
}
