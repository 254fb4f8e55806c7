package jobs

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// pin sets user.cas.pin.
func (r *recallRig) pin(ino uint64, value string) error {
	return r.e.Setxattr(r.t.Context(), Caller{}, ino, "user.cas.pin", []byte(value), false, false)
}

// explain returns what casfs stat says.
func (r *recallRig) explain(ino uint64) string {
	r.t.Helper()
	s, err := r.e.Stat(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Explain
}

// TestPinnedAndTooLarge: a file that does not fit in the cache cannot be pinned; one that grew beyond it is not kept, and can be
// read all the same.
func TestPinnedAndTooLarge(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 16 << 20 })
		const size = 40 << 20
		big, _ := r.coldFile("big", size)
		if err := r.pin(big, "1"); !errors.Is(err, content.ErrNoSpace) {
			t.Errorf("pinning more than the cache: %v", err)
		}
		if s := r.explain(big); strings.Contains(s, "Pinned") {
			t.Errorf("stat: %s", s)
		}
		grew, data := r.write("grew", nil), blob("grew", size)
		if err := r.pin(grew, "1"); err != nil {
			t.Fatal(err)
		}
		if s := r.explain(grew); !strings.Contains(s, "leaves it alone") {
			t.Errorf("stat: %s", s)
		}
		h, err := r.e.Open(t.Context(), Caller{}, grew, OpenFlags{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.WriteAt(t.Context(), Caller{}, data, 0); err != nil {
			t.Fatal(err)
		}
		h.Release()
		if err := r.e.Sync(t.Context(), []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.used(); got > r.opts.CacheSize {
			t.Errorf("%d bytes in the cache", got)
		}
		if s := r.explain(grew); !strings.Contains(s, "not kept") {
			t.Errorf("stat: %s", s)
		}
		began := time.Now()
		d := r.reader(grew, data)
		d.to(size)
		d.h.Release()
		if took := time.Since(began); took > 5*time.Hour {
			t.Errorf("reading it took %v", took)
		}
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{grew}, Wait: true}, nil)
		if err != nil || res.Failed != 1 || !strings.Contains(res.Failures[0].Reason, "do not fit in the cache") {
			t.Errorf("recall: %+v, %v", res, err)
		}
		r.jobs(1)
	})
}

// TestPinsLeaveRoom: pinned files stay, as many as fit in the cache together with room for what others read. That comes, beside them,
// without a wait for room that nobody gives back; and what does not fit beside them is told.
func TestPinsLeaveRoom(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Tier = 64<<20, "expedited" })
		const n, size = 8, 4 << 20
		var pinned []uint64
		for i := range n {
			pinned = append(pinned, r.write(fmt.Sprint("p", i), blob(fmt.Sprint("p", i), size)))
		}
		data := blob("other", 10<<20)
		other := r.write("other", data)
		small := r.write("small", blob("small", 1<<20))
		if err := r.e.Sync(t.Context(), []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		for _, ino := range pinned {
			if err := r.pin(ino, "1"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.e.Evict(t.Context(), []uint64{other, small}, false); err != nil {
			t.Fatal(err)
		}
		// With a smaller cache three of them fit: 16 MiB less four pieces.
		r.opts.CacheSize = 16 << 20
		r.restart()
		began := time.Now()
		d := r.reader(other, data)
		d.to(len(data))
		d.h.Release()
		if took := time.Since(began); took > time.Hour {
			t.Errorf("reading beside pinned files took %v", took)
		}
		synctest.Wait()
		if got := r.used(); got > r.opts.CacheSize {
			t.Errorf("%d bytes in the cache", got)
		}
		kept := make(map[uint64]bool)
		for i, ino := range pinned {
			kept[ino] = r.state(ino) == "resident"
			if s := r.explain(ino); kept[ino] == strings.Contains(s, "not kept") {
				t.Errorf("file %d is %s: %s", i, r.state(ino), s)
			}
			if !kept[ino] {
				delete(kept, ino)
			}
		}
		if len(kept) != 3 {
			t.Errorf("%d pinned files are there", len(kept))
		}
		if err := r.pin(small, "1"); !errors.Is(err, content.ErrNoSpace) {
			t.Errorf("pinning one more: %v", err)
		}
		began = time.Now()
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{other, small}, Wait: true, Tier: "expedited"}, nil)
		if err != nil || res.Local != 1 || res.Failed != 1 || !strings.Contains(res.Failures[0].Reason, "pinned") {
			t.Errorf("recall: %+v, %v", res, err)
		}
		if took := time.Since(began); took > time.Hour {
			t.Errorf("the recall took %v", took)
		}
		for ino := range kept {
			if got := r.state(ino); got != "resident" {
				t.Errorf("a pinned file is %s", got)
			}
			if err := r.pin(ino, "0"); err != nil {
				t.Fatal(err)
			}
		}
		// Without them there is room again.
		if err := r.pin(small, "1"); err != nil {
			t.Error(err)
		}
		if res, err = r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{other}, Wait: true, Tier: "expedited"}, nil); err != nil || res.Local != 1 {
			t.Errorf("recall: %+v, %v", res, err)
		}
		r.want(other, data, 0, len(data))
	})
}

// TestPinnedPartsStay: of a pinned file that is local in part nothing is dropped but what a recall under way brings again.
func TestPinnedPartsStay(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize, o.Window = 16<<20, 1<<20 })
		ino, data := r.coldFile("f", 6<<20)
		if err := r.pin(ino, "1"); err != nil {
			t.Fatal(err)
		}
		if res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}, Len: 2 << 20, Wait: true}, nil); err != nil || res.Local != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		f, err := r.e.acquire(ino)
		if err != nil {
			t.Fatal(err)
		}
		defer f.put()
		f.mu.Lock()
		local := f.local
		f.mu.Unlock()
		drop := func() int64 {
			return r.e.recall.dropRanges(f, local, content.Range{Len: 6 << 20}, 1<<20, func(content.Range) bool { return true })
		}
		if n := drop(); n != 0 || !local.Verified(0, 2<<20) {
			t.Errorf("%d bytes of a pinned file were dropped", n)
		}
		if _, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{ino}}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := drop(); n != 1<<20 {
			t.Errorf("%d bytes were dropped of what comes again", n)
		}
		time.Sleep(5 * time.Hour)
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		if err := r.pin(ino, "0"); err != nil {
			t.Fatal(err)
		}
		r.want(ino, data, 0, len(data))
	})
}

// TestPinsAreKnownAtStart: what is pinned takes its size from the cache from the start on. No job is asked for what does not fit beside it.
func TestPinsAreKnownAtStart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 64 << 20 }) // four pieces of 4 MiB are nobody's
		const n, size = 8, 4 << 20
		for i := range n {
			ino := r.write(fmt.Sprint("p", i), blob(fmt.Sprint("p", i), size))
			if err := r.pin(ino, "1"); err != nil {
				t.Fatal(err)
			}
		}
		other, _ := r.coldFile("other", 20<<20)
		r.restart()
		if got := r.e.recall.pins.bytes.Load(); got != n*size {
			t.Errorf("%d bytes are pinned, want %d", got, n*size)
		}
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{other}, Wait: true}, nil)
		if err != nil || res.Failed != 1 || !strings.Contains(res.Failures[0].Reason, "beside what is pinned") {
			t.Errorf("recall: %+v, %v", res, err)
		}
		r.jobs(0)
	})
}

// TestPinsOfAnOlderState: a state directory of before pins were indexed is indexed while it is used, once.
func TestPinsOfAnOlderState(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.CacheSize = 64 << 20 })
		ino := r.write("f", blob("f", 1<<20))
		if err := r.pin(ino, "1"); err != nil {
			t.Fatal(err)
		}
		const mark = "catalog.pins"
		if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error { return tx.PutMeta(mark, nil) }); err != nil {
			t.Fatal(err)
		}
		r.restart()
		synctest.Wait()
		if err := r.e.catalog.View(func(tx *catalog.Tx) error {
			_, err := tx.Meta(mark)
			return err
		}); err != nil {
			t.Errorf("it is not indexed: %v", err)
		}
		if got := r.e.recall.pins.bytes.Load(); got != 1<<20 {
			t.Errorf("%d bytes are pinned", got)
		}
	})
}
