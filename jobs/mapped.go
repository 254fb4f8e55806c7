package jobs

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// mappings are handles that programs have closed and may still have mapped for stores. What the kernel serves from the local file
// itself it also maps from there, and such a mapping holds the local file, not the handle: the release comes with close(2),
// and stores come until munmap(2). So these handles count as open until nobody has the local file open but the store.
type mappings struct {
	mu   sync.Mutex
	list []*Handle
	wake chan struct{}
}

// Pauses between two looks at them: the kernel lets go of a file a moment after its release.
const (
	mappedFirst = 10 * time.Millisecond
	mappedMost  = time.Second
)

// keepMapped takes over a handle that is being released if it may be mapped.
func (e *Engine) keepMapped(h *Handle) bool {
	f := h.impl.f
	if fl := h.impl.flags; !h.impl.local || !fl.Read || !fl.Write {
		return false
	}
	f.mu.Lock()
	kept := f.local != nil && f.local.OpenElsewhere()
	if kept {
		f.mapped++
		f.noticeLocked()
		if err := f.flushLocked(); err != nil {
			e.log.Warn("recording size and times", "path", e.path(f.ino), "err", err) // the end of the mapping repeats it
		}
		f.settleLocked()
	}
	f.mu.Unlock()
	if !kept {
		return false
	}
	m := &e.mappings
	m.mu.Lock()
	m.list = append(m.list, h)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return true
}

// writingLocked reports whether somebody has the file open for writing; who may only have it mapped is not counted.
func (f *file) writingLocked() bool { return f.writers > f.mapped }

// settleLocked starts the settle clock of a staged file that nobody has open for writing.
func (f *file) settleLocked() {
	if !f.writingLocked() && f.stagingLocked() && f.ver.State == catalog.Staged && !f.orphan {
		f.e.settle.start(f.ino, time.Now().Add(f.e.opts.Settle))
	}
}

// runMapped releases handles whose mappings have gone.
func (e *Engine) runMapped(ctx context.Context) error {
	var pause time.Duration
	for {
		var look <-chan time.Time
		if e.releaseUnmapped() > 0 {
			look = time.After(pause)
		}
		select {
		case <-ctx.Done():
			e.releaseUnmapped()
			return nil
		case <-e.mappings.wake:
			pause = mappedFirst
		case <-look:
			pause = min(2*pause, mappedMost)
		}
	}
}

// releaseUnmapped returns how many are left.
func (e *Engine) releaseUnmapped() int {
	m := &e.mappings
	var unmapped []*Handle
	m.mu.Lock()
	m.list = slices.DeleteFunc(m.list, func(h *Handle) bool {
		f := h.impl.f
		f.mu.Lock()
		held := f.local != nil && f.local.OpenElsewhere()
		if !held {
			f.mapped--
		}
		f.mu.Unlock()
		if held {
			return false
		}
		unmapped = append(unmapped, h)
		return true
	})
	left := len(m.list)
	m.mu.Unlock()
	for _, h := range unmapped {
		ino := h.impl.f.ino
		h.release()
		e.opts.Observer.ContentChanged(ino) // stores after the close have moved bytes and times
	}
	return left
}
