package jobs

import (
	"fmt"
	"time"
)

// While other programs fill the disk what is ready cannot be fetched, and its output expires. The service is asked for nothing
// meanwhile: not for an output that has no place, and not for a job, first or another, before there is room for what that brings.

const (
	// noRoomWait is when a piece that found no room is tried again; what nobody waits for is put off longer each time, up to noRoomMost.
	noRoomWait = 5 * time.Second
	noRoomMost = time.Minute
)

// noRoomLocked puts rt off. That its output has expired meanwhile is told by the clock.
func (r *recaller) noRoomLocked(rt *retrieval, now time.Time, awaited bool, why string) {
	rt.rec.Error = why
	switch {
	case awaited:
		rt.notBefore = now.Add(noRoomWait)
	case !rt.notBefore.After(now): // else another piece has found none in the same moment
		rt.notBefore = now.Add(min(noRoomWait<<min(rt.noRoom, 10), noRoomMost))
		rt.noRoom++
	}
	if rt.rec.Expires != 0 && now.UnixNano() >= rt.rec.Expires {
		rt.lost = true
		r.kickLocked(rt.rec.VaultName)
	}
}

// roomCameLocked has those that found no room try again: something has ended, and what it brought may be evicted now.
func (r *recaller) roomCameLocked() {
	for _, rt := range r.active {
		if rt.crowded {
			rt.notBefore, rt.noRoom = time.Time{}, 0
		}
	}
}

// holdLocked keeps rt from being asked for again before there is room.
func (r *recaller) holdLocked(rt *retrieval, held bool) {
	rt.held = held
	r.countLocked(rt)
}

// heldLocked reports whether there is still no room for rt, which is held, and lets it go if there is. What an explicit recall
// wants must fit in the cache beside what else such recalls have on their way; for a reader a piece is enough.
func (r *recaller) heldLocked(rt *retrieval, now time.Time) bool {
	u := r.e.store.Usage()
	need := min(rt.rec.Len, r.o.piece)
	room := u.CacheBytes + u.CacheFree - u.CacheMinFree
	if rt.rec.Explicit && len(rt.demand) == 0 && rt.rec.Len <= r.emptyRoomLocked(rt.key.ino) { // what never fits streams, or fails
		need = rt.rec.Len
		room = min(room, r.roomForLocked(rt.key.ino)) - (r.onWay.explicit - r.onWay.held)
	}
	if need <= room {
		r.holdLocked(rt, false)
		return false
	}
	rt.notBefore = now.Add(noRoomMost)
	rt.rec.Error = fmt.Sprintf("the job's output expired before it was fetched; another is asked for when there is room for %d bytes: %s", need, r.roomText())
	return true
}

// waitsForLocked says what a request waits for whose next file has no room on a disk that others fill; "" when it is another's turn, or
// nothing is in the way.
func (r *recaller) waitsForLocked(b *bulk) string {
	if len(b.items) == 0 {
		return ""
	}
	need := b.needs(b.items[0])
	if ino := b.items[0].Ino; need <= r.roomForLocked(ino) || need > r.emptyRoomLocked(ino) { // the latter fails
		return ""
	}
	return fmt.Sprintf("room for %d bytes: %s", need, r.roomText())
}

// roomText says how much room there is, for people.
func (r *recaller) roomText() string {
	u := r.e.store.Usage()
	return fmt.Sprintf("the cache holds %d of %d bytes, %d bytes of its disk are free, %d are kept free", u.CacheBytes, u.CacheLimit, u.CacheFree, u.CacheMinFree)
}
