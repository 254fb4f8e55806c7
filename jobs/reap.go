package jobs

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// reclaimer takes away what deleted files leave: inodes without a name and
// without handles, with their local files. Deleting is one small transaction for the caller; the rest
// happens here, for many at once, after the deletion is durable, so that a
// power loss cannot bring back a name whose bytes are gone.
type reclaimer struct {
	e *Engine

	mu     sync.Mutex
	inos   map[uint64]struct{}
	added  uint64         // calls of add
	held   map[uint64]int // by Hold: not to be taken
	wake   chan struct{}
	hurry  chan struct{} // room is wanted
	trash  chan struct{} // the trash has changed
	failed map[uint64]time.Time

	reclaiming chan struct{} // held by who reclaims
	deleting   chan struct{} // held by who deletes archives
}

const (
	// reclaimBatch is how many files one transaction reclaims.
	reclaimBatch = 256
	// Reclaiming a file costs as much as deleting it did, an fsync not counted. So it waits until nothing was deleted
	// for reclaimPause, but not longer than reclaimDelay, nor for more files than reclaimBacklog.
	reclaimPause   = 50 * time.Millisecond
	reclaimDelay   = 2 * time.Second
	reclaimBacklog = 1 << 14
)

func newReclaimer(e *Engine) *reclaimer {
	return &reclaimer{
		e: e, inos: map[uint64]struct{}{}, held: map[uint64]int{}, failed: map[uint64]time.Time{},
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), trash: make(chan struct{}, 1),
		reclaiming: make(chan struct{}, 1), deleting: make(chan struct{}, 1),
	}
}

// add hands over an inode whose last name and handle are gone.
func (b *reclaimer) add(ino uint64) {
	b.mu.Lock()
	b.inos[ino] = struct{}{}
	b.added++
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// hurryUp has what is waiting reclaimed now: somebody needs the room.
func (b *reclaimer) hurryUp() {
	select {
	case b.hurry <- struct{}{}:
	default:
	}
}

// Hold keeps a regular file from being reclaimed after its last name and handle
// are gone, until release is called: the kernel may have found the name just before, and opens
// the inode by number next. It costs nothing to speak of and survives no restart.
func (e *Engine) Hold(ino uint64) (release func()) {
	b := e.bin
	b.mu.Lock()
	b.held[ino]++
	b.mu.Unlock()
	return sync.OnceFunc(func() {
		b.mu.Lock()
		if b.held[ino]--; b.held[ino] == 0 {
			delete(b.held, ino)
		}
		_, waits := b.inos[ino]
		b.mu.Unlock()
		if waits {
			b.add(ino)
		}
	})
}

func (b *reclaimer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		if b.pause(ctx) != nil {
			return nil
		}
		for {
			n, err := b.reclaim(ctx)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				b.e.log.Error("reclaiming deleted files", "err", err)
				if sleep(ctx, 5*time.Second) != nil {
					return nil
				}
				continue
			}
			if n < reclaimBatch {
				break // what came meanwhile has woken us again
			}
		}
	}
}

// pause lets an rm -r come to its end, or get ahead.
func (b *reclaimer) pause(ctx context.Context) error {
	end := time.NewTimer(reclaimDelay)
	defer end.Stop()
	for {
		b.mu.Lock()
		before, n := b.added, len(b.inos)
		b.mu.Unlock()
		if n >= reclaimBacklog {
			return nil
		}
		quiet := time.NewTimer(reclaimPause)
		select {
		case <-ctx.Done():
			quiet.Stop()
			return ctx.Err()
		case <-b.hurry:
			quiet.Stop()
			return nil
		case <-end.C:
			quiet.Stop()
			return nil
		case <-quiet.C:
		}
		b.mu.Lock()
		over := b.added == before
		b.mu.Unlock()
		if over {
			return nil
		}
	}
}

// take claims a batch: no handle may come to these inodes any more. It returns how many it has taken from
// the list, those among them that are in use.
func (b *reclaimer) take() ([]*file, int) {
	b.mu.Lock()
	var inos []uint64
	for ino := range b.inos {
		if b.held[ino] > 0 {
			continue
		}
		if inos = append(inos, ino); len(inos) == reclaimBatch {
			break
		}
	}
	for _, ino := range inos {
		delete(b.inos, ino)
	}
	b.mu.Unlock()
	e := b.e
	var batch []*file
	for _, ino := range inos {
		e.filesMu.Lock()
		f := e.files[ino]
		if f == nil {
			// A place holder that acquire finds.
			f = &file{e: e, ino: ino, refs: 1, gone: true, orphan: true, loadErr: catalog.ErrNotExist}
			e.files[ino] = f
			e.filesMu.Unlock()
			batch = append(batch, f)
			continue
		}
		f.refs++
		e.filesMu.Unlock()
		f.mu.Lock()
		busy := f.handles > 0 || f.loadErr == nil && !f.orphan
		if !busy {
			f.gone = true
		}
		f.mu.Unlock()
		if busy {
			f.put() // its last Release brings it back
			continue
		}
		batch = append(batch, f)
	}
	return batch, len(inos)
}

// reclaim does one batch and returns its size, 0 when nothing is left: neither here nor under way.
func (b *reclaimer) reclaim(ctx context.Context) (int, error) {
	select {
	case b.reclaiming <- struct{}{}:
		defer func() { <-b.reclaiming }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	batch, n := b.take()
	if len(batch) == 0 {
		return n, nil
	}
	defer func() {
		for _, f := range batch {
			f.put()
		}
	}()
	e := b.e
	again := func(err error) (int, error) {
		for _, f := range batch {
			b.add(f.ino)
		}
		return n, err
	}
	if err := e.catalog.Barrier(ctx, 0); err != nil {
		return again(err)
	}
	e.hit("reclaim.durable")
	gone := make(map[uint64][]catalog.Version, len(batch))
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for _, f := range batch {
			i, err := tx.Inode(f.ino)
			if errors.Is(err, catalog.ErrNotExist) || err == nil && i.Nlink > 0 {
				continue
			}
			if err != nil {
				return err
			}
			vs, err := tx.Versions(f.ino)
			if err != nil {
				return err
			}
			gone[f.ino] = vs
		}
		return nil
	})
	if err != nil {
		return again(err)
	}
	for ino, vs := range gone {
		e.up.cancel(ino)
		e.recall.unpin(ino)
		for _, v := range vs {
			e.recall.forget(ino, v.V)
			if v.Local == 0 {
				continue
			}
			if err := e.removeLocal(v.Local); err != nil && !errors.Is(err, content.ErrNotExist) {
				e.log.Warn("removing the local copy of a deleted file", "ino", ino, "err", err)
			}
		}
	}
	e.hit("reclaim.removed")
	now := time.Now()
	_, err = e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for ino, vs := range gone {
			for _, v := range vs {
				if err := e.trashVersionTx(tx, v, nil, now); err != nil {
					return err
				}
				if v.State != catalog.Archived {
					if err := e.retireTx(tx, v, nil); err != nil {
						return err
					}
					continue
				}
				if err := tx.DeleteVersion(ino, v.V); err != nil {
					return err
				}
			}
			if err := tx.DeleteInode(ino); err != nil {
				return err
			}
			if err := tx.DeleteOrphan(ino); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return again(err)
	}
	e.hit("reclaim.recorded")
	for ino := range gone {
		e.forgive(ino)
		e.solved(lostStaging(ino))
		e.solved(lostWithVault(ino))
		e.syncEvent(ino, math.MaxUint64, 0, nil)
	}
	e.up.kickAbandoned()
	b.kickTrash()
	return n, nil
}
