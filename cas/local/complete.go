package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
)

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
		a := v.archives[u.archive]
		gone := a == nil || a.deleted != 0
		v.mu.Unlock()
		if gone {
			return "", notFound("the archive of upload %s was deleted", u.id)
		}
		if size != u.size || tree != u.declared {
			return "", invalid("the upload was completed with another size or hash")
		}
		return u.archive, v.log.barrier() // the first one's record may have failed
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
