package catalog

import (
	"errors"
	"fmt"
)

// Xattr returns the caller's own copy of an attribute. Errors: ErrNoAttr.
func (tx *Tx) Xattr(ino uint64, name string) ([]byte, error) {
	v, err := load(tx, keyName(tXattr, ino, name), decodeBytes)
	if errors.Is(err, ErrNotExist) {
		err = ErrNoAttr
	}
	return v, err
}

// SetXattr stores an attribute; create and replace are XATTR_CREATE (ErrExist) and XATTR_REPLACE (ErrNoAttr).
func (tx *Tx) SetXattr(ino uint64, name string, value []byte, create, replace bool) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("%w: attribute name of %d bytes", ErrInvalid, len(name))
	}
	key := keyName(tXattr, ino, name)
	has, err := tx.has(key)
	switch {
	case err != nil:
		return err
	case has && create:
		return ErrExist
	case !has && replace:
		return ErrNoAttr
	}
	return tx.put(key, encodeBytes(key, value))
}

// RemoveXattr removes an attribute. Errors: ErrNoAttr.
func (tx *Tx) RemoveXattr(ino uint64, name string) error {
	key := keyName(tXattr, ino, name)
	has, err := tx.has(key)
	if err == nil && !has {
		err = ErrNoAttr
	}
	if err != nil {
		return err
	}
	return tx.del(key)
}

// Xattrs lists the names of an inode's attributes in order.
func (tx *Tx) Xattrs(ino uint64) ([]string, error) {
	var names []string
	prefix := key1(tXattr, ino)
	err := tx.scan(prefix, prefix, func(k, _ []byte) bool {
		names = append(names, string(k[9:]))
		return true
	})
	return names, err
}

// Meta is a small named value (daily byte counts of the guard, allowances, settings). Errors: ErrNotExist.
func (tx *Tx) Meta(name string) ([]byte, error) {
	return load(tx, keyString(tMeta, name), decodeBytes)
}

// PutMeta stores a named value; nil removes it.
func (tx *Tx) PutMeta(name string, value []byte) error {
	key := keyString(tMeta, name)
	if value == nil {
		return tx.del(key)
	}
	return tx.put(key, encodeBytes(key, value))
}
