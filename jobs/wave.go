package jobs

import (
	"context"

	"github.com/casfs/casfs/cache/catalog"
)

// waves is the queue of explicit recalls; guarded by recaller.mu.
type waves struct{}

func (w *waves) load(tx *catalog.Tx) error                { return nil }
func (w *waves) changed()                                 {}
func (w *waves) failedLocked(ino uint64, cause error)     {}
func (w *waves) fetchedLocked(rt *retrieval, bytes int64) {}
func (w *waves) doneLocked(rt *retrieval)                 {}

func (r *recaller) waveLoop(ctx context.Context) {}

// Recall queues retrievals in waves; with Wait it blocks until all are local or failed. Ending ctx leaves the recall going.
func (e *Engine) Recall(ctx context.Context, r RecallRequest, progress func(Progress)) (RecallResult, error) {
	panic("unimplemented")
}
