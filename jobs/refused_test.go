package jobs

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// abortUploads is another tool that aborts every upload there is.
func (r *rig) abortUploads() (n int) {
	r.t.Helper()
	for u, err := range r.client.Uploads(context.Background(), "v") {
		r.must(err)
		r.must(r.client.AbortUpload(context.Background(), "v", u.UploadID))
		n++
	}
	return n
}

// wantProblem wants one problem in status that says all of words.
func (r *rig) wantProblem(words ...string) {
	r.t.Helper()
	st, err := r.e.Status(context.Background())
	r.must(err)
	n := 0
	for _, p := range st.Problems {
		all := true
		for _, w := range words {
			all = all && strings.Contains(p, w)
		}
		if all {
			n++
		}
	}
	if n != 1 {
		r.t.Fatalf("%d problems say %q: %q", n, words, st.Problems)
	}
}

func (r *rig) wantNoProblem() {
	r.t.Helper()
	st, err := r.e.Status(context.Background())
	r.must(err)
	if len(st.Problems) > 0 {
		r.t.Fatalf("problems: %q", st.Problems)
	}
}

// toldOnce wants the next fsync of a file to report its failure, and no other.
func (r *rig) toldOnce(ino uint64) {
	r.t.Helper()
	ctx := context.Background()
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
	r.must(err)
	defer h.Release()
	if err := h.Fsync(ctx, false); !errors.Is(err, ErrUpload) {
		r.t.Errorf("fsync: %v", err)
	}
	r.must(h.Fsync(ctx, false))
}

// files that are one archive by one request, one in parts, and three of them; all on their own.
var refusedSizes = map[string]struct {
	size, archives int
}{"single": {300 << 10, 1}, "parts": {7 << 19, 1}, "segments": {9 << 20, 3}}

// What the service refuses for good, whichever request it is: kept, shown with what to do, told once, and sent when it is allowed.
func TestRefusals(t *testing.T) {
	t.Parallel()
	limit := [2]string{"LimitExceededException", "have it raised"}
	denied := [2]string{"AccessDeniedException", "have this key allowed"}
	for _, x := range []struct {
		refusal  [2]string
		op, size string
	}{
		{limit, cas.OpUploadArchive, "single"}, {limit, cas.OpInitiateUpload, "parts"}, {limit, cas.OpUploadPart, "parts"}, {limit, cas.OpCompleteUpload, "parts"},
		{denied, cas.OpUploadArchive, "single"}, {denied, cas.OpUploadPart, "parts"},
		{[2]string{"UnrecognizedClientException", "correct the credentials"}, cas.OpInitiateUpload, "parts"},
	} {
		code, todo := x.refusal[0], x.refusal[1]
		t.Run(code+"-"+x.op, func(t *testing.T) {
			quietly(t, nil, func(t *testing.T, r *rig) {
				ctx := context.Background()
				data := pattern(refusedSizes[x.size].size, 1)
				allow := r.srv.Inject(castest.Fault{Op: x.op, Kind: castest.Status, Code: code})
				ino := r.write("f", data)
				time.Sleep(time.Minute)
				r.wantProblem("/v/f", code, todo, "kept on this machine", "casfs sync")
				r.toldOnce(ino)
				if err := r.e.Sync(ctx, nil, nil); !errors.Is(err, ErrUpload) {
					t.Errorf("sync: %v", err)
				}
				r.reopen()
				r.wantProblem("/v/f", code, todo)
				r.expect(ino, data)
				n := r.srv.Count(x.op)
				time.Sleep(time.Hour)
				if n = r.srv.Count(x.op) - n; n < 3 || n > 12*4 { // up to four parts at once
					t.Errorf("%d attempts in an hour", n)
				}
				allow()
				time.Sleep(retryPermanent + time.Minute)
				r.wantState(ino, "resident")
				r.wantNoProblem()
				r.wantArchives(1)
				r.evict(ino)
				r.expect(ino, data)
			})
		})
	}
}

// The same while a file is being written, and for another that has nothing to do with it.
func TestRefusalsWhileStreaming(t *testing.T) {
	t.Parallel()
	for _, op := range []string{cas.OpInitiateUpload, cas.OpUploadPart, cas.OpCompleteUpload} {
		t.Run(op, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := streamRig(t, func(o *Options) { o.virtualTime, o.Uploads = true, 2 }) // one stream at a time
				defer r.close()
				ctx := context.Background()
				data := pattern(30<<20+1, 1)
				allow := r.srv.Inject(castest.Fault{Op: op, Kind: castest.Status, Code: "LimitExceededException"})
				a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
				r.must(err)
				r.writeAll(h, data[:9<<20], 0)
				time.Sleep(10 * time.Second)
				r.wantProblem("/v/f", "LimitExceededException", "have it raised", "kept on this machine", "casfs sync")
				if err := h.Fsync(ctx, false); !errors.Is(err, ErrUpload) {
					t.Errorf("fsync: %v", err)
				}
				r.must(h.Fsync(ctx, false))
				allow()
				time.Sleep(retryMost + time.Minute)
				r.wantNoProblem()
				r.writeAll(h, data[9<<20:], 9<<20)
				h.Release()
				r.must(r.e.Sync(ctx, nil, nil))
				r.expect(a.Ino, data)
				r.wantClean(false)
			})
		})
	}
}

// A stream that is refused does not keep another one from its place.
func TestRefusedStreamStandsInNobodysWay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime, o.Uploads, o.StagingSize, o.StreamAbove = true, 2, 64<<20, 4<<20 })
		defer r.close()
		ctx := context.Background()
		_, refused, err := r.e.Create(ctx, someone, r.vault, "refused", 0o644, OpenFlags{Write: true})
		r.must(err)
		allow := r.srv.Inject(castest.Fault{Op: cas.OpInitiateUpload, Kind: castest.Status, Code: "AccessDeniedException", Count: 1})
		defer allow()
		r.writeAll(refused, pattern(6<<20, 1), 0)
		time.Sleep(100 * time.Millisecond)
		r.wantProblem("/v/refused")
		_, other, err := r.e.Create(ctx, someone, r.vault, "other", 0o644, OpenFlags{Write: true})
		r.must(err)
		r.writeAll(other, pattern(12<<20, 2), 0)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if r.srv.Count(cas.OpCompleteUpload) == 0 {
			t.Error("the other one waits")
		}
		refused.Release()
		other.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantClean(false)
	})
}

// Uploads that the service forgets, for others abort them: sent anew, each archive once.
func TestUploadsAborted(t *testing.T) {
	t.Parallel()
	t.Run("ordinary", func(t *testing.T) {
		quietly(t, func(o *Options) { o.Parts, o.SegmentSize = 2, 4<<20 }, func(t *testing.T, r *rig) {
			data := pattern(11<<20, 1)
			ino := r.write("f", data)
			aborted := 0
			abort := func(f castest.Fault, first func()) {
				f.Kind = castest.Hold
				release := r.srv.Inject(f)
				first()
				time.Sleep(time.Minute)
				synctest.Wait()
				aborted += r.abortUploads()
				release()
			}
			abort(castest.Fault{Op: cas.OpUploadPart, Skip: 1}, func() {})
			abort(castest.Fault{Op: cas.OpCompleteUpload}, func() {})
			abort(castest.Fault{Op: cas.OpUploadPart, Skip: 5}, func() {})
			stuck := r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Hold, Skip: 1})
			time.Sleep(time.Minute)
			abort(castest.Fault{Op: cas.OpListParts}, func() {
				r.close()
				stuck()
				r.open()
			})
			r.sync()
			if aborted != 4 {
				t.Errorf("%d uploads were aborted", aborted)
			}
			r.wantState(ino, "resident")
			r.wantNoProblem()
			r.wantArchives(3)
			r.evict(ino)
			r.expect(ino, data)
		})
	})
	t.Run("streaming", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			r := streamRig(t, func(o *Options) { o.virtualTime = true })
			defer r.close()
			ctx := context.Background()
			data := pattern(50<<20+5, 1)
			a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
			r.must(err)
			ops := []string{cas.OpUploadPart, cas.OpCompleteUpload}
			aborted := 0
			for off := 0; off < len(data); off += 5 << 20 {
				release := r.srv.Inject(castest.Fault{Op: ops[off/(5<<20)%2], Kind: castest.Hold, Skip: 1})
				done := make(chan struct{})
				go func() {
					defer close(done)
					r.writeAll(h, data[off:min(off+5<<20, len(data))], int64(off))
				}()
				time.Sleep(time.Second)
				synctest.Wait()
				aborted += r.abortUploads()
				release()
				<-done
			}
			h.Release()
			r.must(r.e.Sync(ctx, nil, nil))
			if aborted < 5 {
				t.Errorf("%d uploads were aborted", aborted)
			}
			r.wantNoProblem()
			r.expect(a.Ino, data)
			r.wantClean(false)
		})
	})
}

// A file that is written so slowly that the uploads of its segments expire.
func TestStreamExpires(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime, o.StagingSize = true, 32<<20 }) // segments of 4 MiB
		r.close()
		srv := castest.New(t, local.Options{UploadLife: time.Hour})
		r.srv, r.client = srv, srv.Client(t)
		r.o.Client, r.o.StateDir = r.client, t.TempDir()
		r.makeVault()
		r.open()
		defer r.close()
		ctx := context.Background()
		data := pattern(24<<20+9, 1)
		a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		r.writeAll(h, data[:9<<20], 0)
		for off := 9 << 20; off < len(data); off += 1 << 20 {
			time.Sleep(25 * time.Minute)
			r.writeAll(h, data[off:min(off+1<<20, len(data))], int64(off))
		}
		time.Sleep(2 * time.Hour)
		h.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		if n := srv.Count(cas.OpInitiateUpload); n < 8 {
			t.Errorf("%d uploads for 7 archives: none has expired", n)
		}
		r.wantNoProblem()
		r.expect(a.Ino, data)
		r.evict(a.Ino)
		r.expect(a.Ino, data)
		r.wantClean(false)
	})
}

// An upload that was to be completed when its file changed, and that the service has forgotten since, is cleaned up.
func TestAbandonedAndForgotten(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		release := r.srv.Inject(castest.Fault{Op: cas.OpCompleteUpload, Kind: castest.Hold})
		r.write("f", pattern(3<<20, 1))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := r.srv.Count(cas.OpCompleteUpload); n != 1 {
			t.Fatalf("%d requests", n)
		}
		data := pattern(100, 2)
		ino := r.write("f", data)
		r.abortUploads()
		release()
		time.Sleep(2 * time.Minute)
		n := r.srv.Count(cas.OpCompleteUpload)
		time.Sleep(time.Hour)
		if again := r.srv.Count(cas.OpCompleteUpload) - n; again > 0 {
			t.Errorf("it is asked about %d times an hour", again)
		}
		r.sync()
		r.expect(ino, data)
	})
}

// One request in ten fails while a file is streamed that is longer than the staging area, in every way there is.
func TestStreamThroughFaults(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) {
			o.virtualTime = true
			o.PollMin, o.PollMax = time.Second, time.Minute
		})
		defer r.close()
		faults := []castest.Fault{
			{Kind: castest.Status}, {Kind: castest.Status, Code: "ThrottlingException", HTTPStatus: 400},
			{Kind: castest.Reset}, {Kind: castest.CutRequest, Bytes: 300 << 10}, {Kind: castest.CutReply, Bytes: 5},
			{Kind: castest.Delay, Delay: 3 * time.Second}, {Kind: castest.CorruptRequest, Bytes: 500 << 10},
			{Kind: castest.WrongHash}, {Kind: castest.LoseReply},
		}
		var mend []func()
		for _, f := range faults {
			f.Op, f.Probability = "*", 0.10/float64(len(faults))
			mend = append(mend, r.srv.Inject(f))
		}
		ctx := context.Background()
		data := pattern(150<<20+31, 1)
		a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		r.writeAll(h, data, 0)
		h.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		requests := r.srv.Count("*")
		for _, f := range mend {
			f()
		}
		r.wantNoProblem()
		r.expect(a.Ino, data)
		// What a lost answer left is known to the inventory, and goes.
		r.must(r.e.Inventory(ctx, "v", true, nil))
		_, err = r.e.Purge(ctx, nil)
		r.must(err)
		r.wantClean(false)
		s := r.stat(a.Ino)
		r.wantArchives(len(s.Archives))
		t.Logf("%d requests for %d archives", requests, len(s.Archives))
	})
}
