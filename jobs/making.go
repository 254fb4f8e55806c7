package jobs

import (
	"cmp"
	"slices"
)

// making is one making of a version: the archives that were uploaded for it. Version numbers are given out a second
// time after an older state directory was restored, so there may be two makings of one version, in two histories of the file.
type making struct {
	v           uint64
	size        int64
	own         []gathered
	first, last int64 // when they were made
	sure        bool  // that it is a version, not something that was left unfinished

	// All of its archives in order, those shared with earlier ones included (a segment that did not change between two versions was
	// uploaded only once, with the older). nil: some have to come.
	parts []gathered
}

// makings are those of one gathering, newest first.
type makings struct {
	list  []*making
	forks []fork
	by    map[uint64]*making // archive
}

// fork is where two histories of a file part: a version number that had been given out, or passed, was given out again then.
type fork struct {
	v  uint64
	at int64
}

// makingKey names a making, by what of it is set.
type makingKey struct {
	num         uint64 // its only archive
	set         string
	v           uint64 // as older descriptions do
	segs        int
	size, mtime int64
}

// making names the making that an archive was uploaded for. What was sent of a file still being written belongs to whatever became of it.
func (p gathered) making() (key makingKey, ok bool) {
	switch {
	case p.Segs <= 1:
		return makingKey{num: p.Num}, true
	case p.Set == setOpen:
		return makingKey{}, false
	case p.Set != "":
		return makingKey{set: p.Set}, true
	}
	return makingKey{v: p.V, segs: p.Segs, size: p.Size, mtime: p.Mtime}, true // an older description
}

func (g *gathering) makings() makings {
	var list []*making
	l := makings{by: make(map[uint64]*making)}
	by := make(map[makingKey]*making)
	for _, p := range g.Parts {
		key, ok := p.making()
		if !ok {
			continue
		}
		k := by[key]
		if k == nil {
			k = &making{v: p.V, size: p.Size, first: p.Created, last: p.Created, sure: p.Segs <= 1 || p.Set != ""}
			by[key] = k
			list = append(list, k)
		}
		k.own = append(k.own, p)
		l.by[p.Num] = k
		k.first, k.last = min(k.first, p.Created), max(k.last, p.Created)
	}
	slices.SortStableFunc(list, func(a, b *making) int { return cmp.Or(cmp.Compare(b.v, a.v), cmp.Compare(b.last, a.last)) })
	l.list = list
	// Those that need no others first: what is theirs is nobody else's who cannot prove it.
	for _, alone := range []bool{true, false} {
		for _, k := range list {
			if k.parts == nil {
				k.parts = g.assemble(k, l, alone)
			}
		}
	}
	var sure []*making
	for _, k := range list {
		if k.sure = (k.sure || k.parts != nil) && k.first != 0; k.sure {
			sure = append(sure, k)
		}
	}
	slices.SortStableFunc(sure, func(a, b *making) int { return cmp.Compare(a.first, b.first) })
	var most uint64
	for _, k := range sure {
		if k.v <= most {
			l.forks = append(l.forks, fork{k.v, k.first})
		}
		most = max(most, k.v)
	}
	return l
}

// assemble returns the archives of k in order, nil while some are not there. alone: only its own.
func (g *gathering) assemble(k *making, l makings, alone bool) []gathered {
	var others []gathered
	if !alone {
		for _, p := range g.Parts {
			if p.V <= k.v && !p.Beside {
				others = append(others, p)
			}
		}
		// The newest before the end of k first: what came later is of another history, or was on its way.
		late := func(p gathered) int {
			if p.Created > k.last {
				return 1
			}
			return 0
		}
		slices.SortStableFunc(others, func(a, b gathered) int {
			return cmp.Or(late(a)-late(b), cmp.Compare(b.V, a.V), cmp.Compare(b.Created, a.Created))
		})
	}
	if k.own[0].Segs > 1 && k.own[0].Set != "" {
		tries := mostTries
		return k.chain(nil, 0, others, &tries)
	}
	// An older description, which does not tell what it was to go with: versions that were grown, and what was sent of a file
	// still being written, which tells of one segment more.
	others = slices.DeleteFunc(others, func(p gathered) bool {
		streamed := p.Segs == p.Seg+2 && p.Segs <= k.own[0].Segs
		return p.Set != "" || p.Created > k.last || p.Size >= k.size || p.Segs > 1 && !streamed || l.whole(p)
	})
	var parts []gathered
	for seg := range max(k.own[0].Segs, 1) {
		in := func(p gathered) bool { return p.Seg == seg }
		if i := slices.IndexFunc(k.own, in); i >= 0 {
			parts = append(parts, k.own[i])
		} else if i := slices.IndexFunc(others, in); i >= 0 {
			parts = append(parts, others[i])
		} else {
			return nil
		}
	}
	if !k.is(parts) {
		return nil
	}
	return parts
}

// mostTries bounds how many segments are tried for a set.
const mostTries = 10000

// chain goes on with parts, which end at off, until they are what k's set names.
func (k *making) chain(parts []gathered, off int64, others []gathered, tries *int) []gathered {
	if *tries--; *tries < 0 || len(parts) > k.own[0].Segs {
		return nil
	}
	if off == k.size {
		if k.is(parts) {
			return slices.Clone(parts)
		}
		return nil
	}
	from := others
	if i := slices.IndexFunc(k.own, func(p gathered) bool { return p.Off == off }); i >= 0 {
		from = k.own[i : i+1]
	}
	for _, p := range from {
		// (An older description tells no offset, only the number.)
		if (p.Off == off && p.Set != "" || p.Seg == len(parts) && p.Set == "") && p.Len > 0 {
			if all := k.chain(append(parts, p), off+p.Len, others, tries); all != nil {
				return all
			}
		}
	}
	return nil
}

// is reports whether parts make up k, as far as its description tells.
func (k *making) is(parts []gathered) bool {
	var sum int64
	var intents []string
	for _, p := range parts {
		sum += p.Len
		intents = append(intents, p.Intent)
	}
	set := k.own[0].Set
	return sum == k.size && (k.own[0].Segs <= 1 || set == "" || set == setOf(intents))
}

// beside reports whether it is shown as a file of its own.
func (k *making) beside() bool {
	return slices.ContainsFunc(k.own, func(p gathered) bool { return p.Beside })
}

// of returns the making an archive was uploaded for, nil when that is not known.
func (l makings) of(p gathered) *making { return l.by[p.Num] }

// whole reports whether an archive was uploaded for several segments that are all there.
func (l makings) whole(p gathered) bool {
	k := l.of(p)
	return k != nil && k.parts != nil && k.own[0].Segs > 1
}

// complete returns the newest making of which every byte is there, but those that are files of their own.
func (l makings) complete() *making {
	for _, k := range l.list {
		if k.parts != nil && !k.beside() {
			return k
		}
	}
	return nil
}

// shown returns the making that g shows, nil when it shows none.
func (l makings) shown(g *gathering) *making {
	for _, k := range l.list {
		if g.Ino == 0 || k.parts == nil || k.v != g.V || k.beside() {
			continue
		}
		if g.Shown == nil || slices.EqualFunc(k.parts, g.Shown, func(p gathered, num uint64) bool { return p.Num == num }) {
			return k
		}
	}
	return nil
}

// apart reports whether two makings cannot be versions of one history: then neither replaces the other. Both have one number, the one
// with the smaller number was made later, or they are on different sides of where a number was given out again. (Segments
// of two versions may be under way at the same time.)
func (l makings) apart(a, b *making) bool {
	if a == b {
		return false
	}
	if a.v > b.v {
		a, b = b, a
	}
	if a.v == b.v {
		return a.sure && b.sure
	}
	return l.parted(a, b)
}

// elsewhere reports whether an archive whose making is not known was made in another history than k.
func (l makings) elsewhere(p gathered, k *making) bool {
	return l.parted(&making{v: p.V, first: p.Created, last: p.Created}, k) ||
		slices.ContainsFunc(l.list, func(o *making) bool { return o.sure && o.v < p.V && o.first > p.Created })
}

// parted is apart by when two makings of different versions were made.
func (l makings) parted(a, b *making) bool {
	if a.v > b.v {
		a, b = b, a
	}
	return a.v < b.v && a.first > b.last && b.first != 0 || slices.ContainsFunc(l.forks, func(f fork) bool {
		return a.v >= f.v && b.v >= f.v && (a.first < f.at) != (b.first < f.at)
	})
}
