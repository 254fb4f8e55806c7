package jobs

import (
	"github.com/casfs/casfs/cache/catalog"
)

// invalidateLocked prepares a staged version for a change of [off, off+n): what
// a stream has sent of it is no longer good.
func (f *file) invalidateLocked(off, n int64) error {
	return f.punchedIn(off, n)
}

// streamLocked notes a finished change of [off, off+n).
func (f *file) streamLocked(off, n int64) {}

// streamedLocked returns the uploads of the staged version that sealing keeps, in order of
// offset, and those it gives up.
func (f *file) streamedLocked() (kept, dropped []catalog.Upload, err error) {
	return nil, nil, nil
}

// streamedAllLocked returns every upload of the staged version.
func (f *file) streamedAllLocked() ([]catalog.Upload, error) { return nil, nil }

// streamPressure makes open files give up what is in the vault.
func (e *Engine) streamPressure() {}
