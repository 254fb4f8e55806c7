package content

import "sort"

// ranges is a set of bytes: sorted, disjoint ranges that do not touch. A set
// that was published is never changed; the operations return new ones.
type ranges []Range

// search returns the index of the first range ending after off.
func (s ranges) search(off int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].End() > off })
}

func (s ranges) covers(off, n int64) bool {
	if n <= 0 {
		return true
	}
	i := s.search(off)
	return i < len(s) && s[i].Off <= off && s[i].End() >= off+n
}

func (s ranges) overlaps(off, n int64) bool {
	if n <= 0 {
		return false
	}
	i := s.search(off)
	return i < len(s) && s[i].Off < off+n
}

func (s ranges) add(r Range) ranges {
	if r.Len <= 0 {
		return s
	}
	lo := sort.Search(len(s), func(i int) bool { return s[i].End() >= r.Off })
	hi := lo
	for hi < len(s) && s[hi].Off <= r.End() {
		off, end := min(s[hi].Off, r.Off), max(s[hi].End(), r.End())
		r = Range{off, end - off}
		hi++
	}
	out := make(ranges, 0, len(s)-(hi-lo)+1)
	out = append(out, s[:lo]...)
	out = append(out, r)
	return append(out, s[hi:]...)
}

func (s ranges) sub(r Range) ranges {
	if !s.overlaps(r.Off, r.Len) {
		return s
	}
	out := make(ranges, 0, len(s)+1)
	for _, x := range s {
		if x.End() <= r.Off || x.Off >= r.End() {
			out = append(out, x)
			continue
		}
		if x.Off < r.Off {
			out = append(out, Range{x.Off, r.Off - x.Off})
		}
		if x.End() > r.End() {
			out = append(out, Range{r.End(), x.End() - r.End()})
		}
	}
	return out
}

// clip cuts the set at size.
func (s ranges) clip(size int64) ranges {
	if len(s) == 0 || s[len(s)-1].End() <= size {
		return s
	}
	return s.sub(Range{size, s[len(s)-1].End() - size})
}

// complement returns what of [0, size) is not in the set.
func (s ranges) complement(size int64) ranges {
	var out ranges
	var at int64
	for _, x := range s {
		if x.Off >= size {
			break
		}
		if x.Off > at {
			out = append(out, Range{at, x.Off - at})
		}
		at = x.End()
	}
	if at < size {
		out = append(out, Range{at, size - at})
	}
	return out
}

// next returns the first byte of the set in [off, off+n), or -1.
func (s ranges) next(off, n int64) int64 {
	if !s.overlaps(off, n) {
		return -1
	}
	return max(off, s[s.search(off)].Off)
}
