// Package content keeps the local bytes of files: staging files (bytes that
// are nowhere else: precious) and content files (verified copies of archived
// bytes: disposable). Both are plain files named by a number the catalog
// gave out; which of the two a number is, the catalog decides: Promote and
// Demote move a file to where the catalog says it belongs, and are repeated at
// start for whatever a crash left in between. Content files carry a
// record of which ranges are verified.
package content

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Kind says what a local file is.
type Kind uint8

// The kinds of local files.
const (
	Staging Kind = 1
	Content Kind = 2
)

// Options configure a Store.
type Options struct {
	StateDir     string        // staging/ below it
	CacheDir     string        // content/ below it; "": StateDir. May be another file system
	StagingLimit int64         // bytes; 0: 25 % of the file system
	CacheLimit   int64         // bytes; 0: 25 % of the file system
	MinFree      int64         // keep at least this much free; 0: 1 GiB or 5 %, whichever is less
	StagingWait  time.Duration // how long a write waits for room; 0: 10 min
	// Evict must drop the local copy of a content file (recording it first) and
	// call Remove, or return an error when it is pinned, open or being fetched. Called without locks held.
	Evict  func(id uint64) error
	Logger *slog.Logger
}

// Errors.
var (
	ErrNoSpace  = errors.New("no room in the local store") // limit or free-space floor, after waiting
	ErrNotExist = errors.New("no local file of that number")
	ErrPunched  = errors.New("that part is in the vault already and was dropped locally")
)

// Range is a half-open byte range.
type Range struct{ Off, Len int64 }

// Usage is the current footprint in bytes (allocated, not apparent).
type Usage struct {
	StagingBytes, StagingLimit int64
	CacheBytes, CacheLimit     int64
	Free, MinFree              int64
	Throttled                  int // writers waiting for room
}

// Store is open for one process. Safe for concurrent use.
type Store struct{ impl storeImpl }

type storeImpl struct{}

// Open creates the directories, lists what is there (only names and stat, no data is read).
// Content whose range records are unreadable is dropped; staging is never dropped.
func Open(o Options) (*Store, error) { panic("unimplemented") }

// Close closes files the store holds itself.
func (s *Store) Close() error { panic("unimplemented") }

// Entry is a local file as found on disk.
type Entry struct {
	ID        uint64
	Kind      Kind
	Size      int64
	Allocated int64
	Mtime     time.Time
}

// List returns all local files.
func (s *Store) List() []Entry { panic("unimplemented") }

// Stat returns one entry. Errors: ErrNotExist.
func (s *Store) Stat(id uint64) (Entry, error) { panic("unimplemented") }

// CreateStaging makes an empty staging file and opens it. Errors: ErrNoSpace.
func (s *Store) CreateStaging(id uint64) (*File, error) { panic("unimplemented") }

// CreateContent makes an empty content file of size bytes (all holes, nothing verified) and opens it.
func (s *Store) CreateContent(id uint64, size int64) (*File, error) { panic("unimplemented") }

// Open opens a local file of either kind. Errors: ErrNotExist.
func (s *Store) Open(id uint64) (*File, error) { panic("unimplemented") }

// Promote turns a synced staging file into content, all of it verified; the
// catalog must say so durably already. No data is copied when staging and cache share a file system.
func (s *Store) Promote(id uint64) error { panic("unimplemented") }

// Demote turns a complete content file into staging, to be modified; the catalog must say so already.
func (s *Store) Demote(id uint64) error { panic("unimplemented") }

// Remove deletes a local file; open Files keep working until closed.
func (s *Store) Remove(id uint64) error { panic("unimplemented") }

// Quarantine moves a staging file the catalog does not know to lost+found/ below StateDir and returns its path; never deletes.
func (s *Store) Quarantine(id uint64) (string, error) { panic("unimplemented") }

// Touch marks a content file as just used (least recently used goes first).
func (s *Store) Touch(id uint64) { panic("unimplemented") }

// ReserveContent makes room for n bytes of content before they are written, evicting least recently used files.
// It blocks while others free room, until ctx ends. release gives back what was not written. Errors: ErrNoSpace.
func (s *Store) ReserveContent(ctx context.Context, n int64) (release func(), err error) {
	panic("unimplemented")
}

// Usage returns the footprint.
func (s *Store) Usage() Usage { panic("unimplemented") }

// Shrink evicts until n more bytes of cache are free of use (0: down to the limit); best effort.
func (s *Store) Shrink(n int64) { panic("unimplemented") }

// OnPressure registers fn to be called (own goroutine, rate-limited) when writers wait for staging room or use passes 80 % of the limit.
func (s *Store) OnPressure(fn func()) { panic("unimplemented") }

// File is an open local file. Methods are safe for concurrent use like pread/pwrite are.
type File struct{ impl fileImpl }

type fileImpl struct{}

func (f *File) ID() uint64 { panic("unimplemented") }

// Kind returns what the file is now (Promote and Demote change it while it is open).
func (f *File) Kind() Kind { panic("unimplemented") }

// Fd returns the descriptor, valid until Close (FUSE passthrough).
func (f *File) Fd() int { panic("unimplemented") }

// ReadAt reads like io.ReaderAt; holes read as zeros. It does not check verification: callers ask Verified first.
func (f *File) ReadAt(p []byte, off int64) (int, error) { panic("unimplemented") }

// WriteAt writes to a staging file. It waits (ctx) for room under the staging limit. Errors: ErrNoSpace, ErrPunched, ctx's.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) { panic("unimplemented") }

// Truncate sets the size of a staging file.
func (f *File) Truncate(size int64) error { panic("unimplemented") }

// Allocate is fallocate(2) on a staging file with mode bits as given (0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE…); other modes: errors.ErrUnsupported.
func (f *File) Allocate(ctx context.Context, mode uint32, off, n int64) error { panic("unimplemented") }

// DropUploaded punches a range whose part the service acknowledged out of a staging file; it can no longer be written or read (ErrPunched).
func (f *File) DropUploaded(off, n int64) error { panic("unimplemented") }

// SeekData and SeekHole are lseek(2) SEEK_DATA and SEEK_HOLE; io.EOF for ENXIO.
func (f *File) SeekData(off int64) (int64, error) { panic("unimplemented") }
func (f *File) SeekHole(off int64) (int64, error) { panic("unimplemented") }

// Sync is fdatasync plus, for staging, the directory entry: after it the bytes, size and mtime survive power loss.
func (f *File) Sync() error { panic("unimplemented") }

// Size, Allocated and Mtime are fstat's.
func (f *File) Size() (int64, error)      { panic("unimplemented") }
func (f *File) Allocated() (int64, error) { panic("unimplemented") }
func (f *File) Mtime() (time.Time, error) { panic("unimplemented") }

// SetMtime is futimens on the local file, so that a staged file's own mtime is right after a crash.
func (f *File) SetMtime(t time.Time) error { panic("unimplemented") }

// WriteVerified stores bytes that were checked against a tree hash into a
// content file and records the range after the data is on stable storage.
// The room must have been reserved. off and len(p) are multiples of 1 MiB unless at the end.
func (f *File) WriteVerified(p []byte, off int64) error { panic("unimplemented") }

// Verified reports whether all of [off, off+n) is verified local content (always true for staging, except punched parts).
func (f *File) Verified(off, n int64) bool { panic("unimplemented") }

// VerifiedRanges returns the merged verified ranges, in order.
func (f *File) VerifiedRanges() []Range { panic("unimplemented") }

// Drop punches a range out of a content file and forgets that it was verified (record first).
func (f *File) Drop(off, n int64) error { panic("unimplemented") }

// Close releases the descriptor.
func (f *File) Close() error { panic("unimplemented") }
