package catalog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Every record is a version byte, fields in the order of its put method below, and
// the CRC-32C of key, version byte and fields. Unsigned numbers are uvarints,
// signed ones zigzag varints, times and hashes of fixed width, strings and
// lists preceded by their length. A field is only ever added by a new version;
// a version unknown to this program is refused, never guessed at.
const recordVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writer appends fields to a record.
type writer struct{ b []byte }

func newWriter(size int) *writer {
	w := &writer{b: make([]byte, 1, size)}
	w.b[0] = recordVersion
	return w
}

func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }

func (w *writer) int(v int64) { w.b = binary.AppendVarint(w.b, v) }

func (w *writer) time(v int64) { w.b = binary.LittleEndian.AppendUint64(w.b, uint64(v)) }

func (w *writer) byte(v byte) { w.b = append(w.b, v) }

func (w *writer) str(v string) { w.uint(uint64(len(v))); w.b = append(w.b, v...) }

func (w *writer) hash(v [32]byte) { w.b = append(w.b, v[:]...) }

// flags packs booleans, the first in the lowest bit.
func (w *writer) flags(v ...bool) {
	var f byte
	for i, on := range v {
		if on {
			f |= 1 << i
		}
	}
	w.byte(f)
}

func (w *writer) seal(key []byte) []byte {
	return binary.LittleEndian.AppendUint32(w.b, checksum(key, w.b))
}

func checksum(key, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b)
}

// reader takes fields from a record; after the first error everything is zero.
type reader struct {
	b   []byte
	bad bool
}

// open checks a record's checksum and version.
func open(key, b []byte) (*reader, error) {
	if len(b) < 5 || checksum(key, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: record %q fails its checksum", ErrDamaged, key)
	}
	if b[0] != recordVersion {
		return nil, fmt.Errorf("%w: record %q has version %d", ErrFormat, key, b[0])
	}
	return &reader{b: b[1 : len(b)-4]}, nil
}

// close reports a record that was too short or too long.
func (r *reader) close(key []byte) error {
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%w: record %q is malformed", ErrDamaged, key)
	}
	return nil
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > math.MaxUint32 {
		r.bad = true
	}
	return uint32(v)
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) time() int64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(b))
}

func (r *reader) byte() byte {
	b := r.take(1)
	if b == nil {
		return 0
	}
	return b[0]
}

func (r *reader) str() string { return string(r.take(r.uint())) }

func (r *reader) hash() (h [32]byte) {
	copy(h[:], r.take(32))
	return h
}

func (r *reader) flags(v ...*bool) {
	f := r.byte()
	for i, p := range v {
		*p = f&(1<<i) != 0
	}
}
