package content

import (
	"context"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Accounts bytes are charged to.
const (
	acctStaging = 0
	acctCache   = 1
)

const (
	// blockSize is the unit of charging.
	blockSize = 4096
	// tickEvery is how often the file system is looked at while somebody waits: other programs free room without telling.
	tickEvery = 500 * time.Millisecond
	// statfs is asked again after so many charged bytes or so much time.
	freshBytes = 16 << 20
	freshTime  = time.Second
	// pressureEvery limits the calls of OnPressure functions.
	pressureEvery = time.Second
)

// space is the part of Store that admits bytes; guarded by Store.mu.
type space struct {
	used [2]int64 // charged, by account; includes grants on their way to a file

	// Content reservations that were not released, and how much of them has
	// been written. Which one a write belongs to is not known, so release assumes
	// the most: what it gives back may be too little until the others are released, never too much.
	resvTotal, resvWritten int64

	state, cache *volume // the same when both trees are on one file system
	waiters      fifo    // for staging room
	reservations fifo    // for content room
	room         chan struct{}
	roomWaiters  int // on room
	tick         *time.Timer

	pressure       []func()
	pressureAt     time.Time
	pressureBusy   bool
	pressureWanted bool
	pressureTimer  *time.Timer
	above80        bool
}

// volume is a file system with the free space last seen on it.
type volume struct {
	dir      string
	dev      uint64
	total    int64
	free     int64 // as statfs said
	since    int64 // charged since then
	at       time.Time
	stale    bool // something was freed
	minFree  int64
	inflight atomic.Int64 // charged but not written yet, hence not seen by statfs
}

func (v *volume) refresh(now time.Time) {
	inflight := v.inflight.Load()
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(v.dir, &st) }); err != nil {
		return // keep the estimate
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	v.total = int64(st.Blocks) * unit
	v.free = int64(st.Bavail) * unit
	v.since = inflight
	v.at = now
	v.stale = false
}

// has says whether n more bytes leave the floor alone.
func (v *volume) has(n int64) bool {
	now := time.Now()
	if v.since >= freshBytes || now.Sub(v.at) >= freshTime {
		v.refresh(now)
	}
	if v.free-v.since-n >= v.minFree {
		return true
	}
	if !v.stale && v.since == 0 {
		return false
	}
	v.refresh(now)
	return v.free-v.since-n >= v.minFree
}

// openSpace looks at the file systems. stateFree is kept free on the one that o.StateDir is on, if that is staging's.
func (s *Store) openSpace(stateDir string, minFree, stateFree int64) error {
	s.room = make(chan struct{})
	s.evictPass = 1
	open := func(dir string) (*volume, error) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return nil, err
		}
		v := &volume{dir: dir, dev: st.Dev}
		v.refresh(time.Now())
		if v.total == 0 {
			return nil, fmt.Errorf("%s: cannot tell the size of the file system", dir)
		}
		switch {
		case minFree < 0:
			v.minFree = math.MinInt64 / 2
		case minFree > 0:
			v.minFree = minFree
		default:
			v.minFree = min(1<<30, v.total/20)
		}
		return v, nil
	}
	var err error
	if s.state, err = open(s.dirs[inStaging]); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(stateDir, &st); err != nil {
		return err
	}
	if st.Dev == s.state.dev && stateFree > 0 {
		s.state.minFree = max(s.state.minFree, stateFree)
	}
	s.cache = s.state
	if d := s.dirs[inCache]; d != "" {
		c, err := open(d)
		if err != nil {
			return err
		}
		if c.dev != s.state.dev {
			s.cache = c
		}
	}
	if s.stagingLimit == 0 {
		s.stagingLimit = s.state.total / 4
	}
	if s.cacheLimit == 0 {
		s.cacheLimit = s.cache.total / 4
	}
	return nil
}

// volumeOf returns the file system a place is on.
func (s *Store) volumeOf(p place) *volume {
	if p == inCache {
		return s.cache
	}
	return s.state
}

// Usage returns the footprint.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.has(0)
	s.cache.has(0)
	r := s.resvTotal - s.resvWritten
	return Usage{
		StagingBytes: s.used[acctStaging], StagingLimit: s.stagingLimit,
		CacheBytes: s.used[acctCache] + r, CacheLimit: s.cacheLimit, Reserved: r,
		Free: s.state.free, MinFree: max(0, s.state.minFree),
		CacheFree: s.cache.free, CacheMinFree: max(0, s.cache.minFree), CacheTotal: s.cache.total, OneDisk: s.cache == s.state,
		Throttled: s.waiters.len() + s.roomWaiters, Waiting: s.reservations.len(),
	}
}

// overflowLocked is what promoted files hold beyond the cache limit: it counts against staging.
func (s *Store) overflowLocked() int64 {
	return max(0, s.used[acctCache]+s.resvTotal-s.resvWritten-s.cacheLimit)
}

func (s *Store) stagingFitsLocked(n int64) bool {
	if s.used[acctStaging]+s.overflowLocked()+n > s.stagingLimit {
		return false
	}
	reserved := int64(0)
	if s.cache == s.state {
		reserved = s.resvTotal - s.resvWritten
	}
	return s.state.has(n + reserved)
}

// tryStaging charges n bytes when there is room and nobody came first.
func (s *Store) tryStaging(nd *node, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiters.len() > 0 || !s.stagingFitsLocked(n) {
		return false
	}
	s.takeStagingLocked(n)
	nd.charged[acctStaging] += n
	return true
}

// spend gives n bytes of a grant to a file.
func (s *Store) spend(nd *node, n int64) {
	s.mu.Lock()
	nd.charged[acctStaging] += n
	s.mu.Unlock()
}

func (s *Store) takeStagingLocked(n int64) {
	s.used[acctStaging] += n
	s.state.since += n
	s.state.inflight.Add(n)
	if (s.used[acctStaging] > s.stagingLimit/5*4) != s.above80 {
		s.above80 = !s.above80
		if s.above80 {
			s.pressLocked()
		}
	}
}

// giveStaging returns a grant that was not used.
func (s *Store) giveStaging(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.inflight.Add(-n)
	s.used[acctStaging] -= n
	s.state.stale = true
	s.roomLocked()
}

// waitStaging waits until n bytes are granted, at most until the deadline.
func (s *Store) waitStaging(ctx context.Context, n int64, deadline time.Time) error {
	if n > s.stagingLimit {
		return fmt.Errorf("%w: %d bytes are more than staging may ever hold (%d)", ErrNoSpace, n, s.stagingLimit)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	if s.waiters.len() == 0 && s.stagingFitsLocked(n) {
		s.takeStagingLocked(n)
		s.mu.Unlock()
		return nil
	}
	if !time.Now().Before(deadline) {
		err := s.noRoomLocked(n)
		s.mu.Unlock()
		return err
	}
	w := s.waiters.push(n)
	s.pressLocked()
	s.kickLocked()
	s.mu.Unlock()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.done: // granted in the same moment
		return w.err
	default:
	}
	if err == nil {
		err = s.noRoomLocked(n)
	}
	s.waiters.remove(w)
	s.roomLocked() // whoever stood behind may need less
	return err
}

// noRoomLocked says why n more bytes do not fit.
func (s *Store) noRoomLocked(n int64) error {
	switch over := s.overflowLocked(); {
	case over > 0:
		return fmt.Errorf("%w: staging holds %d of %d bytes and the cache is %d over its limit", ErrNoSpace, s.used[acctStaging], s.stagingLimit, over)
	case s.used[acctStaging]+n <= s.stagingLimit && !s.state.has(n):
		return fmt.Errorf("%w: %s has %d bytes free, %d are to be kept free", ErrNoSpace, s.state.dir, s.state.free, s.state.minFree)
	}
	return fmt.Errorf("%w: staging holds %d of %d bytes", ErrNoSpace, s.used[acctStaging], s.stagingLimit)
}

// waitRoom waits until something was freed or enough time went by to look again, after the file system itself refused bytes.
func (s *Store) waitRoom(ctx context.Context, deadline time.Time) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	if !time.Now().Before(deadline) {
		s.mu.Unlock()
		return ErrNoSpace
	}
	room := s.room
	s.roomWaiters++
	s.state.stale = true
	s.pressLocked()
	s.kickLocked()
	s.mu.Unlock()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case <-room:
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = ErrNoSpace
	}
	s.mu.Lock()
	s.roomWaiters--
	s.mu.Unlock()
	return err
}

// unchargeLocked takes n bytes off the file's accounts, staging first: that is what writers wait for.
func (s *Store) unchargeLocked(n *node, bytes int64) {
	k := min(bytes, n.charged[acctStaging])
	n.charged[acctStaging] -= k
	s.used[acctStaging] -= k
	if s.used[acctStaging] <= s.stagingLimit/5*4 {
		s.above80 = false
	}
	rest := min(bytes-k, n.charged[acctCache])
	n.charged[acctCache] -= rest
	s.used[acctCache] -= rest
	s.volumeOf(n.place).stale = true
	if rest+k > 0 {
		s.progress++
	}
}

// roomLocked lets in whoever fits now, first come first served, and starts the evictor when it is needed.
func (s *Store) roomLocked() {
	for s.waiters.len() > 0 {
		w := s.waiters.first()
		if !s.stagingFitsLocked(w.n) {
			break
		}
		s.takeStagingLocked(w.n)
		s.waiters.remove(w)
		close(w.done)
	}
	for s.reservations.len() > 0 {
		w := s.reservations.first()
		if !s.contentFitsLocked(w.n, s.cache) {
			break
		}
		s.resvTotal += w.n
		s.reservations.remove(w)
		close(w.done)
	}
	if s.roomWaiters > 0 {
		close(s.room)
		s.room = make(chan struct{})
	}
	s.kickLocked()
}

// armLocked keeps the tick going while somebody waits.
func (s *Store) armLocked() {
	if s.closed || s.tick != nil || s.waiters.len()+s.reservations.len()+s.roomWaiters == 0 {
		return
	}
	s.tick = time.AfterFunc(tickEvery, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tick = nil
		if s.closed {
			return
		}
		s.state.stale, s.cache.stale = true, true
		if s.waiters.len()+s.roomWaiters > 0 {
			s.pressLocked()
		}
		s.roomLocked()
	})
}

func (s *Store) closeSpaceLocked() {
	if s.tick != nil {
		s.tick.Stop()
		s.tick = nil
	}
	if s.pressureTimer != nil {
		s.pressureTimer.Stop()
		s.pressureTimer = nil
	}
	for _, q := range []*fifo{&s.waiters, &s.reservations} {
		for q.len() > 0 {
			w := q.first()
			q.remove(w)
			w.err = os.ErrClosed
			close(w.done)
		}
	}
	close(s.room)
	s.room = make(chan struct{})
}

// OnPressure registers fn to be called (own goroutine, rate-limited) when writers wait for staging room or use passes 80 % of the limit.
// While writers wait the calls are repeated. Close waits for a running call.
func (s *Store) OnPressure(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pressure = append(s.pressure, fn)
}

// pressLocked has the functions called now, or as soon as the rate allows.
func (s *Store) pressLocked() {
	s.pressureWanted = true
	if s.closed || s.pressureBusy || s.pressureTimer != nil || len(s.pressure) == 0 {
		return
	}
	now := time.Now()
	if d := pressureEvery - now.Sub(s.pressureAt); d > 0 {
		s.pressureTimer = time.AfterFunc(d, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pressureTimer = nil
			s.pressLocked()
		})
		return
	}
	s.pressureBusy, s.pressureWanted = true, false
	s.pressureAt = now
	fns := s.pressure[:len(s.pressure):len(s.pressure)]
	s.wg.Go(func() {
		for _, fn := range fns {
			fn()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pressureBusy = false
		if s.pressureWanted {
			s.pressLocked()
		}
	})
}
