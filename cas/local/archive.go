package local

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// declared are the two hashes every body comes with.
type declared struct{ linear, tree digest }

// declaredHashes reads the hash headers of an upload; either case is accepted.
func (r *request) declaredHashes() (d declared, err error) {
	if d.linear, err = r.hashHeader("x-cas-content-sha256"); err != nil {
		return d, err
	}
	d.tree, err = r.hashHeader("x-cas-sha256-tree-hash")
	return d, err
}

func (r *request) hashHeader(name string) (digest, error) {
	vs := r.http.Header.Values(name)
	if len(vs) == 0 {
		return digest{}, missing(name)
	}
	d, ok := parseDigest(vs[0])
	if !ok {
		return d, invalid("%s must be 64 hexadecimal digits", name)
	}
	return d, nil
}

// check compares what arrived with what was declared.
func (d declared) check(got received) error {
	if got.linear != d.linear {
		return badDigest("x-cas-content-sha256 is %s, the body has %s", d.linear, got.linear)
	}
	if got.tree != d.tree {
		return badDigest("x-cas-sha256-tree-hash is %s, the body has %s", d.tree, got.tree)
	}
	return nil
}

// bodySize checks the announced length of an upload.
func (r *request) bodySize() (int64, error) {
	n := r.http.ContentLength
	switch {
	case n < 0, n == 0 && r.http.Header.Get("Content-Length") == "":
		return 0, missing("Content-Length")
	case n == 0:
		return 0, invalid("an archive needs at least one byte")
	case n > maxBody:
		e := invalid("a body has at most %d bytes", int64(maxBody))
		e.close = true
		return 0, e
	}
	return n, nil
}

func (r *request) description() (string, error) {
	return cleanDescription(r.http.Header.Get("x-cas-archive-description"))
}

func (s *Store) uploadArchive(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	size, err := r.bodySize()
	if err != nil {
		return err
	}
	want, err := r.declaredHashes()
	if err != nil {
		return err
	}
	desc, err := r.description()
	if err != nil {
		return err
	}
	end, err := v.beginWrite()
	if err != nil {
		return err
	}
	defer end()
	id, err := v.store(r.body, size, desc, "", want.check)
	if err != nil {
		return err
	}
	r.location("archives", id)
	r.header("X-Cas-Archive-Id", id)
	r.header("X-Cas-Content-Sha256", want.linear.String())
	r.header("X-Cas-Sha256-Tree-Hash", want.tree.String())
	r.reply(http.StatusCreated)
	return nil
}

// store makes an archive of size bytes of body and returns its ID once it is
// durable. jobID is the pull job it ends, if any. check may refuse it when everything has arrived. The caller holds beginWrite.
func (v *vault) store(body io.Reader, size int64, desc, jobID string, check func(received) error) (id string, err error) {
	id = newID(archiveIDLen)
	v.mu.Lock()
	shard, err := v.placeLocked()
	v.mu.Unlock()
	if err != nil {
		return "", err
	}
	path := v.archivePath(shard, id)
	got, err := v.s.writeBody(path, body, size, check)
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	t, err := v.commitLocked(&record{
		Type: "put", ID: id, Shard: shard, Size: size, Tree: got.tree, At: v.s.nowMillis(), Desc: desc, JobID: jobID,
	}, v.shardDir(shard))
	v.mu.Unlock()
	if err != nil {
		removeData(path)
		return "", err
	}
	return id, v.log.wait(t)
}

// writeBody streams a body into a new file and its leaves next to it, both
// synced. On error nothing is left.
func (s *Store) writeBody(path string, body io.Reader, size int64, check func(received) error) (got received, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return got, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			removeData(path)
		}
	}()
	holes := false
	got, err = receive(body, size, func(off int64, p []byte, zero bool) error {
		if zero {
			holes = true
			return nil
		}
		_, err := f.WriteAt(p, off)
		return err
	})
	if err != nil {
		return got, err
	}
	if err := check(got); err != nil {
		return got, err
	}
	if holes {
		if err := f.Truncate(size); err != nil {
			return got, err
		}
	}
	if err := s.syncFile(f); err != nil {
		return got, err
	}
	if len(got.leaves) > 1 {
		err = s.writeLeaves(path+".tree", 0, got.leaves)
	}
	return got, err
}

// removeData removes a data file and its leaves.
func removeData(path string) error {
	err := os.Remove(path)
	if os.IsNotExist(err) {
		err = nil
	}
	if err2 := os.Remove(path + ".tree"); err2 != nil && !os.IsNotExist(err2) {
		err = errors.Join(err, err2)
	}
	return err
}

func (s *Store) deleteArchive(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	v.mu.Lock()
	a := v.archives[r.item]
	if v.gone {
		v.mu.Unlock()
		return noVault(v.name)
	}
	if a == nil || a.deleted != 0 {
		v.mu.Unlock()
		if err := v.log.barrier(); err != nil { // the other request may still be writing its record
			return err
		}
		r.reply(http.StatusNoContent) // deleting twice is no error, as in Glacier
		return nil
	}
	t, err := v.commitLocked(&record{Type: "del", ID: a.id, At: s.nowMillis()}, "")
	kept := a.kept
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err != nil {
		return err
	}
	if !kept {
		if err := removeData(v.archivePath(a.shard, a.id)); err != nil {
			s.logger.Warn("deleted archive not removed", "path", filepath.Base(v.dir), "error", err)
		}
	}
	r.reply(http.StatusNoContent)
	return nil
}
