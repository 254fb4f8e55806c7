package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// room returns how much of a file the cache can hold at once, with pieces of others on their way.
func (r *recaller) room() int64 {
	u := r.e.store.Usage()
	all := min(u.CacheLimit, u.CacheBytes+max(u.CacheFree-u.CacheMinFree, 0))
	return max(all-int64(r.o.fetches)*r.o.piece, all/2)
}

// makeRoom reserves n bytes for a piece. For a reader that waits it takes them, if
// need be, from what only lies ready: ranges behind the readers of a file that
// streams, and files being fetched that nobody waits for.
func (r *recaller) makeRoom(ctx context.Context, fl *flight, n int64) (release func(), err error) {
	if fl.rt.streaming {
		r.dropBehind(fl, n)
	}
	release, err = r.e.store.ReserveContent(ctx, n)
	if err == nil || !errors.Is(err, content.ErrNoSpace) {
		return release, err
	}
	if !fl.demanded {
		return nil, fmt.Errorf("%w: %w", errNoRoom, err)
	}
	if !r.dropForReader(fl, n) {
		return nil, err
	}
	return r.e.store.ReserveContent(ctx, n)
}

// dropBehind keeps a streaming file within half of the cache: what lies behind
// all its readers goes, then what lies farthest ahead of this one.
func (r *recaller) dropBehind(fl *flight, n int64) {
	rt := fl.rt
	limit := max(r.room()/2, r.o.piece)
	ranges := fl.local.VerifiedRanges()
	var have int64
	for _, x := range ranges {
		have += x.Len
	}
	if have+n <= limit {
		return
	}
	from, _ := rt.toFile(cas.Range{Off: r.readerOf(rt), Len: 1})
	r.dropRanges(rt, rt.file, fl.local, have+n-limit, func(off int64) bool { return off < from })
}

// readerOf returns the offset in the archive before which nobody reads.
func (r *recaller) readerOf(rt *retrieval) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	pos := rt.reader
	for _, want := range rt.demand {
		pos = min(pos, want.Off)
	}
	return pos
}

// dropForReader frees n bytes of what has been fetched and can be fetched again.
func (r *recaller) dropForReader(fl *flight, n int64) bool {
	r.mu.Lock()
	victims := slices.Clone(r.active)
	r.mu.Unlock()
	slices.SortStableFunc(victims, func(a, b *retrieval) int { // its own file last
		switch {
		case a == fl.rt && b != fl.rt:
			return 1
		case b == fl.rt && a != fl.rt:
			return -1
		}
		return 0
	})
	var freed int64
	for _, rt := range victims {
		r.mu.Lock()
		keep := make([]cas.Range, 0, len(rt.demand))
		for _, want := range rt.demand {
			keep = append(keep, want)
		}
		f, local, gone := rt.file, rt.local, rt.gone || rt.finishing
		r.mu.Unlock()
		if gone || f == nil || local == nil || rt != fl.rt && len(keep) > 0 {
			continue
		}
		freed += r.dropRanges(rt, f, local, n-freed, func(off int64) bool {
			return !slices.ContainsFunc(keep, func(w cas.Range) bool {
				lo, m := rt.toFile(w)
				return lo/r.o.piece == off/r.o.piece || off >= lo && off < lo+m
			})
		})
		if freed >= n {
			return true
		}
	}
	return freed > 0
}

// dropRanges forgets and punches up to want bytes of rt's part of the local file, piece by piece, where may
// says so. It leaves alone what a read under way uses, and what is being written.
func (r *recaller) dropRanges(rt *retrieval, f *file, local *content.File, want int64, may func(off int64) bool) (freed int64) {
	lo, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	for _, x := range local.VerifiedRanges() {
		from, to := max(x.Off, lo), min(x.Off+x.Len, lo+n)
		for from < to && freed < want {
			end := min((from/r.o.piece+1)*r.o.piece, to)
			if may(from) {
				f.mu.Lock()
				if f.local != local || f.pinned > 0 || f.ver.State != catalog.Archived || f.ver.Complete {
					f.mu.Unlock()
					return freed
				}
				err := local.Drop(from, end-from)
				f.mu.Unlock()
				if err != nil {
					r.log.Error("a range of a cached file is not dropped", "ino", f.ino, "error", err)
					return freed
				}
				freed += end - from
			}
			from = end
		}
	}
	r.mu.Lock()
	rt.done = max(rt.done-freed, 0)
	r.mu.Unlock()
	return freed
}
