package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"
)

// A sidecar records a set of ranges of one local file. All numbers are little endian.
//
//	 0  8  "casfsrng"
//	 8  4  version, 1
//	12  4  number of ranges, n
//	16  8  number (id) of the file
//	24  8  size of the file when the record was written
//	32 16n offset and length of each range, ascending, disjoint, within the size
//	   4   CRC-32C of all before
const (
	sidecarMagic   = "casfsrng"
	sidecarVersion = 1
	sidecarHeader  = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeSidecar(id uint64, size int64, set ranges) []byte {
	b := make([]byte, 0, sidecarHeader+16*len(set)+4)
	b = append(b, sidecarMagic...)
	b = binary.LittleEndian.AppendUint32(b, sidecarVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(set)))
	b = binary.LittleEndian.AppendUint64(b, id)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	for _, r := range set {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Off))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Len))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeSidecar(b []byte, id uint64) (size int64, set ranges, err error) {
	if len(b) < sidecarHeader+4 || string(b[:8]) != sidecarMagic {
		return 0, nil, errors.New("not a range record")
	}
	if sum := binary.LittleEndian.Uint32(b[len(b)-4:]); sum != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return 0, nil, errors.New("checksum does not match")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != sidecarVersion {
		return 0, nil, fmt.Errorf("version %d is not known", v)
	}
	if got := binary.LittleEndian.Uint64(b[16:]); got != id {
		return 0, nil, fmt.Errorf("belongs to file %x", got)
	}
	size = int64(binary.LittleEndian.Uint64(b[24:]))
	n := int64(binary.LittleEndian.Uint32(b[12:]))
	if size < 0 || int64(len(b)) != sidecarHeader+16*n+4 {
		return 0, nil, errors.New("wrong length")
	}
	var end int64
	for i := range n {
		r := Range{
			int64(binary.LittleEndian.Uint64(b[sidecarHeader+16*i:])),
			int64(binary.LittleEndian.Uint64(b[sidecarHeader+16*i+8:])),
		}
		if r.Off < end || r.Len <= 0 || r.Off > size || r.Len > size-r.Off {
			return 0, nil, errors.New("ranges out of order")
		}
		end = r.End()
		set = set.add(r)
	}
	return size, set, nil
}

// writeSidecar replaces the record at path. The record itself is on stable
// storage before it gets its name; the name is only after syncNames.
// When the disk is full the reserve is given up for it.
func (s *Store) writeSidecar(path string, id uint64, size int64, set ranges) error {
	err := s.tryWriteSidecar(path, id, size, set)
	if errors.Is(err, ErrNoSpace) && s.reserve.spend() {
		err = s.tryWriteSidecar(path, id, size, set)
	}
	return err
}

func (s *Store) tryWriteSidecar(path string, id uint64, size int64, set ranges) error {
	tmp := path + tmpSuffix
	if err := s.step("sidecar.write"); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return noSpace(err)
	}
	_, err = f.Write(encodeSidecar(id, size, set))
	if err == nil {
		err = s.step("sidecar.sync")
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = s.step("sidecar.rename")
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return noSpace(err)
	}
	return nil
}

// noSpace turns the kernel's ways of saying "full" into ErrNoSpace, keeping the original.
func noSpace(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
