package jobs

import (
	"cmp"
	"fmt"
	"io"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// finish ends a retrieval whose range is local: an archive that is complete is
// held against its tree hash, a version that is complete is recorded as such.
func (r *recaller) finish(rt *retrieval) {
	ok, bad, err := r.checkArchive(rt)
	if err != nil {
		r.unreadable(rt, bad, err)
		return
	}
	if !ok {
		r.spoil(rt, fmt.Errorf("%w: the archive's tree hash is another", cas.ErrDigest))
		return
	}
	r.mu.Lock()
	rt.good = true
	r.mu.Unlock()
	complete := r.recordComplete(rt)
	if !complete {
		r.mend(rt)
	}
	r.e.hit("recall.complete")
	off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	r.mu.Lock()
	if !rt.gone && !complete && n > 0 && !rt.local.Verified(off, n) {
		// Somebody who waits took the room of some of it meanwhile: it comes again.
		rt.finishing, rt.good = false, false
		r.wakeFetchersLocked()
		r.mu.Unlock()
		return
	}
	size, job := rt.rec.Len, rt.rec.JobID
	r.waves.arrivedLocked(rt)
	if rt.rec.State == catalog.Wanted && rt.rec.Attempts == 0 && !rt.asking && !rt.rec.Uncertain {
		r.cancelLocked(rt)
	} else {
		r.removeLocked(rt)
	}
	rt.finishing = false
	r.wakeFetchersLocked() // it may have been dropped before
	r.mu.Unlock()
	r.log.Info("recalled", "path", r.pathOf(rt.key.ino), "bytes", size, "job", job, "complete", complete)
	r.attrChanged(rt.key.ino)
}

// checkable reports whether all of the archive is in the file and its tree hash known.
func (rt *retrieval) checkable() bool {
	return rt.arc.TreeHash != [32]byte{} && rt.ext.Off == 0 && rt.ext.Len == rt.arc.Size
}

// recordedComplete reports whether each archive of the version has been checked.
func (rt *retrieval) recordedComplete() bool {
	rt.file.mu.Lock()
	defer rt.file.mu.Unlock()
	return rt.file.local == rt.local && rt.file.ver.V == rt.key.v && rt.file.ver.Complete
}

// checkArchive compares all of the archive with its tree hash, once all of it is
// local. It reads again only what this run of the program did not fetch. bad are the pieces this disk does not give back,
// maxUnreadable and one at most; the error is why.
func (r *recaller) checkArchive(rt *retrieval) (ok bool, bad []cas.Range, err error) {
	want := cas.Hash(rt.arc.TreeHash)
	off, n := rt.toFile(cas.Range{Len: rt.arc.Size})
	if !rt.checkable() || !rt.local.Verified(off, n) || rt.recordedComplete() {
		return true, nil, nil
	}
	r.mu.Lock()
	_, known := r.checked[rt.arc.Num]
	r.mu.Unlock()
	if known {
		return true, nil, nil
	}
	var nodes []cas.Hash
	for at := int64(0); at < rt.arc.Size; at += r.o.piece {
		m := min(r.o.piece, rt.arc.Size-at)
		r.mu.Lock()
		sum, ok := rt.sums[at]
		r.mu.Unlock()
		if !ok || rt.rec.Len <= r.o.piece && m != rt.rec.Len {
			var rerr error
			if sum, rerr = r.sumLocal(rt, off, cas.Range{Off: at, Len: m}); rerr != nil {
				err = cmp.Or(err, rerr)
				if bad = append(bad, cas.Range{Off: at, Len: m}); len(bad) > maxUnreadable {
					break
				}
			}
		}
		nodes = append(nodes, sum)
	}
	if err != nil {
		return false, bad, err
	}
	if cas.CombineTreeHashes(nodes) != want {
		// Unless some of it was dropped while it was read.
		return !rt.local.Verified(off, n), nil, nil
	}
	r.mu.Lock()
	r.checked[rt.arc.Num] = struct{}{}
	r.mu.Unlock()
	return true, nil, nil
}

// sumLocal returns the tree hash of a piece of rt's archive, which begins at off in the file, as this disk has it.
func (r *recaller) sumLocal(rt *retrieval, off int64, p cas.Range) (cas.Hash, error) {
	if r.badSpot != nil {
		if err := r.badSpot(p.Off); err != nil {
			return cas.Hash{}, err
		}
	}
	return cas.TreeHashReaderAt(r.runContext(), io.NewSectionReader(rt.local, off+p.Off, p.Len), p.Len, 1)
}

// recordComplete records that all of a version is local, when it is and each of its archives has been checked. What
// still has to be checked is that of another retrieval, which then records it: f.mu makes one of them the last.
func (r *recaller) recordComplete(rt *retrieval) bool {
	f := rt.file
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ver.V != rt.key.v || f.ver.State != catalog.Archived || f.local != rt.local || !rt.local.Verified(0, f.ver.Size) {
		return false
	}
	r.mu.Lock()
	for _, other := range r.byKey[rt.key] {
		if _, ok := r.checked[other.arc.Num]; other != rt && !ok && other.checkable() {
			r.mu.Unlock()
			return false
		}
	}
	for _, x := range f.ver.Extents {
		delete(r.checked, x.Archive)
	}
	r.stubBytes -= r.stubs[rt.local.ID()]
	delete(r.stubs, rt.local.ID())
	r.mu.Unlock()
	mended := r.mendsLocked(rt, f, true)
	if f.ver.Complete && !mended {
		return true
	}
	if err := r.setVersion(f, func(v *catalog.Version) {
		v.Complete = true
		if mended {
			undamaged(v)
		}
	}); err != nil {
		r.log.Error("a complete file is not recorded as such", "ino", f.ino, "error", err)
	}
	return true
}

// spoil drops what was fetched of an archive that is not what it should be, and
// fetches it once more; the second time the version is damaged.
func (r *recaller) spoil(rt *retrieval, cause error) {
	f := rt.file
	off, n := rt.toFile(cas.Range{Len: rt.arc.Size})
	again := false
	f.mu.Lock()
	if f.local == rt.local && f.ver.V == rt.key.v && f.ver.State == catalog.Archived && !f.ver.Complete {
		again = true
		if err := rt.local.Drop(off, n); err != nil {
			r.log.Error("spoiled ranges stay in the cache", "ino", f.ino, "error", err)
		}
	}
	f.mu.Unlock()
	r.contentChanged(rt.key.ino)
	r.mu.Lock()
	again = again && !rt.refetched && !rt.gone
	if again {
		rt.refetched, rt.spoiled, rt.digests, rt.finishing = true, false, 0, false
		rt.sums, rt.done, rt.cursor = nil, 0, rt.rec.Off
		r.waves.spoiledLocked(rt)
		r.countLocked(rt)
		delete(r.checked, rt.arc.Num)
		r.wakeFetchersLocked()
	}
	r.mu.Unlock()
	if again {
		r.log.Warn("a recalled archive is not what it should be and is fetched once more", "path", r.pathOf(rt.key.ino), "archive", rt.arc.ID, "error", cause)
		return
	}
	r.fail(rt, cause, true)
	r.mu.Lock()
	rt.finishing = false
	r.wakeFetchersLocked()
	r.mu.Unlock()
}
