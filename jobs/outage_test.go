package jobs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// archived counts the files that are in the vault.
func (r *recallRig) archived(inos []uint64) (n int) {
	r.t.Helper()
	for _, ino := range inos {
		if r.state(ino) == "resident" {
			n++
		}
	}
	return n
}

// problem returns what status says of the service, "" when it says nothing.
func (r *recallRig) problem() string {
	r.t.Helper()
	s, err := r.e.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range s.Problems {
		if strings.Contains(p, "the service") {
			return p
		}
	}
	return ""
}

// TestOutage: while the service takes nothing it is asked politely, however many files wait; status says what is wrong; and when it is
// back, the files go soon.
func TestOutage(t *testing.T) {
	for _, size := range []int{1000, 70 << 20} {
		inBubble(t, func(t *testing.T) {
			r := newRecallRig(t, realistic, func(o *Options) { o.SingleBelow, o.PartSize = 1<<20, 16<<20 })
			mend := r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
			asked := func() int { return r.srv.Count(cas.OpUploadArchive) + r.srv.Count(cas.OpInitiateUpload) }
			n := 200
			if size > 1<<20 {
				n = 2
			}
			var inos []uint64
			for i := range n {
				inos = append(inos, r.write(fmt.Sprint(i), blob(fmt.Sprint(i), size)))
			}
			time.Sleep(10 * time.Minute)
			before := asked()
			time.Sleep(10 * time.Minute)
			const attempts = 6 // of the client, in one call
			if got := asked() - before; got < 8*attempts || got > 15*attempts {
				t.Errorf("asked %d times in ten minutes", got)
			}
			if p := r.problem(); !strings.Contains(p, "ServiceUnavailable") || !strings.Contains(p, "since") {
				t.Errorf("status says %q", p)
			}
			mend()
			time.Sleep(75 * time.Second)
			if got := r.archived(inos); got != n {
				t.Errorf("%d of %d files archived", got, n)
			}
			if p := r.problem(); p != "" {
				t.Errorf("status says %q", p)
			}
		})
	}
}

// TestSyncDuringOutage: who waits has it tried at once.
func TestSyncDuringOutage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		mend := r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
		for i := range 20 {
			r.write(fmt.Sprint(i), blob(fmt.Sprint(i), 1000))
		}
		time.Sleep(20*time.Minute + 3*time.Second)
		mend()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestOneFileIsNoOutage: what the service cannot take of one file does not keep the others long, and is not sent again whenever one of
// them was taken.
func TestOneFileIsNoOutage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.SingleBelow, o.PartSize = 1<<20, 1<<20 })
		r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Status})
		large := r.write("large", blob("large", 3<<20))
		for i := range 100 {
			ino := r.write(fmt.Sprint(i), blob(fmt.Sprint(i), 1000))
			time.Sleep(4 * time.Second)
			if got := r.state(ino); got != "resident" {
				t.Errorf("file %d is %s", i, got)
			}
		}
		if got := r.state(large); got != "uploading" {
			t.Errorf("the large file is %s", got)
		}
		if s, err := r.e.Status(t.Context()); err != nil || len(s.Uploads) != 1 || s.Uploads[0].Attempts > 15 {
			t.Errorf("%+v, %v", s.Uploads, err)
		}
	})
}

// TestRecallAfterOutage: a reader that waits gets its bytes soon after the service is back.
func TestRecallAfterOutage(t *testing.T) {
	for _, op := range []string{"*", cas.OpInitiateJob, cas.OpJobOutput} {
		inBubble(t, func(t *testing.T) {
			r := newRecallRig(t, realistic, nil)
			ino, data := r.coldFile("f", 1000)
			mend := r.srv.Inject(castest.Fault{Op: op, Kind: castest.Status})
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.want(ino, data, 0, 1000)
			}()
			time.Sleep(12 * time.Hour)
			before := r.srv.Count(cas.OpInitiateJob) + r.srv.Count(cas.OpJobOutput) + r.srv.Count(cas.OpListJobs)
			time.Sleep(time.Hour)
			if got := r.srv.Count(cas.OpInitiateJob) + r.srv.Count(cas.OpJobOutput) + r.srv.Count(cas.OpListJobs) - before; got > 70*6 {
				t.Errorf("%s: asked %d times in an hour", op, got)
			}
			mend()
			began := time.Now()
			<-done
			synctest.Wait()
			if took := time.Since(began); op == cas.OpJobOutput && took > retryMost+10*time.Second {
				t.Errorf("%s: the reader had to wait %s more", op, took)
			}
		})
	}
}

// TestLargeTry: a large file that is taken after an outage keeps nobody waiting until all of it has gone.
func TestLargeTry(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.SingleBelow, o.PartSize, o.Parts = 1<<20, 1<<20, 2 })
		mend := r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
		large := r.write("large", blob("large", 40<<20))
		time.Sleep(10 * time.Minute)
		r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: time.Minute})
		mend()
		time.Sleep(2 * time.Minute)
		small := r.write("small", blob("small", 1000))
		time.Sleep(90 * time.Second)
		if got := r.state(large); got != "uploading" {
			t.Errorf("the large file is %s", got)
		}
		if got := r.state(small); got != "resident" {
			t.Errorf("the small file is %s", got)
		}
	})
}

// TestNothingSentIsNoAnswer: a file of which nothing has to be sent does not tell that the service is back.
func TestNothingSentIsNoAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
		r.write("f", blob("f", 1000))
		time.Sleep(10 * time.Minute)
		before := r.srv.Count(cas.OpUploadArchive)
		for i := range 10 {
			r.write(fmt.Sprint("empty", i), nil)
			for range 60 {
				time.Sleep(time.Second)
				if p := r.problem(); p == "" {
					t.Fatal("status says nothing")
				}
			}
		}
		if got := r.srv.Count(cas.OpUploadArchive) - before; got > 15*6 {
			t.Errorf("asked %d times in ten minutes", got)
		}
	})
}

// TestEmptyFilesInAnOutage: they need nothing of the service and wait for nothing.
func TestEmptyFilesInAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
		for i := range 20 {
			r.write(fmt.Sprint(i), blob(fmt.Sprint(i), 1000))
		}
		time.Sleep(10 * time.Minute)
		for i := range 5 {
			ino := r.write(fmt.Sprint("empty", i), nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := r.e.Sync(ctx, []uint64{ino}, nil); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
}

// TestOutageOfOneVault: a vault that is out keeps nothing from the others.
func TestOutageOfOneVault(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		w, err := r.e.Mkdir(t.Context(), Caller{}, catalog.RootIno, "w", 0o755)
		if err != nil {
			t.Fatal(err)
		}
		dirs, err := filepath.Glob(filepath.Join(r.dir, "vaults", "v-v-*"))
		if err != nil || len(dirs) != 1 {
			t.Fatal(dirs, err)
		}
		if err := os.Rename(dirs[0], dirs[0]+".away"); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			r.write(fmt.Sprint(i), blob(fmt.Sprint(i), 1000))
		}
		time.Sleep(20 * time.Minute)
		for i := range 10 {
			ino := r.writeIn(w.Ino, fmt.Sprint(i), blob(fmt.Sprint("w", i), 1000))
			time.Sleep(3 * time.Second)
			if got := r.state(ino); got != "resident" {
				t.Errorf("file %d of the other vault is %s", i, got)
			}
		}
		if p := r.problem(); !strings.Contains(p, "since") {
			t.Errorf("status says %q", p)
		}
		if err := os.Rename(dirs[0]+".away", dirs[0]); err != nil {
			t.Fatal(err)
		}
	})
}

// TestOutageOfNothing: when what waited is removed, nothing is wrong any more.
func TestOutageOfNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		mend := r.srv.Inject(castest.Fault{Op: "*", Kind: castest.Status})
		r.write("f", blob("f", 1000))
		time.Sleep(10 * time.Minute)
		if p := r.problem(); p == "" {
			t.Error("status says nothing")
		}
		if err := r.e.Unlink(t.Context(), r.vault, "f"); err != nil {
			t.Fatal(err)
		}
		mend()
		time.Sleep(5 * time.Minute)
		if p := r.problem(); p != "" {
			t.Errorf("status says %q", p)
		}
	})
}

// TestLargeFileBesideOneThatFails: a small file that the service never takes does not keep a large one from being tried.
func TestLargeFileBesideOneThatFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.SingleBelow, o.PartSize = 1<<20, 1<<20 })
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status})
		for i := range 3 {
			r.write(fmt.Sprint(i), blob(fmt.Sprint(i), 1000))
		}
		time.Sleep(10 * time.Minute)
		large := r.write("large", blob("large", 3<<20))
		time.Sleep(5 * time.Minute)
		if got := r.state(large); got != "resident" {
			t.Errorf("the large file is %s", got)
		}
	})
}

// TestAnswersAreLost: a service that does the work and does not say so is not asked often for the same file.
func TestAnswersAreLost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply})
		r.write("f", blob("f", 1000))
		time.Sleep(time.Hour)
		before := r.srv.Count(cas.OpUploadArchive)
		time.Sleep(5 * time.Hour)
		if got := r.srv.Count(cas.OpUploadArchive) - before; got < 30 || got > 60 {
			t.Errorf("asked %d times in five hours", got)
		}
	})
}
