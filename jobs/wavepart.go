package jobs

import (
	"cmp"
	"math"
	"slices"

	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// wavePart is what one request wants of a version. What others want of it beside is not waited for.
type wavePart struct {
	b        *bulk
	off, end int64 // of the file

	all     int64 // end, or that of the file
	local   bool  // a range, and all of it is there
	arrived bool  // something that was waited for
	dropped bool  // and something was not there any more when the last of it arrived
	cause   error
}

// newPart returns what b wants of f's version; f.mu is held.
func newPart(b *bulk, f *file) *wavePart {
	p := &wavePart{b: b, end: math.MaxInt64, all: f.ver.Size}
	if b.rec.Len > 0 {
		p.off = b.rec.Off
		p.end = p.off + max(min(b.rec.Len, f.ver.Size-p.off), 0)
		p.all = p.end
		_, some := missing(f, p.off, p.end-p.off)
		p.local = !some
	}
	return p
}

// common returns how much of r, of rt's archive, is wanted.
func (p *wavePart) common(rt *retrieval, r cas.Range) int64 {
	off, n := rt.toFile(r)
	return min(off+n, p.end) - max(off, p.off)
}

func (p *wavePart) wants(rt *retrieval) bool {
	return p.common(rt, cas.Range{Off: rt.rec.Off, Len: rt.rec.Len}) > 0
}

// waitsLocked reports whether a retrieval of the version has still to bring, or to check, some of what is wanted: more than one may
// be for the same bytes, and the first that brings them is enough.
func (r *recaller) waitsLocked(key verKey, p *wavePart) bool {
	for _, rt := range r.byKey[key] {
		brought := p.end < math.MaxInt64 && rt.streaming && rt.local != nil && !p.missesLocked(rt)
		if p.wants(rt) && (!p.local && !brought || rt.finishing) {
			return true
		}
	}
	return false
}

// partsLocked returns the parts that rt brings something of.
func (w *waves) partsLocked(rt *retrieval) (parts []*wavePart) {
	if f := w.inflight[rt.key]; f != nil {
		for _, p := range f.parts {
			if p.wants(rt) {
				parts = append(parts, p)
			}
		}
	}
	return parts
}

// failedLocked hears why a retrieval was given up.
func (w *waves) failedLocked(rt *retrieval, cause error) {
	for _, p := range w.partsLocked(rt) {
		p.cause, p.local = cause, false
	}
}

// spoiledLocked hears that what a retrieval brought was dropped again and comes once more.
func (w *waves) spoiledLocked(rt *retrieval) {
	for _, p := range w.partsLocked(rt) {
		p.local = false
	}
}

// arrivedLocked hears that a retrieval brought what it was for.
func (w *waves) arrivedLocked(rt *retrieval) {
	for _, p := range w.partsLocked(rt) {
		p.arrived, p.dropped = true, !rt.local.Verified(p.off, p.all-p.off)
		p.local = p.end < math.MaxInt64 && !p.dropped
	}
}

// fetchedLocked hears of verified bytes of rt's archive.
func (w *waves) fetchedLocked(rt *retrieval, bytes cas.Range) {
	for _, p := range w.partsLocked(rt) {
		p.b.fetched += max(p.common(rt, bytes), 0)
		p.b.current = rt.key.ino
		if p.end < math.MaxInt64 && rt.local != nil {
			p.local = rt.local.Verified(p.off, p.end-p.off) // whatever else the retrieval is for
			w.look[rt.key] = struct{}{}
		}
	}
	if len(w.bulks) > 0 {
		w.kick()
	}
}

// missesLocked reports whether anything is missing of what rt, whose file is open, has to bring for p.
func (p *wavePart) missesLocked(rt *retrieval) bool {
	off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	lo, hi := max(off, p.off), min(off+n, p.end)
	return lo < hi && !rt.local.Verified(lo, hi-lo)
}

// rangesLocked returns the recalls of ranges for which a stream has still to bring something: that does not come by itself.
func (r *recaller) rangesLocked(rt *retrieval) (parts []*wavePart) {
	if !rt.streaming || rt.local == nil {
		return nil
	}
	return slices.DeleteFunc(r.waves.partsLocked(rt), func(p *wavePart) bool { return p.end == math.MaxInt64 || !p.missesLocked(rt) })
}

// recalledLocked returns the next piece of a stream's archive that recalls of ranges want.
func (r *recaller) recalledLocked(rt *retrieval) (cas.Range, bool) {
	for _, p := range r.rangesLocked(rt) {
		if x, ok := r.pieceLocked(rt, p.off-rt.fileOff+rt.ext.Off, p.end-rt.fileOff+rt.ext.Off); ok {
			return x, true
		}
	}
	return cas.Range{}, false
}

// recalledBy tells ranges of a version that belong to a recall which has not ended, and give way to nothing that rt brings. What came first
// takes from what came later: else neither would ever have room enough.
func (r *recaller) recalledBy(rt *retrieval) func(content.Range) bool {
	return func(x content.Range) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		f := r.waves.inflight[rt.key]
		if f == nil {
			return false
		}
		first := slices.IndexFunc(f.parts, func(p *wavePart) bool { return p.wants(rt) })
		return slices.ContainsFunc(f.parts[:cmp.Or(first+1, len(f.parts))], func(p *wavePart) bool { return p.off < x.Off+x.Len && x.Off < p.end })
	}
}
