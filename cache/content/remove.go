package content

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove deletes a local file; open Files keep working until closed, and their bytes
// stay charged until then. Errors: ErrNotExist.
func (s *Store) Remove(id uint64) error {
	o, err := s.hold(id)
	if err != nil {
		return err
	}
	defer s.release(o)
	n := o.n
	if err := o.lockMeta(); err != nil {
		return err
	}
	defer o.meta.Unlock()
	o.path.Lock()
	defer o.path.Unlock()
	s.mu.Lock()
	s.goneLocked(n)
	data, place, kind := s.dataPath(n), n.place, n.kind
	s.mu.Unlock()

	remove := func(step, path string) error {
		if err := s.step(step); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	// A staging file must not outlive its record (its holes would pass for zeros), a map not its content.
	if kind == Content && n.partial {
		err = remove("remove.map", s.path(place, id, mapSuffix))
	}
	if err == nil {
		err = remove("remove.data", data)
	}
	s.mu.Lock()
	if err != nil {
		n.gone = false
		s.doomed--
		s.mu.Unlock()
		return err
	}
	delete(s.nodes, id)
	s.lru.remove(n)
	s.mu.Unlock()
	if kind == Staging && n.punched.Load() != nil {
		if err := remove("remove.punched", s.path(place, id, punchedSuffix)); err != nil {
			s.log.Warn("cannot remove the record of a removed staging file", "id", id, "err", err)
		}
	}
	return nil
}

// Quarantine moves a staging file the catalog does not know to lost+found/ below StateDir and returns its path; never deletes.
// Errors: ErrNotExist, ErrWrongKind (content is disposable: Remove it).
func (s *Store) Quarantine(id uint64) (string, error) {
	o, err := s.hold(id)
	if err != nil {
		return "", err
	}
	defer s.release(o)
	n := o.n
	if err := o.lockMeta(); err != nil {
		return "", err
	}
	defer o.meta.Unlock()
	o.path.Lock()
	defer o.path.Unlock()
	if n.kind != Staging {
		return "", ErrWrongKind
	}
	dir := filepath.Join(s.stateDir, "lost+found")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", noSpace(err)
	}
	from, side := s.path(inStaging, id, ""), s.path(inStaging, id, punchedSuffix)
	var to string
	for i := 0; ; i++ {
		to = filepath.Join(dir, fmt.Sprintf("staging-%016x", id))
		if i > 0 {
			to += fmt.Sprintf(".%d", i)
		}
		// A number may come up again after the catalog was restored from an older copy: nothing is replaced.
		// The record goes along, and first: without it holes would pass for zeros.
		if n.punched.Load() != nil {
			if err := s.step("quarantine.record"); err != nil {
				return "", err
			}
			err := os.Link(side, to+punchedSuffix)
			if errors.Is(err, fs.ErrExist) && i < math.MaxInt16 {
				continue
			}
			if err != nil {
				return "", noSpace(err)
			}
		}
		if err := s.step("quarantine.rename"); err != nil {
			return "", err
		}
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if err == nil {
			break
		}
		if n.punched.Load() != nil {
			os.Remove(to + punchedSuffix)
		}
		if err != unix.EEXIST || i >= math.MaxInt16 {
			return "", noSpace(&os.LinkError{Op: "rename", Old: from, New: to, Err: err})
		}
	}
	err = s.step("quarantine.sync")
	if err == nil {
		err = syncPath(dir)
	}
	if err == nil {
		err = syncPath(s.stateDir)
	}
	if err != nil {
		s.log.Warn("cannot sync lost+found", "err", err)
	}
	if n.punched.Load() != nil {
		if err := s.step("quarantine.unlink"); err == nil {
			os.Remove(side)
		}
	}
	s.mu.Lock()
	s.goneLocked(n)
	delete(s.nodes, id)
	s.mu.Unlock()
	return to, nil
}
