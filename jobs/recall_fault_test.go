package jobs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

func TestLostAnswerIsFoundInTheList(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.LoseReply, Count: 1})
		r.want(ino, data, 0, 3<<20)
		r.jobs(1)
	})
}

func TestRequestThatNeverArrivedIsRepeated(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.CutRequest, Bytes: 10, Count: 1})
		r.srv.Inject(castest.Fault{Op: cas.OpListJobs, Kind: castest.Status, HTTPStatus: 500, Skip: 1, Count: 20})
		r.want(ino, data, 0, 3<<20)
		r.jobs(2)
	})
}

func TestExpiredOutputIsAskedForAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, data := r.coldFile("f", 3<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		r.read(ctx, ino, 0, 10)
		r.stop()
		time.Sleep(40 * time.Hour) // done after 3, gone after 27
		r.start()
		time.Sleep(time.Minute)
		recs := r.retrievals()
		if len(recs) != 1 || recs[0].Expired != 1 || recs[0].Attempts != 2 {
			t.Errorf("records %+v", recs)
		}
		r.want(ino, data, 0, 3<<20)
		r.jobs(2)
	})
}

func TestFaultsNeverGiveWrongBytes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		faults []castest.Fault
		jobs   int
	}{
		{"output gone once", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Count: 1}}, 1}, // the job is in the list
		{"output gone in the middle", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Skip: 3, Count: 1}}, 1},
		{"job gone from the list", []castest.Fault{{Op: cas.OpListJobs, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException", Skip: 3, Count: 5}}, 1},
		{"reset", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Reset, Count: 20}}, 1},
		{"cut", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 1<<20 + 5, Count: 30}}, 1},
		{"corrupt", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000, Count: 2}}, 1},
		{"wrong hash", []castest.Fault{{Op: cas.OpJobOutput, Kind: castest.WrongHash, Count: 2}}, 1},
		{"unavailable", []castest.Fault{{Op: "*", Kind: castest.Status, Probability: 0.3, Count: 200}}, 1},
		{"throttled", []castest.Fault{{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "ThrottlingException", Count: 30}}, 0},
		{"policy", []castest.Fault{{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "PolicyEnforcedException", Count: 3}}, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
				ino, data := r.coldFile("f", 7<<20+123)
				before := r.srv.Count(cas.OpInitiateJob)
				for _, f := range test.faults {
					r.srv.Inject(f)
				}
				r.want(ino, data, 0, 8<<20)
				if got := r.srv.Count(cas.OpInitiateJob) - before; test.jobs > 0 && test.name != "unavailable" && got != test.jobs {
					t.Errorf("%d jobs, want %d", got, test.jobs)
				}
				if got := r.state(ino); got != "resident" {
					t.Errorf("state %s", got)
				}
				// 8 pieces, and what the faults cost.
				faults := 0
				for _, f := range test.faults {
					faults += f.Count
				}
				if got := r.srv.Count(cas.OpJobOutput); got > 8+faults {
					t.Errorf("%d requests for output after at most %d faults", got, faults)
				}
			})
		})
	}
}

// TestOutputNeverComes: the service says that jobs are ready, and then breaks off every time, or does not
// know them. That is tried for as long as outputs live, with so many jobs and no more, and explained when it is given up.
func TestOutputNeverComes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		fault    castest.Fault
		jobs     int
		requests int // for output: hours of one every five minutes, each tried a few times
		after    time.Duration
	}{
		{"breaks off", castest.Fault{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 10}, 2, 25 * 13 * 6, 30 * time.Hour},
		{"gone", castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"}, 3, maxFailures, 40 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, func(o *Options) { o.RecallWait = time.Hour })
				ino, data := r.coldFile("f", 3<<20)
				mend := r.srv.Inject(test.fault)
				if _, err := r.read(context.Background(), ino, 0, 10); !errors.Is(err, ErrTimedOut) {
					t.Fatalf("got %v", err)
				}
				time.Sleep(test.after)
				r.jobs(test.jobs)
				if got := r.srv.Count(cas.OpJobOutput); got > test.requests {
					t.Errorf("%d requests for output, want at most %d", got, test.requests)
				} else {
					t.Logf("%d requests for output", got)
				}
				if test.name == "gone" { // for good
					all := r.srv.Count("*")
					time.Sleep(48 * time.Hour)
					if got := r.srv.Count("*"); got > all+60 { // the list of vaults, now and then
						t.Errorf("%d requests after it was given up", got-all)
					}
				}
				s, err := r.e.Stat(t.Context(), ino)
				if err != nil || s.State == "damaged" || test.name == "gone" && s.Error == "" {
					t.Errorf("stat %+v, %v", s, err)
				}
				// It is not the archive's fault: when the service is well again, so is the file.
				mend()
				if res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Wait: true}, nil); err != nil || res.Local != 1 {
					t.Errorf("%+v, %v", res, err)
				}
				r.want(ino, data, 0, 4<<20)
			})
		})
	}
}

func TestCorruptForEverIsDamaged(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		ino, data := r.coldFile("f", 7<<20+123)
		remove := r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Corrupt, Bytes: 1000})
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s", got)
		}
		if _, err := r.read(context.Background(), ino, 3<<20, 100); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
		r.jobs(1)
		// It stays explained over a restart, and an explicit recall tries again.
		r.restart()
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s after a restart", got)
		}
		remove()
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		if err := r.e.recall.queue(Caller{}, f, "", true); err != nil {
			t.Fatal(err)
		}
		r.want(ino, data, 0, 8<<20)
	})
}

// TestWholeArchiveIsWrong: each range is what the service says of it, and all of them together are not the archive. Who opened
// the file just when the last of them came must not find zeros where they are dropped.
func TestWholeArchiveIsWrong(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 }) // pieces of 1 MiB
		ctx := context.Background()
		const pieces = 3
		ino, data := r.coldFile("f", pieces<<20)
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			v, err := tx.Version(ino, 1)
			if err != nil {
				return err
			}
			a, err := tx.Archive(v.Extents[0].Archive)
			if err != nil {
				return err
			}
			a.TreeHash[0] ^= 1
			return tx.PutArchive(a)
		})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var handles []*Handle
		opened := 0
		r.e.atPoints(func(point string) {
			if point != "recall.verified" {
				return
			}
			h, err := r.e.Open(ctx, Caller{}, ino, OpenFlags{Read: true})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			opened++
			if h.Local() || opened%pieces == 0 { // else nobody would get the descriptor
				handles = append(handles, h)
			} else {
				h.Release()
			}
		})
		res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Wait: true}, nil)
		if err != nil || res.Failed != 1 {
			t.Errorf("%+v, %v", res, err)
		}
		synctest.Wait()
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s", got)
		}
		if opened != 2*pieces || len(handles) < 2 { // fetched twice
			t.Errorf("opened %d times, %d handles", opened, len(handles))
		}
		for _, h := range handles {
			b := make([]byte, len(data))
			var n int
			var err error
			if h.Local() { // as the kernel reads
				n, err = unix.Pread(h.Fd(), b, 0)
			} else {
				n, err = h.ReadAt(ctx, Caller{}, b, 0)
			}
			if err == nil && !bytes.Equal(b[:n], data) {
				t.Errorf("%d other bytes, local %v", n, h.Local())
			} else if err != nil && !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			h.Release()
		}
		r.jobs(1)
	})
}

// TestOneArchiveOfSeveralIsWrong: the last byte of a file is there, and one of its archives still to be checked, when the check of another
// is over. Nobody is given the file as complete; the archive turns out not to be what it should be, and is fetched once more.
func TestOneArchiveOfSeveralIsWrong(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const half = 3 << 20
		r := newRecallRig(t, realistic, func(o *Options) { // pieces of 1 MiB
			o.CacheSize, o.Window, o.PartSize, o.SegmentSize, o.SingleBelow = 16<<20, 1<<20, 1<<20, half, 1<<20
		})
		ctx := context.Background()
		ino, data := r.coldFile("f", 2*half)
		var second uint64
		var right [32]byte
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			v, err := tx.Version(ino, 1)
			if err != nil {
				return err
			}
			second = v.Extents[1].Archive
			a, err := tx.Archive(second)
			if err != nil {
				return err
			}
			right = a.TreeHash
			a.TreeHash[0] ^= 1
			return tx.PutArchive(a)
		})
		if err != nil {
			t.Fatal(err)
		}
		// Two pieces of the second archive, and then the third, by a retrieval that stops before it checks the whole.
		if res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Off: half, Len: 2 << 20, Wait: true}, nil); err != nil || res.Local != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		stopped, goOn := make(chan struct{}), make(chan struct{})
		var first, checked atomic.Bool
		r.e.atPoints(func(point string) {
			if point != "recall.verified" {
				return
			}
			if !first.Swap(true) { // (a sync.Once would hold the others, and time)
				close(stopped)
				<-goOn
			}
			if checked.Load() { // the archive is right the second time
				r.e.recall.mu.Lock()
				defer r.e.recall.mu.Unlock()
				for _, rt := range r.e.recall.byArc[second] {
					if rt.refetched {
						rt.arc.TreeHash = right
					}
				}
			}
		})
		read := make(chan error)
		go func() {
			got, err := r.read(ctx, ino, 2*half-10, 10)
			if err == nil && !bytes.Equal(got, data[2*half-10:]) {
				err = errors.New("wrong bytes")
			}
			read <- err
		}()
		<-stopped
		r.want(ino, data, 0, half)
		synctest.Wait()
		h, err := r.e.Open(ctx, Caller{}, ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		f := h.impl.f
		f.mu.Lock()
		if f.ver.Complete || h.Local() || !f.local.Verified(0, 2*half) {
			t.Errorf("complete %v, local %v, all there %v, with an archive that was not checked", f.ver.Complete, h.Local(), f.local.VerifiedRanges())
		}
		f.mu.Unlock()
		h.Release()
		if got := r.state(ino); got != "recalling" { // "resident" promises that an open file is not evicted
			t.Errorf("state %s while an archive is being checked", got)
		}
		checked.Store(true)
		close(goOn)
		if err := <-read; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.want(ino, data, 0, 2*half)
		if h, err = r.e.Open(ctx, Caller{}, ino, OpenFlags{Read: true}); err != nil || !h.Local() {
			t.Errorf("not complete in the end: %v", err)
		} else {
			h.Release()
		}
		r.jobs(3)
		if got := r.srv.Count(cas.OpJobOutput); got != 2+1+3+3 {
			t.Errorf("%d ranges were fetched, want 9: the second archive twice", got)
		}
		if left := r.retrievals(); len(left) > 0 {
			t.Errorf("records are left: %+v", left)
		}
	})
}

// TestRecallLosesAPieceAtItsEnd: room for somebody who waits may be taken from what has just come. A recall is over when
// all of it is there.
func TestRecallLosesAPieceAtItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 }) // pieces of 1 MiB, windows of 4
		ino, data := r.coldFile("f", 6<<20)
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		local := func() *content.File {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.local
		}
		var once sync.Once
		r.e.atPoints(func(point string) {
			if point != "recall.complete" {
				return
			}
			once.Do(func() {
				all := func(content.Range) bool { return true }
				if n := r.e.recall.dropRanges(f, local(), content.Range{Off: 1 << 20, Len: 1 << 20}, 1<<20, all); n != 1<<20 {
					t.Errorf("%d bytes are dropped", n)
				}
			})
		})
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Len: 4 << 20, Wait: true}, nil)
		if err != nil || res.Local != 1 || res.Failed != 0 {
			t.Errorf("%+v, %v", res, err)
		}
		if !local().Verified(0, 4<<20) {
			t.Errorf("local is %v", local().VerifiedRanges())
		}
		r.want(ino, data, 0, 4<<20)
		r.jobs(1)
	})
}

func TestGoneArchiveIsDamaged(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 100)
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, HTTPStatus: 404, Code: "ResourceNotFoundException"})
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		r.jobs(1)
		if _, err := r.read(context.Background(), ino, 0, 100); !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
		r.jobs(1)
	})
}

// TestTruncatedArchiveIsDamaged: the embedded store's file of an archive has lost its end. What is before it can be read; the rest is
// damaged, not waited for.
func TestTruncatedArchiveIsDamaged(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		ino, data := r.coldFile("f", 7<<20+123)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(r.dir, "vaults", "*", "archives", "*", s.Archives[0].ID))
		if err != nil || len(files) != 1 {
			t.Fatalf("%q, %v", files, err)
		}
		if err := os.Truncate(files[0], 6<<20); err != nil {
			t.Fatal(err)
		}
		r.want(ino, data, 0, 100)
		if _, err := r.read(context.Background(), ino, 6<<20, 100); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s", got)
		}
		if began := r.srv.Count(cas.OpJobOutput); began > 30 {
			t.Errorf("the output was asked for %d times", began)
		}
	})
}

func TestFailedJobsAreExplained(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		ino, _ := r.coldFile("f", 1000)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		// The service takes the request for an archive deleted today, and then fails.
		if err := r.client.DeleteArchive(t.Context(), "v", s.Archives[0].ID); err != nil {
			t.Fatal(err)
		}
		if _, err := r.read(context.Background(), ino, 0, 10); err == nil || errors.Is(err, ErrTimedOut) {
			t.Fatalf("got %v", err)
		}
		r.jobs(maxFailures)
		for range 3 {
			if _, err := r.read(context.Background(), ino, 0, 10); err == nil {
				t.Error("the second read succeeded")
			}
		}
		if s, err = r.e.Stat(t.Context(), ino); err != nil || s.Error == "" {
			t.Errorf("stat says nothing: %+v, %v", s, err)
		}
		r.restart()
		if _, err := r.read(context.Background(), ino, 0, 10); err == nil {
			t.Error("a read after a restart succeeded")
		}
		r.jobs(maxFailures)
	})
}

// TestWhatWasDroppedIsCheckedAgain: an archive some of which was dropped is held against its tree hash when that has come
// again; the others of the file are not read another time.
func TestWhatWasDroppedIsCheckedAgain(t *testing.T) {
	r := newRig(t, nil)
	r.notRun()
	rc := r.e.recall
	v := catalog.Version{Ino: 1 << 40, V: 1, Extents: []catalog.Extent{{Archive: 1, Len: 10 * mib}, {Archive: 2, Len: 10 * mib}, {Archive: 3, Len: 10 * mib}}}
	for _, x := range v.Extents {
		rc.checked[x.Archive] = struct{}{}
	}
	rt := rc.newRetrieval(catalog.Archive{Num: 2, Size: 10 * mib}, v.Extents[1], 10*mib, catalog.Retrieval{Archive: 2, VaultName: "v", Len: 10 * mib, Ino: v.Ino, V: v.V})
	rt.done = 10 * mib
	rc.addLocked(rt)
	rc.dropped(v, 15*mib, mib)
	if rt.done != 9*mib || rc.onWay.bytes != mib {
		t.Errorf("%d bytes are there, %d on their way", rt.done, rc.onWay.bytes)
	}
	rc.checked[2] = struct{}{}
	rc.dropped(v, 10*mib, 10*mib)
	if _, ok := rc.checked[2]; ok || len(rc.checked) != 2 {
		t.Errorf("checked: %v", rc.checked)
	}
	rc.dropped(v, 9*mib, 2*mib)
	if _, ok := rc.checked[3]; !ok || len(rc.checked) != 1 {
		t.Errorf("checked: %v", rc.checked)
	}
}

// TestForgottenWhileAskedFor: a version goes while its job is being asked for. Nothing keeps the retrieval then.
func TestForgottenWhileAskedFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 100)
		ask := r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Hold})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.read(ctx, ino, 0, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		rc := r.e.recall
		rc.forget(ino, 1)
		ask()
		time.Sleep(time.Minute)
		r.jobs(1)
		rc.mu.Lock()
		defer rc.mu.Unlock()
		if n := len(rc.byJob) + len(rc.byKey) + len(rc.dead); n > 0 {
			t.Errorf("%d tables still hold it", n)
		}
	})
}
