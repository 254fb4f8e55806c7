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

// rangeTree returns the tree hash of an aligned range of an archive.
func (v *vault) rangeTree(a *archive, first, end int64) (digest, error) {
	if first == 0 && end == a.size {
		return a.tree, nil
	}
	path := v.archivePath(a.shard, a.id)
	var t treeStack
	err := eachLeaf(path+".tree", first/mib, leafCount(end), t.push)
	if err == nil {
		return t.root(), nil
	}
	if !os.IsNotExist(err) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return digest{}, err
	}
	// The leaf file is lost: the bytes are there still.
	v.s.logger.Warn("leaf hashes are missing, reading the archive", "vault", v.name, "archive", a.id)
	f, err := os.Open(path)
	if err != nil {
		return digest{}, err
	}
	defer f.Close()
	got, err := receive(io.NewSectionReader(f, first, end-first), end-first, func(int64, []byte, bool) error { return nil })
	return got.tree, err
}
