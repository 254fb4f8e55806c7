package jobs

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
)

// partLocal makes a cold file of pieces MiB and recalls all but the last of them.
func partLocal(t *testing.T, pieces int) (r *recallRig, ino uint64, data []byte) {
	r = newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Window = 16<<20, 1<<20 }) // pieces of 1 MiB
	ino, data = r.coldFile("f", pieces<<20)
	if res := r.recall(RecallRequest{Inos: []uint64{ino}, Len: int64(pieces-1) << 20, Wait: true}); res.Local != 1 {
		t.Fatalf("%+v", res)
	}
	synctest.Wait()
	return r, ino, data
}

// recallSoon is a recall of n bytes of a file, 0 for all, that must end within half the life of a job's output.
func (r *recallRig) recallSoon(ino uint64, off, n int64) RecallResult {
	r.t.Helper()
	done := make(chan RecallResult, 1)
	go func() { done <- r.recall(RecallRequest{Inos: []uint64{ino}, Off: off, Len: n, Wait: true}) }()
	select {
	case res := <-done:
		return res
	case <-time.After(outputLife / 2):
		r.t.Fatalf("the recall does not end: %s", r.explain(ino))
	}
	return RecallResult{}
}

// TestUnreadableIsFetchedOnceMore: of an archive that is held against its tree hash a piece which was fetched earlier
// cannot be read any more. It comes again, from the same job, and then the file is complete.
func TestUnreadableIsFetchedOnceMore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r, ino, data := partLocal(t, 3)
		r.e.recall.badSpot = func(at int64) error {
			if at == 1<<20 {
				return syscall.EIO
			}
			return nil
		}
		before := r.srv.Count(cas.OpJobOutput)
		if res := r.recallSoon(ino, 0, 0); res.Local != 1 {
			t.Errorf("%+v", res)
		}
		synctest.Wait()
		r.wantSound(ino, "resident")
		r.want(ino, data, 0, len(data))
		if got := r.srv.Count(cas.OpJobOutput) - before; got != 2 {
			t.Errorf("%d pieces were fetched, want 2", got)
		}
		r.jobs(2)
	})
}

// TestUnreadableTwice: what cannot be read back a second time, or at many places, is a broken disk. The recall fails and says so, and
// nothing is tried again by itself.
func TestUnreadableTwice(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		pieces  int
		bad     func(at int64, n int32) bool // n: readings so far
		fetched int
	}{
		{"another piece", 3, func(at int64, n int32) bool { return at == 1<<20 || n > 2 }, 2},
		{"many pieces", maxUnreadable + 2, func(int64, int32) bool { return true }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r, ino, data := partLocal(t, test.pieces)
				var n atomic.Int32
				var mended atomic.Bool
				r.e.recall.badSpot = func(at int64) error {
					if !mended.Load() && test.bad(at, n.Add(1)) {
						return syscall.EIO
					}
					return nil
				}
				before := r.srv.Count(cas.OpJobOutput)
				if res := r.recallSoon(ino, 0, 0); res.Failed != 1 || !strings.Contains(res.Failures[0].Reason, "cannot be read back from the disk of this machine") {
					t.Errorf("%+v", res)
				}
				read := n.Load()
				time.Sleep(48 * time.Hour)
				if got := r.srv.Count(cas.OpJobOutput) - before; got != test.fetched {
					t.Errorf("%d pieces were fetched, want %d", got, test.fetched)
				}
				if got := n.Load(); got != read || got > maxUnreadable+1 {
					t.Errorf("%d pieces were read, and %d later", read, got-read)
				}
				s, err := r.e.Stat(t.Context(), ino)
				if err != nil || s.State != "partial" || !strings.Contains(s.Error, "cannot be read back") {
					t.Errorf("%+v, %v", s, err)
				}
				mended.Store(true)
				if res := r.recall(RecallRequest{Inos: []uint64{ino}, Wait: true}); res.Local != 1 {
					t.Errorf("%+v", res)
				}
				r.want(ino, data, 0, len(data))
			})
		})
	}
}

// TestUnreadableBeyond: what a recall of the last range finds unreadable of another range is dropped. The recall has what it is
// for; the rest comes when somebody wants it.
func TestUnreadableBeyond(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r, ino, data := partLocal(t, 3)
		r.e.recall.badSpot = func(at int64) error {
			if at == 0 {
				return syscall.EIO
			}
			return nil
		}
		before := r.srv.Count(cas.OpJobOutput)
		if res := r.recallSoon(ino, 2<<20, 1<<20); res.Local != 1 {
			t.Errorf("%+v", res)
		}
		synctest.Wait()
		r.wantSound(ino, "partial")
		r.want(ino, data, 1<<20, 2<<20)
		if got := r.srv.Count(cas.OpJobOutput) - before; got != 1 {
			t.Errorf("%d pieces were fetched, want 1", got)
		}
		r.want(ino, data, 0, len(data))
		synctest.Wait()
		r.wantSound(ino, "resident")
	})
}
