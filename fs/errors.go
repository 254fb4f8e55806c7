package fs

import "errors"

// Errors of mounting.
var (
	ErrStaleMount = errors.New("the casfs mounted here has died")
	ErrBusyMount  = errors.New("mount point is in use")
	ErrNoFuse     = errors.New("FUSE is not available")
	ErrNotMounted = errors.New("not inside a casfs mount")
)
