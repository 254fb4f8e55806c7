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
	progress    uint64
	exhausted   uint64 // progress when the last pass found nothing
	exhaustedAt time.Time
}

// refusedMax bounds how long a file that refused is left alone.
const refusedMax = time.Minute

// evictNeedLocked says how many bytes of content should go, and whether they must be on the file system of staging.
func (s *Store) evictNeedLocked() (need int64, onState bool) {
	if over := s.overflowLocked(); over > 0 {
		return over, false
	}
	if w := s.reservations.first(); w != nil && !s.contentFitsLocked(w.n) {
		reserved := s.resvTotal - s.resvWritten
		need = s.used[acctCache] + reserved + w.n - s.cacheLimit
		need = max(need, s.cache.minFree-(s.cache.free-s.cache.since-reserved-w.n))
		return need, false
	}
	var n int64
	if w := s.waiters.first(); w != nil {
		n = w.n
	} else if s.roomWaiters == 0 {
		return 0, false
	}
	if !s.state.has(n) {
		return s.state.minFree - (s.state.free - s.state.since - n), true
	}
	if s.roomWaiters > 0 {
		return 1, true // the file system refused bytes it said it had
	}
	return 0, false
}

// kickLocked starts the evictor when somebody needs it and the last pass is not too fresh.
func (s *Store) kickLocked() {
	s.armLocked()
	if s.closed || s.evicting {
		return
	}
	if need, _ := s.evictNeedLocked(); need <= 0 {
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
		need, onState := s.evictNeedLocked()
		if need <= 0 {
			return
		}
		n := s.victimLocked(pass, patient, onState)
		if n == nil && patient && s.reservations.len() > 0 {
			// Before anybody is told that there is no room, those that refused lately are asked again.
			patient = false
			continue
		}
		if n == nil {
			s.exhausted, s.exhaustedAt = s.progress, time.Now()
			if s.reservations.len() > 0 && s.resvTotal == s.resvWritten && s.evictCalls == 0 && !onState {
				s.refuseReservationsLocked()
			}
			return
		}
		s.evictLocked(n, pass)
		s.roomLocked()
	}
}

// victimLocked returns the least recently used file this pass has not tried.
func (s *Store) victimLocked(pass uint64, patient, onState bool) *node {
	if s.evict == nil {
		return nil
	}
	now := time.Now()
	for n := s.lru.front; n != nil; n = n.next {
		if n.pass >= pass || n.evicting || n.gone || n.total() == 0 {
			continue
		}
		if patient && now.Before(n.notBefore) {
			continue
		}
		if onState && s.volumeOf(n.place) != s.state {
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
		n.notBefore, n.refused = time.Time{}, 0
		s.progress++
		return
	}
	n.notBefore = time.Now().Add(min(time.Second<<min(n.refused, 10), refusedMax))
	n.refused++
}

// refuseReservationsLocked tells those who wait in vain, now that every file refused and nobody holds room he may give back.
func (s *Store) refuseReservationsLocked() {
	for s.reservations.len() > 0 {
		w := s.reservations.first()
		s.reservations.remove(w)
		if s.contentFitsLocked(w.n) {
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
		victim := s.victimLocked(pass, false, false)
		if victim == nil {
			break
		}
		s.evictLocked(victim, pass)
	}
	s.roomLocked()
}
