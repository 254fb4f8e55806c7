//go:build !amd64

package cas

func twoBlocks(_, _ *[8]uint32, _ []byte, _ *[64]uint32) { panic("cas: no two hashes at once here") }

func hasTwoBlocks() bool { return false }
