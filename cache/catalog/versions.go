package catalog

import "iter"

// Version returns one content of a file. Errors: ErrNotExist.
func (tx *Tx) Version(ino, v uint64) (Version, error) {
	return load(tx, key2(tVersion, ino, v), decodeVersion)
}

// PutVersion stores a version as it is.
func (tx *Tx) PutVersion(v Version) error { return tx.replaceVersion(v.Ino, v.V, &v) }

// DeleteVersion removes a version; one that is absent is no error.
func (tx *Tx) DeleteVersion(ino, v uint64) error { return tx.replaceVersion(ino, v, nil) }

func (tx *Tx) replaceVersion(ino, v uint64, next *Version) error {
	key := key2(tVersion, ino, v)
	old, err := loadOld(tx, key, decodeVersion)
	if err != nil {
		return err
	}
	tx.countVersion(old, -1)
	tx.countVersion(next, 1)
	if err := tx.move(stagedKey(old), stagedKey(next)); err != nil {
		return err
	}
	if err := tx.move(localKey(old), localKey(next)); err != nil {
		return err
	}
	if next == nil {
		return tx.del(key)
	}
	return tx.put(key, encodeVersion(key, next))
}

// Versions returns the contents of a file, oldest first.
func (tx *Tx) Versions(ino uint64) ([]Version, error) {
	return collect(each(tx, key1(tVersion, ino), decodeVersion))
}

// StagedVersions iterates over versions in state Staged or Uploading (an index; cheap when there are few).
func (tx *Tx) StagedVersions() iter.Seq2[Version, error] {
	return each(tx, []byte{tStaged}, func(k, _ []byte) (Version, error) { return tx.Version(num(k, 0), num(k, 1)) })
}

// LocalVersions iterates over all versions with Local != 0, by that number.
func (tx *Tx) LocalVersions() iter.Seq2[Version, error] {
	return each(tx, []byte{tLocal}, func(k, _ []byte) (Version, error) { return tx.Version(num(k, 1), num(k, 2)) })
}

// VersionByLocal returns the version whose local file that is, the newest inode's if there are several. Errors: ErrNotExist.
func (tx *Tx) VersionByLocal(local uint64) (Version, error) {
	vs, err := collect(each(tx, key1(tLocal, local), func(k, _ []byte) (Version, error) { return tx.Version(num(k, 1), num(k, 2)) }))
	if err == nil && len(vs) == 0 {
		err = ErrNotExist
	}
	if err != nil {
		return Version{}, err
	}
	return vs[len(vs)-1], nil
}
