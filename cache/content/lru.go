package content

import (
	"time"

	"golang.org/x/sys/unix"
)

// touchEvery is how precisely the order of use survives a restart.
const touchEvery = 10 * time.Minute

// lruList is an intrusive list of content files, the next to go first; guarded by Store.mu.
type lruList struct{ front, back *node }

type lruLinks struct {
	prev, next *node
	pass       uint64 // last pass of the evictor that tried it
	notBefore  int64  // it refused; later passes leave it alone until then (ns)
	refused    uint8  // how often in a row
	listed     bool
	evicting   bool // Evict is running
}

func (l *lruList) pushBack(n *node) {
	if n.listed {
		return
	}
	n.listed = true
	n.prev, n.next = l.back, nil
	if l.back == nil {
		l.front = n
	} else {
		l.back.next = n
	}
	l.back = n
}

func (l *lruList) remove(n *node) {
	if !n.listed {
		return
	}
	n.listed = false
	if n.prev == nil {
		l.front = n.next
	} else {
		n.prev.next = n.next
	}
	if n.next == nil {
		l.back = n.prev
	} else {
		n.next.prev = n.prev
	}
	n.prev, n.next = nil, nil
}

func (l *lruList) moveBack(n *node) {
	if n.listed && l.back != n {
		l.remove(n)
		l.pushBack(n)
	}
}

// Touch marks a content file as just used (least recently used goes first).
// The order survives a restart to within ten minutes of use.
func (s *Store) Touch(id uint64) {
	s.mu.Lock()
	n := s.nodes[id]
	if n == nil || !n.listed {
		s.mu.Unlock()
		return
	}
	s.lru.moveBack(n)
	n.notBefore, n.refused = 0, 0
	now := time.Now().UnixNano()
	if d := now - n.atime; 0 <= d && d < int64(touchEvery) {
		s.mu.Unlock()
		return
	}
	n.atime = now
	path := s.dataPath(n)
	s.mu.Unlock()
	// A rename in between only loses the note.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{
		unix.NsecToTimespec(now), {Nsec: unix.UTIME_OMIT},
	}, unix.AT_SYMLINK_NOFOLLOW)
}
