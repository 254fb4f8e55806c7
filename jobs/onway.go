package jobs

// onWay sums up what is on its way. It is kept, not counted anew: it is wanted for every piece that is
// fetched, and there may be ten thousand retrievals. Guarded by recaller.mu.
type onWay struct {
	bytes    int64 // that all retrievals still have to bring
	explicit int64 // of them, for explicit recalls
	crowded  int   // explicit ones whose last piece found no room
}

// onWayOf is what one retrieval adds; nothing when it is in no table any more.
func onWayOf(rt *retrieval) (l onWay) {
	if rt.gone {
		return l
	}
	l.bytes = max(rt.rec.Len-rt.done, 0)
	if rt.rec.Explicit {
		l.explicit = l.bytes
		if rt.crowded {
			l.crowded = 1
		}
	}
	return l
}

// countLocked takes over what rt adds to what is on its way. Everything that adds or removes a retrieval, or
// changes whether it is explicit or crowded, or how much of it is there, calls it.
func (r *recaller) countLocked(rt *retrieval) {
	now := onWayOf(rt)
	r.onWay.bytes += now.bytes - rt.onWay.bytes
	r.onWay.explicit += now.explicit - rt.onWay.explicit
	r.onWay.crowded += now.crowded - rt.onWay.crowded
	rt.onWay = now
	if r.audit != nil {
		r.audit()
	}
}
