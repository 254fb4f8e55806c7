package local

import (
	"os"
	"syscall"
)

const (
	fallocKeepSize  = 0x1 // FALLOC_FL_KEEP_SIZE
	fallocPunchHole = 0x2 // FALLOC_FL_PUNCH_HOLE
)

// punchHole makes n bytes at off read as zeros without occupying space. False:
// not possible here, write zeros instead.
func punchHole(f *os.File, off, n int64) bool {
	return syscall.Fallocate(int(f.Fd()), fallocKeepSize|fallocPunchHole, off, n) == nil
}

// reserve allocates n bytes at off beyond the end of f without changing its
// size. Only a full disk is an error; file systems that cannot reserve are
// taken at their word.
func reserve(f *os.File, off, n int64) error {
	for {
		switch err := syscall.Fallocate(int(f.Fd()), fallocKeepSize, off, n); err {
		case syscall.EINTR:
		case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		default:
			return nil
		}
	}
}
