package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
)

// ---- versions ----

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

// ---- archives ----

// Archive returns an archive by the catalog's number. Errors: ErrNotExist.
func (tx *Tx) Archive(num uint64) (Archive, error) {
	return load(tx, key1(tArchive, num), decodeArchive)
}

// ArchiveByID returns an archive by the service's id. Errors: ErrNotExist.
func (tx *Tx) ArchiveByID(vault uint64, id string) (Archive, error) {
	prefix := keyName(tArchiveID, vault, id)
	return tx.archiveBy(prefix, nil)
}

// ArchiveByIntent returns the archive an upload made. A lost answer may have
// made several; a live one goes before others, then the first recorded. Errors: ErrNotExist.
func (tx *Tx) ArchiveByIntent(intent string) (Archive, error) {
	prefix := append(keyString(tIntent, intent), 0)
	return tx.archiveBy(prefix, func(a *Archive) bool { return a.State == Live })
}

// archiveBy returns the first archive of an index whose keys are prefix and the
// number, one that is better if there is one.
func (tx *Tx) archiveBy(prefix []byte, better func(*Archive) bool) (Archive, error) {
	var found *Archive
	// A longer id or intent may have the same beginning; its keys are longer.
	for a, err := range each(tx, prefix, func(k, _ []byte) (Archive, error) {
		if len(k) != len(prefix)+8 {
			return Archive{}, ErrNotExist
		}
		return tx.Archive(lastNum(k))
	}) {
		if err != nil {
			return Archive{}, err
		}
		if better == nil || better(&a) {
			return a, nil
		}
		if found == nil {
			found = &a
		}
	}
	if found == nil {
		return Archive{}, ErrNotExist
	}
	return *found, nil
}

// PutArchive stores an archive as it is.
func (tx *Tx) PutArchive(a Archive) error { return tx.replaceArchive(a.Num, &a) }

// DeleteArchive forgets an archive; one that is absent is no error.
func (tx *Tx) DeleteArchive(num uint64) error { return tx.replaceArchive(num, nil) }

func (tx *Tx) replaceArchive(num uint64, next *Archive) error {
	if num == 0 {
		return fmt.Errorf("%w: archive 0", ErrInvalid)
	}
	key := key1(tArchive, num)
	old, err := loadOld(tx, key, decodeArchive)
	if err != nil {
		return err
	}
	for _, index := range archiveIndexes {
		var from, to []byte
		if old != nil {
			from = index(old)
		}
		if next != nil {
			to = index(next)
		}
		if err := tx.move(from, to); err != nil {
			return err
		}
	}
	if next == nil {
		return tx.del(key)
	}
	return tx.put(key, encodeArchive(key, next))
}

// Archives iterates over the archives of a vault, those of all vaults for 0.
func (tx *Tx) Archives(vault uint64) iter.Seq2[Archive, error] {
	if vault == 0 {
		return each(tx, []byte{tArchive}, decodeArchive)
	}
	return each(tx, key1(tArchiveID, vault), func(k, _ []byte) (Archive, error) { return tx.Archive(lastNum(k)) })
}

// TrashUntil iterates over archives in Trash with Deadline <= t, by deadline.
func (tx *Tx) TrashUntil(t int64) iter.Seq2[Archive, error] {
	end := sortable(t)
	return func(yield func(Archive, error) bool) {
		for n, err := range each(tx, []byte{tTrash}, func(k, _ []byte) ([2]uint64, error) { return [2]uint64{num(k, 0), num(k, 1)}, nil }) {
			if err != nil {
				yield(Archive{}, err)
				return
			}
			if n[0] > end {
				return
			}
			a, err := tx.Archive(n[1])
			if errors.Is(err, ErrNotExist) {
				continue // deleted since this chunk was read
			}
			if !yield(a, err) || err != nil {
				return
			}
		}
	}
}

// ---- uploads and retrievals ----

// Upload returns an upload by its intent. Errors: ErrNotExist.
func (tx *Tx) Upload(intent string) (Upload, error) {
	return load(tx, keyString(tUpload, intent), decodeUpload)
}

// PutUpload stores an upload.
func (tx *Tx) PutUpload(u Upload) error {
	if u.Intent == "" || len(u.Intent) > 1024 {
		return fmt.Errorf("%w: intent of %d bytes", ErrInvalid, len(u.Intent))
	}
	key := keyString(tUpload, u.Intent)
	return tx.put(key, encodeUpload(key, &u))
}

// DeleteUpload removes an upload; one that is absent is no error.
func (tx *Tx) DeleteUpload(intent string) error { return tx.del(keyString(tUpload, intent)) }

// Uploads iterates over all uploads.
func (tx *Tx) Uploads() iter.Seq2[Upload, error] { return each(tx, []byte{tUpload}, decodeUpload) }

// Retrieval returns a retrieval. Errors: ErrNotExist.
func (tx *Tx) Retrieval(id uint64) (Retrieval, error) {
	return load(tx, key1(tRetrieval, id), decodeRetrieval)
}

// PutRetrieval stores a retrieval.
func (tx *Tx) PutRetrieval(r Retrieval) error {
	key := key1(tRetrieval, r.ID)
	return tx.put(key, encodeRetrieval(key, &r))
}

// DeleteRetrieval removes a retrieval; one that is absent is no error.
func (tx *Tx) DeleteRetrieval(id uint64) error { return tx.del(key1(tRetrieval, id)) }

// Retrievals iterates over all retrievals, oldest first.
func (tx *Tx) Retrievals() iter.Seq2[Retrieval, error] {
	return each(tx, []byte{tRetrieval}, decodeRetrieval)
}

// ---- vaults ----

// Vault returns a vault by its directory's inode number. Errors: ErrNotExist.
func (tx *Tx) Vault(ino uint64) (Vault, error) { return load(tx, key1(tVault, ino), decodeVault) }

// VaultByName returns a vault by its name. Errors: ErrNotExist.
func (tx *Tx) VaultByName(name string) (Vault, error) {
	ino, err := load(tx, keyString(tVaultName, name), decodeNumber)
	if err != nil {
		return Vault{}, err
	}
	return tx.Vault(ino)
}

// PutVault stores a vault. Of two with the same name the one stored last is found by it.
func (tx *Tx) PutVault(v Vault) error {
	old, err := loadOld(tx, key1(tVault, v.Ino), decodeVault)
	if err != nil {
		return err
	}
	if old != nil && old.Name != v.Name {
		if err := tx.dropVaultName(old); err != nil {
			return err
		}
	}
	byName := keyString(tVaultName, v.Name)
	if err := tx.put(byName, encodeNumber(byName, v.Ino)); err != nil {
		return err
	}
	key := key1(tVault, v.Ino)
	return tx.put(key, encodeVault(key, &v))
}

// DeleteVault removes a vault's record, not its directory; one that is absent is no error.
func (tx *Tx) DeleteVault(ino uint64) error {
	key := key1(tVault, ino)
	old, err := loadOld(tx, key, decodeVault)
	if err != nil || old == nil {
		return err
	}
	if err := tx.dropVaultName(old); err != nil {
		return err
	}
	return tx.del(key)
}

// dropVaultName removes a vault from the index of names unless another one took the name.
func (tx *Tx) dropVaultName(v *Vault) error {
	key := keyString(tVaultName, v.Name)
	b, err := tx.get(key)
	if err != nil || b == nil || !bytes.Equal(b, encodeNumber(key, v.Ino)) {
		return err
	}
	return tx.del(key)
}

// Vaults returns all vaults.
func (tx *Tx) Vaults() ([]Vault, error) { return collect(each(tx, []byte{tVault}, decodeVault)) }

// ---- counts ----

func (s *Stats) add(d *Stats) {
	s.Inodes += d.Inodes
	s.Files += d.Files
	s.LiveBytes += d.LiveBytes
	s.StagedFiles += d.StagedFiles
	s.StagedBytes += d.StagedBytes
}

func (s *Stats) negate() {
	s.Inodes, s.Files, s.LiveBytes = -s.Inodes, -s.Files, -s.LiveBytes
	s.StagedFiles, s.StagedBytes = -s.StagedFiles, -s.StagedBytes
}

func (tx *Tx) countInode(i *Inode, sign int64) { tx.delta.countInode(i, sign) }

func (tx *Tx) countVersion(v *Version, sign int64) { tx.delta.countVersion(v, sign) }

func (s *Stats) countInode(i *Inode, sign int64) {
	if i == nil {
		return
	}
	s.Inodes += sign
	if i.Mode&sIFMT == sIFREG {
		s.Files += sign
		s.LiveBytes += sign * i.Size
	}
}

func (s *Stats) countVersion(v *Version, sign int64) {
	if v == nil || v.State != Staged && v.State != Uploading {
		return
	}
	s.StagedFiles += sign
	s.StagedBytes += sign * v.Size
}
