//go:build !linux

package local

import "os"

// forget would make the next reads of f come from the disk.
func forget(*os.File) error { return nil }
