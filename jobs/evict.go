package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// Why a local copy stays.
var (
	errNotArchived = errors.New("it is not in the vault yet")
	errInUseNow    = errors.New("a program has it open")
	errPinned      = errors.New("it is pinned (user.cas.pin)")
	errRecalling   = errors.New("it is being recalled")
	errSpared      = errors.New("it is covered by its stubs and spared once")
	errNotOurs     = errors.New("no version uses this local file")
	errLastCopy    = errors.New("the vault's copy is damaged or gone: this is the only one")
)

// stubShare is the part of the cache that head and tail stubs may fill; beyond it eviction keeps none.
const stubShare = 8

// evict drops the local copy of an Archived version: refuses when handles rely on
// it, when it is pinned by the user (unless force), or staged. keepStubs keeps head and tail (automatic eviction).
func (r *recaller) evict(f *file, force, keepStubs bool) error {
	_, err := r.evictFile(f, force, keepStubs, 0)
	return err
}

// evictFile is evict; with id it insists on that local file. It returns the bytes freed.
func (r *recaller) evictFile(f *file, force, keepStubs bool, id uint64) (freed int64, err error) {
	changed := false
	defer func() {
		if changed {
			r.contentChanged(f.ino)
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !keepStubs {
		r.awaitCopyLocked(f)
	}
	v, local := f.ver, f.local
	switch {
	case id != 0 && (v.Local != id || local == nil):
		return 0, errNotOurs
	case v.V == 0 || v.Local == 0 && local == nil:
		return 0, nil
	case v.State != catalog.Archived:
		return 0, errNotArchived
	case f.pinned > 0 || f.writers > 0:
		return 0, errInUseNow
	case f.inode.Pinned && !force && (!keepStubs || r.keep(f.ino, v.Size)):
		return 0, errPinned
	case r.recalling(verKey{v.Ino, v.V}), !keepStubs && r.underWay(verKey{v.Ino, v.V}):
		return 0, errRecalling // who asks for room by name learns that it fills up again
	case local == nil: // recorded, but not there
		return 0, r.changeVersion(f, r.e.catalog.Reclaim, func(v *catalog.Version) { v.Local, v.Complete = 0, false })
	}
	if local.Kind() != content.Content {
		return 0, errNotArchived // its record is not on stable storage yet
	}
	if bytesFrom(local.VerifiedRanges(), 0) > 0 {
		last, err := f.lastCopyLocked()
		if err != nil {
			return 0, err
		}
		if last {
			return 0, errLastCopy
		}
	}
	before, err := local.Allocated()
	if err != nil {
		return 0, err
	}
	if keepStubs {
		switch keep := r.stub(local, v.Size, before); {
		case keep < 0:
			return 0, errSpared
		case keep > 0:
			head, tail := keep, v.Size-(v.Size-keep)/mib*mib
			if v.Complete {
				if err := r.changeVersion(f, r.e.catalog.Reclaim, func(v *catalog.Version) { v.Complete = false }); err != nil {
					return 0, err
				}
			}
			changed = true
			if err := local.Drop(head, v.Size-tail-head); err != nil {
				return 0, fmt.Errorf("keeping stubs: %w", err)
			}
			r.mu.Lock()
			r.uncheckLocked(v, head, v.Size-tail-head)
			r.mu.Unlock()
			after, err := local.Allocated()
			r.noteStub(local.ID(), after)
			return before - after, err
		}
	}
	if err := r.changeVersion(f, r.e.catalog.Reclaim, func(v *catalog.Version) { v.Local, v.Complete = 0, false }); err != nil {
		return 0, err
	}
	r.e.hit("evict.recorded")
	changed = true
	f.local = nil
	if err := local.Close(); err != nil { // nobody uses it: no read is under way, no handle relies on it
		r.log.Warn("closing an evicted file", "ino", f.ino, "error", err)
	}
	r.mu.Lock()
	for _, x := range v.Extents {
		delete(r.checked, x.Archive)
	}
	r.mu.Unlock()
	if err := r.e.removeLocal(v.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
		return 0, err
	}
	r.e.hit("evict.removed")
	return before, nil
}

// awaitCopyLocked gives what is nearly over a moment: the local file of an upload that is being committed
// becomes a disposable copy only when the archive's record is on stable storage, and a recall whose bytes
// are all there still checks and records them. mu is released meanwhile.
func (r *recaller) awaitCopyLocked(f *file) {
	for range 200 {
		if f.ver.V == 0 || f.ver.State != catalog.Archived || f.local == nil ||
			f.local.Kind() == content.Content && !(f.wholeLocked() && r.recalling(verKey{f.ino, f.ver.V})) {
			return
		}
		f.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		f.mu.Lock()
	}
}

// stub says how much of each end of a local file automatic eviction keeps: 0 nothing, negative: all of
// it, this time. The range map is in MiB, so a stub is at least that.
func (r *recaller) stub(local *content.File, size, allocated int64) int64 {
	if r.o.stub <= 0 {
		return 0
	}
	keep := (r.o.stub + mib - 1) / mib * mib
	limit := r.e.store.Usage().CacheLimit / stubShare
	r.mu.Lock()
	defer r.mu.Unlock()
	_, isStub := r.stubs[local.ID()]
	switch {
	case isStub:
		return 0
	case size <= 2*r.o.stub || allocated <= 2*keep && !local.Verified(0, size):
		// Its stubs are all there is of it. They go when everything else has gone.
		if r.stubBytes+allocated > limit {
			return 0
		}
		r.stubs[local.ID()] = allocated
		r.stubBytes += allocated
		return -1
	case size <= 2*keep, r.stubBytes+2*keep > limit, !local.Verified(0, keep):
		return 0
	}
	return keep
}

// removeLocal removes a local file, which may be stubs.
func (e *Engine) removeLocal(id uint64) error {
	r := e.recall
	r.mu.Lock()
	r.stubBytes -= r.stubs[id]
	delete(r.stubs, id)
	r.mu.Unlock()
	return e.store.Remove(id)
}

func (r *recaller) noteStub(id uint64, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stubBytes += bytes - r.stubs[id]
	r.stubs[id] = bytes
}

// recalling reports whether something is being brought into a version's local file, or waits to read it.
func (r *recaller) recalling(key verKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range r.byKey[key] {
		if rt.rec.State == catalog.Ready || rt.rec.State == catalog.Fetching || rt.finishing || len(rt.demand) > 0 {
			return true
		}
	}
	for _, fl := range r.inflight {
		if fl.rt.key == key {
			return true
		}
	}
	return false
}

// underWay reports whether there are retrievals of a version.
func (r *recaller) underWay(key verKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byKey[key]) > 0
}

// evictLocal is content.Options.Evict: id is a local file number.
func (r *recaller) evictLocal(id uint64) error {
	var v catalog.Version
	err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		v, err = tx.VersionByLocal(id)
		return err
	})
	if errors.Is(err, catalog.ErrNotExist) {
		return errNotOurs
	}
	if err != nil {
		return err
	}
	f, err := r.e.acquire(v.Ino)
	if err != nil {
		return err
	}
	defer f.put()
	_, err = r.evictFile(f, false, true, id)
	return err
}

// closing is how long an eviction by name waits for files that are in use: the kernel tells of the last close(2) a moment
// after it has returned.
const closing = 500 * time.Millisecond

// Evict drops local copies of archived files; recursive for directories. Files that a program has open are tried again for
// half a second, together; ending ctx ends that.
func (e *Engine) Evict(ctx context.Context, inos []uint64, recursive bool) (EvictResult, error) {
	var res EvictResult
	r := e.recall
	var inUse []uint64
	// one reports whether the file is in use.
	one := func(ino uint64) (bool, error) {
		f, err := e.acquire(ino)
		if errors.Is(err, catalog.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer f.put()
		f.mu.Lock()
		has := f.ver.Local != 0
		f.mu.Unlock()
		if !has {
			return false, nil
		}
		freed, err := r.evictFile(f, false, false, 0)
		switch {
		case errors.Is(err, errInUseNow) && len(inUse) < maxSkipped:
			return true, nil
		case err != nil:
			if len(res.Skipped) < maxSkipped {
				res.Skipped = append(res.Skipped, Skipped{r.pathOf(ino), err.Error()})
			}
		default:
			res.Files++
			res.Bytes += freed
		}
		return false, nil
	}
	err := r.walk(ctx, inos, recursive, func(ino catalog.Inode) error {
		if !isRegular(ino.Mode) || ino.Version == 0 {
			return nil
		}
		busy, err := one(ino.Ino)
		if busy {
			inUse = append(inUse, ino.Ino)
		}
		return err
	})
	until := time.After(closing)
	pause := time.NewTicker(closing / 50)
	defer pause.Stop()
	for waiting := true; err == nil && waiting && len(inUse) > 0; {
		select {
		case <-ctx.Done():
			waiting = false
		case <-until:
			waiting = false
		case <-pause.C:
		}
		again := inUse
		inUse = nil
		for i, ino := range again {
			var busy bool
			if busy, err = one(ino); err != nil {
				inUse = append(inUse, again[i:]...)
				break
			}
			if busy {
				inUse = append(inUse, ino)
			}
		}
	}
	for _, ino := range inUse {
		if len(res.Skipped) < maxSkipped {
			res.Skipped = append(res.Skipped, Skipped{r.pathOf(ino), errInUseNow.Error()})
		}
	}
	return res, err
}

// maxSkipped bounds the explanations of one verb.
const maxSkipped = 1000

const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
)

func isRegular(mode uint32) bool { return mode&modeType == modeRegular }
func isDir(mode uint32) bool     { return mode&modeType == modeDir }

// walk calls each for the inodes and, recursively, all below them, reading
// directories in bits. No transaction is open while each runs.
func (r *recaller) walk(ctx context.Context, inos []uint64, recursive bool, each func(catalog.Inode) error) error {
	return r.walkIn(ctx, inos, recursive, nil, func(_ uint64, ino catalog.Inode) error { return each(ino) })
}

// walkIn is walk that leaves out inodes and what is below them, and tells the directory (0 for those given).
func (r *recaller) walkIn(ctx context.Context, inos []uint64, recursive bool, exclude map[uint64]struct{}, each func(dir uint64, ino catalog.Inode) error) error {
	for _, root := range inos {
		stack := []uint64{root}
		for len(stack) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if _, out := exclude[at]; out {
				continue
			}
			var ino catalog.Inode
			err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
				ino, err = tx.Inode(at)
				return err
			})
			if errors.Is(err, catalog.ErrNotExist) {
				continue // deleted meanwhile
			}
			if err != nil {
				return err
			}
			if !isDir(ino.Mode) {
				if err := each(0, ino); err != nil {
					return err
				}
				continue
			}
			if !recursive {
				return fmt.Errorf("%s: %w", r.pathOf(at), catalog.ErrIsDir)
			}
			if err := r.walkDir(ctx, at, exclude, &stack, each); err != nil {
				return err
			}
		}
	}
	return nil
}

// walkDir calls each for the non-directories of one directory and adds the directories to stack.
func (r *recaller) walkDir(ctx context.Context, dir uint64, exclude map[uint64]struct{}, stack *[]uint64, each func(dir uint64, ino catalog.Inode) error) error {
	const bit = 256
	var after uint64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var inodes []catalog.Inode
		n := 0
		err := r.e.catalog.View(func(tx *catalog.Tx) error {
			entries, err := tx.ReadDir(dir, after, bit)
			if errors.Is(err, catalog.ErrNotExist) {
				return nil // deleted meanwhile
			}
			if err != nil {
				return err
			}
			n = len(entries)
			for _, d := range entries {
				after = d.Cookie
				if _, out := exclude[d.Ino]; out {
					continue
				}
				if d.Type == modeDir {
					*stack = append(*stack, d.Ino)
					continue
				}
				ino, err := tx.Inode(d.Ino)
				if err != nil {
					return err
				}
				inodes = append(inodes, ino)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, ino := range inodes {
			if err := each(dir, ino); err != nil {
				return err
			}
		}
		if n < bit {
			return nil
		}
	}
}
