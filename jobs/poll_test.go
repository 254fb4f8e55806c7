package jobs

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// The vault's loop may be made to think again about when it looks next at any moment (an inventory does so that is
// being made while a tree is recalled): it may not put off what it has not asked for yet until somebody wakes it.
func TestThinkingAgainForgetsNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, local.Delays{Standard: 3 * time.Second}, nil)
		const files = 2 * asksPerPass
		r.coldFiles(files, 100)
		ask := r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Hold})
		type reply struct {
			res RecallResult
			err error
		}
		done := make(chan reply, 1)
		go func() {
			res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Wait: true}, nil)
			done <- reply{res, err}
		}()
		synctest.Wait()
		rc := r.e.recall
		rc.mu.Lock()
		v, wanted := rc.vaults["v"], len(rc.byVault["v"])
		rc.mu.Unlock()
		if wanted != files {
			t.Fatalf("%d are wanted", wanted)
		}
		for range 20 { // the order of a map decides
			if next := v.next(); next.IsZero() || next.After(time.Now()) {
				t.Fatalf("files wait to be asked for; looks next at %v", next)
			}
		}
		ask()
		if d := <-done; d.err != nil || d.res.Local != files {
			t.Errorf("%+v, %v", d.res, d.err)
		}
	})
}
