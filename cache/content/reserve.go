package content

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// reserveSize is enough for a few records at a time.
const reserveSize = 256 << 10

// reserve is a preallocated file that is given up when the disk is full and a record
// must be written all the same: dropping what was uploaded is how a full disk gets room again.
type reserve struct {
	path string
	mu   sync.Mutex
	full bool
}

// fill takes the space, if there is any.
func (r *reserve) fill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return
	}
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if fallocate(int(f.Fd()), 0, 0, reserveSize) != nil {
		f.Truncate(0) // a half reserve is no use, and what it took is
		return
	}
	r.full = true
}

// spend gives the space up; false when there is none.
func (r *reserve) spend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return false
	}
	r.full = false
	return os.Truncate(r.path, 0) == nil
}
