package jobs

// onWay sums up what is on its way. It is kept, not counted anew: it is wanted for every piece that is
// fetched, and there may be ten thousand retrievals. Guarded by recaller.mu.
type onWay struct {
	bytes    int64 // that all retrievals still have to bring
	explicit int64 // of them, for explicit recalls, without streams
	held     int64 // of those, for what is not asked for again before there is room
	crowded  int   // explicit ones whose last piece found no room, or that are held
}

// onWayOf is what one retrieval adds; nothing when it is in no table any more.
func onWayOf(rt *retrieval) (l onWay) {
	if rt.gone {
		return l
	}
	l.bytes = max(rt.rec.Len-rt.done, 0)
	if rt.rec.Explicit && !rt.streaming { // a stream brings only what is read of it, or recalled by range
		l.explicit = l.bytes
		if rt.held {
			l.held = l.bytes
		}
		if rt.crowded || rt.held {
			l.crowded = 1
		}
	}
	return l
}

// countLocked takes over what rt adds to what is on its way. Everything that adds or removes a retrieval, or
// changes whether it is explicit, a stream, held or crowded, or how much of it is there, calls it.
func (r *recaller) countLocked(rt *retrieval) {
	now := onWayOf(rt)
	r.onWay.bytes += now.bytes - rt.onWay.bytes
	r.onWay.explicit += now.explicit - rt.onWay.explicit
	r.onWay.held += now.held - rt.onWay.held
	r.onWay.crowded += now.crowded - rt.onWay.crowded
	rt.onWay = now
	if r.audit != nil {
		r.audit()
	}
}
