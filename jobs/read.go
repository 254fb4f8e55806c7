package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// ReadAt reads up to len(p) bytes; n < len(p) only at the end of the file. It
// waits for a recall of cold ranges until ctx ends (returning ctx's error), ErrTimedOut, ErrDamaged, ErrGuard, ErrDenied.
func (h *Handle) ReadAt(ctx context.Context, c Caller, p []byte, off int64) (int, error) {
	f := h.impl.f
	if h.impl.local || off < 0 {
		return f.readAt(ctx, c, nil, p, off)
	}
	r, s := f.e.recall, &h.impl.seq
	s.begin(off, r.slack())
	n, err := f.readAt(ctx, c, s, p, off)
	if s.end(off, int64(n)) && err == nil {
		r.readAhead(c, f, s)
	}
	return n, err
}

func (f *file) readAt(ctx context.Context, c Caller, s *sequence, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	for {
		f.mu.Lock()
		n := min(int64(len(p)), f.inode.Size-off)
		if n <= 0 {
			f.mu.Unlock()
			return 0, nil
		}
		l := f.local
		f.mu.Unlock()
		if l != nil {
			// Eviction and truncation come before it or after it, not in between.
			m, err := l.ReadVerified(p[:n], off)
			switch {
			case err == nil, errors.Is(err, io.EOF):
				return m, nil // shorter when it was truncated meanwhile
			case errors.Is(err, os.ErrClosed):
				l = nil
			case !errors.Is(err, content.ErrNotVerified) && !errors.Is(err, content.ErrPunched):
				return m, err
			}
		}
		f.mu.Lock()
		if f.local != l && f.local != nil {
			f.mu.Unlock()
			continue
		}
		staged, v := f.stagingLocked(), f.ver
		f.mu.Unlock()
		switch {
		case staged && l != nil:
			return 0, fmt.Errorf("%w; it can be read when the whole file is archived", content.ErrPunched)
		case staged:
			return 0, fmt.Errorf("%w: its staging file is missing", ErrDamaged)
		case f.e.recall.barred(v):
			return 0, errDamaged(v)
		}
		if err := f.e.recall.ensure(ctx, c, f, s, off, n); err != nil {
			return 0, err
		}
	}
}

// ensureWhole makes all of an archived version local. Eviction may come again before the caller looks.
func (f *file) ensureWhole(ctx context.Context, c Caller) error {
	f.mu.Lock()
	n, v := f.inode.Size, f.ver
	f.mu.Unlock()
	if f.e.recall.barred(v) {
		return errDamaged(v)
	}
	return f.e.recall.ensure(ctx, c, f, nil, 0, n)
}

const (
	seekData = 3
	seekHole = 4
)

// Seek answers SEEK_DATA (3) and SEEK_HOLE (4); cold bytes are data. io.EOF for ENXIO.
func (h *Handle) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	f := h.impl.f
	f.mu.Lock()
	size, l := f.inode.Size, f.local
	whole := l != nil && f.wholeLocked()
	if off < 0 || off >= size {
		f.mu.Unlock()
		return 0, io.EOF
	}
	if !whole {
		f.mu.Unlock()
		switch whence {
		case seekData:
			return off, nil
		case seekHole:
			return size, nil
		}
		return 0, catalog.ErrInvalid
	}
	f.pinned++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.pinned--
		f.mu.Unlock()
	}()
	switch whence {
	case seekData:
		return l.SeekData(off)
	case seekHole:
		return l.SeekHole(off)
	}
	return 0, catalog.ErrInvalid
}
