package local

import (
	"bytes"
	"encoding/json"
)

// maxUnflip bounds what unflip tries its bits on: a few records, a tenth of a second.
const maxUnflip = 8 << 10

// unflip makes the records of a log whole again that one flipped bit has damaged, and returns them. bad is what lies between two good
// lines, or behind the last one. The bit may be in a record or its checksum, or in a line feed, which joins two records or makes
// the last one look torn, or it has made a line feed of something else. Two wrong bits are not taken for one: CRC-32C tells
// records apart that differ in three.
func unflip(bad []byte) (records [][]byte) {
	if len(bad) == 0 || len(bad) > maxUnflip {
		return nil
	}
	b := bytes.Clone(bad)
	for i := range b {
		for bit := byte(1); bit != 0; bit <<= 1 {
			b[i] ^= bit
			if records := wholeLines(b); records != nil {
				return records
			}
			b[i] ^= bit
		}
	}
	return nil
}

// wholeLines returns the records of b when it is good lines and nothing else.
func wholeLines(b []byte) (records [][]byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return nil
		}
		r, ok := parseLine(b[:i])
		if !ok || !json.Valid(r) {
			return nil
		}
		records = append(records, r)
		b = b[i+1:]
	}
	return records
}
