package jobs

import (
	"fmt"
	"io"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// finish ends a retrieval whose range is local: an archive that is complete is
// held against its tree hash, a version that is complete is recorded as such.
func (r *recaller) finish(rt *retrieval) {
	ok, err := r.checkArchive(rt)
	if err != nil {
		r.mu.Lock()
		rt.finishing = false
		rt.retryLocked(time.Now(), err)
		r.wakeFetchersLocked()
		r.mu.Unlock()
		r.log.Error("a recalled archive cannot be checked", "path", r.pathOf(rt.key.ino), "error", err)
		return
	}
	if !ok {
		r.spoil(rt, fmt.Errorf("%w: the archive's tree hash is another", cas.ErrDigest))
		return
	}
	complete := r.recordComplete(rt)
	r.e.hit("recall.complete")
	off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	r.mu.Lock()
	if !rt.gone && !complete && n > 0 && !rt.local.Verified(off, n) {
		// Somebody who waits took the room of some of it meanwhile: it comes again.
		rt.finishing = false
		r.wakeFetchersLocked()
		r.mu.Unlock()
		return
	}
	size, job := rt.rec.Len, rt.rec.JobID
	r.waves.arrivedLocked(rt.key)
	r.removeLocked(rt)
	rt.finishing = false
	r.mu.Unlock()
	r.log.Info("recalled", "path", r.pathOf(rt.key.ino), "bytes", size, "job", job, "complete", complete)
	r.attrChanged(rt.key.ino)
}

// checkable reports whether all of the archive is in the file and its tree hash known.
func (rt *retrieval) checkable() bool {
	return rt.arc.TreeHash != [32]byte{} && rt.ext.Off == 0 && rt.ext.Len == rt.arc.Size
}

// checkArchive compares all of the archive with its tree hash, once all of it is
// local. It reads again only what this run of the program did not fetch.
func (r *recaller) checkArchive(rt *retrieval) (bool, error) {
	want := cas.Hash(rt.arc.TreeHash)
	off, n := rt.toFile(cas.Range{Len: rt.arc.Size})
	if !rt.checkable() || !rt.local.Verified(off, n) {
		return true, nil
	}
	r.mu.Lock()
	_, known := r.checked[rt.arc.Num]
	r.mu.Unlock()
	if known {
		return true, nil
	}
	var nodes []cas.Hash
	for at := int64(0); at < rt.arc.Size; at += r.o.piece {
		m := min(r.o.piece, rt.arc.Size-at)
		r.mu.Lock()
		sum, ok := rt.sums[at]
		r.mu.Unlock()
		if !ok || rt.rec.Len <= r.o.piece && m != rt.rec.Len {
			var err error
			if sum, err = cas.TreeHashReaderAt(r.runContext(), io.NewSectionReader(rt.local, off+at, m), m, 1); err != nil {
				return false, err
			}
		}
		nodes = append(nodes, sum)
	}
	if cas.CombineTreeHashes(nodes) != want {
		// Unless some of it was dropped while it was read.
		return !rt.local.Verified(off, n), nil
	}
	r.mu.Lock()
	r.checked[rt.arc.Num] = struct{}{}
	r.mu.Unlock()
	return true, nil
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
	if f.ver.Complete {
		return true
	}
	if err := r.setVersion(f, func(v *catalog.Version) { v.Complete = true }); err != nil {
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
