package cas

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// The service wants two hashes of the same bytes, linear and tree. SHA-256 in hardware is bound by the latency of its
// rounds, so both together cost hardly more than one where they are taken block by block side by side, and the
// message schedule, which depends on the block alone, is computed once. The standard library takes one
// hash at a time; it does all of the rest: the unaligned, the last block, and everything on other processors.

// linearHash is a running SHA-256 whose state can be taken out and put back.
type linearHash interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

func newLinear() linearHash { return sha256.New().(linearHash) }

// The encoding of a SHA-256 state by the standard library: a name, the eight words, 64 bytes of an unfinished
// block, the length. twoAtOnce is only set when it is that.
const (
	stateMagic = "sha\x03"
	stateLen   = len(stateMagic) + sha256.Size + sha256.BlockSize + 8
)

// sha256Init and sha256K are FIPS 180-4 §5.3.3 and §4.2.2.
var sha256Init = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

var sha256K = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

// twoAtOnce says that hashTwo works here: the processor has the instructions, and a chunk gave what the standard library gives.
var twoAtOnce = hasTwoBlocks() && hashTwoWorks()

// hashTwo adds b, whole blocks, to linear, which has taken whole blocks only, and returns the SHA-256 of b alone.
func hashTwo(linear linearHash, b []byte) (leaf Hash) {
	var enc [stateLen]byte
	state, _ := linear.AppendBinary(enc[:0])
	words, rest := state[len(stateMagic):], state[stateLen-8:]
	var one [8]uint32
	for i := range one {
		one[i] = binary.BigEndian.Uint32(words[4*i:])
	}
	two := sha256Init
	twoBlocks(&one, &two, b, &sha256K)
	for i, w := range one {
		binary.BigEndian.PutUint32(words[4*i:], w)
	}
	binary.BigEndian.PutUint64(rest, binary.BigEndian.Uint64(rest)+uint64(len(b)))
	if err := linear.UnmarshalBinary(state); err != nil {
		panic(err) // hashTwoWorks has seen it work
	}

	// The last block of the other one: a bit, zeros, and the length in bits.
	var last [sha256.BlockSize]byte
	last[0] = 0x80
	binary.BigEndian.PutUint64(last[len(last)-8:], uint64(len(b))*8)
	twoBlocks(&two, &one, last[:], &sha256K)
	for i, w := range two {
		binary.BigEndian.PutUint32(leaf[4*i:], w)
	}
	return leaf
}

// hashTwoWorks compares a few chunks with the standard library's hashes.
func hashTwoWorks() bool {
	b := make([]byte, 8*sha256.BlockSize)
	for i := range b {
		b[i] = byte(i * 7)
	}
	linear, want := newLinear(), sha256.New()
	if enc, err := linear.AppendBinary(nil); err != nil || len(enc) != stateLen || !bytes.HasPrefix(enc, []byte(stateMagic)) {
		return false
	}
	for n := len(b); n > 0; n /= 2 {
		want.Write(b[:n])
		if hashTwo(linear, b[:n]) != Hash(sha256.Sum256(b[:n])) || !bytes.Equal(linear.Sum(nil), want.Sum(nil)) {
			return false
		}
		if n <= sha256.BlockSize {
			break
		}
	}
	return true
}
