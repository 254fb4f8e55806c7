package local

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
)

// Leaves of an archive's tree are kept in a file of their own, 32 bytes per
// MiB, so that the hash of any aligned range is answered without reading the data.

// errDamaged is that an archive's bytes are not what was uploaded, and no leaf file tells which of them are.
var errDamaged = errors.New("the archive is damaged")

// writeLeaves writes leaves from index first on, and syncs.
func (s *Store) writeLeaves(path string, first int64, leaves []digest) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(leaves)*sha256.Size)
	for _, l := range leaves {
		b = append(b, l[:]...)
	}
	_, err = f.WriteAt(b, first*sha256.Size)
	if err == nil {
		err = s.syncFile(f)
	}
	return errors.Join(err, f.Close())
}

// eachLeaf calls fn for leaves [from, to) of a leaf file.
func eachLeaf(path string, from, to int64, fn func(digest)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	br := bufio.NewReaderSize(io.NewSectionReader(f, from*sha256.Size, (to-from)*sha256.Size), 64<<10)
	var d digest
	for i := from; i < to; i++ {
		if _, err := io.ReadFull(br, d[:]); err != nil {
			return fmt.Errorf("%s at leaf %d: %w", path, i, err)
		}
		fn(d)
	}
	return nil
}

// rangeTree returns the tree hash of an aligned range of an archive. The leaf file is held against the archive's hash once
// for each job, of which it is noted there; j may be nil.
func (v *vault) rangeTree(a *archive, first, end int64, j *job) (digest, error) {
	if first == 0 && end == a.size {
		return a.tree, nil
	}
	checked := false
	if j != nil {
		v.mu.Lock()
		checked = j.checked
		v.mu.Unlock()
		defer func() {
			v.mu.Lock()
			j.checked = checked
			v.mu.Unlock()
		}()
	}
	path := v.archivePath(a.shard, a.id) + ".tree"
	from, to := first/mib, leafCount(end)
	var part, whole treeStack
	var err error
	if checked {
		err = eachLeaf(path, from, to, part.push)
	} else {
		i := int64(0)
		err = eachLeaf(path, 0, leafCount(a.size), func(d digest) {
			if from <= i && i < to {
				part.push(d)
			}
			whole.push(d)
			i++
		})
	}
	if err == nil && (checked || whole.root() == a.tree) {
		checked = true
		return part.root(), nil
	}
	checked = false
	if err != nil && !os.IsNotExist(err) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return digest{}, err
	}
	leaves, mendErr := v.mendLeaves(a)
	switch {
	case mendErr == nil:
		return rootOf(leaves[from:to]), nil
	case err == nil:
		// The bytes are damaged, too. Where they are not what the leaves say, whoever compares them will see it.
		v.s.logger.Error("an archive and its leaf hashes are damaged", "vault", v.name, "archive", a.id, "error", mendErr)
		checked = true
		return part.root(), nil
	}
	return digest{}, mendErr
}

// mendLeaves makes a leaf file that is lost or damaged from the archive's bytes, if these are what was uploaded: hashes of
// damaged bytes would make them pass for good ones.
func (v *vault) mendLeaves(a *archive) ([]digest, error) {
	path := v.archivePath(a.shard, a.id)
	v.s.logger.Warn("leaf hashes are lost or damaged, reading the archive", "vault", v.name, "archive", a.id)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Size() < a.size {
		return nil, fmt.Errorf("%w: %s has %d bytes instead of %d", errDamaged, path, st.Size(), a.size)
	}
	got, err := receive(io.NewSectionReader(f, 0, a.size), a.size, func(int64, []byte, bool) error { return nil })
	if err != nil {
		return nil, err
	}
	if got.tree != a.tree {
		return nil, fmt.Errorf("%w: %s", errDamaged, path)
	}
	err = replaceWith(path+".tree", 0o600, !v.s.noSync, func(w *bufio.Writer) {
		for _, l := range got.leaves {
			w.Write(l[:]) // its error comes with Flush
		}
	})
	if err != nil {
		v.s.logger.Warn("leaf hashes not written", "vault", v.name, "archive", a.id, "error", err)
	}
	return got.leaves, nil
}
