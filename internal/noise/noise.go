// Package noise makes bytes for tests: no two places of them are alike, so that none passes for another, and making
// them costs little also where the race detector looks at every access. For tests only.
package noise

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
)

// Bytes returns n bytes that are the same for the same seed. A shorter n gives the beginning of a longer one.
func Bytes(n int, seed uint64) []byte { return Keyed(n, binary.LittleEndian.AppendUint64(nil, seed)) }

// Named is Bytes with a name for a seed.
func Named(n int, name string) []byte { return Keyed(n, []byte(name)) }

// Keyed is Bytes with any seed, of which the first 32 bytes count.
func Keyed(n int, seed []byte) []byte {
	var key [32]byte
	copy(key[:], seed)
	c, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	b := make([]byte, n)
	cipher.NewCTR(c, make([]byte, aes.BlockSize)).XORKeyStream(b, b)
	return b
}
