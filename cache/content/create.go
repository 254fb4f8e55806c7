package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// CreateStaging makes an empty staging file and opens it. It needs no room and does not wait.
// Errors: ErrNoSpace (the file system is full), fs.ErrExist.
func (s *Store) CreateStaging(id uint64) (*File, error) {
	return s.create(&node{id: id, kind: Staging, place: inStaging}, 0)
}

// CreateContent makes an empty content file of size bytes (all holes, nothing verified) and opens it.
// A file of 0 bytes is complete at once. Errors: ErrNoSpace, fs.ErrExist.
func (s *Store) CreateContent(id uint64, size int64) (*File, error) {
	if size < 0 {
		return nil, fmt.Errorf("content of %d bytes: %w", size, unix.EINVAL)
	}
	n := &node{id: id, kind: Content, place: s.contentPlace(), partial: size > 0}
	if n.partial {
		n.verified.Store(&ranges{})
	}
	return s.create(n, size)
}

func (s *Store) contentPlace() place {
	if s.dirs[inCache] != "" {
		return inCache
	}
	return inState
}

func (s *Store) create(n *node, size int64) (*File, error) {
	n.size = size
	n.mtime = time.Now().UnixNano()
	n.atime = n.mtime
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, os.ErrClosed
	}
	if s.nodes[n.id] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("local file %x: %w", n.id, fs.ErrExist)
	}
	s.nodes[n.id] = n
	o := s.holdLocked(n)
	o.path.Lock() // nobody else knows o yet: who opens the number meanwhile waits for the file
	path := s.dataPath(n)
	s.mu.Unlock()

	err := s.needShard(n.place, n.id)
	fd := -1
	if err == nil {
		err = s.step("create")
	}
	if err == nil && n.partial {
		// A record left under this number must not vouch for the new file.
		if err = os.Remove(s.path(n.place, n.id, mapSuffix)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		fd, err = openFile(path, unix.O_CREAT|unix.O_EXCL)
	}
	if err == nil && size > 0 {
		if err = ignoringEINTR(func() error { return unix.Ftruncate(fd, size) }); err != nil {
			unix.Close(fd)
			os.Remove(path)
			err = noSpace(&fs.PathError{Op: "truncate", Path: path, Err: err})
		}
	}
	s.mu.Lock()
	if err != nil {
		s.goneLocked(n)
		delete(s.nodes, n.id)
	} else {
		o.fd.Store(int64(fd))
		if n.kind == Content {
			s.lru.pushBack(n)
		}
	}
	s.mu.Unlock()
	o.path.Unlock()
	if err != nil {
		s.release(o)
		return nil, err
	}
	return newFile(o), nil
}
