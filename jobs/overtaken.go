package jobs

import (
	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// overtakenBy reports whether fl has brought the last of what rt, whose own output is not ready yet, is for: its job may be
// hours away, and nobody is to wait for that. r.mu is held.
func overtakenBy(rt *retrieval, fl *flight) bool {
	unready := rt.rec.State == catalog.Wanted || rt.rec.State == catalog.Asked
	return unready && !rt.opening && rt.key == fl.rt.key && rt.isIn(fl.local)
}

// isIn reports whether all of rt's range is in a local file of its version.
func (rt *retrieval) isIn(local *content.File) bool {
	off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len})
	return n == 0 || local.Verified(off, n)
}

// overtaken finishes a retrieval whose bytes others have brought; it is marked as finishing.
func (r *recaller) overtaken(rt *retrieval) {
	r.mu.Lock()
	f, opened := rt.file, r.completeLocked(rt)
	r.mu.Unlock()
	if opened {
		r.finish(rt)
		return
	}
	var local *content.File
	var err error
	if f == nil {
		f, err = r.e.acquire(rt.key.ino)
	}
	if err == nil {
		f.mu.Lock()
		if f.ver.V == rt.key.v && f.ver.State == catalog.Archived {
			local = f.local
		}
		f.mu.Unlock()
	}
	r.mu.Lock()
	rt.file, rt.local = f, local         // bury gives the file back
	if local == nil || !rt.isIn(local) { // it was dropped, or the version is another: its own job is wanted after all
		rt.finishing = false
		r.wakeFetchersLocked()
		r.kickLocked(rt.rec.VaultName)
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.finish(rt)
}
