package content

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is an open local file. Methods are safe for concurrent use like pread/pwrite are.
type File struct {
	o      *open
	refs   atomic.Int64 // 1 until Close, plus one for every running call
	closed atomic.Bool
}

func newFile(o *open) *File {
	f := &File{o: o}
	f.refs.Store(1)
	return f
}

// enter keeps the descriptor while a call runs, should Close come meanwhile.
func (f *File) enter() error {
	for {
		r := f.refs.Load()
		if r == 0 || f.closed.Load() {
			return os.ErrClosed
		}
		if f.refs.CompareAndSwap(r, r+1) {
			return nil
		}
	}
}

func (f *File) leave() {
	if f.refs.Add(-1) == 0 {
		f.o.s.release(f.o)
	}
}

// Close releases the descriptor; with the last File of a number its footprint is
// counted anew. Calls that still run finish first, in the background.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	f.leave()
	return nil
}

// ID returns the number of the file.
func (f *File) ID() uint64 { return f.o.n.id }

// Kind returns what the file is now (Promote and Demote change it while it is open).
func (f *File) Kind() Kind {
	f.o.s.mu.Lock()
	defer f.o.s.mu.Unlock()
	return f.o.n.kind
}

// Fd returns the descriptor, valid until Close (FUSE passthrough). What is written through it is
// counted at the next Sync or last Close. It is shared by all Files of the number:
// never close it, never move its offset.
func (f *File) Fd() int { return f.o.fdNow() }

func (o *open) fdNow() int { return int(o.fd.Load()) }

// ReadAt reads like io.ReaderAt; holes read as zeros. It does not check verification: callers ask Verified first
// (or use ReadVerified). Errors: io.EOF, ErrPunched.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer f.leave()
	o := f.o
	o.io.RLock()
	defer o.io.RUnlock()
	return o.readLocked(p, off)
}

func (o *open) readLocked(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, unix.EINVAL)
	}
	stop := error(nil)
	if set := o.n.punched.Load(); set != nil {
		if at := set.next(off, int64(len(p))); at >= 0 {
			p, stop = p[:at-off], ErrPunched
		}
	}
	n, err := pread(o.fdNow(), p, off)
	if err == nil {
		err = stop
	}
	return n, err
}

func pread(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

func pwrite(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrShortWrite
		}
		done += n
	}
	return done, nil
}

// SeekData is lseek(2) SEEK_DATA; io.EOF for ENXIO. Dropped parts are holes to it: ask Verified.
func (f *File) SeekData(off int64) (int64, error) { return f.seek(off, unix.SEEK_DATA) }

// SeekHole is lseek(2) SEEK_HOLE; io.EOF for ENXIO.
func (f *File) SeekHole(off int64) (int64, error) { return f.seek(off, unix.SEEK_HOLE) }

func (f *File) seek(off int64, whence int) (int64, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer f.leave()
	// The shared offset moves, but nothing uses it.
	at, err := unix.Seek(f.o.fdNow(), off, whence)
	if err == unix.ENXIO {
		return 0, io.EOF
	}
	return at, err
}

// Sync is fsync plus, for staging, the directory entry: after it the bytes, size and mtime survive power loss.
// It is fsync because fdatasync leaves out mtime. An error stays with the file: the kernel reports bytes it could not write only
// once, so every later Sync and Promote reports it again; Truncate(0) or Remove end that.
func (f *File) Sync() error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	o := f.o
	if err := o.sync("sync", unix.Fsync); err != nil {
		return err
	}
	if !o.n.named.Load() {
		if err := o.syncName(); err != nil {
			return err
		}
	}
	return o.account()
}

// syncName makes the name of the file survive power loss.
func (o *open) syncName() error {
	o.path.Lock()
	defer o.path.Unlock()
	o.s.mu.Lock()
	place, gone := o.n.place, o.n.gone
	o.s.mu.Unlock()
	if !gone {
		if err := o.s.syncNames(place, o.n.id); err != nil {
			return err
		}
	}
	o.n.named.Store(true)
	return nil
}

// sync runs fsync or fdatasync, remembering failure.
func (o *open) sync(step string, fn func(fd int) error) error {
	if p := o.n.failed.Load(); p != nil {
		return *p
	}
	if err := o.s.step(step); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return fn(o.fdNow()) })
	if err != nil {
		err = fmt.Errorf("local file %x: fsync: %w", o.n.id, noSpace(err))
		o.n.failed.Store(&err)
	}
	return err
}

// OpenElsewhere reports whether somebody has the local file open apart from this store: the kernel does for each handle that
// it serves from the file itself, and as long as such a handle is mapped.
func (f *File) OpenElsewhere() bool {
	if f.enter() != nil {
		return false
	}
	defer f.leave()
	fd := uintptr(f.o.fdNow())
	// A write lease is given only to who is alone with the file (fcntl(2)). Who opens it now waits until it is given back.
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return err == unix.EAGAIN
	}
	unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	return false
}

// Size, Allocated and Mtime are fstat's.
func (f *File) Size() (int64, error) {
	st, err := f.stat()
	return st.Size, err
}

// Allocated returns the bytes the file occupies on disk.
func (f *File) Allocated() (int64, error) {
	st, err := f.stat()
	return st.Blocks * 512, err
}

// Mtime returns the time of the last change of the bytes, or what SetMtime set.
func (f *File) Mtime() (time.Time, error) {
	st, err := f.stat()
	return time.Unix(st.Mtim.Unix()), err
}

func (f *File) stat() (st unix.Stat_t, err error) {
	if err := f.enter(); err != nil {
		return st, err
	}
	defer f.leave()
	err = unix.Fstat(f.o.fdNow(), &st)
	return st, err
}

// SetMtime is futimens on the local file, so that a staged file's own mtime is right after a crash.
func (f *File) SetMtime(t time.Time) error { return f.setMtime(unix.NsecToTimespec(t.UnixNano())) }

// Touch sets the mtime to the present as the kernel's clock of files has it, which is never ahead of the next write's.
func (f *File) Touch() error { return f.setMtime(unix.Timespec{Nsec: unix.UTIME_NOW}) }

func (f *File) setMtime(t unix.Timespec) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.leave()
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, t}
	// utimensat with a null path is futimens; x/sys has no name for it.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.o.fdNow()), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("local file %x: utimensat: %w", f.o.n.id, errno)
	}
	f.o.recount.Store(true)
	return nil
}
