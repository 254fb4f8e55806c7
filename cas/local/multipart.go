package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sort"
	"strconv"
	"sync"
)

const (
	maxParts    = 10000
	minPartSize = mib
	maxPartSize = 4 << 30
	maxArchive  = maxParts * maxPartSize
)

// upload is a multipart upload: open, or completed and remembered for a while
// so that a repeated Complete finds its archive.
type upload struct {
	id       string
	archive  string // ID the archive will have
	shard    int
	seq      uint64
	created  int64
	partSize int64
	desc     string

	// Guarded by the vault's mu.
	parts    map[int64]part     // acknowledged, by offset
	busy     map[int64]*inPlace // who writes into the archive's own file, by offset
	done     int64              // when it was completed; 0: open
	size     int64              // of the completed archive
	declared digest             // tree hash given at Complete

	// data is held for reading around every write into the archive's own file, and
	// for writing by Complete and Abort: once closed is set, a request that is
	// still sending an old part can no longer touch the archive.
	data   sync.RWMutex
	closed bool
}

// inPlace is a request that writes a part into the archive's own file. It is
// void, guarded by upload.data, once Complete had to write there itself.
type inPlace struct{ void bool }

type part struct {
	off, size int64
	tree      digest
	overlay   string // suffix of the file that holds it; "": the archive's own file
}

// open reports whether parts may still come.
func (u *upload) open(now, life int64) bool { return u.done == 0 && now < u.created+life }

func noUpload(id string) error { return notFound("upload %.80s does not exist", id) }

// openUpload finds an upload that is still open.
func (v *vault) openUploadLocked(id string) (*upload, error) {
	u := v.uploads[id]
	if v.gone || u == nil || !u.open(v.s.nowMillis(), v.s.uploadLife) {
		return nil, noUpload(id)
	}
	return u, nil
}

func (s *Store) initiateUpload(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	text := r.http.Header.Get("x-cas-part-size")
	if text == "" {
		return missing("x-cas-part-size")
	}
	size, ok := parseDecimal(text)
	switch {
	case !ok || size < minPartSize || size > maxPartSize || size%mib != 0:
		return invalid("x-cas-part-size must be a number of MiB between 1 MiB and 4 GiB, in bytes")
	case size&(size-1) != 0 && !s.lenient:
		return invalid("x-cas-part-size must be 1 MiB times a power of two")
	}
	desc, err := r.description()
	if err != nil {
		return err
	}
	if err := v.log.broken(); err != nil {
		return err
	}
	rec := &record{Type: "mpu", Upload: newID(shortIDLen), ID: newID(archiveIDLen), PartSize: size, At: s.nowMillis(), Desc: desc}
	v.mu.Lock()
	if v.gone {
		v.mu.Unlock()
		return noVault(v.name)
	}
	if rec.Shard, err = v.placeLocked(); err != nil {
		v.mu.Unlock()
		return err
	}
	v.inShard-- // applying the record counts it
	t, err := v.commitLocked(rec, "")
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err != nil {
		return err
	}
	r.location("multipart-uploads", rec.Upload)
	r.header("X-Cas-Multipart-Upload-Id", rec.Upload)
	r.reply(http.StatusCreated)
	return nil
}

// checkPart refuses ranges that cannot be a part of the upload.
func (u *upload) checkPart(first, last, size int64) error {
	n := last - first + 1
	switch {
	case n != size:
		return invalid("Content-Range has %d bytes, the body %d", n, size)
	case first%u.partSize != 0:
		return invalid("a part begins at a multiple of the part size, %d", u.partSize)
	case n > u.partSize:
		return invalid("a part has at most %d bytes", u.partSize)
	case first/u.partSize >= maxParts:
		return invalid("an upload has at most %d parts", maxParts)
	case n == u.partSize:
		return nil
	}
	for off := range u.parts {
		if off > first {
			return invalid("only the last part may be shorter than %d bytes", u.partSize)
		}
	}
	return nil
}

func (s *Store) uploadPart(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	size, err := r.bodySize()
	if err != nil {
		return err
	}
	cr := r.http.Header.Get("Content-Range")
	if cr == "" {
		return missing("Content-Range")
	}
	first, last, ok := parseContentRange(cr)
	if !ok {
		return invalid("Content-Range must be \"bytes FIRST-LAST/*\"")
	}
	want, err := r.declaredHashes()
	if err != nil {
		return err
	}
	end, err := v.beginWrite()
	if err != nil {
		return err
	}
	defer end()

	v.mu.Lock()
	u, err := v.openUploadLocked(r.item)
	if err == nil {
		err = u.checkPart(first, last, size)
	}
	if err != nil {
		v.mu.Unlock()
		return err
	}
	// Acknowledged bytes are never written over: a broken repetition must not
	// damage them. The first sender of a part writes in place.
	_, have := u.parts[first]
	var w *inPlace
	if !have && u.busy[first] == nil {
		w = &inPlace{}
		u.busy[first] = w
	}
	v.mu.Unlock()

	p := part{off: first, size: size}
	if w != nil {
		p.tree, err = v.writeInPlace(u, w, first, r.body, size, want)
	} else {
		p.overlay = fmt.Sprintf(".part-%d-%s", first, newKey(12))
		var got received
		got, err = s.writeBody(v.archivePath(u.shard, u.archive)+p.overlay, r.body, size, want.check)
		p.tree = got.tree
	}
	if err == nil {
		err = v.acknowledge(u, w, p)
	} else if w != nil {
		v.mu.Lock()
		u.release(first, w)
		v.mu.Unlock()
	}
	if err != nil {
		if p.overlay != "" {
			removeData(v.archivePath(u.shard, u.archive) + p.overlay)
		}
		return err
	}
	r.header("X-Cas-Sha256-Tree-Hash", p.tree.String())
	r.reply(http.StatusNoContent)
	return nil
}

// release lets the next sender of a part write in place.
func (u *upload) release(off int64, w *inPlace) {
	if w != nil && u.busy[off] == w {
		delete(u.busy, off)
	}
}

// writeInPlace writes a part into the archive's own file, where nothing
// acknowledged lies, and its leaves into the leaf file; both are synced. What a
// failure leaves there is overwritten by the next attempt.
func (v *vault) writeInPlace(u *upload, w *inPlace, off int64, body io.Reader, size int64, want declared) (digest, error) {
	path := v.archivePath(u.shard, u.archive)
	guarded := func(fn func() error) error {
		u.data.RLock()
		defer u.data.RUnlock()
		if u.closed {
			return noUpload(u.id)
		}
		if w.void {
			return errors.New("the part was sent twice at a time, send it again")
		}
		return fn()
	}
	var f *os.File
	if err := guarded(func() (err error) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		return err
	}); err != nil {
		return digest{}, err
	}
	defer f.Close()
	got, err := receive(body, size, func(at int64, p []byte, zero bool) error {
		return guarded(func() error {
			// An earlier attempt may have left bytes here, so zeros must be made, not assumed.
			// The last byte of a part is always written, to give the file its length.
			if zero && at+int64(len(p)) < size && punchHole(f, off+at, int64(len(p))) {
				return nil
			}
			_, err := f.WriteAt(p, off+at)
			return err
		})
	})
	if err == nil {
		err = want.check(got)
	}
	if err != nil {
		return digest{}, err
	}
	return got.tree, guarded(func() error {
		if err := v.s.syncFile(f); err != nil {
			return err
		}
		return v.s.writeLeaves(path+".tree", off/mib, got.leaves)
	})
}

// acknowledge records a part whose bytes are on disk; w wrote them when they
// are in the archive's own file.
func (v *vault) acknowledge(u *upload, w *inPlace, p part) error {
	path := v.archivePath(u.shard, u.archive)
	u.data.RLock() // against Complete writing over what is acknowledged here
	v.mu.Lock()
	defer u.data.RUnlock()
	u.release(p.off, w)
	if v.uploads[u.id] != u || u.done != 0 || w != nil && w.void {
		v.mu.Unlock()
		return noUpload(u.id)
	}
	old := u.parts[p.off]
	if p.overlay != "" && old.size == p.size && old.tree == p.tree {
		// The same bytes again, the usual case of a lost reply.
		v.mu.Unlock()
		return removeData(path + p.overlay)
	}
	t, err := v.commitLocked(&record{
		Type: "part", Upload: u.id, Off: p.off, Size: p.size, Tree: p.tree, Overlay: p.overlay,
	}, v.shardDir(u.shard))
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err == nil && old.overlay != "" {
		err = removeData(path + old.overlay)
	}
	return err
}

func (s *Store) completeUpload(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	text := r.http.Header.Get("x-cas-archive-size")
	if text == "" {
		return missing("x-cas-archive-size")
	}
	size, ok := parseDecimal(text)
	if !ok || size < 1 || size > maxArchive {
		return invalid("x-cas-archive-size must be between 1 and %d", int64(maxArchive))
	}
	tree, err := r.hashHeader("x-cas-sha256-tree-hash")
	if err != nil {
		return err
	}
	end, err := v.beginWrite()
	if err != nil {
		return err
	}
	defer end()
	v.mu.Lock()
	u := v.uploads[r.item]
	v.mu.Unlock()
	if u == nil {
		return noUpload(r.item)
	}
	id, err := v.complete(u, size, tree)
	if err != nil {
		return err
	}
	r.location("archives", id)
	r.header("X-Cas-Archive-Id", id)
	r.reply(http.StatusCreated)
	return nil
}

// complete turns an upload into an archive. On failure the upload stays open
// as it was; repeating it after success gives the same archive.
func (v *vault) complete(u *upload, size int64, tree digest) (string, error) {
	u.data.Lock()
	defer u.data.Unlock()

	v.mu.Lock()
	now := v.s.nowMillis()
	if v.uploads[u.id] != u || v.gone || u.done == 0 && !u.open(now, v.s.uploadLife) ||
		u.done != 0 && now >= u.done+v.s.uploadLife {
		v.mu.Unlock()
		return "", noUpload(u.id)
	}
	if u.done != 0 {
		defer v.mu.Unlock()
		if a := v.archives[u.archive]; a == nil || a.deleted != 0 {
			return "", notFound("the archive of upload %s was deleted", u.id)
		}
		if size != u.size || tree != u.declared {
			return "", invalid("the upload was completed with another size or hash")
		}
		return u.archive, nil
	}
	parts := u.sorted()
	for _, p := range parts {
		if w := u.busy[p.off]; w != nil && p.overlay != "" {
			w.void = true
			delete(u.busy, p.off)
		}
	}
	v.mu.Unlock()

	var sum int64
	nodes := make([]digest, 0, len(parts))
	for i, p := range parts {
		if p.off != sum {
			return "", invalid("part %d-%d is missing", sum, min(sum+u.partSize, p.off)-1)
		}
		if i < len(parts)-1 && p.size != u.partSize {
			return "", invalid("the part at %d has %d bytes instead of %d", p.off, p.size, u.partSize)
		}
		sum += p.size
		nodes = append(nodes, p.tree)
	}
	if sum != size {
		return "", invalid("x-cas-archive-size is %d, the parts have %d bytes", size, sum)
	}
	path := v.archivePath(u.shard, u.archive)
	whole, err := v.settleParts(path, parts)
	if err != nil {
		return "", err
	}
	// With parts that are no power of two the combined hash of the parts, which is what
	// cascmd sends, is not the archive's tree hash. Either is accepted, the true one is kept.
	if combined := rootOf(nodes); tree != combined && tree != whole {
		return "", badDigest("x-cas-sha256-tree-hash is %s, the parts have %s", tree, combined)
	}
	if err := trim(v.s, path, size); err != nil {
		return "", err
	}

	rec := &record{Type: "put", ID: u.archive, Shard: u.shard, Size: size, Tree: whole, At: v.s.nowMillis(), Desc: u.desc, Upload: u.id}
	if tree != whole {
		rec.Decl = tree
	}
	v.mu.Lock()
	t, err := v.commitLocked(rec, v.shardDir(u.shard))
	v.mu.Unlock()
	if err != nil {
		return "", err
	}
	u.closed = true
	if err := v.log.wait(t); err != nil {
		return "", err
	}
	for _, p := range parts {
		if p.overlay != "" {
			removeData(path + p.overlay)
		}
	}
	return u.archive, nil
}

// sorted returns the acknowledged parts by offset.
func (u *upload) sorted() []part {
	parts := make([]part, 0, len(u.parts))
	for _, p := range u.parts {
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b part) int { return int(a.off/mib - b.off/mib) })
	return parts
}

// settleParts copies parts that were sent again into the archive's file and
// returns the tree hash of the whole, having checked the leaf file against every part's hash.
func (v *vault) settleParts(path string, parts []part) (digest, error) {
	var whole treeStack
	for _, p := range parts {
		if p.overlay != "" {
			if err := v.copyOverlay(path, p); err != nil {
				return digest{}, err
			}
		}
		var t treeStack
		if err := eachLeaf(path+".tree", p.off/mib, p.off/mib+leafCount(p.size), func(d digest) {
			t.push(d)
			whole.push(d)
		}); err != nil {
			return digest{}, err
		}
		if t.root() != p.tree {
			return digest{}, fmt.Errorf("%s: leaves of the part at %d are damaged", path, p.off)
		}
	}
	return whole.root(), nil
}

func (v *vault) copyOverlay(path string, p part) error {
	src, err := os.Open(path + p.overlay)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	got, err := receive(src, p.size, func(at int64, b []byte, _ bool) error {
		_, err := dst.WriteAt(b, p.off+at)
		return err
	})
	if err != nil {
		return err
	}
	if got.tree != p.tree {
		return fmt.Errorf("%s: the file is damaged", src.Name())
	}
	if err := v.s.syncFile(dst); err != nil {
		return err
	}
	return v.s.writeLeaves(path+".tree", p.off/mib, got.leaves)
}

// trim cuts off what abandoned parts left behind the end.
func trim(s *Store, path string, size int64) error {
	for _, f := range []struct {
		path string
		size int64
	}{{path, size}, {path + ".tree", leafCount(size) * sha256.Size}} {
		st, err := os.Stat(f.path)
		if err != nil {
			return err
		}
		if st.Size() == f.size {
			continue
		}
		if st.Size() < f.size {
			return fmt.Errorf("%s has %d bytes instead of %d", f.path, st.Size(), f.size)
		}
		h, err := os.OpenFile(f.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(h.Truncate(f.size), s.syncFile(h), h.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) abortUpload(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	v.mu.Lock()
	u, err := v.openUploadLocked(r.item)
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if err := v.abort(u); err != nil {
		return err
	}
	r.reply(http.StatusNoContent)
	return nil
}

// abort drops an upload that is not completed, and its files.
func (v *vault) abort(u *upload) error {
	u.data.Lock()
	defer u.data.Unlock()
	v.mu.Lock()
	if v.uploads[u.id] != u || u.done != 0 {
		v.mu.Unlock()
		return noUpload(u.id)
	}
	parts := u.sorted()
	t, err := v.commitLocked(&record{Type: "abort", Upload: u.id}, "")
	v.mu.Unlock()
	if err != nil {
		return err
	}
	u.closed = true
	if err := v.log.wait(t); err != nil {
		return err
	}
	path := v.archivePath(u.shard, u.archive)
	err = removeData(path)
	for _, p := range parts {
		if p.overlay != "" {
			err = errors.Join(err, removeData(path+p.overlay))
		}
	}
	if err != nil {
		v.s.logger.Warn("aborted upload not removed completely", "vault", v.name, "error", err)
	}
	return nil
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
