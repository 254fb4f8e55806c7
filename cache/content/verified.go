package content

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// verifyBatch collects ranges that were written and wait for one fdatasync and one map together.
type verifyBatch struct {
	set  ranges // open.mu
	done bool   // open.meta
	err  error  // open.meta
}

// WriteVerified stores bytes that were checked against a tree hash into a
// content file and records the range after the data is on stable storage.
// The room must have been reserved. Ranges may begin and end anywhere: the archives of a file need not meet at a MiB.
// It blocks on fdatasync, which concurrent calls share. What is verified already is not written again.
// The last missing range makes the file complete. Errors: ErrNoSpace (not reserved, or the file system is full), ErrWrongKind.
func (f *File) WriteVerified(p []byte, off int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	o := f.o
	o.dropping.RLock()
	b, err := o.writeVerified(p, off)
	o.dropping.RUnlock()
	if err != nil {
		if o.settle() != nil {
			o.recount.Store(true)
		}
		return err
	}
	if b == nil {
		return nil
	}
	return o.commit(b)
}

func (o *open) writeVerified(p []byte, off int64) (*verifyBatch, error) {
	n, size := o.n, int64(len(p))
	o.io.RLock()
	defer o.io.RUnlock()
	if n.kind != Content {
		return nil, ErrWrongKind
	}
	if off < 0 || off > n.size-size {
		return nil, fmt.Errorf("verified range %d+%d of %d bytes: %w", off, size, n.size, unix.EINVAL)
	}
	if !n.partial || n.verified.Load().covers(off, size) {
		return nil, nil
	}
	o.mu.Lock()
	need := o.charges.missing(o.fdNow(), off, size)
	if need > 0 {
		if !o.s.takeContent(n, need) {
			o.mu.Unlock()
			return nil, fmt.Errorf("local file %x: %w: %d bytes were not reserved", n.id, ErrNoSpace, need)
		}
		o.charges.mark(o.fdNow(), off, size)
	}
	o.mu.Unlock()
	o.recount.Store(true)
	_, err := pwrite(o.fdNow(), p, off)
	if need > 0 {
		o.s.volumeOf(n.place).inflight.Add(-need)
	}
	if err != nil {
		return nil, fmt.Errorf("local file %x: write: %w", n.id, noSpace(err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.batch == nil {
		o.batch = &verifyBatch{}
	}
	o.batch.set = o.batch.set.add(Range{off, size})
	return o.batch, nil
}

// commit makes the ranges of b count. Whoever comes first does it for all who wrote before.
func (o *open) commit(b *verifyBatch) error {
	o.meta.Lock()
	defer o.meta.Unlock()
	if b.done {
		return b.err
	}
	o.mu.Lock()
	set := b.set
	o.batch = nil // it is b: batches are done in turn
	o.mu.Unlock()
	b.done = true
	b.err = o.record(set)
	return b.err
}

// record adds ranges to what is verified: data to stable storage, then the map or, when
// nothing is missing, the name of a complete file. meta is held.
func (o *open) record(add ranges) error {
	s, n := o.s, o.n
	if err := o.sync("verified.datasync", unix.Fdatasync); err != nil {
		return err
	}
	if !n.partial {
		return nil
	}
	set := *n.verified.Load()
	for _, r := range add {
		set = set.add(r)
	}
	if o.isGone() {
		n.verified.Store(&set)
		return nil
	}
	if !set.covers(0, n.size) {
		if err := s.writeSidecar(s.path(n.place, n.id, mapSuffix), n.id, n.size, set); err != nil {
			return err
		}
		n.verified.Store(&set)
		return nil
	}
	if err := s.step("complete.rename"); err != nil {
		return err
	}
	if err := o.renameData(n.kind, n.place, false); err != nil {
		return err
	}
	n.verified.Store(nil)
	// Whoever is told that the file is complete may record that, and must not know more than the disk after a power loss.
	if err := s.syncNames(n.place, n.id); err != nil {
		return err
	}
	if err := s.step("complete.unmap"); err != nil {
		return err
	}
	if err := os.Remove(s.path(n.place, n.id, mapSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot remove the map of a complete file", "id", n.id, "err", err)
	}
	return nil
}

// renameData gives the data file the name that goes with what it is from now on. meta is held.
func (o *open) renameData(kind Kind, p place, partial bool) error {
	s, n := o.s, o.n
	o.io.Lock()
	defer o.io.Unlock()
	o.path.Lock()
	defer o.path.Unlock()
	from := s.dataPath(n)
	to := s.path(p, n.id, "")
	if partial {
		to = s.path(p, n.id, partSuffix)
	}
	if err := os.Rename(from, to); err != nil {
		return noSpace(err)
	}
	s.mu.Lock()
	n.kind, n.place, n.partial = kind, p, partial
	n.named.Store(false)
	if kind == Staging {
		s.lru.remove(n)
	}
	s.mu.Unlock()
	return nil
}

// Verified reports whether all of [off, off+n) is verified local content (always true for staging, except punched parts).
// What lies beyond the end of the file needs no verification.
func (f *File) Verified(off, n int64) bool {
	if f.enter() != nil {
		return false
	}
	defer f.leave()
	f.o.io.RLock()
	defer f.o.io.RUnlock()
	return f.o.verifiedLocked(off, n)
}

func (o *open) verifiedLocked(off, n int64) bool {
	if n <= 0 {
		return true
	}
	n = min(n, math.MaxInt64-off)
	nd := o.n
	if nd.kind == Staging {
		set := nd.punched.Load()
		return set == nil || !set.overlaps(off, n)
	}
	if !nd.partial {
		return true
	}
	return nd.verified.Load().covers(off, min(n, nd.size-off))
}

// ReadVerified reads like ReadAt, but only when all of the range is verified, or else returns ErrNotVerified (ErrPunched in staging)
// and leaves p alone. Unlike Verified followed by ReadAt it excludes a Drop in between.
func (f *File) ReadVerified(p []byte, off int64) (int, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer f.leave()
	o := f.o
	o.io.RLock()
	defer o.io.RUnlock()
	if !o.verifiedLocked(off, int64(len(p))) {
		if o.n.kind == Staging {
			return 0, ErrPunched
		}
		return 0, ErrNotVerified
	}
	return o.readLocked(p, off)
}

// VerifiedRanges returns the merged verified ranges, in order.
func (f *File) VerifiedRanges() []Range {
	if f.enter() != nil {
		return nil
	}
	defer f.leave()
	o := f.o
	o.io.RLock()
	defer o.io.RUnlock()
	n := o.n
	if n.kind == Content && n.partial {
		return append([]Range(nil), *n.verified.Load()...)
	}
	size := n.size
	if n.kind == Staging {
		var st unix.Stat_t
		if unix.Fstat(o.fdNow(), &st) != nil {
			return nil
		}
		size = st.Size
	}
	var gone ranges
	if p := n.punched.Load(); p != nil {
		gone = *p
	}
	return gone.complement(size)
}

// Drop punches a range out of a content file and forgets that it was verified (record first).
// The range is cut at the end of the file. It blocks on fsync. Errors: ErrWrongKind.
func (f *File) Drop(off, n int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return fmt.Errorf("drop %d+%d: %w", off, n, unix.EINVAL)
	}
	o := f.o
	o.dropping.Lock()
	defer o.dropping.Unlock()
	o.meta.Lock()
	defer o.meta.Unlock()
	nd, s := o.n, o.s
	if nd.kind != Content {
		return ErrWrongKind
	}
	r := Range{off, min(n, nd.size-off)}
	if r.Len <= 0 {
		return nil
	}
	o.mu.Lock()
	if o.batch != nil { // written before, not to be recorded after
		o.batch.set = o.batch.set.sub(r)
	}
	o.mu.Unlock()
	if err := o.unverify(r); err != nil {
		return err
	}
	if err := s.step("drop.punch"); err != nil {
		return err
	}
	if r.End() == nd.size {
		r.Len += blockSize - 1 // or else the last block would stay, zeroed
	}
	if err := fallocate(o.fdNow(), punchMode, r.Off, r.Len); err != nil {
		return fmt.Errorf("local file %x: punch: %w", nd.id, err)
	}
	s.reserve.fill()
	return o.settle()
}

// unverify forgets a range, in memory and durably. Whoever reads it by ReadVerified is done when it returns.
func (o *open) unverify(r Range) error {
	s, n := o.s, o.n
	set := ranges{{0, n.size}}
	if n.partial {
		set = *n.verified.Load()
	}
	set = set.sub(r)
	if o.isGone() {
		o.io.Lock()
		defer o.io.Unlock()
		s.mu.Lock()
		n.partial = true
		s.mu.Unlock()
		n.verified.Store(&set)
		return nil
	}
	side := s.path(n.place, n.id, mapSuffix)
	err := s.writeSidecar(side, n.id, n.size, set)
	if errors.Is(err, ErrNoSpace) {
		// Dropping is how room is made: without record the whole file stops counting after a crash, which is safe too.
		s.log.Warn("no room for the record of a content file; it will be fetched again after a restart", "id", n.id)
		if err = os.Remove(side); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	o.io.Lock()
	n.verified.Store(&set)
	o.io.Unlock()
	if !n.partial {
		if err := s.step("drop.rename"); err != nil {
			return err
		}
		if err := o.renameData(Content, n.place, true); err != nil {
			return err
		}
	}
	return s.syncNames(n.place, n.id)
}
