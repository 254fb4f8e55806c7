//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package cas

import (
	"os"
	"syscall"
)

// lockFile takes a lock that ends with f, or fails at once.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
