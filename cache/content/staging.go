package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const punchMode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE

func fallocate(fd int, mode uint32, off, n int64) error {
	return ignoringEINTR(func() error { return unix.Fallocate(fd, mode, off, n) })
}

// patience is how long one call waits for room, over all its waits.
type patience struct {
	s  *Store
	at time.Time
}

func (p *patience) deadline() time.Time {
	if p.at.IsZero() {
		p.at = time.Now().Add(p.s.stagingWait)
	}
	return p.at
}

// WriteAt writes to a staging file. It waits (ctx) for room under the staging limit, first come first served,
// for at most Options.StagingWait. n < len(p) only with an error, and those n bytes are written.
// Errors: ErrNoSpace, ErrPunched (nothing is written), ErrWrongKind, ctx's.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer f.leave()
	if off < 0 {
		return 0, fmt.Errorf("write at %d: %w", off, unix.EINVAL)
	}
	if off > math.MaxInt64-int64(len(p)) {
		return 0, fmt.Errorf("write at %d: %w", off, unix.EFBIG)
	}
	if len(p) == 0 {
		return 0, nil
	}
	o := f.o
	wait := patience{s: o.s}
	done := 0
	for {
		need, err := o.charge(ctx, off+int64(done), int64(len(p)-done), &wait)
		if err != nil {
			return done, err
		}
		o.gen.Add(1)
		n := 0
		if err = o.s.step("write"); err == nil {
			n, err = pwrite(o.fdNow(), p[done:], off+int64(done))
		}
		if need > 0 {
			o.s.state.inflight.Add(-need)
		}
		o.io.RUnlock()
		done += n
		if err == nil {
			return done, nil
		}
		if err := o.refused(ctx, err, &wait); err != nil {
			return done, fmt.Errorf("local file %x: write: %w", o.n.id, err)
		}
	}
}

// refused deals with an error of the kernel: the charge is settled, and when
// the file system is full, room is waited for (nil: try again).
func (o *open) refused(ctx context.Context, err error, wait *patience) error {
	if e := o.settle(); e != nil {
		o.recount.Store(true)
	}
	if !isFull(err) {
		return err
	}
	if e := o.s.waitRoom(ctx, wait.deadline()); e != nil {
		if errors.Is(e, ErrNoSpace) {
			return noSpace(err)
		}
		return e
	}
	return nil
}

// charge sees to it that every block of [off, off+n) is charged, waiting for room, and returns how many bytes were
// charged now. On success o.io is held for reading, and the caller takes the result off volume.inflight after writing.
func (o *open) charge(ctx context.Context, off, n int64, wait *patience) (int64, error) {
	s := o.s
	var grant int64
	recounted := false
	for {
		o.io.RLock()
		if err := o.writableLocked(off, n); err != nil {
			o.io.RUnlock()
			if grant > 0 {
				s.giveStaging(grant)
			}
			return 0, err
		}
		o.mu.Lock()
		if len(o.charges.chunks) > maxChunks && !recounted {
			o.mu.Unlock()
			o.io.RUnlock()
			recounted = true
			if err := o.settle(); err != nil {
				if grant > 0 {
					s.giveStaging(grant)
				}
				return 0, err
			}
			continue
		}
		need := o.charges.missing(o.fdNow(), off, n)
		ok := need == 0
		switch {
		case ok:
		case need <= grant:
			s.spend(o.n, need)
			grant -= need
			ok = true
		default:
			ok = s.tryStaging(o.n, need)
		}
		if ok && need > 0 {
			o.charges.mark(o.fdNow(), off, n)
		}
		o.mu.Unlock()
		if ok {
			if !o.recount.Load() {
				o.recount.Store(true)
			}
			if grant > 0 {
				s.giveStaging(grant)
			}
			return need, nil
		}
		o.io.RUnlock()
		if grant > 0 { // blocks were taken away while waiting, more are needed now
			s.giveStaging(grant)
			grant = 0
		}
		if !recounted {
			recounted = true
			if o.recount.Load() {
				if err := o.settle(); err != nil {
					return 0, err
				}
				continue
			}
		}
		if err := s.waitStaging(ctx, need, wait.deadline()); err != nil {
			return 0, err
		}
		grant = need
	}
}

func (o *open) writableLocked(off, n int64) error {
	if o.n.kind != Staging {
		return ErrWrongKind
	}
	if set := o.n.punched.Load(); set != nil && set.overlaps(off, n) {
		return ErrPunched
	}
	return nil
}

// Truncate sets the size of a staging file. It needs no room. Cutting off parts that were
// dropped blocks on two fsyncs, after which the range can be written again. Errors: ErrWrongKind.
func (f *File) Truncate(size int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	if size < 0 {
		return fmt.Errorf("truncate to %d: %w", size, unix.EINVAL)
	}
	o := f.o
	o.meta.Lock()
	defer o.meta.Unlock()
	if err := o.truncate(size); err != nil {
		return err
	}
	old := o.n.punched.Load()
	if old == nil {
		return nil
	}
	set := old.clip(size)
	if len(set) == len(*old) && (len(set) == 0 || set[len(set)-1] == (*old)[len(set)-1]) {
		return nil
	}
	// The record must not be shortened before the file is: without record the hole would pass for zeros. And until
	// it is, nothing may be written there: a record that is too long makes Open drop what it speaks of.
	if err := o.sync("truncate.sync", unix.Fsync); err != nil {
		return err
	}
	if err := o.recordPunched(size, set); err != nil {
		return err
	}
	o.setPunched(set)
	return nil
}

func (o *open) truncate(size int64) error {
	o.io.Lock()
	defer o.io.Unlock()
	if o.n.kind != Staging {
		return ErrWrongKind
	}
	o.gen.Add(1)
	if err := ignoringEINTR(func() error { return unix.Ftruncate(o.fdNow(), size) }); err != nil {
		return fmt.Errorf("local file %x: truncate: %w", o.n.id, noSpace(err))
	}
	if size == 0 {
		o.n.failed.Store(nil) // the bytes that could not be written are gone
	}
	return o.recountLocked()
}

func (o *open) setPunched(set ranges) {
	o.io.Lock()
	defer o.io.Unlock()
	if len(set) == 0 {
		o.n.punched.Store(nil)
		return
	}
	o.n.punched.Store(&set)
}

// recordPunched makes set the durable record of what a staging file lacks. meta is held.
func (o *open) recordPunched(size int64, set ranges) error {
	if o.isGone() {
		return nil // a removed file needs no record, and must not leave one
	}
	s, n := o.s, o.n
	path := s.path(inStaging, n.id, punchedSuffix)
	if len(set) > 0 {
		if err := s.writeSidecar(path, n.id, size, set); err != nil {
			return err
		}
	} else {
		if err := s.step("punched.remove"); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.syncNames(inStaging, n.id)
}

// Allocate is fallocate(2) on a staging file with mode bits as given: 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE, ZERO_RANGE|KEEP_SIZE.
// It waits for room like WriteAt. Errors: errors.ErrUnsupported for other modes and where the file system cannot, ErrNoSpace, ErrPunched, ErrWrongKind, ctx's.
func (f *File) Allocate(ctx context.Context, mode uint32, off, n int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	switch mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE, punchMode, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
	default:
		return fmt.Errorf("fallocate mode %#x: %w", mode, errors.ErrUnsupported)
	}
	if off < 0 || n <= 0 {
		return fmt.Errorf("fallocate: %w", unix.EINVAL)
	}
	if off > math.MaxInt64-n {
		return fmt.Errorf("fallocate: %w", unix.EFBIG)
	}
	o := f.o
	if mode == punchMode {
		return o.punch(off, n)
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return err
	}
	if n-st.Blocks*512 > o.s.stagingLimit { // before every block of an absurd range is looked at
		return fmt.Errorf("fallocate: %w: %d bytes are more than staging may ever hold (%d)", ErrNoSpace, n, o.s.stagingLimit)
	}
	wait := patience{s: o.s}
	for {
		need, err := o.charge(ctx, off, n, &wait)
		if err != nil {
			return err
		}
		o.gen.Add(1)
		err = fallocate(o.fdNow(), mode, off, n)
		if need > 0 {
			o.s.state.inflight.Add(-need)
		}
		o.io.RUnlock()
		if err == nil {
			return nil
		}
		if err := o.refused(ctx, err, &wait); err != nil {
			return fmt.Errorf("local file %x: fallocate: %w", o.n.id, err)
		}
	}
}

// punch makes a hole the user asked for.
func (o *open) punch(off, n int64) error {
	o.io.Lock()
	defer o.io.Unlock()
	if err := o.writableLocked(off, n); err != nil {
		return err
	}
	o.gen.Add(1)
	if err := fallocate(o.fdNow(), punchMode, off, n); err != nil {
		return fmt.Errorf("local file %x: punch: %w", o.n.id, noSpace(err))
	}
	return o.recountLocked()
}

// DropUploaded punches a range whose part the service acknowledged out of a staging file; it can no longer be written or read (ErrPunched).
// What is dropped is recorded durably first; it blocks on that. The range is cut at the end of the file. Errors: ErrWrongKind,
// ErrNoSpace (no room for the record; nothing was dropped).
func (f *File) DropUploaded(off, n int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return fmt.Errorf("drop %d+%d: %w", off, n, unix.EINVAL)
	}
	o := f.o
	o.meta.Lock()
	defer o.meta.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(o.fdNow(), &st); err != nil {
		return err
	}
	n = min(n, st.Size-off)
	if n <= 0 {
		return nil
	}
	var old, set ranges
	o.io.Lock()
	if o.n.kind != Staging {
		o.io.Unlock()
		return ErrWrongKind
	}
	if p := o.n.punched.Load(); p != nil {
		old = *p
	}
	if old.covers(off, n) {
		o.io.Unlock()
		return nil
	}
	set = old.add(Range{off, n})
	o.n.punched.Store(&set) // from here on nobody reads or writes there
	o.gen.Add(1)
	o.io.Unlock()

	if err := o.recordPunched(st.Size, set); err != nil {
		o.setPunched(old)
		return err
	}
	err := o.s.step("punch")
	if err == nil {
		err = fallocate(o.fdNow(), punchMode, off, n)
	}
	if err != nil {
		err = fmt.Errorf("local file %x: punch: %w", o.n.id, err)
		if e := o.recordPunched(st.Size, old); e != nil {
			return fmt.Errorf("%w; and the record of it stays: %w", err, e)
		}
		o.setPunched(old)
		return err
	}
	o.s.reserve.fill()
	return o.settle()
}
