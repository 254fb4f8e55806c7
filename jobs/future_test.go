package jobs

import (
	"fmt"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// A clock that was ahead when a file was written, and was set right since, does not keep the file from being uploaded.
func TestStagedInTheFutureIsUploaded(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ino := r.write("f", []byte("from the year 2099"))
	r.close()
	r.openWith(func(*Engine) bool { return false })
	v := r.version(ino)
	v.StagedAt = time.Now().Add(70 * 365 * 24 * time.Hour).UnixNano()
	r.putVersion(v)
	r.close()
	r.o.Settle = -1
	r.open()
	r.uploaded(ino)
}

func (r *rig) putVersion(v catalog.Version) {
	r.t.Helper()
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error { return tx.PutVersion(v) })
	r.must(err)
}

// Nor does one that was ahead when an inventory began put the next one off until then.
func TestInventoryOfTheFuture(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.stop()
		r.inventories = true
		r.start()
		busy := func(hours int) int {
			before := r.srv.Count(cas.OpInitiateJob)
			for range hours { // the service takes stock of what changes
				r.write(fmt.Sprint(time.Now()), []byte("busy"))
				time.Sleep(time.Hour)
			}
			return r.srv.Count(cas.OpInitiateJob) - before
		}
		busy(10)
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			rec, err := loadInventory(tx, r.vault)
			if err != nil {
				return err
			}
			if rec.Active {
				t.Error("it has not ended")
			}
			rec.Started = time.Now().Add(1000 * time.Hour).UnixNano()
			return putInventory(tx, r.vault, rec)
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := busy(24); n < 1 || n > 2 {
			t.Errorf("%d inventories in a day", n)
		}
		if n := busy(72); n < 2 || n > 4 {
			t.Errorf("%d inventories in three days", n)
		}
	})
}
