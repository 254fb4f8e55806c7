package jobs

import (
	"context"
	"time"

	"github.com/casfs/casfs/cas"
)

// inventory is one inventory of a vault under way; guarded by recaller.mu.
type inventory struct {
	polled bool
	asked  time.Time
}

func (inv *inventory) seeLocked(j cas.Job)          {}
func (inv *inventory) listedLocked(began time.Time) {}

func (r *recaller) inventoryOfLocked(vault string) *inventory { return nil }

func (r *recaller) inventoryLoop(ctx context.Context) {}

// Inventory starts (or adopts) an inventory of a vault and with wait blocks until it is merged.
func (e *Engine) Inventory(ctx context.Context, vault string, wait bool, progress func(Progress)) error {
	panic("unimplemented")
}
