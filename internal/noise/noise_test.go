package noise

import (
	"bytes"
	"testing"
)

func TestNoise(t *testing.T) {
	const n = 1<<20 + 3
	a := Bytes(n, 1)
	switch {
	case len(a) != n:
		t.Errorf("%d bytes", len(a))
	case !bytes.Equal(a, Bytes(n, 1)), !bytes.Equal(a[:1000], Bytes(1000, 1)):
		t.Error("not the same again")
	case bytes.Equal(a, Bytes(n, 2)), bytes.Equal(Named(n, "a"), Named(n, "b")):
		t.Error("the same for another seed")
	}
	seen := map[[16]byte]bool{}
	for i := 0; i+16 <= n; i += 16 {
		seen[[16]byte(a[i:])] = true
	}
	if len(seen) != n/16 {
		t.Errorf("%d of %d places differ", len(seen), n/16)
	}
}

func BenchmarkBytes(b *testing.B) {
	b.SetBytes(1 << 20)
	for b.Loop() {
		Bytes(1<<20, 1)
	}
}
