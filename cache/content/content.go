// Package content keeps the local bytes of files: staging files (bytes that
// are nowhere else: precious) and content files (verified copies of archived
// bytes: disposable). Both are plain files named by a number the catalog
// gave out; which of the two a number is, the catalog decides: Promote and
// Demote move a file to where the catalog says it belongs, and are repeated at
// start for whatever a crash left in between. Content files carry a
// record of which ranges are verified.
//
// # Layout
//
// NN is the low byte of the number, ID the number, both in hex.
//
//	StateDir/staging/NN/ID           a staging file
//	StateDir/staging/NN/ID.punched   which parts of it are in the vault and were dropped
//	CacheDir/content/NN/ID           a complete content file: every byte of it is verified
//	CacheDir/content/NN/ID.part      an incomplete one
//	CacheDir/content/NN/ID.map       which ranges of ID.part are verified
//	StateDir/content/NN/…            the same, for files promoted while CacheDir is another file system
//	StateDir/lost+found/…            staging files without a record (Quarantine)
//	*.tmp                            unfinished; removed by Open
//
// # What a crash or power loss can leave
//
// The name says whether a content file is complete, and it gets that name only
// when its data is on stable storage, so a complete file needs no record. A
// part is worth what its map says; the map is replaced only after the
// data it speaks of is on stable storage, and reduced, durably, before anything is
// punched. A part without a readable map is dropped. In staging the order is
// the reverse: what was dropped is recorded durably before it is
// punched, so a hole that is not recorded is a hole the user made.
//
// # Room
//
// Bytes are charged, by allocated 4 KiB blocks, before they are written, to the
// account that admitted them: staging or cache. A promoted file takes its charge
// to the cache; should that exceed CacheLimit, the excess counts against the
// staging limit until evicted, so that the sum of both limits always
// holds. A demoted file leaves its charge with the cache: only what is written to
// it afterwards needs staging room.
package content

import (
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

// String returns "staging" or "content".
func (k Kind) String() string {
	switch k {
	case Staging:
		return "staging"
	case Content:
		return "content"
	}
	return "unknown"
}

// Options configure a Store.
type Options struct {
	StateDir     string        // staging/ below it
	CacheDir     string        // content/ below it; "": StateDir. May be another file system
	StagingLimit int64         // bytes; 0: 25 % of the file system
	CacheLimit   int64         // bytes; 0: 25 % of the file system
	MinFree      int64         // keep at least this much free; 0: 1 GiB or 5 %, whichever is less; negative: no floor
	StateFree    int64         // keep at least this much free where StateDir is, for what else lives there; less on a small disk
	StagingWait  time.Duration // how long a write waits for room; 0: 10 min; negative: not at all
	// Evict must drop the local copy of a content file (recording it first) and
	// call Remove, or return an error when it is pinned, open or being fetched. Called without locks held.
	// It may Drop ranges and keep others (stubs) instead. It must not wait for room: one goroutine evicts for all who do.
	Evict  func(id uint64) error
	Logger *slog.Logger
}

// Errors.
var (
	ErrNoSpace     = errors.New("no room in the local store") // limit or free-space floor, after waiting
	ErrNotExist    = errors.New("no local file of that number")
	ErrPunched     = errors.New("that part is in the vault already and was dropped locally")
	ErrWrongKind   = errors.New("local file is not of the kind this needs") // writing to content, verifying staging
	ErrNotVerified = errors.New("range is not verified")                    // ReadVerified, Demote of an incomplete file
)

// Range is a half-open byte range.
type Range struct{ Off, Len int64 }

// End returns the offset after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Usage is the current footprint in bytes (allocated, not apparent).
type Usage struct {
	StagingBytes, StagingLimit int64 // charged to staging
	CacheBytes, CacheLimit     int64 // charged to the cache, reservations included
	Reserved                   int64 // part of CacheBytes: promised by ReserveContent, not written yet
	Free, MinFree              int64 // of the file system that holds staging
	CacheFree, CacheMinFree    int64 // of the file system that new content goes to; perhaps the same
	CacheTotal                 int64 // its size
	OneDisk                    bool  // both are the same
	Throttled                  int   // writers waiting for room
	Waiting                    int   // reservations waiting for room
}

// Entry is a local file as found on disk.
type Entry struct {
	ID        uint64
	Kind      Kind
	Complete  bool // nothing dropped (staging) and everything verified (content)
	Size      int64
	Allocated int64
	Mtime     time.Time
}
