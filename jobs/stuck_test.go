package jobs

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// A window of a large archive and all of it may be on their way together (a read, then `casfs recall`). What the
// one brings the other does not have to bring: it ends as well, and who waits for it is woken.
func TestOverlappingRetrievalsEndTogether(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.CacheSize, o.Window, o.WindowAbove, o.Fetches = 64<<20, 8<<20, 16<<20, 1
		})
		ino, data := r.coldFile("f", 40<<20)
		read := make(chan error, 1)
		began := time.Now()
		go func() {
			got, err := r.read(context.Background(), ino, 24<<20, 1000)
			if err == nil && !bytes.Equal(got, data[24<<20:24<<20+1000]) {
				err = fmt.Errorf("wrong bytes")
			}
			read <- err
		}()
		time.Sleep(time.Second)
		all := make(chan error, 1)
		go func() {
			res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
			if err == nil && res.Local != 1 {
				err = fmt.Errorf("%+v", res)
			}
			all <- err
		}()
		time.Sleep(time.Minute)
		r.jobs(2)
		r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, Code: "AccessDeniedException", Count: 1}) // once
		if err := <-read; err != nil {
			t.Errorf("the read, after %v: %v", time.Since(began), err)
		}
		select {
		case err := <-all:
			if err != nil {
				t.Errorf("the recall: %v", err)
			}
		case <-time.After(24 * time.Hour):
			t.Error("the recall has not ended")
		}
		t.Log("took", time.Since(began))
		r.noneLeft()
	})
}

// It ends also when its own job is hours away, or not known yet.
func TestOverlappedRetrievalNeedsNoJob(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"asked", "wanted"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				delays := realistic
				delays.Expedited = 3 * time.Second
				r := newRecallRig(t, delays, func(o *Options) {
					o.CacheSize, o.Window, o.WindowAbove = 64<<20, 8<<20, 16<<20
				})
				ino, data := r.coldFile("f", 40<<20)
				if name == "wanted" { // its job is looked for after ten seconds
					r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.LoseReply, Count: 1})
				}
				read := make(chan error, 1)
				go func() {
					got, err := r.read(context.Background(), ino, 24<<20, 1000)
					if err == nil && !bytes.Equal(got, data[24<<20:24<<20+1000]) {
						err = fmt.Errorf("wrong bytes")
					}
					read <- err
				}()
				time.Sleep(time.Second)
				began := time.Now()
				res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{ino}, Tier: "expedited", Wait: true}, nil)
				if err != nil || res.Local != 1 {
					t.Errorf("%+v, %v", res, err)
				}
				if err := <-read; err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > 8*time.Second {
					t.Errorf("it took %v", took)
				}
				r.noneLeft()
				if got := r.state(ino); got != "resident" {
					t.Errorf("state %s", got)
				}
				time.Sleep(10 * time.Hour)
				r.jobs(2)
				r.want(ino, data, 0, len(data))
				r.jobs(2)
			})
		})
	}
}

// Files that are wanted and fit in the cache one by one, but not all together, come one after the other, also when
// programs have read the beginnings of all of them.
func TestUnwaitedFilesDoNotBlockEachOther(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		const size = 5 << 20
		inos := r.coldFiles(12, size)
		other, _ := r.coldFile("other", 1<<20)
		var wg sync.WaitGroup
		for i, ino := range inos {
			wg.Go(func() { r.want(ino, blob(fmt.Sprintf("f%03d", i), size), 0, 100) })
		}
		wg.Wait()
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		if left := r.retrievals(); len(left) != 0 {
			t.Errorf("%d are left, e.g. %+v", len(left), left[0])
		}
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Hour)
		defer cancel()
		res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{other}, Wait: true}, nil)
		if err != nil {
			t.Errorf("another recall: %+v, %v", res, err)
		}
	})
}

// What is larger than the cache comes only while it is read: its retrieval ends when nobody reads, also when
// nobody did when the output became ready.
func TestStreamThatNobodyBegins(t *testing.T) {
	for _, name := range []string{"interrupted", "explicit"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 32 << 20 })
				ino, _ := r.coldFile("f", 50<<20)
				if name == "explicit" {
					if err := r.e.Setxattr(t.Context(), Caller{}, ino, "user.cas.recall", []byte("standard"), false, false); err != nil {
						t.Fatal(err)
					}
				} else {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					if _, err := r.read(ctx, ino, 0, 100); err == nil {
						t.Fatal("read")
					}
				}
				time.Sleep(20 * time.Hour)
				r.noneLeft()
			})
		})
	}
}

// Who comes for bytes in the moment in which they arrive does not wait for what comes after them.
func TestBytesThatArriveBeforeTheWait(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Fetches = 64<<20, 1 })
		ino, data := r.coldFile("f", 40<<20)
		rc := r.e.recall
		open := r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Hold, Skip: 1}) // all but the first piece
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		needs, first, err := rc.join(Caller{}, f, 0, 100, time.Time{})
		if err != nil || first == nil {
			t.Fatal(first, err)
		}
		r.want(ino, data, 0, 100) // another reader gets them
		w := &waiter{key: first.key, since: time.Now()}
		defer rc.leave(w)
		if changed := rc.attach(w, f, first, needs); changed != nil {
			select {
			case <-changed:
			case <-time.After(time.Second):
				t.Error("it waits for bytes that are there")
			}
		}
		open()
	})
}

// A job that was asked for while the machine's clock was ahead is looked after all the same when the program starts anew.
func TestAskedForByAClockThatWasAhead(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 1<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.read(ctx, ino, 0, 100); err == nil {
			t.Fatal("read")
		}
		if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			for rec, err := range tx.Retrievals() {
				if err != nil {
					return err
				}
				rec.AskedAt = time.Now().Add(20 * time.Hour).UnixNano()
				if err := tx.PutRetrieval(rec); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		r.restart()
		began := time.Now()
		r.want(ino, data, 0, 100)
		if took := time.Since(began); took > 5*time.Hour {
			t.Errorf("it took %v", took)
		}
		r.jobs(1)
	})
}

// Streams that nobody reads any more keep nothing from what is wanted: neither a place nor room.
func TestIdleStreamsGiveWay(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100 << 10, 12 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier, o.Fetches = 32<<20, "expedited", 2 })
				other, data := r.coldFile("other", size)
				inos := r.coldFiles(2*r.opts.Fetches, 40<<20)
				var wg sync.WaitGroup
				for i, ino := range inos {
					wg.Go(func() { r.want(ino, blob(fmt.Sprintf("f%03d", i), 40<<20), 0, 100) })
				}
				wg.Wait()
				time.Sleep(2 * time.Minute)
				began := time.Now()
				res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{other}, Wait: true}, nil)
				if err != nil || res.Local != 1 {
					t.Errorf("%+v, %v", res, err)
				}
				if took := time.Since(began); took > 6*time.Minute {
					t.Errorf("it took %v", took)
				}
				r.want(other, data, 0, len(data))
				// Who comes back to a stream finds it as it was.
				began = time.Now()
				r.want(inos[0], blob("f000", 40<<20), 20<<20, 100)
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("the stream took %v", took)
				}
				r.jobs(1 + len(inos))
				time.Sleep(2 * time.Hour)
				r.noneLeft()
			})
		})
	}
}

// Random reads of a file of many archives, larger than the cache, leave streams behind in which nobody reads any more. Neither these nor what
// they have brought keep room from other files, nor do they count for the guard.
func TestRandomReadsGiveWay(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"read", "recall"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) {
					o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 5<<20, 1<<20
					o.CacheSize, o.Tier, o.GuardFiles = 16<<20, "expedited", 10
				})
				ino, data := r.coldFile("f", 100<<20)
				other, theirs := r.coldFile("other", 6<<20)
				rng := rand.New(rand.NewPCG(1, 2))
				for range 60 {
					r.want(ino, data, rng.Int64N(100<<20-300<<10), 300<<10)
				}
				time.Sleep(2 * time.Minute)
				if s, err := r.e.Status(t.Context()); err != nil || s.Guard.Files != 0 {
					t.Errorf("%+v, %v", s.Guard, err)
				}
				began := time.Now()
				if name == "recall" {
					res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{other}, Wait: true}, nil)
					if err != nil || res.Local != 1 {
						t.Errorf("%+v, %v", res, err)
					}
				}
				r.want(other, theirs, 0, len(theirs))
				if took := time.Since(began); took > 4*time.Minute {
					t.Errorf("it took %v", took)
				}
				if left := r.retrievals(); len(left) == 0 {
					t.Error("there are no streams") // who comes back to one needs no other job
				}
				time.Sleep(2 * time.Hour)
				r.noneLeft()
			})
		})
	}
}
