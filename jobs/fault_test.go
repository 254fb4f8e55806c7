package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

func TestFaultsAnywhere(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.Parts, o.TrashAge = 4, -1 })
	var mend []func()
	inject := func(f castest.Fault) { mend = append(mend, r.srv.Inject(f)) }
	for _, k := range []castest.Kind{castest.Status, castest.Reset, castest.CutRequest, castest.CutReply, castest.LoseReply} {
		inject(castest.Fault{Op: "*", Kind: k, Probability: 0.02, Bytes: 10})
	}
	inject(castest.Fault{Op: "*", Kind: castest.Status, Code: "ThrottlingException", HTTPStatus: 400, Probability: 0.02})
	inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.WrongHash, Probability: 0.02})
	want := map[uint64][]byte{}
	for i := range 60 {
		size := []int{1, 100, 70 << 10, 1 << 20, 2<<20 + 1, 5 << 20, 9 << 20}[i%7]
		data := pattern(size, uint64(i))
		want[r.write(fmt.Sprintf("f%d", i), data)] = data
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r.must(r.e.Sync(ctx, nil, nil))
	for _, f := range mend {
		f()
	}
	for ino, data := range want {
		r.evict(ino)
		r.expect(ino, data)
	}
	r.wantClean(true)
}

func TestLostRepliesMakeNoSilentDuplicate(t *testing.T) {
	r := newRig(t, nil)
	r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply, Count: 1})
	ino := r.write("f", []byte("sent twice"))
	r.sync()
	r.expect(ino, []byte("sent twice"))
	list := r.archives()
	if len(list) != 1 {
		t.Fatalf("intents: %v", list)
	}
	for intent, n := range list {
		if n != 2 {
			t.Errorf("%d archives", n)
		}
		// The intent tells the second one from a foreign archive.
		r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
			_, err := tx.ArchiveByIntent(intent)
			return err
		}))
	}
	r.evict(ino)
	r.expect(ino, []byte("sent twice"))

	// Complete is asked again and gives the same archive.
	r.srv.Inject(castest.Fault{Op: cas.OpCompleteUpload, Kind: castest.LoseReply, Count: 2})
	data := pattern(3<<20, 5)
	ino = r.write("big", data)
	r.sync()
	for intent, n := range r.archives() {
		if _, before := list[intent]; !before && n != 1 {
			t.Errorf("%d archives of one upload in parts", n)
		}
	}
	r.evict(ino)
	r.expect(ino, data)
}

// An archive of other bytes than were sent is not kept beside the right one.
func TestRefusedArchiveGoesToTheTrash(t *testing.T) {
	r := newRig(t, func(o *Options) { o.TrashAge = -1 })
	r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.WrongHash, Count: 2})
	ino := r.write("f", []byte("sent three times"))
	r.sync()
	if n := r.srv.Count(cas.OpUploadArchive); n != 3 {
		t.Errorf("%d requests", n)
	}
	r.wantClean(false)
	r.wantArchives(1)
	r.evict(ino)
	r.expect(ino, []byte("sent three times"))
}

// One request in twenty fails, in every way there is, and a thousand files arrive.
func TestThousandFilesThroughFaults(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.TrashAge, o.virtualTime = -1, true
			o.PollMin, o.PollMax = time.Second, time.Minute
			o.GuardFiles, o.GuardBytes = -1, -1
		})
		defer r.close()
		faults := []castest.Fault{
			{Kind: castest.Status}, {Kind: castest.Status, Code: "ThrottlingException", HTTPStatus: 400},
			{Kind: castest.Reset}, {Kind: castest.CutRequest, Bytes: 1000}, {Kind: castest.CutReply, Bytes: 20},
			{Kind: castest.Delay, Delay: 3 * time.Second}, {Kind: castest.Corrupt, Bytes: 10}, {Kind: castest.CorruptRequest, Bytes: 50},
			{Kind: castest.WrongHash}, {Kind: castest.LoseReply},
		}
		var mend []func()
		inject := func() {
			for _, f := range faults {
				f.Op, f.Probability = "*", 0.05/float64(len(faults))
				mend = append(mend, r.srv.Inject(f))
			}
		}
		stop := func() {
			for _, f := range mend {
				f()
			}
			mend = nil
		}
		inject()
		rng := rand.New(rand.NewPCG(1, 5))
		want := map[uint64][]byte{}
		segments, parts := 0, 0
		for i := range 1000 {
			var size int
			switch {
			case i%100 == 7: // segments of 8 MiB, in parts of 1 MiB
				size = 9<<20 + rng.IntN(2<<20)
			case i%25 == 3: // parts
				size = 2<<20 + 1 + rng.IntN(1<<20)
			case i%5 == 0:
				size = 1 + rng.IntN(256<<10)
			default:
				size = 1 + rng.IntN(16<<10)
			}
			segments += (size + 8<<20 - 1) / (8 << 20)
			if size > 2<<20 {
				parts += (min(size, 8<<20) + 1<<20 - 1) >> 20
			}
			data := pattern(size, uint64(i))
			want[r.write(fmt.Sprintf("f%d", i), data)] = data
		}
		r.must(r.e.Sync(context.Background(), nil, nil))
		requests := r.srv.Count("*")
		if n := r.srv.Count(cas.OpUploadPart); n < parts {
			t.Errorf("%d parts sent, of %d", n, parts)
		}
		for ino := range want {
			r.wantState(ino, "resident")
		}
		// What a lost answer may have left at the service, the inventory finds.
		r.must(r.e.Inventory(context.Background(), "v", true, nil))
		stop() // the test's own questions are not the subject
		twice := 0
		for _, n := range r.archives() {
			twice += n - 1
		}
		_, err := r.e.Purge(context.Background(), nil)
		r.must(err)
		r.wantClean(false)
		r.wantArchives(segments)
		// They come back through the same faults.
		inject()
		_, err = r.e.Evict(context.Background(), []uint64{r.vault}, true)
		r.must(err)
		res, err := r.e.Recall(context.Background(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Wait: true}, nil)
		if err != nil || res.Local != 1000 {
			t.Errorf("recall: %+v, %v", res, err)
		}
		for ino, data := range want {
			r.expect(ino, data)
		}
		stop()
		st, err := r.e.Status(context.Background())
		r.must(err)
		if len(st.Problems) > 0 {
			t.Errorf("status: %q", st.Problems)
		}
		t.Logf("%d requests for %d archives; %d archives of lost answers were found", requests, segments, twice)
	})
}

func TestPermanentFailure(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	remove := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "AccessDeniedException", HTTPStatus: 403})
	_, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	r.writeAll(h, []byte("not allowed"), 0)
	err = r.e.Sync(ctx, nil, nil)
	if !errors.Is(err, ErrUpload) || !strings.Contains(err.Error(), "/v/f") {
		t.Errorf("sync: %v", err)
	}
	// Told once: by the next fsync or close.
	if err := h.Flush(ctx); !errors.Is(err, ErrUpload) {
		t.Errorf("flush: %v", err)
	}
	if err := h.Flush(ctx); err != nil {
		t.Errorf("second flush: %v", err)
	}
	r.must(h.Fsync(ctx, false))
	h.Release()
	st, err := r.e.Status(ctx)
	r.must(err)
	if len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "/v/f") || len(st.Uploads) != 1 || !st.Uploads[0].Permanent {
		t.Errorf("%+v", st)
	}
	s := r.wantState(h.Ino(), "uploading")
	if s.Error == "" {
		t.Errorf("%+v", s)
	}
	left, err := r.e.Drain(ctx, nil)
	if !errors.Is(err, ErrUpload) || len(left) != 1 || left[0].Error == "" {
		t.Errorf("drain: %+v, %v", left, err)
	}
	r.reopen() // remembered
	if st, err := r.e.Status(ctx); err != nil || len(st.Problems) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	remove()
	r.sync()
	if st, err := r.e.Status(ctx); err != nil || len(st.Problems) != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	r.expect(h.Ino(), []byte("not allowed"))
}

func TestModifiedWhileUploading(t *testing.T) {
	r := newRig(t, func(o *Options) { o.TrashAge = -1 })
	ctx := context.Background()
	r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: 300 * time.Millisecond})
	data := pattern(6<<20, 1)
	ino := r.write("f", data)
	for i := range 10 {
		eventually(t, func() bool { return r.stat(ino).State != "staged" })
		time.Sleep(time.Duration(i*7) * time.Millisecond)
		h, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
		r.must(err)
		patch := fmt.Appendf(nil, "patch %d", i)
		off := i * 500000
		copy(data[off:], patch)
		r.writeAll(h, patch, int64(off))
		h.Release()
		r.expect(ino, data)
	}
	r.sync()
	r.wantClean(false)
	r.evict(ino)
	r.expect(ino, data)
}

func TestResume(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Parts = 2; o.SegmentSize = 64 << 20 })
	data := pattern(12<<20, 1)
	stuck := r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: time.Hour, Skip: 8})
	ino := r.write("f", data)
	eventually(t, func() bool { return r.srv.Count(cas.OpUploadPart) == 10 })
	r.close()
	stuck()
	r.open()
	// While it is away the name changes.
	r.must(r.e.Rename(context.Background(), r.vault, "f", r.vault, "g", 0))
	r.sync()
	if n := r.srv.Count(cas.OpUploadPart); n > 16 {
		t.Errorf("%d parts sent for a file of 12, 8 of them acknowledged before the restart", n)
	}
	r.wantArchives(1)
	r.evict(ino)
	r.expect(ino, data)
}

func TestUploadExpired(t *testing.T) {
	srv := castest.New(t, local.Options{UploadLife: 1500 * time.Millisecond})
	r := &rig{t: t, srv: srv, client: srv.Client(t)}
	r.o = crashOptions(t.TempDir(), r.client)
	r.o.Logger = testLogger(t)
	r.o.Parts = 2
	r.o.StagingSize, r.o.StreamAbove, r.o.SegmentSize = 1<<30, 64<<20, 8<<20 // one upload, after the close
	_, err := r.client.CreateVault(context.Background(), "v")
	r.must(err)
	r.open()
	defer r.close()
	stuck := srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: 2 * time.Second, Skip: 3, Count: 1})
	defer stuck()
	data := pattern(6<<20, 1)
	ino := r.write("f", data)
	r.sync()
	r.wantArchives(1)
	r.evict(ino)
	r.expect(ino, data)
}

// quietly runs fn in a bubble of virtual time with an engine that settles after 30 s.
func quietly(t *testing.T, change func(*Options), fn func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Settle, o.virtualTime = 30*time.Second, true
			if change != nil {
				change(o)
			}
		})
		fn(t, r)
		r.close()
	})
}

func TestSettle(t *testing.T) {
	quietly(t, nil, func(t *testing.T, r *rig) {
		ctx := context.Background()
		uploads := func() int { return r.srv.Count(cas.OpUploadArchive) }
		ino := r.write("f", []byte("one"))
		time.Sleep(29 * time.Second)
		if uploads() != 0 {
			t.Error("uploaded before it was quiet")
		}
		r.must(r.e.Rename(ctx, r.vault, "f", r.vault, "g", 0)) // the clock starts anew
		time.Sleep(29 * time.Second)
		if uploads() != 0 {
			t.Error("uploaded after a rename")
		}
		mtime := time.Unix(1e9, 5)
		a, err := r.e.Setattr(ctx, someone, ino, nil, SetAttr{Mtime: &mtime})
		r.must(err)
		if a.Mtime != mtime.UnixNano() {
			t.Errorf("mtime %d", a.Mtime)
		}
		time.Sleep(29 * time.Second)
		if uploads() != 0 {
			t.Error("uploaded after utimens")
		}
		h, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
		r.must(err)
		time.Sleep(time.Hour)
		if n := uploads(); n != 1 {
			t.Errorf("%d uploads; an open for writing without a write delays nothing", n)
		}
		r.writeAll(h, []byte("two"), 0)
		time.Sleep(time.Hour)
		if n := uploads(); n != 1 {
			t.Errorf("%d uploads of an open file", n)
		}
		h.Release()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := uploads(); n != 2 {
			t.Errorf("%d uploads", n)
		}
		r.wantState(ino, "resident")

		// Rewritten a hundred times within the quiet time: one archive.
		for i := range 100 {
			r.write("g", fmt.Appendf(nil, "version %d", i))
			time.Sleep(10 * time.Second)
		}
		time.Sleep(time.Minute)
		if n := uploads(); n != 3 {
			t.Errorf("%d uploads after a hundred rewrites", n)
		}
	})
}

func TestRetryForEver(t *testing.T) {
	quietly(t, nil, func(t *testing.T, r *rig) {
		remove := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "ServiceUnavailableException", HTTPStatus: 500})
		ino := r.write("f", []byte("patience"))
		time.Sleep(5 * time.Hour)
		n := r.srv.Count(cas.OpUploadArchive)
		if n < 1000 || n > 5*61*6 { // one a minute, of six attempts
			t.Errorf("%d requests in five hours", n)
		}
		if s := r.wantState(ino, "uploading"); s.Error == "" {
			t.Errorf("%+v", s)
		}
		remove()
		time.Sleep(10 * time.Minute)
		r.wantState(ino, "resident")
	})
}

// Badger ticks twenty times a second, also in virtual time: hours stand for the months of real life.
func TestTrashDeadline(t *testing.T) {
	quietly(t, func(o *Options) { o.TrashAge = 4 * time.Hour }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.write("f", []byte("kept for a while"))
		time.Sleep(time.Hour)
		r.must(r.e.Unlink(ctx, r.vault, "f"))
		time.Sleep(170 * time.Minute)
		if n := r.srv.Count(cas.OpDeleteArchive); n != 0 {
			t.Errorf("%d deletions before the deadline", n)
		}
		remove := r.srv.Inject(castest.Fault{Op: cas.OpDeleteArchive, Kind: castest.Status, Code: "ServiceUnavailableException", HTTPStatus: 500})
		time.Sleep(time.Hour)
		list, err := r.e.Trash(ctx)
		r.must(err)
		if len(list) != 1 {
			t.Errorf("%d in the trash while the service does not delete", len(list))
		}
		remove()
		time.Sleep(20 * time.Minute)
		if list, err = r.e.Trash(ctx); err != nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
		r.wantArchives(0)
	})
}

// putTrash puts archives that the service does not know into the trash.
func (r *rig) putTrash(n int, deadline time.Time) {
	r.t.Helper()
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		for i := range n {
			if err := tx.PutArchive(catalog.Archive{
				Num: tx.NextID(), Vault: r.vault, VaultName: "v", ID: fmt.Sprint("x", i), State: catalog.Trash, Deadline: deadline.UnixNano(),
			}); err != nil {
				return err
			}
		}
		return nil
	})
	r.must(err)
}

// inTrash lists the trash.
func (r *rig) inTrash() (list []catalog.Archive) {
	r.t.Helper()
	r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			list = append(list, a)
		}
		return nil
	}))
	return list
}

// What is taken out of the trash while others are being deleted is not deleted: an inventory may find that a file needs it.
func TestTrashTakenBack(t *testing.T) {
	quietly(t, func(o *Options) { o.TrashAge = 4 * time.Hour }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		for _, name := range []string{"f", "g"} {
			r.write(name, []byte(name))
			r.sync()
			r.must(r.e.Unlink(ctx, r.vault, name))
			time.Sleep(time.Minute)
		}
		r.putTrash(trashBatch-1, time.Unix(0, r.inTrash()[0].Deadline+1)) // between them
		taken := 0
		synctest.Wait()
		r.e.atPoints(func(point string) {
			if point != "trash.deleted" || taken > 0 {
				return
			}
			taken++
			list := r.inTrash()
			if len(list) != trashBatch+1 {
				t.Errorf("%d archives are in the trash", len(list))
			}
			for i, a := range list {
				if may := mayLeaveTrash(a, time.Now()); may != (i == trashBatch) {
					t.Errorf("archive %s may leave the trash: %v", a.ID, may)
				}
			}
			r.must(r.e.setArchiveState(list[trashBatch].Num, catalog.Live))
		})
		n, err := r.e.Purge(ctx, nil)
		r.must(err)
		if n != trashBatch || taken != 1 {
			t.Errorf("%d are deleted, %d were taken out", n, taken)
		}
		r.wantArchives(1)
	})
}

// Nothing is asked of the service before the claim is durable, and thousands of archives do not need a barrier each.
func TestTrashClaims(t *testing.T) {
	quietly(t, nil, func(t *testing.T, r *rig) {
		const n = 2*trashBatch + 3
		synctest.Wait()
		claims := 0
		r.e.atPoints(func(point string) {
			if point != "trash.claimed" {
				return
			}
			claims++
			seq, err := r.e.catalog.Reclaim(func(*catalog.Tx) error { return nil })
			r.must(err)
			if d := r.e.catalog.Durable(); d < seq {
				t.Errorf("durable until %d of %d", d, seq)
			}
			claimed := 0
			for _, a := range r.inTrash() {
				if a.Deadline < 0 {
					claimed++
				}
			}
			if claimed == 0 || claimed > trashBatch {
				t.Errorf("%d archives are claimed", claimed)
			}
		})
		r.putTrash(n, time.Now().Add(time.Minute))
		r.e.bin.kickTrash()
		time.Sleep(2 * time.Minute)
		if claims != 3 || r.srv.Count(cas.OpDeleteArchive) != n || len(r.inTrash()) != 0 {
			t.Errorf("%d claims, %d requests, %d left", claims, r.srv.Count(cas.OpDeleteArchive), len(r.inTrash()))
		}
	})
}

// An archive that a file consists of is not deleted, though a mistake put it into the trash.
func TestTrashInUse(t *testing.T) {
	r := newRig(t, nil)
	data := []byte("in use")
	ino := r.write("f", data)
	r.sync()
	var num uint64
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		v, err := tx.Version(ino, 1)
		if err != nil {
			return err
		}
		num = v.Extents[0].Archive
		a, err := tx.Archive(num)
		if err != nil {
			return err
		}
		a.State, a.Deadline = catalog.Trash, time.Now().Add(time.Hour).UnixNano()
		return tx.PutArchive(a)
	})
	r.must(err)
	if n, err := r.e.Purge(context.Background(), nil); n != 0 || err != nil {
		t.Errorf("%d deleted, %v", n, err)
	}
	if a, err := r.e.archive(num); err != nil || a.State != catalog.Live {
		t.Errorf("%+v, %v", a, err)
	}
	r.wantArchives(1)
	r.evict(ino)
	r.expect(ino, data)
}

func TestProgress(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: 200 * time.Millisecond})
	r.write("a", pattern(5<<20, 1))
	r.write("b", pattern(100, 1))
	var last Progress
	r.must(r.e.Sync(context.Background(), []uint64{r.vault}, func(p Progress) {
		if p.BytesDone < last.BytesDone || p.FilesDone < last.FilesDone {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	}))
	if last.FilesDone != 2 || last.FilesTotal != 2 || last.BytesDone != 5<<20+100 || last.BytesTotal != 5<<20+100 {
		t.Errorf("%+v", last)
	}
}
