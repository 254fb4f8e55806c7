package local

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
)

const mib = 1 << 20

// digest is a SHA-256 value; the zero digest stands for "none".
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

func (d digest) isZero() bool { return d == digest{} }

// IsZero serves the omitzero option of encoding/json.
func (d digest) IsZero() bool { return d.isZero() }

func (d digest) MarshalText() ([]byte, error) {
	return hex.AppendEncode(make([]byte, 0, 2*len(d)), d[:]), nil
}

func (d *digest) UnmarshalText(b []byte) error {
	v, ok := parseDigest(string(b))
	if !ok {
		return fmt.Errorf("%q is no SHA-256 hash", b)
	}
	*d = v
	return nil
}

// parseDigest reads 64 hexadecimal digits of either case.
func parseDigest(s string) (digest, bool) {
	var d digest
	if len(s) != 2*len(d) {
		return d, false
	}
	n, err := hex.Decode(d[:], []byte(s))
	return d, err == nil && n == len(d)
}

func pair(l, r digest) digest {
	var b [2 * sha256.Size]byte
	copy(b[:], l[:])
	copy(b[sha256.Size:], r[:])
	return sha256.Sum256(b[:])
}

// treeStack folds leaves into a tree hash with memory for one node per level.
// It works like a binary counter: bit i of n is set when nodes holds a perfect
// subtree of 2^i leaves. Pairing level by level with an odd last node carried up
// is the same tree.
type treeStack struct {
	n     uint64
	nodes []digest
}

func (t *treeStack) push(leaf digest) {
	for n := t.n; n&1 == 1; n >>= 1 {
		leaf = pair(t.nodes[len(t.nodes)-1], leaf)
		t.nodes = t.nodes[:len(t.nodes)-1]
	}
	t.nodes = append(t.nodes, leaf)
	t.n++
}

// root returns the tree hash of what was pushed; zero when nothing was.
func (t *treeStack) root() digest {
	if len(t.nodes) == 0 {
		return digest{}
	}
	d := t.nodes[len(t.nodes)-1]
	for i := len(t.nodes) - 2; i >= 0; i-- {
		d = pair(t.nodes[i], d)
	}
	return d
}

func rootOf(nodes []digest) digest {
	var t treeStack
	for _, n := range nodes {
		t.push(n)
	}
	return t.root()
}

// leafCount is the number of leaves under size bytes.
func leafCount(size int64) int64 { return (size + mib - 1) / mib }

// treeAligned reports whether bytes [first, end) of an archive of size bytes are
// exactly one node of its tree.
func treeAligned(first, end, size int64) bool {
	if first < 0 || first >= end || end > size || first%mib != 0 || end%mib != 0 && end != size {
		return false
	}
	n := leafCount(size)
	p, q := first/mib, leafCount(end)
	if q == n {
		// The last subtree may be short: any k that reaches the end will do,
		// and the largest that p allows is the best try.
		if p == 0 {
			return true
		}
		return int64(1)<<bits.TrailingZeros64(uint64(p)) >= n-p
	}
	k := q - p
	return k&(k-1) == 0 && p%k == 0
}
