package content

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Promote turns a staging file into content, all of it verified except what DropUploaded dropped; the
// catalog must say so durably already. No data is copied: when CacheDir is another file system, the file moves to
// StateDir/content. It blocks on fdatasync. For a file that is content already it does nothing. Eviction that becomes necessary runs later,
// in the background. Errors: ErrNotExist.
func (s *Store) Promote(id uint64) error {
	o, err := s.hold(id)
	if err != nil {
		return err
	}
	defer s.release(o)
	if err := o.lockMeta(); err != nil {
		return err
	}
	defer o.meta.Unlock()
	n := o.n
	if n.kind == Content {
		return nil
	}
	if err := o.ensureOpen(); err != nil {
		return err
	}
	to := inState
	if s.movable {
		to = inCache
	}
	for {
		gen := o.gen.Load()
		// The name of a complete file vouches for its bytes, also after power loss.
		if err := o.sync("promote.datasync", unix.Fdatasync); err != nil {
			return err
		}
		done, err := o.promote(to, gen)
		if err != nil {
			return err
		}
		if done {
			break
		}
	}
	if n.punched.Load() != nil {
		// The record goes only after the file's staging name is gone for good.
		side := s.path(inStaging, id, punchedSuffix)
		if err := s.syncNames(inStaging, id); err != nil {
			return err
		}
		if err := s.step("promote.unpunched"); err != nil {
			return err
		}
		if err := os.Remove(side); err != nil {
			s.log.Warn("cannot remove the record of a promoted file", "path", side, "err", err)
		}
		o.setPunched(nil)
	}
	return nil
}

// promote renames, unless the file was written to since gen.
func (o *open) promote(to place, gen uint64) (bool, error) {
	s, n := o.s, o.n
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return false, err
	}
	if err := s.needShard(to, n.id); err != nil {
		return false, err
	}
	var set ranges
	partial := false
	if p := n.punched.Load(); p != nil {
		set, partial = p.complement(st.Size), true
		side := s.path(to, n.id, mapSuffix)
		if err := s.writeSidecar(side, n.id, st.Size, set); err != nil {
			return false, err
		}
		if err := s.syncNames(to, n.id); err != nil {
			return false, err
		}
	}
	o.io.Lock()
	defer o.io.Unlock()
	if o.gen.Load() != gen {
		return false, nil
	}
	o.path.Lock()
	defer o.path.Unlock()
	if err := s.step("promote.rename"); err != nil {
		return false, err
	}
	name := s.path(to, n.id, "")
	if partial {
		name = s.path(to, n.id, partSuffix)
	}
	if err := os.Rename(s.path(inStaging, n.id, ""), name); err != nil {
		return false, noSpace(err)
	}
	if partial {
		n.verified.Store(&set)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n.kind, n.place, n.partial = Content, to, partial
	n.named.Store(false)
	n.size = st.Size
	moved := n.charged[acctStaging]
	n.charged[acctStaging] = 0
	n.charged[acctCache] += moved
	s.used[acctStaging] -= moved
	s.used[acctCache] += moved
	s.lru.pushBack(n)
	s.progress++
	s.roomLocked()
	return true, nil
}

// Demote turns a complete content file into staging, to be modified; the catalog must say so durably already: otherwise a
// crash could bring the modified bytes back as verified content. For a file that is staging already it does nothing.
// A file on another file system than StateDir is copied, which needs the room for it; descriptors that Fd
// gave out before then keep showing the old copy (see Moves). Errors: ErrNotExist, ErrNotVerified (not complete), ErrNoSpace.
func (s *Store) Demote(id uint64) error {
	o, err := s.hold(id)
	if err != nil {
		return err
	}
	defer s.release(o)
	if err := o.lockMeta(); err != nil {
		return err
	}
	defer o.meta.Unlock()
	n := o.n
	if n.kind == Staging {
		return nil
	}
	if n.partial {
		return fmt.Errorf("local file %x: %w", id, ErrNotVerified)
	}
	if err := s.needShard(inStaging, id); err != nil {
		return err
	}
	if err := s.step("demote.rename"); err != nil {
		return err
	}
	err = o.renameData(Staging, inStaging, false)
	if errors.Is(err, unix.EXDEV) {
		err = o.copyToStaging()
	}
	if err != nil {
		return err
	}
	return nil
}

// Moves reports whether Demote would copy the file to another file system: then a
// descriptor must not be given to whoever keeps it over a Demote.
func (f *File) Moves() bool {
	f.o.s.mu.Lock()
	defer f.o.s.mu.Unlock()
	return f.o.n.place == inCache && !f.o.s.movable
}

// copyToStaging is Demote across file systems. meta is held; nobody writes to a complete content file.
func (o *open) copyToStaging() error {
	s, n := o.s, o.n
	if err := o.ensureOpen(); err != nil {
		return err
	}
	from, to := s.dataPath(n), s.path(inStaging, n.id, "")
	tmp := to + tmpSuffix
	os.Remove(tmp)
	fd, err := openFile(tmp, unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	fail := func(err error) error {
		unix.Close(fd)
		os.Remove(tmp)
		return noSpace(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return fail(err)
	}
	if err := unix.Ftruncate(fd, st.Size); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	if !s.state.has(st.Blocks * 512) {
		err := fmt.Errorf("%w: %s has %d bytes free, copying a file of %d", ErrNoSpace, s.state.dir, s.state.free, st.Size)
		s.mu.Unlock()
		return fail(err)
	}
	s.mu.Unlock()
	buf := make([]byte, mib)
	for off := int64(0); off < st.Size; {
		// Holes of a complete file are zeros of the archive, and stay holes.
		data, err := unix.Seek(o.fdNow(), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err == nil {
			off = max(off, data)
		}
		k, err := pread(o.fdNow(), buf[:min(mib, st.Size-off)], off)
		if err != nil && err != io.EOF {
			return fail(err)
		}
		if k == 0 {
			return fail(io.ErrUnexpectedEOF)
		}
		if _, err := pwrite(fd, buf[:k], off); err != nil {
			return fail(err)
		}
		off += int64(k)
	}
	if err := s.step("demote.copysync"); err != nil {
		return fail(err)
	}
	if err := unix.Fsync(fd); err != nil {
		return fail(err)
	}
	o.io.Lock()
	defer o.io.Unlock()
	o.path.Lock()
	defer o.path.Unlock()
	if err := s.step("demote.copyrename"); err != nil {
		return fail(err)
	}
	if err := os.Rename(tmp, to); err != nil {
		return fail(err)
	}
	// Both copies exist now, and staging wins at Open; but only if its name is there.
	if err := s.syncNames(inStaging, n.id); err != nil {
		return err
	}
	o.old = append(o.old, o.fdNow())
	o.fd.Store(int64(fd))
	s.mu.Lock()
	n.kind, n.place, n.partial = Staging, inStaging, false
	n.named.Store(true)
	s.lru.remove(n)
	s.state.stale, s.cache.stale = true, true
	s.mu.Unlock()
	if err := s.step("demote.unlink"); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil {
		s.log.Warn("cannot remove a demoted file's old copy", "path", from, "err", err)
	}
	o.mu.Lock()
	o.charges.reset()
	o.mu.Unlock()
	o.recount.Store(true)
	return nil
}
