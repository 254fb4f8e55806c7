package catalog

import (
	"encoding/binary"
	"slices"
)

// A key is the byte of its table, then fields in fixed-width big endian, so
// that the order of keys is the order of numbers. The value of every table but
// xattrs' and meta's is described in codec.go; "–" is an empty value.
//
//	table  key                          value           what it holds                    if lost
//	i      ino                          Inode           file system objects              rebuilt from the journal
//	k      ino                          –               index: pinned inodes             from i; see pins.go
//	d      parent, name                 ino cookie type a directory's names              rebuilt from the journal; e has the same
//	e      parent, cookie               ino type name   the same in listing order        as d
//	p      ino, parent, cookie          –               index: the names of an inode     from e
//	v      ino, v                       Version         contents of files                rebuilt from the journal
//	s      ino, v                       –               index: not yet archived          from v
//	l      local, ino, v                –               index: versions with local bytes from v
//	a      num                          Archive         archives at the service          rebuilt from the journal; inventories know some of it
//	b      vault, service's id, num     –               index: archives of a vault       from a
//	n      intent, 0, num               –               index: archives by intent        from a
//	t      deadline, num                –               index: archives in the trash     from a
//	u      intent                       Upload          uploads under way                rebuilt from the journal
//	r      id                           Retrieval       retrievals under way             rebuilt from the journal; List Jobs knows most of it
//	w      ino                          Vault           vaults                           rebuilt from the journal; List Vaults knows most of it
//	y      name                         ino             index: vaults by name            from w
//	o      ino                          –               inodes without a name            rebuilt from the journal
//	x      ino, name                    bytes           extended attributes              rebuilt from the journal
//	m      name                         bytes           small settings and counts        rebuilt from the journal
//	c                                   uint64          next number for NextID           rebuilt from the journal
//	0x00                                state           badger only: journal id, last    not in journal or snapshots;
//	                                                    sequence applied, counts         missing means rebuild
const (
	tInode     = 'i'
	tPin       = 'k'
	tName      = 'd'
	tEntry     = 'e'
	tParent    = 'p'
	tVersion   = 'v'
	tStaged    = 's'
	tLocal     = 'l'
	tArchive   = 'a'
	tArchiveID = 'b'
	tIntent    = 'n'
	tTrash     = 't'
	tUpload    = 'u'
	tRetrieval = 'r'
	tVault     = 'w'
	tVaultName = 'y'
	tOrphan    = 'o'
	tXattr     = 'x'
	tMeta      = 'm'
	tCounter   = 'c'
	tState     = 0
)

var (
	counterKey = []byte{tCounter}
	stateKey   = []byte{tState}
)

// key1, key2 and key3 build keys of one to three numbers.
// appendKey makes a key of numbers in b.
func appendKey(b []byte, table byte, nums ...uint64) []byte {
	b = append(b, table)
	for _, n := range nums {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func key1(table byte, a uint64) []byte {
	b := make([]byte, 9, 25)
	b[0] = table
	binary.BigEndian.PutUint64(b[1:], a)
	return b
}

func key2(table byte, a, b uint64) []byte {
	return binary.BigEndian.AppendUint64(key1(table, a), b)
}

func key3(table byte, a, b, c uint64) []byte {
	return binary.BigEndian.AppendUint64(key2(table, a, b), c)
}

// keyName builds a key of a number and a name.
func keyName(table byte, a uint64, name string) []byte {
	b := make([]byte, 9+len(name), 9+len(name)+8)
	b[0] = table
	binary.BigEndian.PutUint64(b[1:], a)
	copy(b[9:], name)
	return b
}

// keyString builds a key of a name alone.
func keyString(table byte, name string) []byte {
	b := make([]byte, 1, 1+len(name)+9)
	b[0] = table
	return append(b, name...)
}

// The keys of index entries; nil where a record has none.

func pinKey(i *Inode) []byte {
	if i == nil || !i.Pinned {
		return nil
	}
	return key1(tPin, i.Ino)
}

func stagedKey(v *Version) []byte {
	if v == nil || v.State != Staged && v.State != Uploading {
		return nil
	}
	return key2(tStaged, v.Ino, v.V)
}

func localKey(v *Version) []byte {
	if v == nil || v.Local == 0 {
		return nil
	}
	return key3(tLocal, v.Local, v.Ino, v.V)
}

// archiveIndexes are those of tArchiveID, tIntent and tTrash.
var archiveIndexes = [...]func(*Archive) []byte{archiveIDKey, intentKey, trashKey}

func archiveIDKey(a *Archive) []byte {
	return binary.BigEndian.AppendUint64(keyName(tArchiveID, a.Vault, a.ID), a.Num)
}

func intentKey(a *Archive) []byte {
	if a.Intent == "" {
		return nil
	}
	return binary.BigEndian.AppendUint64(append(keyString(tIntent, a.Intent), 0), a.Num)
}

// trashKey orders by deadline, negative ones first.
func trashKey(a *Archive) []byte {
	if a.State != Trash {
		return nil
	}
	return key2(tTrash, sortable(a.Deadline), a.Num)
}

func sortable(t int64) uint64 { return uint64(t) ^ 1<<63 }

// num returns the i-th eight-byte number of a key.
func num(key []byte, i int) uint64 { return binary.BigEndian.Uint64(key[1+8*i:]) }

// lastNum returns the number a key ends in.
func lastNum(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }

// after returns the smallest key greater than key.
func after(key []byte) []byte { return append(slices.Clip(key), 0) }
