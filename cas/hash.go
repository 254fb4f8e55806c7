package cas

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Hash is a SHA-256 digest: a linear hash of bytes, or a tree hash. The zero
// value means "no hash".
type Hash [32]byte

// String returns the lower-case hexadecimal form used on the wire.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is the zero value, which stands for "no hash".
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText writes the wire form; the zero hash becomes the empty string.
func (h Hash) MarshalText() ([]byte, error) {
	if h.IsZero() {
		return nil, nil
	}
	return []byte(h.String()), nil
}

// UnmarshalText reads the wire form in either case; an empty text is the zero hash.
func (h *Hash) UnmarshalText(b []byte) error {
	v, err := ParseHash(string(b))
	if err != nil {
		return err
	}
	*h = v
	return nil
}

// ParseHash reads 64 hexadecimal digits in either case (cascmd sends upper
// case, cas-api.md §4). An empty string is the zero hash.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if s == "" {
		return h, nil
	}
	b, err := hex.DecodeString(strings.ToLower(s))
	if err != nil || len(b) != len(h) {
		return Hash{}, fmt.Errorf("cas: %q is not a SHA-256 hash of 64 hexadecimal digits", s)
	}
	copy(h[:], b)
	return h, nil
}

// PartHash is what the service asks for with every body: both hashes of the same bytes.
type PartHash struct {
	Linear Hash // SHA-256 of the bytes
	Tree   Hash // SHA-256 tree hash of the bytes
}
