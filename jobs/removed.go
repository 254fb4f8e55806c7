package jobs

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

const (
	// forgetGrace is how long a verb waits for handles and references of removed files that are just being given up: the kernel
	// tells of both only after close(2) and unlink(2) have returned. Longer ones are somebody's who uses the file.
	forgetGrace = 250 * time.Millisecond
	forgetLook  = 5 * time.Millisecond
)

// reclaimNow reclaims without a pause what has been removed so far, which has its archives in the trash then.
func (e *Engine) reclaimNow(ctx context.Context) error {
	var before []uint64
	if err := e.catalog.View(func(tx *catalog.Tx) (err error) {
		before, err = tx.Orphans()
		return err
	}); err != nil || len(before) == 0 {
		return err
	}
	var waited time.Duration
	for done := 0; ; {
		n, err := e.bin.reclaim(ctx)
		if err != nil {
			return err
		}
		// Others may go on removing files, which are taken in any order.
		if done += n; n > 0 && done < len(before) {
			continue
		}
		done = 0
		left := len(before)
		if err := e.catalog.View(func(tx *catalog.Tx) error {
			now, err := tx.Orphans() // in order
			before = slices.DeleteFunc(before, func(ino uint64) bool {
				_, there := slices.BinarySearch(now, ino)
				return !there
			})
			return err
		}); err != nil {
			return err
		}
		switch {
		case len(before) == 0:
			return nil
		case len(before) < left:
			continue
		case waited >= forgetGrace:
			return nil
		}
		if err := sleep(ctx, forgetLook); err != nil {
			return err
		}
		waited += forgetLook
	}
}

// reclaimForTrash is reclaimNow for verbs on the trash, which go on with what there is when it fails: they may give room back.
func (e *Engine) reclaimForTrash(ctx context.Context) error {
	if e.opts.ReadOnly {
		return nil
	}
	err := e.reclaimNow(ctx)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrClosing) {
		return ctx.Err()
	}
	e.log.Error("reclaiming deleted files", "err", err)
	return nil
}
