package content

import (
	"context"
	"fmt"
	"os"
	"sync"
)

// fillable is how much of the cache's limit may be promised. The rest, a block in 16 MiB, is for what the file
// system adds by itself, such as the index of a file of many extents: it is seen only when the file is counted anew.
func (s *Store) fillable() int64 {
	return s.cacheLimit - min(s.cacheLimit/4096, 16<<20)/blockSize*blockSize
}

// contentFitsLocked says whether n more bytes may be promised to content on vol.
func (s *Store) contentFitsLocked(n int64, vol *volume) bool {
	reserved := s.resvTotal - s.resvWritten
	if s.used[acctCache]+reserved+n > s.fillable() {
		return false
	}
	if vol == s.cache {
		n += reserved
	}
	return vol.has(n)
}

// ReserveContent makes room for n bytes of content before they are written, evicting least recently used files.
// It blocks while others free room, until ctx ends. release gives back what was not written. Errors: ErrNoSpace.
// Reserve once for a piece of work; two callers that each hold a reservation and wait for another would wait for each other.
func (s *Store) ReserveContent(ctx context.Context, n int64) (release func(), err error) {
	if n <= 0 {
		return func() {}, nil
	}
	if n > s.fillable() {
		return nil, fmt.Errorf("%w: %d bytes are more than the cache may ever hold (%d)", ErrNoSpace, n, s.fillable())
	}
	n = min((n+blockSize-1)/blockSize*blockSize, s.fillable())
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, os.ErrClosed
	}
	if s.reservations.len() == 0 && s.contentFitsLocked(n, s.cache) {
		s.resvTotal += n
		s.mu.Unlock()
		return s.releaser(n), nil
	}
	w := s.reservations.push(n)
	s.kickLocked()
	s.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		s.mu.Lock()
		select {
		case <-w.done:
			s.mu.Unlock()
		default:
			s.reservations.remove(w)
			s.roomLocked()
			s.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	if w.err != nil {
		return nil, w.err
	}
	return s.releaser(n), nil
}

func (s *Store) releaser(n int64) func() {
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.resvTotal -= n
		s.resvWritten -= min(s.resvWritten, n)
		s.progress++
		s.roomLocked()
	})
}

// takeContent charges n bytes of a content file, from what is reserved or, failing that, from what is free now.
func (s *Store) takeContent(nd *node, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	vol := s.volumeOf(nd.place)
	k := min(n, s.resvTotal-s.resvWritten)
	s.resvWritten += k
	if k < n && !s.contentFitsLocked(n, vol) {
		s.resvWritten -= k
		return false
	}
	s.used[acctCache] += n
	nd.charged[acctCache] += n
	vol.since += n
	vol.inflight.Add(n)
	s.lru.moveBack(nd) // somebody is waiting for it: it is not to go before it was read
	return true
}
