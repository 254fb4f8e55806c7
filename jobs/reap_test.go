package jobs

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// Deleted files are reclaimed when deleting pauses, when room is wanted, and after a while in any case.
func TestReclaimWaitsForAPause(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		const n = 200
		for i := range n {
			r.write(fmt.Sprint("f", i), []byte("x"))
		}
		r.cold()
		next := 0
		unlink := func() {
			t.Helper()
			if err := r.e.Unlink(t.Context(), r.vault, fmt.Sprint("f", next)); err != nil {
				t.Fatal(err)
			}
			next++
		}
		waiting := func() (n int) {
			t.Helper()
			synctest.Wait()
			if err := r.e.catalog.View(func(tx *catalog.Tx) error {
				list, err := tx.Orphans()
				n = len(list)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for range 10 {
			unlink()
			time.Sleep(reclaimPause / 2)
		}
		if n := waiting(); n != 10 {
			t.Errorf("%d files wait while others are being deleted, want 10", n)
		}
		time.Sleep(reclaimPause)
		if n := waiting(); n != 0 {
			t.Errorf("%d files wait after a pause", n)
		}

		unlink()
		unlink()
		if n := waiting(); n != 2 {
			t.Errorf("%d files wait, want 2", n)
		}
		r.e.pressure()
		if n := waiting(); n != 0 {
			t.Errorf("%d files wait although room is wanted", n)
		}

		most := 0
		for began := time.Now(); time.Since(began) < 2*reclaimDelay; {
			unlink()
			time.Sleep(reclaimPause / 2)
			most = max(most, waiting())
		}
		if limit := int(reclaimDelay/(reclaimPause/2)) + 2; most < 10 || most > limit {
			t.Errorf("up to %d files waited for an end of the deleting, want at most %d", most, limit)
		}
		time.Sleep(2 * reclaimPause)
		if n := waiting(); n != 0 {
			t.Errorf("%d files wait after everything", n)
		}
		if n := r.archives()[catalog.Trash]; n != next {
			t.Errorf("%d archives are in the trash, want %d", n, next)
		}
	})
}

// TestTrashShowsWhatWasRemoved: at once, and also what the kernel has yet to forget and a program has just closed; a file that
// somebody goes on reading delays nothing for long. What is purged is gone, too.
func TestTrashShowsWhatWasRemoved(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		const n = 600 // several batches
		for i := range n {
			r.write(fmt.Sprint("f", i), []byte("x"))
		}
		for _, name := range []string{"held", "closed", "open"} {
			r.write(name, []byte("x"))
		}
		r.cold()
		remove := func(name string) {
			t.Helper()
			if err := r.e.Unlink(t.Context(), r.vault, name); err != nil {
				t.Fatal(err)
			}
		}
		shown := func() int {
			t.Helper()
			list, err := r.e.Trash(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		for i := range n {
			remove(fmt.Sprint("f", i))
		}
		began := time.Now()
		if got := shown(); got != n {
			t.Errorf("the trash shows %d archives after %d files were removed", got, n)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited for %v", took)
		}

		at := func(name string) uint64 {
			t.Helper()
			i, err := r.e.Lookup(t.Context(), r.vault, name)
			if err != nil {
				t.Fatal(err)
			}
			return i.Ino
		}
		opened := func(name string) *Handle {
			t.Helper()
			h, err := r.e.Open(t.Context(), Caller{}, at(name), OpenFlags{Read: true})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		release := r.e.Hold(at("held"))
		closing, open := opened("closed"), opened("open")
		for _, name := range []string{"held", "closed", "open"} {
			remove(name)
		}
		time.AfterFunc(forgetGrace/4, release)
		time.AfterFunc(forgetGrace/2, func() { closing.Release() })
		began = time.Now()
		if got := shown(); got != n+2 {
			t.Errorf("the trash shows %d archives, want %d", got, n+2)
		}
		if took := time.Since(began); took > 2*forgetGrace {
			t.Errorf("it waited for %v", took)
		}
		open.Release()
		if got, err := r.e.Purge(t.Context(), nil); err != nil || got != n+3 {
			t.Errorf("purged %d, %v, want %d", got, err, n+3)
		}
		if got := shown(); got != 0 {
			t.Errorf("the trash shows %d archives after the purge", got)
		}
	})
}

// TestTrashWhileFilesAreRemoved: what is removed after it began keeps nobody who looks at the trash.
func TestTrashWhileFilesAreRemoved(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		const n = 200
		for i := range n {
			r.write(fmt.Sprint("f", i), []byte("x"))
		}
		r.cold()
		var removed atomic.Int64
		remove := func() {
			i := removed.Add(1) - 1
			if i >= n {
				return
			}
			if err := r.e.Unlink(t.Context(), r.vault, fmt.Sprint("f", i)); err != nil {
				t.Error(err)
			}
		}
		h, err := r.e.Open(t.Context(), Caller{}, r.tree()["f0"].Ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		remove()
		remove()
		r.e.atPoints(func(point string) {
			if point == "reclaim.durable" { // there is always another
				remove()
			}
		})
		list, err := r.e.Trash(t.Context())
		if err != nil || len(list) == 0 {
			t.Errorf("%v, %v", list, err)
		}
		if got := removed.Load(); got > 10+int64(forgetGrace/forgetLook) { // as long as it waits for the one that is open
			t.Errorf("it waited for %d files that were removed meanwhile", got)
		}
	})
}
