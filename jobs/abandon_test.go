package jobs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// The clean-up of abandoned uploads may come while the transaction that abandons one is not committed yet, or fails.
func TestCleaningUpBesideWhoAbandons(t *testing.T) {
	for _, fails := range []bool{false, true} {
		inBubble(t, func(t *testing.T) { testCleaningUp(t, fails) })
	}
}

func testCleaningUp(t *testing.T, fails bool) {
	r := newRig(t, func(o *Options) { o.virtualTime = true })
	defer r.close()
	r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Status, Code: "AccessDeniedException", HTTPStatus: 403})
	ino := r.write("f", pattern(3<<20, 1))
	eventually(t, func() bool { s, _, ok := r.e.up.active(ino); return ok && s == taskWaiting })
	intents := r.e.up.intents(ino)
	if len(intents) != 1 {
		t.Fatalf("intents %v", intents)
	}
	cleaned := make(chan struct{})
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		u, err := tx.Upload(intents[0])
		if err != nil {
			return err
		}
		if err := r.e.abandonTx(tx, u); err != nil {
			return err
		}
		go func() { r.e.cleanAbandoned(context.Background()); close(cleaned) }()
		synctest.Wait() // it is done, or waits for this
		if fails {
			return catalog.ErrInvalid
		}
		return nil
	})
	if (err != nil) != fails {
		t.Fatal(err)
	}
	<-cleaned
	err = r.e.catalog.View(func(tx *catalog.Tx) error { _, err := tx.Upload(intents[0]); return err })
	switch n := r.srv.Count(cas.OpAbortUpload); {
	case fails && (err != nil || !r.e.up.hasIntents(ino) || n != 0):
		t.Errorf("what was not given up after all: record %v, known %v, %d times aborted", err, r.e.up.hasIntents(ino), n)
	case !fails && (!errors.Is(err, catalog.ErrNotExist) || n != 1):
		t.Errorf("what was given up: record %v, %d times aborted", err, n)
	}
}
