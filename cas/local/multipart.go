package local

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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
			if zero && punchHole(f, off+at, int64(len(p))) {
				if at+int64(len(p)) < size {
					return nil
				}
				at, p = at+int64(len(p))-1, p[len(p)-1:] // the last byte of a part gives the file its length
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
// are in the archive's own file. A file of the part's own is removed if there is no record of it.
func (v *vault) acknowledge(u *upload, w *inPlace, p part) error {
	remove := func(overlay string) {
		if overlay == "" {
			return
		}
		if err := removeData(v.archivePath(u.shard, u.archive) + overlay); err != nil {
			v.s.logger.Warn("part not removed", "vault", v.name, "upload", u.id, "error", err)
		}
	}
	u.data.RLock() // against Complete writing over what is acknowledged here
	v.mu.Lock()
	defer u.data.RUnlock()
	u.release(p.off, w)
	if v.uploads[u.id] != u || u.done != 0 || w != nil && w.void {
		v.mu.Unlock()
		remove(p.overlay)
		return noUpload(u.id)
	}
	old := u.parts[p.off]
	if p.overlay != "" && old.size == p.size && old.tree == p.tree {
		// The same bytes again, the usual case of a lost reply.
		v.mu.Unlock()
		remove(p.overlay)
		return v.log.barrier()
	}
	t, err := v.commitLocked(&record{
		Type: "part", Upload: u.id, Off: p.off, Size: p.size, Tree: p.tree, Overlay: p.overlay,
	}, v.shardDir(u.shard))
	v.mu.Unlock()
	if err != nil {
		remove(p.overlay)
		return err
	}
	if err := v.log.wait(t); err != nil {
		return err // the record may be on disk all the same
	}
	remove(old.overlay)
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
