package jobs

import (
	"context"
)

// EvictResult counts what Evict did.
type EvictResult struct {
	Files, Bytes int64
	Skipped      []Skipped
}

// Skipped is a path a verb left alone and why, in plain words.
type Skipped struct{ Path, Reason string }

// Evict drops local copies of archived files; recursive for directories.
func (e *Engine) Evict(ctx context.Context, inos []uint64, recursive bool) (EvictResult, error) {
	panic("unimplemented")
}

// RecallRequest is `casfs recall`.
type RecallRequest struct {
	Inos      []uint64
	Recursive bool
	Tier      string // "" the mount's
	Off, Len  int64  // range of each file; Len 0: whole
	Wait      bool
	Cancel    bool // drop wanted retrievals not yet asked for
}

// RecallResult counts files by outcome.
type RecallResult struct {
	Local, Pending, Failed int64
	Bytes                  int64 // asked for
	Failures               []Skipped
}

// Recall queues retrievals in waves; with Wait it blocks until all are local or failed. Ending ctx leaves the recall going.
func (e *Engine) Recall(ctx context.Context, r RecallRequest, progress func(Progress)) (RecallResult, error) {
	panic("unimplemented")
}

// Allow lifts the guard: files and bytes are added to today's allowance; zero: as much as the limits again.
func (e *Engine) Allow(files int, bytes int64) error { panic("unimplemented") }

// Inventory starts (or adopts) an inventory of a vault and with wait blocks until it is merged.
func (e *Engine) Inventory(ctx context.Context, vault string, wait bool, progress func(Progress)) error {
	panic("unimplemented")
}
