package jobs

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
)

// Parts may be sent while the staging file is written out, but nothing may become an archive before that is over: after a
// power loss other bytes could go under the same intent. And of a file that somebody has open for writing nothing is
// read before: he may have it mapped.
func TestWhatIsSentBeforeItIsDurable(t *testing.T) {
	t.Parallel()
	type limits struct {
		open  bool
		size  int
		parts int      // have to arrive while the file is still being written out
		not   []string // points that may not be passed before it is
	}
	for name, x := range map[string]limits{
		"parts":          {size: 3<<20 + 1, parts: 4, not: []string{"multipart.completing", "multipart.completed", "sent"}},
		"segments":       {size: 17 << 20, parts: 8, not: []string{"multipart.completing", "segment.recorded", "sent"}},
		"one request":    {size: 1 << 20, not: []string{"single.read", "single.answered", "sent"}},
		"open, parts":    {open: true, size: 3<<20 + 1, not: []string{"multipart.initiated", "multipart.part", "sent"}},
		"open, one call": {open: true, size: 1 << 20, not: []string{"single.read", "sent"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.virtualTime = true })
				defer r.close()
				data := pattern(x.size, 7)
				var durable atomic.Bool
				r.e.atPoints(func(point string) {
					if point == "sealed.syncing" {
						time.Sleep(time.Hour) // passes when nobody else has anything left to do
						if n := r.srv.Count(cas.OpUploadPart); n != x.parts {
							t.Errorf("%d parts had arrived, want %d", n, x.parts)
						}
						durable.Store(true)
					}
					if slices.Contains(x.not, point) && !durable.Load() {
						t.Errorf("%s before the bytes were durable", point)
					}
				})
				a, h, err := r.e.Create(bg, someone, r.vault, "f", 0o644, OpenFlags{Read: true, Write: true})
				r.must(err)
				r.writeAll(h, data, 0)
				if !x.open {
					h.Release()
				}
				r.must(r.e.Sync(bg, nil, nil))
				if x.open {
					h.Release()
				}
				if !durable.Load() {
					t.Fatal("nothing was written out")
				}
				r.wantState(a.Ino, "resident")
				r.evict(a.Ino)
				r.expect(a.Ino, data)
			})
		})
	}
}

// What cannot be written out is not archived, even when all of its parts have arrived.
func TestWhatCannotBeWrittenOutIsNotArchived(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour }) // Sync says when
	ino := r.write("f", pattern(3<<20, 1))
	f, err := r.e.acquire(ino)
	r.must(err)
	defer f.put()
	f.mu.Lock()
	local := f.local
	f.mu.Unlock()
	var once sync.Once
	failed := make(chan struct{})
	r.e.atPoints(func(point string) {
		if point == "sealed.syncing" {
			once.Do(func() {
				eventually(t, func() bool { return r.srv.Count(cas.OpUploadPart) >= 3 })
				local.Close() // what fails now is the fsync
			})
		}
	})
	ctx, cancel := context.WithCancel(bg)
	go func() {
		defer close(failed)
		eventually(t, func() bool { return r.stat(ino).Error != "" })
		cancel()
	}()
	if err := r.e.Sync(ctx, nil, nil); err == nil {
		t.Error("sync says that it is archived")
	}
	<-failed
	if n := r.srv.Count(cas.OpCompleteUpload); n != 0 {
		t.Errorf("%d uploads completed", n)
	}
	if s := r.stat(ino); s.State == "resident" {
		t.Errorf("the file is %s", s.State)
	}
}

// The same goes for a segment of a file that is still being written: what is left of it here would count as a copy.
func TestWhatCannotBeWrittenOutIsNotStreamed(t *testing.T) {
	r := streamRig(t, nil)
	a, h, err := r.e.Create(bg, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	defer h.Release()
	f, err := r.e.acquire(a.Ino)
	r.must(err)
	defer f.put()
	f.mu.Lock()
	local := f.local
	f.mu.Unlock()
	var parts atomic.Int64
	written := make(chan struct{})
	end := sync.OnceFunc(func() { close(written) })
	defer end()
	r.e.atPoints(func(point string) {
		if point == "stream.part" && parts.Add(1) == 2 { // a segment
			<-written     // else it is the writer who fails
			local.Close() // what fails now is the fsync
		}
	})
	r.writeAll(h, pattern(5<<20, 1), 0)
	end()
	eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.stream != nil && f.stream.tries > 0 || r.srv.Count(cas.OpCompleteUpload) > 0
	})
	if n := r.srv.Count(cas.OpCompleteUpload); n != 0 {
		t.Errorf("%d uploads completed", n)
	}
}

// Nor is a version archived before that all of whose segments are in the vault already.
func TestNothingIsLeftToSendButToWriteOut(t *testing.T) {
	r := newRig(t, nil)
	data := pattern(9<<20, 1) // two segments
	ino := r.write("f", data)
	var sent, synced atomic.Int64
	var once sync.Once
	var h *Handle
	r.e.atPoints(func(point string) {
		switch point {
		case "sent":
			once.Do(func() { // all is sent, and the file grows and shrinks again
				var err error
				h, err = r.e.Open(bg, someone, ino, OpenFlags{Write: true})
				r.must(err)
				r.writeAll(h, []byte("x"), int64(len(data)))
				size := int64(len(data))
				_, err = r.e.Setattr(bg, someone, ino, h, SetAttr{Size: &size})
				r.must(err)
				h.Release()
			})
			if n := sent.Add(1); n == 2 && synced.Load() < 2 {
				t.Error("committed before it is written out")
			}
		case "sealed.syncing":
			time.Sleep(300 * time.Millisecond)
			synced.Add(1)
		}
	})
	r.sync()
	if sent.Load() != 2 {
		t.Errorf("%d commits: this tests nothing", sent.Load())
	}
	if n := r.srv.Count(cas.OpCompleteUpload) + r.srv.Count(cas.OpUploadArchive); n != 2 {
		t.Errorf("%d archives made: this tests nothing", n)
	}
	r.wantState(ino, "resident")
	r.expect(ino, data)
}
