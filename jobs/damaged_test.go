package jobs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// twoArchives makes a cold file of two archives of half bytes each.
func twoArchives(t *testing.T, half int64) (r *recallRig, ino uint64, data []byte) {
	r = newRecallRig(t, realistic, func(o *Options) { // pieces of 1 MiB
		o.CacheSize, o.Window, o.PartSize, o.SegmentSize, o.SingleBelow = 16<<20, 1<<20, 1<<20, half, 1<<20
	})
	ino, data = r.coldFile("f", int(2*half))
	return r, ino, data
}

// wantDamaged wants the damage recorded, and told.
func (r *recallRig) wantDamaged(ino uint64, when string) {
	r.t.Helper()
	s, err := r.e.Stat(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	var v catalog.Version
	if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		v, err = tx.Version(ino, s.Version)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	if s.State != "damaged" || s.Error == "" || !v.Damaged || v.Error == "" {
		r.t.Errorf("%s: state %s, error %q, recorded: %v, %q", when, s.State, s.Error, v.Damaged, v.Error)
	}
}

func (r *recallRig) wantSound(ino uint64, state string) {
	r.t.Helper()
	s, err := r.e.Stat(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	if s.State != state || s.Error != "" {
		r.t.Errorf("state %s, error %q, want %s", s.State, s.Error, state)
	}
}

func (r *recallRig) recall(q RecallRequest) RecallResult {
	r.t.Helper()
	res, err := r.e.Recall(r.t.Context(), q, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

// TestRecallOfADamagedFile: what is recorded of a damage stays until other bytes have come and were verified, over a restart and another
// failure. Reads wait for the recall meanwhile, and nothing of what is local is dropped.
func TestRecallOfADamagedFile(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const half = 3 << 20
		r, ino, data := twoArchives(t, half)
		r.want(ino, data, 0, half)
		mend := r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000})
		if _, err := r.read(context.Background(), ino, half, 100); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		r.wantDamaged(ino, "found")
		time.Sleep(outputLife) // the next recall needs a job of its own
		r.recall(RecallRequest{Inos: []uint64{ino}})
		synctest.Wait()
		r.wantDamaged(ino, "asked for")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.read(ctx, ino, half, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a read beside the recall: %v", err)
		}
		if res, err := r.e.Evict(t.Context(), []uint64{ino}, false); err != nil || len(res.Skipped) != 1 {
			t.Errorf("evict: %+v, %v", res, err)
		}
		r.restart()
		r.wantDamaged(ino, "after a restart")
		time.Sleep(5 * time.Hour)
		r.wantDamaged(ino, "after the recall failed")
		if _, err := r.read(context.Background(), ino, half, 100); !errors.Is(err, ErrDamaged) {
			t.Errorf("a read after the recall failed: %v", err)
		}
		mend()
		if res := r.recall(RecallRequest{Inos: []uint64{ino}, Wait: true}); res.Local != 1 {
			t.Errorf("%+v", res)
		}
		synctest.Wait()
		r.wantSound(ino, "resident")
		r.want(ino, data, 0, 2*half)
		r.restart()
		r.wantSound(ino, "resident")
	})
}

// TestRecallBesideTheDamage: what comes of another part of a file, or before the rest has failed, takes nothing back. What comes
// of the damaged part does.
func TestRecallBesideTheDamage(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const half = 3 << 20
		r, ino, data := twoArchives(t, half)
		flip := func() { // the tree hash of the second archive
			t.Helper()
			if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
				v, err := tx.Version(ino, 1)
				if err != nil {
					return err
				}
				a, err := tx.Archive(v.Extents[1].Archive)
				if err != nil {
					return err
				}
				a.TreeHash[0] ^= 1
				return tx.PutArchive(a)
			}); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		if res := r.recall(RecallRequest{Inos: []uint64{ino}, Off: half, Len: half, Wait: true}); res.Failed != 1 {
			t.Fatalf("%+v", res)
		}
		r.wantDamaged(ino, "found")
		if res := r.recall(RecallRequest{Inos: []uint64{ino}, Len: 1 << 20, Wait: true}); res.Local != 1 {
			t.Errorf("a range of the good archive: %+v", res)
		}
		synctest.Wait()
		r.wantDamaged(ino, "with a range of the good archive")
		if res := r.recall(RecallRequest{Inos: []uint64{ino}, Wait: true}); res.Failed != 1 {
			t.Errorf("all of it: %+v", res)
		}
		synctest.Wait()
		r.wantDamaged(ino, "with all of the good archive")
		flip()
		if res := r.recall(RecallRequest{Inos: []uint64{ino}, Off: half, Len: 1 << 20, Wait: true}); res.Local != 1 {
			t.Errorf("a range of the bad archive: %+v", res)
		}
		synctest.Wait()
		r.wantSound(ino, "partial")
		r.want(ino, data, 0, 2*half)
		synctest.Wait()
		r.wantSound(ino, "resident")
	})
}

// TestDamagedAndTooLarge: a damaged file that does not fit in the cache comes as it is read, as others do.
func TestDamagedAndTooLarge(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		const size = 40 << 20
		ino, data := r.coldFile("f", size)
		r.e.recall.markDamaged(verKey{ino, 1}, "for a test")
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		if err := r.e.Setxattr(t.Context(), Caller{}, ino, "user.cas.recall", []byte("standard"), false, false); err != nil {
			t.Fatal(err)
		}
		r.wantDamaged(ino, "asked for")
		began := time.Now()
		d := r.reader(ino, data)
		d.to(size)
		d.h.Release()
		if took := time.Since(began); took > 5*time.Hour {
			t.Errorf("reading it took %v", took)
		}
		time.Sleep(2 * streamIdle)
		r.wantSound(ino, "partial")
	})
}
