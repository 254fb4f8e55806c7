package jobs

import (
	"fmt"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// maxUnreadable is how many pieces of an archive this disk may fail to give back before they are no bad spots but a broken disk.
const maxUnreadable = 4

// unreadable drops pieces of an archive which were fetched earlier and cannot be read back to be checked, and has them fetched once more.
// The second time, or when there are more than a few, the recall is given up: a disk that is broken is not asked again and again.
func (r *recaller) unreadable(rt *retrieval, bad []cas.Range, cause error) {
	stopping := r.runContext().Err() != nil
	cause = fmt.Errorf("what was fetched cannot be read back from the disk of this machine: %w", cause)
	dropped := false
	if !stopping {
		dropped = r.dropUnreadable(rt, bad)
	}
	again, beyond := false, false
	r.mu.Lock()
	over := stopping || rt.gone
	if !over && dropped && !rt.reread && len(bad) <= maxUnreadable {
		again, rt.reread, rt.cursor = true, true, rt.rec.Off
		beyond = r.completeLocked(rt) // it is for other bytes of the archive: these come when somebody wants them
	}
	r.mu.Unlock()
	switch {
	case again:
		r.log.Warn("some of a recalled archive cannot be read back and was dropped, to be fetched once more", "path", r.pathOf(rt.key.ino), "archive", rt.arc.ID, "error", cause)
	case !over:
		r.fail(rt, cause, false)
	}
	if beyond {
		r.finish(rt)
		return
	}
	r.mu.Lock()
	rt.finishing = false
	r.wakeFetchersLocked()
	r.mu.Unlock()
}

// dropUnreadable reports whether the pieces are gone. What may be all that is left of a file stays, for most of it may be readable yet.
func (r *recaller) dropUnreadable(rt *retrieval, bad []cas.Range) bool {
	f := rt.file
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.local != rt.local || f.ver.V != rt.key.v || f.ver.State != catalog.Archived || f.ver.Complete {
		return false
	}
	if last, err := f.lastCopyLocked(); err != nil || last {
		return false
	}
	for _, x := range bad {
		off, n := rt.toFile(x)
		if err := rt.local.Drop(off, n); err != nil {
			r.log.Error("what cannot be read stays in the cache", "ino", f.ino, "error", err)
			return false
		}
		r.dropped(f.ver, off, n)
	}
	return true
}
