package local

import (
	"fmt"
	"os"
	"path/filepath"
)

// What is below an open store may be moved away, removed, mounted over or replaced by a copy. What was written then would be in no
// store, or in parts of two; what is missing would pass for lost. So the store answers only while its directory is the one
// that it has locked, and a vault only while its log is the one that it has open. Both may come back.

// there is an error while DIR/lock is not the file that this process holds: then the directory is gone or another one, or
// another process may open it.
func (s *Store) there() error {
	return sameFile(filepath.Join(s.dir, "lock"), s.lockInfo, "the store's directory was removed or replaced")
}

// there is an error while the log's path does not lead to the file that records go to.
func (l *metaLog) there() error {
	return sameFile(l.path, l.info, "the vault's directory was removed or replaced")
}

// there is an error while the store or the vault is not.
func (v *vault) there() error {
	if err := v.s.there(); err != nil {
		return err
	}
	return v.log.there()
}

func sameFile(path string, held os.FileInfo, what string) error {
	const advice = "put it back, or stop the store and open it anew with what is there now"
	st, err := os.Stat(path)
	if err != nil {
		return unavailable(fmt.Errorf("%s: %w: %s", what, err, advice))
	}
	if !os.SameFile(st, held) {
		return unavailable(fmt.Errorf("%s: %s is another file: %s", what, path, advice))
	}
	return nil
}
