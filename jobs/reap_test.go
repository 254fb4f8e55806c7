package jobs

import (
	"fmt"
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
