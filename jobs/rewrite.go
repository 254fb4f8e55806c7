package jobs

import (
	"context"
	"fmt"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// advanceLocked keeps track of how far the file is written without a gap.
func (f *file) advanceLocked(off, n int64) {
	if f.head > f.inode.Size {
		f.head = f.inode.Size
	}
	if off > f.head {
		if len(f.ahead) < 16 {
			f.ahead = append(f.ahead, content.Range{Off: off, Len: n})
		}
		return
	}
	f.head = max(f.head, min(off+n, f.inode.Size))
	for again := len(f.ahead) > 0; again; {
		again = false
		for i, r := range f.ahead {
			if r.Off <= f.head {
				f.head = max(f.head, min(r.Off+r.Len, f.inode.Size))
				f.ahead = append(f.ahead[:i], f.ahead[i+1:]...)
				again = len(f.ahead) > 0
				break
			}
		}
	}
}

// invalidateLocked prepares a staged version for a change of [off, off+n): what
// a stream has made an archive of is no longer good, and that is recorded
// before the bytes change; it reports whether there was something to record,
// which must be durable first. What was dropped cannot be changed.
func (f *file) invalidateLocked(off, n int64) (recorded bool, err error) {
	if f.stream == nil {
		if !f.e.up.hasIntents(f.ino) {
			return false, nil
		}
		if err := f.loadStreamLocked(); err != nil {
			return false, err
		}
	}
	if err := f.punchedIn(off, n); err != nil {
		return false, fmt.Errorf("%w: what is written of a file longer than the staging area can only be appended to", err)
	}
	return f.spoilLocked(off, n)
}

// spoilLocked is invalidateLocked for the segments.
func (f *file) spoilLocked(off, n int64) (recorded bool, err error) {
	s := f.stream
	kept := s.segs[:0:0]
	var gone, again []*segment
	for _, g := range s.segs {
		hit := overlap(g.up.Off, g.up.Size, off, n)
		if hit {
			g.touch(off, n)
		}
		switch {
		case hit && g.up.State == catalog.Sent:
			gone = append(gone, g)
			continue
		case hit && g.up.State == catalog.Completing:
			again = append(again, g)
		}
		kept = append(kept, g)
	}
	if len(gone)+len(again) == 0 {
		return false, nil
	}
	seq, err := f.e.catalog.Update(func(tx *catalog.Tx) error {
		for _, g := range gone {
			if err := f.e.abandonTx(tx, g.up); err != nil {
				return err
			}
		}
		for _, g := range again {
			// The archive that may come of it has the old bytes.
			u := g.up
			u.State, u.Uncertain, u.TreeHash = catalog.Sending, true, [32]byte{}
			if err := tx.PutUpload(u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	f.seq = seq
	for _, g := range again {
		g.up.State, g.up.Uncertain, g.up.TreeHash = catalog.Sending, true, [32]byte{}
	}
	s.segs = kept
	if len(gone) > 0 {
		f.e.up.kickAbandoned()
		f.e.bin.kickTrash()
	}
	return true, nil
}

// touch notes a change of the bytes of [off, off+n).
func (g *segment) touch(off, n int64) {
	g.moved++
	if g.up.PartSize == 0 {
		return
	}
	from := max(off-g.up.Off, 0) / g.up.PartSize
	to := (min(off+n, g.end()) - g.up.Off - 1) / g.up.PartSize
	for i := from; i <= to; i++ {
		g.vers[i]++
		delete(g.trees, i)
	}
}

// busyLocked reports whether a change of some byte of [off, off+n) is under way.
func (f *file) busyLocked(off, n int64) bool {
	for _, r := range f.changing {
		if overlap(r.Off, r.Len, off, n) {
			return true
		}
	}
	return false
}

// dropStreamed takes segments that are in the vault out of the staging file, for
// staging fills up. No reader or writer of a dropped byte is under way, and none comes.
func (e *Engine) dropStreamed(f *file, s *stream, v uint64) error {
	f.mu.Lock()
	vault := f.inode.Vault
	f.mu.Unlock()
	// Gone at the service: then this is the only copy.
	gone, name, err := e.vaultGone(vault)
	if err != nil || gone {
		return err
	}
	f.mu.Lock()
	for f.awaitConvLocked() {
	}
	var drop []*segment
	var nums []uint64
	if f.stream == s && f.ver.V == v && f.ver.State == catalog.Staged && f.fds == 0 && f.local != nil {
		for _, g := range s.segs {
			if g.up.State == catalog.Sent && !g.dropped && !f.busyLocked(g.up.Off, g.up.Size) {
				drop = append(drop, g)
				nums = append(nums, g.up.Archive)
			}
		}
	}
	if went, err := e.wentBefore(vault, nums...); went || err != nil {
		f.mu.Unlock()
		if err == nil {
			err = e.sendAgain(vault, name, false)
		}
		return err
	}
	for _, g := range drop {
		g.dropped = true
	}
	l := f.local
	if len(drop) == 0 {
		f.mu.Unlock()
		return nil
	}
	writes, set := f.writes, f.mtimeSet
	mtime, merr := l.Mtime()
	n := 0
	// No change begins and nothing is sealed meanwhile.
	err = f.gateLocked(func() error {
		// The archives must be on record durably before their bytes go.
		if err := e.catalog.Barrier(context.Background(), 0); err != nil {
			return err
		}
		e.hit("stream.droppable")
		for ; n < len(drop); n++ {
			g := drop[n].up
			if err := l.DropUploaded(g.Off, g.Size); err != nil {
				return err
			}
			e.log.Info("dropped bytes that are in the vault from a file that is being written", "path", e.path(f.ino), "off", g.Off, "size", g.Size)
		}
		e.hit("stream.dropped")
		return nil
	})
	for _, g := range drop[n:] {
		g.dropped = false
	}
	if merr == nil && f.writes == writes && f.mtimeSet == set {
		// Punching moves the mtime, and nobody has written.
		if err := l.SetMtime(mtime); err != nil {
			e.log.Warn("setting an mtime", "path", e.path(f.ino), "err", err)
		}
	}
	f.mu.Unlock()
	return err
}
