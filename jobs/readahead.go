package jobs

import (
	"sync"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// A large file may be hundreds of archives, and each of them hours away. Who reads it from one end to
// the other would wait for them one after the other; so a reader that has shown that it goes on has the next
// archives asked for beforehand, as many bytes as it has read, and not less than o.above (1 GiB). They are retrievals like
// others, but on speculation (ahead) until somebody wants their bytes: what goes wrong with one drops it without a word, and
// it is never asked for twice.

// sequence watches how a handle is read.
type sequence struct {
	mu    sync.Mutex
	pos   int64     // where the last read began; when it is over, where it ended
	at    time.Time // of the last read; zero: there was none
	busy  int       // reads under way: they may wait for hours
	next  int64     // where the run of reads has come to
	bytes int64     // what it has read
	look  int64     // how far it has to come before read-ahead is thought of again
	asked int64     // no archive that begins before was not thought of
}

// begin notes a read at off. Reads a little out of order, or with small gaps, are still a run: slack says how little.
func (s *sequence) begin(off, slack int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off < s.next-slack || off > s.next+slack || s.at.IsZero() {
		s.next, s.bytes, s.look, s.asked = off, 0, 0, 0
	}
	s.pos, s.at = off, time.Now()
	s.busy++
}

// end notes that n bytes at off were read, and reports whether the run has come so far that read-ahead should be thought of.
func (s *sequence) end(off, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	s.at = time.Now()
	if s.pos == off {
		s.pos = off + n
	}
	s.bytes += max(off+n-max(s.next, off), 0)
	s.next = max(s.next, off+n)
	return s.next >= s.look
}

// run returns how far the reader has come, how much it has read on the way, and up to where archives were asked for
// ahead of it; read-ahead is not thought of again before it has read step more.
func (s *sequence) run(step int64) (next, bytes, asked int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look = s.next + step
	return s.next, s.bytes, s.asked
}

// askedTo notes that everything before end was asked for: it is not asked for ahead of this reader a second time, whatever comes of it.
func (s *sequence) askedTo(end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = max(s.asked, end)
}

// reading returns where the handle reads; ok is false when it has not done so for a while.
func (s *sequence) reading(now time.Time) (pos int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos, s.busy > 0 || !s.at.IsZero() && now.Sub(s.at) < streamIdle
}

// slack is how far apart two reads of one run may be: what the kernel asks for at once and out of order.
func (r *recaller) slack() int64 { return r.o.window / 16 }

// readAhead asks for the archives that s's reader will want next, as far as policy, guard, link and cache allow. It
// does not wait, and says nothing: the reader asks for what is missing when it gets there. Called without f.mu.
func (r *recaller) readAhead(c Caller, f *file, s *sequence) {
	next, bytes, asked := s.run(r.o.window / 4)
	if r.o.mode != RecallAuto {
		return
	}
	f.mu.Lock()
	v, local := f.ver, f.local
	f.mu.Unlock()
	if v.V == 0 || v.State != catalog.Archived || v.Damaged || len(v.Extents) < 2 || local == nil || next >= v.Size {
		return
	}
	spans, err := r.aheadSpans(v, local, next, bytes, asked)
	if err != nil || len(spans) == 0 {
		return
	}
	if _, pattern := deniedComm(r.o.denyComm, c.PID); pattern != "" {
		return
	}
	room := r.roomFor(f.ino) - bytesFrom(local.VerifiedRanges(), next)

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.ver.V != v.V || f.ver.State != catalog.Archived {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	for _, x := range spans {
		if len(r.byArc[x.arc.Num]) > 0 {
			continue // it comes, or some of it: the reader will see
		}
		if _, failed := r.failed[x.arc.Num]; failed {
			return
		}
		// What is on its way and what is there ahead of the reader must fit in the cache together: else the
		// output would expire before there is room for it, or push out what is about to be read.
		if r.onWay.bytes+x.arc.Size > min(room, r.linkLocked()) || !r.guard.allowsAhead(x.arc.Size, now) {
			return
		}
		rt := r.newRetrieval(x.arc, x.ext, x.fileOff, catalog.Retrieval{
			Archive: x.arc.Num, VaultName: x.arc.VaultName, Len: x.arc.Size, Tier: r.o.tier,
			State: catalog.Wanted, Created: now.UnixNano(), Ahead: true, Ino: v.Ino, V: v.V,
		})
		r.guard.take(x.arc.Size, now)
		r.addLocked(rt)
		r.kickLocked(x.arc.VaultName)
		s.askedTo(x.fileOff + x.ext.Len)
	}
}

// aheadSpans returns the archives after the one at next, from asked on, that a reader who has read so many bytes will
// want, in order and with nothing local; none when it has not shown yet that it goes on.
func (r *recaller) aheadSpans(v catalog.Version, local *content.File, next, bytes, asked int64) (spans []span, err error) {
	var verified []content.Range
	err = r.e.catalog.View(func(tx *catalog.Tx) error {
		spans = nil
		end := next + max(bytes, r.o.above)
		var at int64
		for _, ext := range v.Extents {
			start := at
			at += ext.Len
			switch {
			case at <= next:
				continue
			case start <= next: // it is here
				if bytes < min(r.o.window, ext.Len/2) {
					return nil
				}
				verified = local.VerifiedRanges()
				continue
			case start+ext.Len/2 > end:
				return nil // less than half of it
			}
			if start < asked || bytesFrom(verified, start) > bytesFrom(verified, at) {
				continue // what is missing of it is the reader's business
			}
			arc, err := tx.Archive(ext.Archive)
			if err != nil {
				return err
			}
			if ext.Off == 0 && ext.Len == arc.Size {
				spans = append(spans, span{arc: arc, ext: ext, fileOff: start})
			}
		}
		return nil
	})
	return spans, err
}

// bytesFrom returns how much of the ranges lies at or after off.
func bytesFrom(ranges []content.Range, off int64) (n int64) {
	for _, x := range ranges {
		n += max(x.Off+x.Len-max(x.Off, off), 0)
	}
	return n
}

// dropAheadLocked ends a retrieval on speculation that did not work out.
func (r *recaller) dropAheadLocked(rt *retrieval, why error) {
	r.log.Info("what was asked for ahead of a reader does not come", "archive", rt.arc.ID, "job", rt.rec.JobID, "reason", why)
	if rt.rec.JobID == "" && !rt.asking && !rt.rec.Uncertain {
		r.cancelLocked(rt)
	} else {
		r.removeLocked(rt)
	}
}

// lessAhead hears that a reader of f has gone: what was only meant to be asked for is not.
func (r *recaller) lessAhead(ino, v uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var drop []*retrieval
	for _, rt := range r.byKey[verKey{ino, v}] {
		if rt.rec.Ahead && rt.rec.State == catalog.Wanted && !rt.asking && !rt.rec.Uncertain {
			drop = append(drop, rt)
		}
	}
	for _, rt := range drop {
		r.cancelLocked(rt)
	}
}

// readersOf returns where f is read, in the file: by handles that read it lately, and by who waits for bytes.
func (r *recaller) readersOf(f *file) (at []int64) {
	now := time.Now()
	f.mu.Lock()
	key := verKey{f.ino, f.ver.V}
	for s := range f.readers {
		if pos, ok := s.reading(now); ok {
			at = append(at, pos)
		}
	}
	f.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range r.byKey[key] {
		for _, want := range rt.demand {
			off, _ := rt.toFile(want)
			at = append(at, off)
		}
	}
	return at
}
