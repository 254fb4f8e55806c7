package jobs

import (
	"context"
	"fmt"
	"log/slog"
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

// TestChangedWhileAFailureIsNoted: what is written just then waits to be quiet, not for the pause after the failure.
func TestChangedWhileAFailureIsNoted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		failed := make(hook, 1)
		r := newRecallRig(t, realistic, func(o *Options) { o.Settle, o.Logger = 30*time.Second, slog.New(failed) })
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "AccessDeniedException", Count: 1})
		ino := r.write("f", []byte("refused"))
		failed <- func() {
			h, err := r.e.Open(t.Context(), Caller{}, ino, OpenFlags{Write: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Release()
			if _, err := h.WriteAt(t.Context(), Caller{}, []byte("changed"), 0); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(2 * time.Minute)
		if got := r.state(ino); got != "resident" {
			t.Errorf("it is %s", got)
		}
	})
}

// hook calls what it holds when an upload fails.
type hook chan func()

func (h hook) Enabled(context.Context, slog.Level) bool { return true }
func (h hook) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h hook) WithGroup(string) slog.Handler            { return h }
func (h hook) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "upload failed" {
		select {
		case f := <-h:
			f()
		default:
		}
	}
	return nil
}

// TestFailureChangesWhileItIsTold: with another text, as with every attempt.
func TestFailureChangesWhileItIsTold(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ino := r.write("f", []byte("refused"))
	r.e.noteFailure(ino, 1, "0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 20_000 {
			r.e.noteFailure(ino, 1, fmt.Sprint(i))
		}
	})
	for range 4 {
		wg.Go(func() {
			for range 20_000 {
				if r.e.uploadError(ino) == "" {
					t.Error("no failure")
				}
			}
		})
	}
	if err := r.e.tellFailure(ino); err == nil {
		t.Error("it was not told")
	}
	wg.Wait()
}
