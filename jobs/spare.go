package jobs

import (
	"sync"
	"time"

	"github.com/casfs/casfs/cache/content"
)

// spares are empty staging files made ahead while many files are created: making one is half of what
// the engine does for a small file (ext4 also looks past every inode number given back in the last minutes), and
// whoever creates files waits for nothing else on this disk. A spare has no record; a start removes what a crash left.
type spares struct {
	mu     sync.Mutex
	files  []*content.File
	last   time.Time   // when one was last wanted
	making bool        // makeSpares runs
	idle   *time.Timer // removes them
	closed bool
	wg     sync.WaitGroup // makeSpares

	open map[uint64]struct{} // staging files, spare or taken, that are about to be made, recorded or removed
}

const (
	sparesMost  = 16
	sparesBurst = 50 * time.Millisecond // creates that follow each other as closely as this have some made ahead
	sparesIdle  = 2 * time.Second
)

// newStaging returns an empty staging file with a number of its own and the present time. Once it is on record, or removed,
// the caller tells newStagingEnds.
func (e *Engine) newStaging() (*content.File, error) {
	for {
		l := e.takeSpare()
		if l == nil {
			return e.createStaging()
		}
		if l.Touch() == nil {
			return l, nil
		}
		e.dropSpare(l)
	}
}

func (e *Engine) createStaging() (*content.File, error) {
	id, err := e.newLocalID()
	if err != nil {
		return nil, err
	}
	s := &e.spare
	s.mu.Lock()
	if s.open == nil {
		s.open = make(map[uint64]struct{})
	}
	s.open[id] = struct{}{}
	s.mu.Unlock()
	l, err := e.store.CreateStaging(id)
	if err != nil {
		e.newStagingEnds(id)
	}
	return l, err
}

func (e *Engine) newStagingEnds(id uint64) {
	e.spare.mu.Lock()
	defer e.spare.mu.Unlock()
	delete(e.spare.open, id)
}

// takeSpare returns a spare, or nil, and has more made when many are wanted.
func (e *Engine) takeSpare() *content.File {
	s := &e.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	burst := now.Sub(s.last) < sparesBurst
	s.last = now
	var l *content.File
	if n := len(s.files); n > 0 {
		l = s.files[n-1]
		s.files[n-1] = nil
		s.files = s.files[:n-1]
	}
	if burst && len(s.files) <= sparesMost/2 && !s.making && !s.closed {
		s.making = true
		s.wg.Add(1)
		go e.makeSpares()
	}
	return l
}

// makeSpares makes them until there are enough. A failure ends it: whoever needs a file next hears why.
func (e *Engine) makeSpares() {
	s := &e.spare
	defer s.wg.Done()
	for {
		l, err := e.createStaging()
		s.mu.Lock()
		if err == nil {
			s.files = append(s.files, l)
		}
		if err != nil || len(s.files) >= sparesMost || s.closed {
			s.making = false
			if s.idle == nil {
				s.idle = time.AfterFunc(sparesIdle, e.dropIdleSpares)
			} else {
				s.idle.Reset(sparesIdle)
			}
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// dropIdleSpares removes all when none was wanted for a while.
func (e *Engine) dropIdleSpares() {
	s := &e.spare
	s.mu.Lock()
	if s.closed || s.making {
		s.mu.Unlock()
		return // makeSpares sets the timer anew
	}
	if left := sparesIdle - time.Since(s.last); left > 0 {
		s.idle.Reset(left)
		s.mu.Unlock()
		return
	}
	files := s.files
	s.files = nil
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	for _, l := range files {
		e.dropSpare(l)
	}
}

func (e *Engine) dropSpare(l *content.File) {
	id := l.ID()
	l.Close()
	if err := e.store.Remove(id); err != nil {
		e.log.Warn("removing an empty staging file", "err", err)
	}
	e.newStagingEnds(id)
}

// closeSpares removes all and has no more made.
func (e *Engine) closeSpares() {
	s := &e.spare
	s.mu.Lock()
	s.closed = true
	if s.idle != nil {
		s.idle.Stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
	for _, l := range s.files {
		e.dropSpare(l)
	}
	s.files = nil
}

// isNew reports whether a local file has no record because it is a spare, or its record is being made.
func (e *Engine) isNew(id uint64) bool {
	e.spare.mu.Lock()
	defer e.spare.mu.Unlock()
	_, ok := e.spare.open[id]
	return ok
}
