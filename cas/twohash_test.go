package cas

import (
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"

	"github.com/casfs/casfs/internal/noise"
)

// TestOneHashAtATime holds the way of other processors against the same vectors and the same naive twin.
func TestOneHashAtATime(t *testing.T) {
	if !twoAtOnce {
		t.Log("this processor has no other way: the other tests take it already")
	}
	defer func(was bool) { twoAtOnce = was }(twoAtOnce)
	twoAtOnce = false
	t.Run("vectors", TestTreeHashVectors)
	t.Run("state", TestTreeHasherState)
	t.Run("naive", TestTreeHashAgainstNaive)
}

func TestHashTwo(t *testing.T) {
	if !hasTwoBlocks() {
		t.Skip("this processor has no SHA extensions, so hashTwo is never called")
	}
	if !twoAtOnce {
		t.Fatal("the processor could, but what it gives, or the encoding of the standard library's hash, is not as expected")
	}
	rapid.Check(t, func(rt *rapid.T) {
		linear, want := newLinear(), sha256.New()
		for range rapid.IntRange(1, 4).Draw(rt, "pieces") {
			n := sha256.BlockSize * rapid.IntRange(1, 200).Draw(rt, "blocks")
			at := rapid.IntRange(0, 63).Draw(rt, "alignment")
			b := noise.Bytes(at+n, rapid.Uint64().Draw(rt, "seed"))[at:]
			want.Write(b)
			if got := hashTwo(linear, b); got != Hash(sha256.Sum256(b)) {
				rt.Fatalf("hash of %d bytes alone: %v", n, got)
			}
		}
		// What the standard library goes on with after that.
		rest := rapid.SliceOfN(rapid.Byte(), 0, 150).Draw(rt, "rest")
		want.Write(rest)
		linear.Write(rest)
		if Hash(linear.Sum(nil)) != Hash(want.Sum(nil)) {
			rt.Fatalf("linear hash: %x", linear.Sum(nil))
		}
	})
}

// FuzzTreeHasher compares both hashes of bytes written in pieces with the naive ones.
func FuzzTreeHasher(f *testing.F) {
	f.Add([]byte("x"), uint32(3*mib+5), uint32(mib))
	f.Add([]byte{1, 2, 3}, uint32(2*mib), uint32(64))
	f.Add([]byte{}, uint32(mib+63), uint32(4096))
	f.Fuzz(func(t *testing.T, seed []byte, size, step uint32) {
		b := make([]byte, size%(5*mib))
		for i := range b {
			b[i] = byte(i>>12 ^ i)
			if len(seed) > 0 {
				b[i] += seed[i%len(seed)]
			}
		}
		var h TreeHasher
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(step%(2*mib))+1000)
			h.Write(rest[:n])
			rest = rest[n:]
		}
		if got, want := h.Sum(), (PartHash{sha256.Sum256(b), naiveTree(b)}); got != want {
			t.Fatalf("%d bytes by %d: %v, want %v", len(b), step, got, want)
		}
	})
}
