package jobs

import (
	"fmt"

	"github.com/casfs/casfs/cache/catalog"
)

// markDamaged records that the vault's copy of a version is bad or gone.
func (r *recaller) markDamaged(key verKey, why string) {
	f, err := r.e.acquire(key.ino)
	if err != nil {
		return
	}
	defer f.put()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ver.V != key.v || f.ver.State != catalog.Archived {
		return
	}
	if err := r.setVersion(f, func(v *catalog.Version) { v.Damaged, v.Error = true, why }); err != nil {
		r.log.Error("damage is not recorded", "ino", key.ino, "error", err)
	}
}

// unmarkDamaged takes a damage back that was recorded for reason why.
func (r *recaller) unmarkDamaged(key verKey, why string) {
	f, err := r.e.acquire(key.ino)
	if err != nil {
		return
	}
	defer f.put()
	f.mu.Lock()
	if f.ver.V == key.v && f.ver.Damaged && f.ver.Error == why {
		if err := r.setVersion(f, undamaged); err != nil {
			r.log.Error("an archive that is back is not recorded", "ino", key.ino, "error", err)
		}
	}
	f.mu.Unlock()
	r.attrChanged(key.ino)
}

func undamaged(v *catalog.Version) { v.Damaged, v.Error = false, "" }

// barred reports whether what is missing of a damaged version is refused to readers. While an explicit recall of it is under
// way they may wait for what that brings; they ask for nothing themselves.
func (r *recaller) barred(v catalog.Version) bool {
	return v.Damaged && !r.underWay(verKey{v.Ino, v.V})
}

func errDamaged(v catalog.Version) error { return fmt.Errorf("%w: %s", ErrDamaged, v.Error) }

// mendsLocked reports whether what rt has brought takes back the damage recorded of f's version: an explicit recall asked for it,
// nothing of the version was given up, and the vault has all of it as far as is known. Unless the version is complete
// the retrievals beside rt must have brought what is good, too; but of what does not fit in the cache nothing could be dropped behind
// its readers for as long as it counts as damaged, so there what has come has to do. f.mu is held.
func (r *recaller) mendsLocked(rt *retrieval, f *file, complete bool) bool {
	if !f.ver.Damaged || f.ver.V != rt.key.v || f.ver.State != catalog.Archived {
		return false
	}
	if last, err := r.e.lastCopy(f.inode.Vault, f.ver); err != nil || last {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rt.gone || !rt.rec.Explicit {
		return false
	}
	for _, x := range f.ver.Extents {
		if _, failed := r.failed[x.Archive]; failed {
			return false
		}
	}
	if complete || rt.large {
		return true
	}
	for _, other := range r.byKey[rt.key] {
		if !other.good {
			return false
		}
	}
	return true
}

// mend takes the damage of rt's version back if what has come shows that there is none.
func (r *recaller) mend(rt *retrieval) {
	f, err := r.e.acquire(rt.key.ino) // rt's own reference goes with it
	if err != nil {
		return
	}
	defer f.put()
	f.mu.Lock()
	mended := r.mendsLocked(rt, f, false)
	if mended {
		if err := r.setVersion(f, undamaged); err != nil {
			r.log.Error("that a file is not damaged is not recorded", "ino", f.ino, "error", err)
			mended = false
		}
	}
	f.mu.Unlock()
	if mended {
		r.attrChanged(f.ino)
	}
}
