package jobs

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// The end of the upload before is not the end of this one: whoever syncs a file that was written to in the moment after
// its version was committed waits for the new one.
func TestSyncIsNotEndedByTheVersionBefore(t *testing.T) {
	for _, point := range []string{"committed", "committed.durable"} {
		t.Run(point, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.virtualTime = true })
				defer r.close()
				ino := make(chan uint64, 1)
				synced := make(chan error, 1)
				var release func()
				var once sync.Once
				r.e.atPoints(func(p string) {
					if p == point {
						once.Do(func() {
							// A program writes, and syncs.
							release = r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Hold})
							second := r.write("f", []byte("the second"))
							go func() { synced <- r.e.Sync(context.Background(), []uint64{second}, nil) }()
							synctest.Wait() // it has looked, and waits
							ino <- second
						})
					}
				})
				r.write("f", []byte("the first"))
				second := <-ino
				time.Sleep(time.Second) // less than until it looks again by itself
				select {
				case err := <-synced:
					s := r.stat(second)
					t.Errorf("Sync says %v, the file is %s (%s)", err, s.State, s.Explain)
					release()
				default:
					release()
					r.must(<-synced)
					r.wantState(second, "resident")
				}
			})
		})
	}
}

func (r *rig) version(ino uint64) (v catalog.Version) {
	r.t.Helper()
	r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
		i, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		v, err = tx.Version(ino, i.Version)
		return err
	}))
	return v
}

// A version that was made for stores which did not come is gone when its writer is: who waits for it waits for nothing.
func TestSyncOfAVersionThatWasUndone(t *testing.T) {
	r := newRig(t, nil)
	ino := r.write("f", []byte("archived"))
	r.sync()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// As stagedBelow has it, when the last writer closes after it has read the catalog and before it looks at live files.
	if _, err := r.e.awaitArchived(ctx, map[uint64]syncWant{ino: {v: r.version(ino).V + 1}}, nil); err != nil {
		t.Error(err)
	}
}

// Nor is the failure of an attempt that had begun before: what made it fail may be mended, as it is when somebody asks for another.
func TestSyncIsNotEndedByTheAttemptBefore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		answer := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Hold, Count: 1})
		allow := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "AccessDeniedException", Count: 1})
		defer allow()
		ino := r.write("f", []byte("allowed the second time"))
		synctest.Wait()
		synced := make(chan error, 1)
		go func() { synced <- r.e.Sync(context.Background(), []uint64{ino}, nil) }()
		synctest.Wait() // it waits
		answer()
		r.must(<-synced)
		synctest.Wait()
		r.wantState(ino, "resident")
		r.wantNoProblem()
	})
}

// The failure of a version that has been superseded since is no failure of the one after it.
func TestFailureOfTheVersionBefore(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ino := r.write("f", []byte("the first"))
	r.sync()
	r.write("f", []byte("the second"))
	r.e.fail(ino, 1, math.MaxUint64, cas.ErrAccessDenied)
	if err := r.e.tellFailure(ino); err != nil {
		t.Error(err)
	}
	r.wantNoProblem()
	r.e.fail(ino, 2, math.MaxUint64, cas.ErrAccessDenied)
	r.toldOnce(ino)
	r.wantProblem("/v/f", "have this key allowed")
	r.sync()
	r.wantNoProblem()
}
