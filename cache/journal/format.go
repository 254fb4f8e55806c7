package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	version     = 1
	headerSize  = 64
	recordSize  = 24 // header of a record
	blockSize   = 16 // header of a snapshot's block
	segMagic    = "CASFSJNL"
	snapMagic   = "CASFSNAP"
	maxPayload  = 1 << 30
	snapBlockAt = 256 << 10 // payload at which a snapshot's block is written
	syncEvery   = 16 << 20  // bytes of a snapshot between two syncs
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header begins segments and snapshots alike.
type header struct {
	id   [16]byte
	seq  uint64
	boot [16]byte
}

func (h header) encode(magic string) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], headerSize)
	copy(b[16:], h.id[:])
	binary.LittleEndian.PutUint64(b[32:], h.seq)
	copy(b[40:], h.boot[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func decodeHeader(b []byte, magic string) (header, error) {
	var h header
	if len(b) < headerSize || string(b[:8]) != magic {
		return h, fmt.Errorf("%w: header is not one of ours", ErrDamaged)
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		// A later version may have a longer header with its checksum elsewhere.
		if v := binary.LittleEndian.Uint32(b[8:]); v > version && v < 1<<16 {
			return h, fmt.Errorf("%w: version %d", ErrFormat, v)
		}
		return h, fmt.Errorf("%w: header checksum", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return h, fmt.Errorf("%w: version %d", ErrFormat, v)
	}
	copy(h.id[:], b[16:])
	h.seq = binary.LittleEndian.Uint64(b[32:])
	copy(h.boot[:], b[40:])
	return h, nil
}

func readHeader(path, magic string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return header{}, err
	}
	h, err := decodeHeader(b, magic)
	if err != nil {
		return h, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return h, nil
}

// seed begins every checksum of a file: bytes of another journal, segment or snapshot never match.
func (h header) seed() uint32 {
	var b [24]byte
	copy(b[:], h.id[:])
	binary.LittleEndian.PutUint64(b[16:], h.seq)
	return crc32.Checksum(b[:], castagnoli)
}

// sum is the checksum of a record or block at off whose header is head (the checksum field itself is left out).
func sum(seed uint32, off int64, head, payload []byte) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(off))
	c := crc32.Update(seed, castagnoli, b[:])
	c = crc32.Update(c, castagnoli, head[:4])
	c = crc32.Update(c, castagnoli, head[8:])
	return crc32.Update(c, castagnoli, payload)
}

// appendRecord appends the record as it will stand at off of its segment.
func appendRecord(b []byte, seed uint32, off int64, seq, durable uint64, ops []Op) ([]byte, error) {
	at := len(b)
	b = append(b, make([]byte, recordSize)...)
	b = binary.AppendUvarint(b, uint64(len(ops)))
	for _, op := range ops {
		b = binary.AppendUvarint(b, uint64(len(op.Key)))
		b = append(b, op.Key...)
		if op.Value == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(op.Value))+1)
		b = append(b, op.Value...)
	}
	head, payload := b[at:at+recordSize], b[at+recordSize:]
	if len(payload) > maxPayload {
		return b[:at], fmt.Errorf("record of %d bytes is too large for the journal", len(payload))
	}
	binary.LittleEndian.PutUint32(head, uint32(len(payload)))
	binary.LittleEndian.PutUint64(head[8:], seq)
	binary.LittleEndian.PutUint64(head[16:], durable)
	binary.LittleEndian.PutUint32(head[4:], sum(seed, off, head, payload))
	return b, nil
}

var errMalformed = errors.New("malformed record")

// take cuts a length-prefixed field off b; less is subtracted from the length first.
func take(b []byte) (n uint64, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 {
		return 0, nil, errMalformed
	}
	return n, b[w:], nil
}

// decodeOps parses a record's payload; the result refers to it.
func decodeOps(b []byte) ([]Op, error) {
	n, b, err := take(b)
	if err != nil {
		return nil, err
	}
	if n > uint64(len(b)) {
		return nil, errMalformed
	}
	ops := make([]Op, 0, n)
	for range n {
		var op Op
		var l uint64
		if l, b, err = take(b); err != nil {
			return nil, err
		}
		if l > uint64(len(b)) {
			return nil, errMalformed
		}
		op.Key, b = b[:l:l], b[l:]
		if l, b, err = take(b); err != nil {
			return nil, err
		}
		if l > 0 {
			l--
			if l > uint64(len(b)) {
				return nil, errMalformed
			}
			op.Value, b = b[:l:l], b[l:]
		}
		ops = append(ops, op)
	}
	if len(b) > 0 {
		return nil, errMalformed
	}
	return ops, nil
}

// bootID identifies this run of the kernel; zero when the kernel does not say.
func bootID() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	s := strings.ReplaceAll(string(bytes.TrimSpace(b)), "-", "")
	if n, err := hex.Decode(id[:], []byte(s)); err != nil || n != len(id) {
		return [16]byte{}
	}
	return id
}
