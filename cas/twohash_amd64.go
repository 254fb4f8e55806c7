package cas

// twoBlocks adds the whole 64-byte blocks of p to two SHA-256 states at once; k are the constants of FIPS 180-4 §4.2.2.
// It needs what hasTwoBlocks looks for.
//
//go:noescape
func twoBlocks(a, b *[8]uint32, p []byte, k *[64]uint32)

//go:noescape
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// hasTwoBlocks looks for SSSE3, SSE4.1 and the SHA extensions (Intel SDM vol. 2, CPUID).
func hasTwoBlocks() bool {
	const ssse3, sse41, sha = 1 << 9, 1 << 19, 1 << 29
	if most, _, _, _ := cpuid(0, 0); most < 7 {
		return false
	}
	_, _, c, _ := cpuid(1, 0)
	_, b, _, _ := cpuid(7, 0)
	return c&ssse3 != 0 && c&sse41 != 0 && b&sha != 0
}
