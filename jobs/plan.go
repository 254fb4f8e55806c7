package jobs

import (
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// queue starts a retrieval of the whole file without waiting. explicit ones are not limited by the guard. tier "" is the mount's.
// An explicit one tries again what failed or is damaged; that stays damaged until what comes has been verified.
func (r *recaller) queue(c Caller, f *file, tier string, explicit bool) error {
	_, err := r.queueRange(c, f, tier, explicit, 0, 0)
	return err
}

// queueRange is queue for a range (n 0: all); it returns the bytes newly asked for.
func (r *recaller) queueRange(c Caller, f *file, tier string, explicit bool, off, n int64) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n <= 0 {
		off, n = 0, f.ver.Size
	}
	v, ok := missing(f, off, n)
	if !ok {
		return 0, nil
	}
	n = min(n, v.Size-off)
	if !explicit {
		if r.barred(v) {
			return 0, errDamaged(v)
		}
		if err := r.guarded(c, v); err != nil {
			return 0, err
		}
	}
	local, err := f.ensureContentLocked()
	if err != nil {
		return 0, err
	}
	how := askRange
	if n == v.Size {
		how = askWhole
	}
	spans, err := r.spans(v, local, off, n, how)
	if err != nil {
		return 0, err
	}
	for i := range spans {
		spans[i].tier, spans[i].explicit = tier, explicit
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return 0, ErrClosing
	}
	if explicit {
		for _, s := range spans {
			r.forgetFailureLocked(s.arc.Num)
		}
	}
	before := r.bytesLocked(verKey{v.Ino, v.V})
	if _, _, err := r.joinLocked(c, v, local, spans, time.Time{}); err != nil {
		return 0, err
	}
	return r.bytesLocked(verKey{v.Ino, v.V}) - before, nil
}

// bytesLocked returns what is being retrieved for a version.
func (r *recaller) bytesLocked(k verKey) (n int64) {
	for _, rt := range r.byKey[k] {
		n += rt.rec.Len
	}
	return n
}

// how a range is asked for.
type askKind int

const (
	askRead  askKind = iota // as reading strategy says
	askRange                // the range and little more
	askWhole
)

// span is what is missing of one extent and how to ask for it.
type span struct {
	arc      catalog.Archive
	ext      catalog.Extent
	fileOff  int64
	lo, hi   int64 // of the archive
	whole    bool
	window   int64
	tier     string
	explicit bool
}

// extentOf finds the archive in a version.
func extentOf(v catalog.Version, archive uint64) (ext catalog.Extent, fileOff int64, ok bool) {
	for _, x := range v.Extents {
		if x.Archive == archive {
			return x, fileOff, true
		}
		fileOff += x.Len
	}
	return catalog.Extent{}, 0, false
}

// spans cuts what is not local of [off, off+n) at the version's extents.
func (r *recaller) spans(v catalog.Version, local *content.File, off, n int64, how askKind) ([]span, error) {
	verified := local.VerifiedRanges()
	var out []span
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		var at int64
		for _, ext := range v.Extents {
			start := at
			at += ext.Len
			lo, hi := max(off, start), min(off+n, at)
			if lo >= hi {
				continue
			}
			lo, hi = hull(verified, lo, hi)
			if lo >= hi {
				continue
			}
			arc, err := tx.Archive(ext.Archive)
			if err != nil {
				return fmt.Errorf("archive %d of the file: %w", ext.Archive, err)
			}
			s := span{arc: arc, ext: ext, fileOff: start, lo: lo - start + ext.Off, hi: hi - start + ext.Off, window: r.o.window}
			switch {
			case how == askWhole, how == askRead && arc.Size <= r.o.above, arc.Size <= r.o.window:
				s.whole = true
			case how == askRead:
				run := runBefore(verified, lo)
				s.whole = lo <= headEnd(verified, start)+r.o.window || // near the head
					s.hi-s.lo > arc.Size/2
				// A reader that goes on past its window gets a larger one each time.
				for s.window < run && s.window < arc.Size {
					s.window *= 2
				}
			}
			out = append(out, s)
		}
		if off+n > at {
			return fmt.Errorf("the file's archives end at %d of %d bytes", at, v.Size)
		}
		return nil
	})
	return out, err
}

// hull returns the smallest range that holds all of [lo, hi) that is not verified.
func hull(verified []content.Range, lo, hi int64) (int64, int64) {
	for _, x := range verified {
		if x.Off <= lo && lo < x.Off+x.Len {
			lo = x.Off + x.Len
		}
	}
	for _, x := range slices.Backward(verified) {
		if x.Off < hi && hi <= x.Off+x.Len {
			hi = x.Off
		}
	}
	return lo, hi
}

// headEnd returns the end of what is local of a file's, or a segment's, beginning. A
// segment whose beginning is not local, nor what comes before, has no head: the result is far before it.
func headEnd(verified []content.Range, start int64) int64 {
	for _, x := range verified {
		if x.Off <= start && start <= x.Off+x.Len {
			return x.Off + x.Len
		}
	}
	if start > 0 {
		return -1 << 60
	}
	return 0
}

// runBefore returns the length of the verified range that ends at off.
func runBefore(verified []content.Range, off int64) int64 {
	for _, x := range verified {
		if x.Off+x.Len == off {
			return x.Len
		}
	}
	return 0
}

// cover returns the nodes of the tree of an archive that hold [lo, hi), in units of window.
func cover(lo, hi, size, window int64) []cas.Range {
	lo = lo / window * window
	hi = min((hi+window-1)/window*window, size)
	return cas.AlignedRanges(cas.Range{Off: lo, Len: hi - lo}, size, 1<<62)
}

// joinLocked finds retrievals for spans or makes them. needs is what the caller has to wait for, first its first.
func (r *recaller) joinLocked(c Caller, v catalog.Version, local *content.File, spans []span, since time.Time) (needs []need, first *retrieval, err error) {
	now := time.Now()
	for _, s := range spans {
		if f, ok := r.failed[s.arc.Num]; ok && s.lo < f.rec.Off+f.rec.Len && s.hi > f.rec.Off {
			if now.Sub(f.at) < failureCooldown || !since.IsZero() && !f.at.Before(since) {
				return nil, nil, f.err
			}
			r.forgetFailureLocked(s.arc.Num)
		}
		pos := s.lo
		for pos < s.hi {
			rt := r.coveringLocked(s.arc.Num, pos)
			if rt == nil {
				if v.Damaged && !s.explicit {
					return nil, nil, errDamaged(v)
				}
				gap := r.gapLocked(s.arc.Num, pos, s.hi)
				if err := r.newLocked(c, v, s, pos, gap); err != nil {
					return nil, nil, err
				}
				continue
			}
			if s.explicit {
				r.makeExplicitLocked(rt, s.tier)
			}
			end := min(rt.end(), s.hi)
			needs = append(needs, need{rt, cas.Range{Off: pos, Len: end - pos}})
			pos = end
		}
	}
	if len(needs) > 0 {
		first = needs[0].rt
	}
	return needs, first, nil
}

// coveringLocked returns the retrieval that brings the byte at pos soonest.
func (r *recaller) coveringLocked(archive uint64, pos int64) (best *retrieval) {
	for _, rt := range r.byArc[archive] {
		if rt.rec.Off <= pos && pos < rt.end() && (best == nil || rt.rec.State > best.rec.State) {
			best = rt
		}
	}
	return best
}

// gapLocked returns where from pos the first retrieval begins, at most hi.
func (r *recaller) gapLocked(archive uint64, pos, hi int64) int64 {
	for _, rt := range r.byArc[archive] {
		if rt.rec.Off > pos {
			hi = min(hi, rt.rec.Off)
		}
	}
	return hi
}

// newLocked makes the retrievals for [lo, hi) of a span's archive.
func (r *recaller) newLocked(c Caller, v catalog.Version, s span, lo, hi int64) error {
	asks := []cas.Range{{Off: 0, Len: s.arc.Size}}
	if !s.whole {
		asks = cover(lo, hi, s.arc.Size, s.window)
	}
	// What was not asked for yet and lies within is asked for as part of these.
	var inside []*retrieval
	for _, rt := range r.byArc[s.arc.Num] {
		for _, a := range asks {
			if rt.rec.State == catalog.Wanted && !rt.asking && !rt.rec.Uncertain && a.Off <= rt.rec.Off && rt.end() <= a.End() {
				inside = append(inside, rt)
				break
			}
		}
	}
	var bytes int64
	for _, a := range asks {
		bytes += a.Len
	}
	now := time.Now()
	if !s.explicit {
		freed, freedBytes := 0, int64(0)
		for _, rt := range inside {
			if rt.counted {
				freed, freedBytes = freed+1, freedBytes+rt.rec.Len
			}
		}
		if err := r.checkGuardLocked(len(asks)-freed, bytes-freedBytes, now); err != nil {
			r.refusedLocked(c, v, err)
			return err
		}
	}
	for _, rt := range inside {
		r.cancelLocked(rt)
	}
	for _, a := range asks {
		tier := s.tier
		setDefault(&tier, r.o.tier)
		rt := r.newRetrieval(s.arc, s.ext, s.fileOff, catalog.Retrieval{
			Archive: s.arc.Num, VaultName: s.arc.VaultName, Off: a.Off, Len: a.Len, Tier: tier,
			State: catalog.Wanted, Created: now.UnixNano(), Explicit: s.explicit, Ino: v.Ino, V: v.V,
		})
		rt.window = !s.whole
		if !s.explicit {
			r.guard.take(a.Len, now)
		}
		r.addLocked(rt)
	}
	r.kickLocked(s.arc.VaultName)
	return nil
}

// mergeLocked joins windows of one archive that touch into larger nodes, before they are asked for.
func (r *recaller) mergeLocked(vault string) {
	byArc := make(map[uint64][]*retrieval)
	for rt := range r.byVault[vault] {
		if rt.window && rt.rec.State == catalog.Wanted && !rt.asking && !rt.rec.Uncertain && !rt.finishing {
			byArc[rt.arc.Num] = append(byArc[rt.arc.Num], rt)
		}
	}
	for _, rts := range byArc {
		if len(rts) < 2 {
			continue
		}
		slices.SortFunc(rts, func(a, b *retrieval) int { return int((a.rec.Off - b.rec.Off) / mib) })
		for len(rts) > 0 {
			n, end := 1, rts[0].end()
			for n < len(rts) && rts[n].rec.Off <= end {
				end = max(end, rts[n].end())
				n++
			}
			run := rts[:n]
			rts = rts[n:]
			nodes := cas.AlignedRanges(cas.Range{Off: run[0].rec.Off, Len: end - run[0].rec.Off}, run[0].arc.Size, 1<<62)
			if len(nodes) >= len(run) {
				continue
			}
			first := run[0]
			rec := first.rec
			for _, rt := range run {
				rec.Explicit = rec.Explicit || rt.rec.Explicit
				rec.Created = min(rec.Created, rt.rec.Created)
			}
			for _, rt := range run {
				r.removeLocked(rt) // its bytes stay counted: they are asked for all the same
			}
			for _, node := range nodes {
				rec.ID, rec.Off, rec.Len = 0, node.Off, node.Len
				rt := r.newRetrieval(first.arc, first.ext, first.fileOff, rec)
				rt.window = true
				r.addLocked(rt)
			}
		}
	}
}
