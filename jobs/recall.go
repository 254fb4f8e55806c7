package jobs

import (
	"context"
)

// recaller owns everything that brings bytes back: retrievals, polling,
// fetching, the guard, waves, eviction.
type recaller struct {
	e *Engine
}

func newRecaller(e *Engine) *recaller { return &recaller{e: e} }

// load picks up unfinished retrievals from the catalog; called by Open.
func (r *recaller) load() error { panic("unimplemented") }

// run does the background work until ctx ends and waits for its goroutines.
func (r *recaller) run(ctx context.Context) error { panic("unimplemented") }

// admit is the open-time policy for a file whose bytes are not all local:
// nil when reads may recall, else ErrDenied, ErrGuard, or ErrAgain after
// queueing (mode queue, nonBlock). Called without f.mu.
func (r *recaller) admit(c Caller, f *file, nonBlock bool) error { panic("unimplemented") }

// ensure blocks until [off, off+n) of f's current version is local and verified (joining
// what is under way), or ctx ends. It asks for what reading strategy says: whole archive
// for contiguous reads, a window for isolated ones. Called without f.mu. The caller
// must check f.local.Verified again under f.mu, since eviction may come between.
func (r *recaller) ensure(ctx context.Context, c Caller, f *file, off, n int64) error {
	panic("unimplemented")
}

// queue starts a retrieval of the whole file without waiting. explicit ones are not limited by the guard. tier "" is the mount's.
func (r *recaller) queue(c Caller, f *file, tier string, explicit bool) error { panic("unimplemented") }

// evict drops the local copy of an Archived version: refuses when handles rely on
// it, when it is pinned by the user (unless force), or staged. keepStubs keeps head and tail (automatic eviction).
func (r *recaller) evict(f *file, force, keepStubs bool) error { panic("unimplemented") }

// evictLocal is content.Options.Evict: id is a local file number.
func (r *recaller) evictLocal(id uint64) error { panic("unimplemented") }

// stopAdmitting cancels all waits with ErrClosing.
func (r *recaller) stopAdmitting() { panic("unimplemented") }

// forget tells that a version is gone or changed: its waiters are woken to look again, its wanted retrievals dropped.
func (r *recaller) forget(ino, v uint64) { panic("unimplemented") }

// state describes the retrieval of a version, if any, for stat and xattrs.
func (r *recaller) state(ino, v uint64) (RetrievalStatus, bool) { panic("unimplemented") }

// fill adds retrievals, waiters and guard to s.
func (r *recaller) fill(s *Status) { panic("unimplemented") }
