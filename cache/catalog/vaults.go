package catalog

import "bytes"

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
