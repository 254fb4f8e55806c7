package local

import (
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
)

// sorted returns the acknowledged parts by offset.
func (u *upload) sorted() []part {
	parts := make([]part, 0, len(u.parts))
	for _, p := range u.parts {
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b part) int { return int(a.off/mib - b.off/mib) })
	return parts
}

func (s *Store) listParts(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	limit, err := r.limit(1000)
	if err != nil {
		return err
	}
	var from int64
	if m := r.param("marker"); m != "" {
		var ok bool
		if from, ok = parseDecimal(m); !ok {
			return invalid("marker must be a byte offset")
		}
	}
	type partJSON struct {
		RangeInBytes   string
		SHA256TreeHash digest
	}
	v.mu.Lock()
	u, err := v.openUploadLocked(r.item)
	if err != nil {
		v.mu.Unlock()
		return err
	}
	list := struct {
		ArchiveDescription string
		CreationDate       string
		Marker             *string
		MultipartUploadId  string
		PartSizeInBytes    int64
		Parts              []partJSON
		VaultQCS           string
	}{u.desc, formatTime(u.created), nil, u.id, u.partSize, []partJSON{}, v.qcs()}
	parts := u.sorted()
	v.mu.Unlock()
	i := sort.Search(len(parts), func(i int) bool { return parts[i].off >= from })
	for _, p := range parts[i:] {
		if len(list.Parts) == limit {
			m := strconv.FormatInt(p.off, 10)
			list.Marker = &m
			break
		}
		list.Parts = append(list.Parts, partJSON{fmt.Sprintf("%d-%d", p.off, p.off+p.size-1), p.tree})
	}
	return r.replyJSON(http.StatusOK, list)
}

func (s *Store) listUploads(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	limit, err := r.limit(1000)
	if err != nil {
		return err
	}
	from, err := parseSeqMarker(r.param("marker"))
	if err != nil {
		return err
	}
	type uploadJSON struct {
		ArchiveDescription string // never null: cascmd trips over it
		CreationDate       string
		MultipartUploadId  string
		PartSizeInBytes    int64
		VaultQCS           string
	}
	list := struct {
		Marker      *string
		UploadsList []uploadJSON
	}{UploadsList: []uploadJSON{}}
	now := s.nowMillis()
	v.mu.Lock()
	var open []*upload
	for _, u := range v.uploads {
		if u.open(now, s.uploadLife) && u.seq >= from {
			open = append(open, u)
		}
	}
	v.mu.Unlock()
	slices.SortFunc(open, func(a, b *upload) int { return int(int64(a.seq - b.seq)) })
	for _, u := range open {
		if len(list.UploadsList) == limit {
			list.Marker = seqMarker(u.seq)
			break
		}
		list.UploadsList = append(list.UploadsList, uploadJSON{u.desc, formatTime(u.created), u.id, u.partSize, v.qcs()})
	}
	return r.replyJSON(http.StatusOK, list)
}

// Markers of lists in order of creation are sequence numbers, so that they
// survive the removal of what they point at.

func seqMarker(seq uint64) *string {
	m := fmt.Sprintf("%016x", seq)
	return &m
}

func parseSeqMarker(m string) (uint64, error) {
	if m == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(m, 16, 64)
	if err != nil || len(m) != 16 {
		return 0, invalid("marker must be one that this list gave out")
	}
	return n, nil
}
