package local

import (
	"os"

	"golang.org/x/sys/unix"
)

// forget makes the next reads of f come from the disk, as far as its bytes are there.
func forget(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
