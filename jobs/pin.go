package jobs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// pins are the files that users want kept (user.cas.pin), as far as they fit in the cache together: its limit is
// harder than a pin, and what others read must pass through, too. Guarded by recaller.mu; bytes may be read without.
type pins struct {
	size   map[uint64]int64 // by inode: all of the file, whatever of it is local
	bytes  atomic.Int64
	pruned time.Time
}

// loadPins gives those that are pinned already their places, as far as there are any.
func (r *recaller) loadPins(tx *catalog.Tx) {
	limit := r.mostRoom()
	for i, err := range tx.Pinned() {
		if err != nil {
			r.log.Error("not all pinned files are known; eviction comes to the others", "error", err)
			return
		}
		if isRegular(i.Mode) {
			r.mu.Lock()
			r.pins.putLocked(i.Ino, i.Size, limit)
			r.mu.Unlock()
		}
	}
}

// indexPins has the catalog of a program that did not index pins do so, in the background: it reads every inode.
func (r *recaller) indexPins(ctx context.Context) error {
	made, err := r.e.catalog.IndexPins(ctx)
	if made {
		err = r.e.catalog.View(func(tx *catalog.Tx) error {
			r.loadPins(tx)
			return nil
		})
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("not all pinned files are known; the next start looks again", "error", err)
	}
	return nil
}

// putLocked takes a place of size for a file; false when there is none.
func (p *pins) putLocked(ino uint64, size, limit int64) bool {
	had := p.size[ino]
	if size > had && p.bytes.Load()-had+size > limit {
		return false
	}
	p.size[ino] = size
	p.bytes.Add(size - had)
	return true
}

func (p *pins) dropLocked(ino uint64) {
	p.bytes.Add(-p.size[ino])
	delete(p.size, ino)
}

// keep reports whether a pinned file is kept, and gives it its place if it is.
func (r *recaller) keep(ino uint64, size int64) bool {
	limit := r.mostRoom()
	put := func() (ok, prune bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pins.putLocked(ino, size, limit) {
			return true, false
		}
		r.pins.dropLocked(ino)
		prune = len(r.pins.size) > 0 && time.Since(r.pins.pruned) > time.Second
		if prune {
			r.pins.pruned = time.Now()
		}
		return false, prune
	}
	ok, prune := put()
	if prune {
		r.prunePins()
		ok, _ = put()
	}
	return ok
}

// prunePins forgets files that are pinned or there no more.
func (r *recaller) prunePins() {
	r.mu.Lock()
	inos := slices.Collect(maps.Keys(r.pins.size))
	r.mu.Unlock()
	for _, ino := range inos {
		var i catalog.Inode
		err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
			i, err = tx.Inode(ino)
			return err
		})
		if errors.Is(err, catalog.ErrNotExist) || err == nil && !i.Pinned {
			r.unpin(ino)
		}
	}
}

// unpin gives a file's place back.
func (r *recaller) unpin(ino uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pins.dropLocked(ino)
}

// pin takes a place for a file that is to be pinned. Errors: content.ErrNoSpace.
func (r *recaller) pin(ino uint64, size int64) error {
	if r.keep(ino, size) {
		return nil
	}
	return fmt.Errorf("%w: pinned files may take %d bytes of the cache, others have %d, this one %d", content.ErrNoSpace, r.mostRoom(), r.pins.bytes.Load(), size)
}

// roomFor is room for a file that may be pinned itself.
func (r *recaller) roomFor(ino uint64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roomForLocked(ino)
}

func (r *recaller) roomForLocked(ino uint64) int64 {
	return r.roomBeside(r.pins.bytes.Load() - r.pins.size[ino])
}

// comesAgain reports whether a retrieval under way brings a range of a version.
func (r *recaller) comesAgain(key verKey, x content.Range) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range r.byKey[key] {
		if off, n := rt.toFile(cas.Range{Off: rt.rec.Off, Len: rt.rec.Len}); off <= x.Off && x.Off+x.Len <= off+n {
			return true
		}
	}
	return false
}
