package content

import (
	"fmt"
	"time"
)

// eviction is the part of Store that frees content; guarded by Store.mu.
//
// One goroutine at a time evicts for everybody who waits. It goes
// through the files in order of use; one that refuses moves to the end and is left
// alone for a while, and when all have refused the evictor stops until something
// changes (progress) or the tick comes.
type eviction struct {
	evictPass   uint64
	evicting    bool // the goroutine runs
	evictCalls  int  // Evict calls running, Shrink's included
	doomed      int  // removed files that are still open: room to come
	progress    uint64
	exhausted   uint64 // progress when the last pass found nothing
	exhaustedAt time.Time
}

// refusedMax bounds how long a file that refused is left alone.
const refusedMax = time.Minute

// evictNeedLocked says whether content should go, and on which file system (nil: on any).
func (s *Store) evictNeedLocked() (vol *volume, need bool) {
	if s.overflowLocked() > 0 {
		return nil, true
	}
	reserved := s.resvTotal - s.resvWritten
	if w := s.reservations.first(); w != nil {
		if s.used[acctCache]+reserved+w.n > s.fillable() {
			return nil, true
		}
		if !s.cache.has(reserved + w.n) {
			return s.cache, true
		}
	}
	if s.cache != s.state {
		reserved = 0
	}
	if s.roomWaiters > 0 { // the file system refused bytes, whatever it says it has
		return s.state, true
	}
	if w := s.waiters.first(); w != nil && !s.state.has(reserved+w.n) {
		return s.state, true
	}
	return nil, false
}

// kickLocked starts the evictor when somebody needs it and the last pass is not too fresh.
func (s *Store) kickLocked() {
	s.armLocked()
	if s.closed || s.evicting {
		return
	}
	if _, need := s.evictNeedLocked(); !need {
		return
	}
	if s.exhausted == s.progress && time.Since(s.exhaustedAt) < tickEvery && !s.exhaustedAt.IsZero() {
		// Nothing changed since everything refused. New reservations are told at the next tick.
		return
	}
	s.evicting = true
	s.wg.Go(s.evictLoop)
}

func (s *Store) evictLoop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.evicting = false }()
	s.evictPass++
	pass, patient := s.evictPass, true
	for !s.closed {
		vol, need := s.evictNeedLocked()
		if !need {
			return
		}
		n := s.victimLocked(pass, patient, vol)
		if n == nil {
			hopeless := s.reservations.len() > 0 && s.resvTotal == s.resvWritten && s.evictCalls == 0 && s.doomed == 0
			if hopeless && patient {
				// Before anybody is told that there is no room, those that refused lately are asked again.
				patient = false
				continue
			}
			s.exhausted, s.exhaustedAt = s.progress, time.Now()
			if hopeless {
				s.refuseReservationsLocked()
			}
			return
		}
		s.evictLocked(n, pass)
		s.roomLocked()
	}
}

// victimLocked returns the least recently used file this pass has not tried.
func (s *Store) victimLocked(pass uint64, patient bool, vol *volume) *node {
	if s.evict == nil {
		return nil
	}
	now := time.Now().UnixNano()
	for n := s.lru.front; n != nil; n = n.next {
		if n.pass >= pass || n.evicting || n.gone || n.total() == 0 {
			continue
		}
		if patient && now < n.notBefore {
			continue
		}
		if vol != nil && s.volumeOf(n.place) != vol {
			continue
		}
		return n
	}
	return nil
}

// evictLocked calls Evict without the lock.
func (s *Store) evictLocked(n *node, pass uint64) {
	n.pass = pass
	n.evicting = true
	before := n.total()
	s.lru.moveBack(n)
	s.evictCalls++
	s.mu.Unlock()
	err := s.evict(n.id)
	s.mu.Lock()
	s.evictCalls--
	n.evicting = false
	if err == nil && (n.gone || n.total() < before) {
		n.notBefore, n.refused = 0, 0
		s.progress++
		return
	}
	n.notBefore = time.Now().Add(min(time.Second<<n.refused, refusedMax)).UnixNano()
	n.refused = min(n.refused+1, 10)
}

// refuseReservationsLocked tells those who wait in vain, now that every file refused and nobody holds room he may give back.
func (s *Store) refuseReservationsLocked() {
	for s.reservations.len() > 0 {
		w := s.reservations.first()
		s.reservations.remove(w)
		if s.contentFitsLocked(w.n, s.cache) {
			s.resvTotal += w.n
		} else {
			w.err = fmt.Errorf("%w: the cache holds %d of %d bytes, %d more are needed and nothing can be evicted",
				ErrNoSpace, s.used[acctCache], s.cacheLimit, w.n)
		}
		close(w.done)
	}
}

// Shrink evicts until n more bytes of cache are free of use (0: down to the limit); best effort.
// It blocks on Evict.
func (s *Store) Shrink(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictPass++
	pass := s.evictPass
	for !s.closed && s.used[acctCache]+s.resvTotal-s.resvWritten+n > s.cacheLimit {
		victim := s.victimLocked(pass, false, nil)
		if victim == nil {
			break
		}
		s.evictLocked(victim, pass)
	}
	s.roomLocked()
}
