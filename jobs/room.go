package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// room returns how much of a file the cache can hold at once, beside what is pinned, with pieces of others on their way.
func (r *recaller) room() int64 { return r.roomBeside(r.pins.bytes.Load()) }

func (r *recaller) roomBeside(pinned int64) int64 {
	u := r.e.store.Usage()
	return r.roomIn(max(min(u.CacheLimit, u.CacheBytes+max(u.CacheFree-u.CacheMinFree, 0))-pinned, 0))
}

// most is what the cache may hold with nothing else on the disk.
func (r *recaller) most() int64 {
	u := r.e.store.Usage()
	return min(u.CacheLimit, max(u.CacheTotal-u.CacheMinFree, 0))
}

// mostRoom is room with nothing else on the disk, nor pinned: what is larger will never fit.
func (r *recaller) mostRoom() int64 { return r.roomIn(r.most()) }

// emptyRoomLocked is roomForLocked when others have left the disk.
func (r *recaller) emptyRoomLocked(ino uint64) int64 {
	return r.roomIn(max(r.most()-r.pins.bytes.Load()+r.pins.size[ino], 0))
}

func (r *recaller) roomIn(all int64) int64 { return max(all-int64(r.o.fetches)*r.o.piece, all/2) }

// makeRoom reserves n bytes for a piece of a file. For a reader that waits it takes them, if
// need be, from what only lies ready: ranges behind the readers of a file that
// does not fit in the cache, and files being fetched that nobody waits for.
func (r *recaller) makeRoom(ctx context.Context, fl *flight, n int64) (release func(), err error) {
	if fl.large {
		r.dropBehind(fl, n)
		if over := bytesFrom(fl.local.VerifiedRanges(), 0) + n - r.roomFor(fl.rt.key.ino); over > 0 {
			r.dropForRange(fl, over) // a cache that is full to the brim evicts the whole file in the end
		}
	}
	release, err = r.e.store.ReserveContent(ctx, n)
	if err == nil || !errors.Is(err, content.ErrNoSpace) {
		return release, err
	}
	if !fl.demanded && !r.dropForRange(fl, n) && !r.dropForNext(fl, n) {
		return nil, fmt.Errorf("%w: %w", errNoRoom, err)
	}
	if fl.demanded && !r.dropForReader(fl, n) {
		return nil, err
	}
	return r.e.store.ReserveContent(ctx, n)
}

// dropBehind keeps a file that does not fit in the cache within half of it, by what lies behind all its readers.
func (r *recaller) dropBehind(fl *flight, n int64) {
	rt := fl.rt
	have := bytesFrom(fl.local.VerifiedRanges(), 0)
	limit := max(r.roomFor(rt.key.ino)/2, r.o.piece)
	if have+n <= limit {
		return
	}
	from := r.behind(rt, rt.file)
	if from == 0 {
		return
	}
	settled, recalled := r.settledIn(rt.key), r.recalledBy(rt)
	r.dropRanges(rt.file, fl.local, content.Range{Len: from}, have+n-limit, func(x content.Range) bool { return settled(x) && !recalled(x) })
}

// behind returns the offset in f before which nobody reads: where the last reader of rt was when there is none.
func (r *recaller) behind(rt *retrieval, f *file) int64 {
	at := r.readersOf(f)
	if len(at) > 0 {
		return slices.Min(at)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rt.left.IsZero() {
		return 0
	}
	off, _ := rt.toFile(cas.Range{Off: rt.reader, Len: 1})
	return off
}

// settledIn tells ranges that would not be fetched again by themselves when they were dropped: those of no
// retrieval under way, or of one that only follows its readers.
func (r *recaller) settledIn(key verKey) func(content.Range) bool {
	return func(x content.Range) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, rt := range r.byKey[key] {
			off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
			if off < x.Off+x.Len && x.Off < off+n && (!rt.streaming || rt.finishing) {
				return false
			}
		}
		return true
	}
}

// dropForReader frees n bytes of what has been fetched and can be fetched again: of a file that does not fit in the cache
// what lies behind this reader; then what others have ready that nobody waits for; then what lies farthest ahead.
func (r *recaller) dropForReader(fl *flight, n int64) bool {
	var freed int64
	here := fl.rt
	unwanted := r.unwantedIn(here.key)
	from, _ := here.toFile(fl.rng)
	settled := r.settledIn(here.key)
	if fl.large {
		freed += r.dropRanges(here.file, fl.local, content.Range{Len: from}, n, func(x content.Range) bool { return settled(x) && unwanted(x) })
	}
	r.mu.Lock()
	victims := slices.Clone(r.active)
	r.mu.Unlock()
	slices.SortStableFunc(victims, func(a, b *retrieval) int { // its own file last
		switch {
		case a.key == here.key && b.key != here.key:
			return 1
		case b.key == here.key && a.key != here.key:
			return -1
		}
		return 0
	})
	for _, rt := range victims {
		if freed >= n {
			break
		}
		r.mu.Lock()
		wanted := len(rt.demand) > 0
		f, local, gone := rt.file, rt.local, rt.gone || rt.finishing
		r.mu.Unlock()
		if gone || f == nil || local == nil || rt != here && wanted {
			continue
		}
		freed += r.dropFetched(rt, f, local, n-freed, rt.key != here.key)
	}
	if fl.large && freed < n {
		// Farthest first, for it is wanted last.
		ranges := fl.local.VerifiedRanges()
		for _, x := range slices.Backward(ranges) {
			for end := x.Off + x.Len; end > max(x.Off, from) && freed < n; {
				lo := max((end-1)/r.o.piece*r.o.piece, x.Off, from)
				freed += r.dropRanges(here.file, fl.local, content.Range{Off: lo, Len: end - lo}, n-freed,
					func(x content.Range) bool { return settled(x) && unwanted(x) })
				end = lo
			}
		}
	}
	return freed > 0
}

// dropForRange makes room for a recalled range of a file that does not fit in the cache, by what the cache has of the file beside: the store
// does not evict a file that is being recalled.
func (r *recaller) dropForRange(fl *flight, n int64) bool {
	r.mu.Lock()
	explicit := fl.rt.rec.Explicit
	r.mu.Unlock()
	if !fl.large || !explicit {
		return false
	}
	settled, unwanted, recalled := r.settledIn(fl.rt.key), r.unwantedIn(fl.rt.key), r.recalledBy(fl.rt)
	return r.dropRanges(fl.rt.file, fl.local, content.Range{Len: math.MaxInt64}, n, func(x content.Range) bool {
		return settled(x) && unwanted(x) && !recalled(x)
	}) > 0
}

// dropForNext lets one retrieval go on when what was begun of many fills the cache, nobody waits for any of them, and so none would
// ever come to its end: the one that misses the least takes from the others what it misses, when it has found no room twice; and from streams
// that nobody reads any more.
func (r *recaller) dropForNext(fl *flight, n int64) bool {
	now := time.Now()
	r.mu.Lock()
	var next *retrieval
	var victims []*retrieval
	left := func(rt *retrieval) int64 {
		if rt.streaming {
			return r.o.piece
		}
		return rt.rec.Len - rt.done
	}
	for _, rt := range r.active {
		if rt.finishing || rt.lost {
			continue
		}
		recalled := len(r.rangesLocked(rt)) > 0
		if rt.idleStream(now) {
			victims = append(victims, rt)
			if !recalled {
				continue
			}
		}
		if (rt.streaming || rt.large && !rt.rec.Explicit) && !recalled || len(rt.demand) > 0 {
			continue
		}
		if !rt.streaming {
			victims = append(victims, rt)
		}
		if rt != fl.rt && !rt.crowded && rt.notBefore.After(now) {
			continue // the service does not give it now
		}
		if next == nil || left(rt) < left(next) || left(rt) == left(next) && rt.order < next.order {
			next = rt
		}
	}
	if next != fl.rt || !next.crowded {
		r.mu.Unlock()
		return false
	}
	want := max(left(next), n)
	slices.SortStableFunc(victims, func(a, b *retrieval) int { return cmp.Compare(left(b), left(a)) })
	r.mu.Unlock()
	var freed int64
	for _, rt := range victims {
		r.mu.Lock()
		f, local, busy := rt.file, rt.local, rt.gone || rt.finishing || len(rt.demand) > 0
		r.mu.Unlock()
		if busy || freed >= want || rt.arc.Num == fl.rt.arc.Num || f == nil || local == nil {
			continue
		}
		freed += r.dropFetched(rt, f, local, want-freed, true)
	}
	return freed > 0
}

// dropFetched frees up to want bytes of what a retrieval has brought into f, which comes again by itself or when it is read; and with
// settled of what others have brought there before it, if it is a stream: the store does not evict a file that is being recalled.
func (r *recaller) dropFetched(rt *retrieval, f *file, local *content.File, want int64, settled bool) int64 {
	unwanted := r.unwantedIn(rt.key)
	lo, m := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	freed := r.dropRanges(f, local, content.Range{Off: lo, Len: m}, want, unwanted)
	r.mu.Lock()
	settled = settled && rt.streaming
	r.mu.Unlock()
	if settled && freed < want {
		settled := r.settledIn(rt.key)
		freed += r.dropRanges(f, local, content.Range{Len: math.MaxInt64}, want-freed, func(x content.Range) bool { return settled(x) && unwanted(x) })
	}
	return freed
}

// unwantedIn tells ranges of a version that nobody waits for.
func (r *recaller) unwantedIn(key verKey) func(content.Range) bool {
	return func(x content.Range) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, rt := range r.byKey[key] {
			for _, want := range rt.demand {
				lo, m := rt.toFile(want)
				if lo/r.o.piece == x.Off/r.o.piece || lo < x.Off+x.Len && x.Off < lo+m {
					return false
				}
			}
		}
		return true
	}
}

// dropRanges forgets and punches up to want bytes of what f has within a range, piece by piece, where may
// says so. It leaves alone what a read under way uses, and what is being written; and of a pinned file what would not come again by itself.
func (r *recaller) dropRanges(f *file, local *content.File, within content.Range, want int64, may func(content.Range) bool) (freed int64) {
	f.mu.Lock()
	pinned, key, size := f.inode.Pinned, verKey{f.ver.Ino, f.ver.V}, f.ver.Size
	f.mu.Unlock()
	kept := pinned && r.keep(f.ino, size)
	for _, x := range local.VerifiedRanges() {
		from, to := max(x.Off, within.Off), min(x.Off+x.Len, within.Off+within.Len)
		for from < to && freed < want {
			end := min((from/r.o.piece+1)*r.o.piece, to)
			if x := (content.Range{Off: from, Len: end - from}); may(x) && (!kept || r.comesAgain(key, x)) {
				f.mu.Lock()
				if f.local != local || f.pinned > 0 || f.ver.State != catalog.Archived || f.ver.Complete {
					f.mu.Unlock()
					return freed
				}
				last, err := f.lastCopyLocked()
				if err == nil && last { // it would not come again
					f.mu.Unlock()
					return freed
				}
				if err == nil {
					err = local.Drop(from, end-from)
				}
				if err == nil {
					r.dropped(f.ver, from, end-from)
				}
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
	return freed
}

// dropped hears that a range of a version is not local any more.
func (r *recaller) dropped(v catalog.Version, off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range r.byKey[verKey{v.Ino, v.V}] {
		lo, m := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
		if common := min(off+n, lo+m) - max(off, lo); common > 0 && rt.done > 0 {
			rt.done = max(rt.done-common, 0)
			r.countLocked(rt)
		}
	}
	r.uncheckLocked(v, off, n)
}

// uncheckLocked forgets that archives of a version were held against their tree hash: when what was dropped of them comes again, they
// are again.
func (r *recaller) uncheckLocked(v catalog.Version, off, n int64) {
	var at int64
	for _, x := range v.Extents {
		if at < off+n && off < at+x.Len {
			delete(r.checked, x.Archive)
		}
		at += x.Len
	}
}
