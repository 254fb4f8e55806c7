package jobs

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// streamRig has a staging area of 16 MiB: segments of 2 MiB, streams from 4 MiB on.
func streamRig(t *testing.T, change func(*Options)) *rig {
	return newRig(t, func(o *Options) {
		o.StagingSize = 16 << 20
		o.SegmentSize = 64 << 20
		o.TrashAge = -1
		o.Settle = time.Hour
		o.StagingWait = 20 * time.Second
		if change != nil {
			change(o)
		}
	})
}

func TestStreamThroughSmallStaging(t *testing.T) {
	r := streamRig(t, nil)
	data := pattern(100<<20+123, 1)
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	var most int64
	for off := 0; off < len(data); off += 1 << 20 {
		r.writeAll(h, data[off:min(off+1<<20, len(data))], int64(off))
		most = max(most, r.e.store.Usage().StagingBytes)
	}
	if most > 17<<20 {
		t.Errorf("%d bytes in staging", most)
	}
	mtime := time.Unix(1e9, 0)
	if _, err := r.e.Setattr(ctx, someone, a.Ino, h, SetAttr{Mtime: &mtime}); err != nil {
		t.Error(err)
	}
	if got, err := r.e.Getattr(ctx, a.Ino); err != nil || got.Size != int64(len(data)) || got.Blocks*512 > 17<<20 {
		t.Errorf("%+v, %v", got, err)
	}
	// What was dropped is not to be changed, and says so.
	if _, err := h.WriteAt(ctx, someone, []byte("x"), 5); !errors.Is(err, content.ErrPunched) {
		t.Errorf("write to what was dropped: %v", err)
	}
	h.Release()
	r.sync()
	s := r.wantState(a.Ino, "cold")
	if len(s.Archives) < 5 {
		t.Errorf("%d archives", len(s.Archives))
	}
	if got, err := r.e.Getattr(ctx, a.Ino); err != nil || got.Mtime != mtime.UnixNano() {
		t.Errorf("mtime %d, %v", got.Mtime, err)
	}
	r.expect(a.Ino, data)
	r.wantClean(false)
}

func TestStreamGoesOnAfterARestart(t *testing.T) {
	r := streamRig(t, nil)
	data := pattern(40<<20, 1)
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	r.writeAll(h, data[:25<<20], 0)
	r.close() // as a kill would: nothing is released
	r.open()
	got, err := r.e.Getattr(ctx, a.Ino)
	r.must(err)
	if got.Size != 25<<20 {
		t.Errorf("size %d", got.Size)
	}
	h, err = r.e.Open(ctx, someone, a.Ino, OpenFlags{Write: true, Append: true})
	r.must(err)
	r.writeAll(h, data[25<<20:], 25<<20)
	h.Release()
	r.sync()
	r.expect(a.Ino, data)
	r.wantClean(false)
}

func TestRewriteWhileStreaming(t *testing.T) {
	r := streamRig(t, func(o *Options) { o.StagingSize = 256 << 20; o.StreamAbove = 2 << 20; o.SegmentSize = 3 << 20 })
	r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Delay, Delay: 5 * time.Millisecond})
	r.srv.Inject(castest.Fault{Op: cas.OpCompleteUpload, Kind: castest.Delay, Delay: 20 * time.Millisecond})
	data := pattern(30<<20, 1)
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	for i := range 30 {
		r.writeAll(h, data[i<<20:(i+1)<<20], int64(i)<<20)
		time.Sleep(5 * time.Millisecond)
		// Something written before changes: in the vault, on its way, or not yet.
		off := (i * 7919 * 1013) % ((i + 1) << 20)
		patch := bytes.Repeat([]byte{byte(i)}, min(1000, len(data)-off))
		copy(data[off:], patch)
		r.writeAll(h, patch, int64(off))
	}
	eventually(t, func() bool { return r.srv.Count(cas.OpCompleteUpload) > 3 })
	h.Release()
	r.expect(a.Ino, data)
	r.sync()
	r.wantState(a.Ino, "resident")
	r.expect(a.Ino, data)
	r.evict(a.Ino)
	r.expect(a.Ino, data)
	r.wantClean(false)
}

func TestTruncateWhatIsStreamed(t *testing.T) {
	r := streamRig(t, nil)
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	r.writeAll(h, pattern(40<<20, 1), 0)
	short := int64(1000)
	if _, err := r.e.Setattr(ctx, someone, a.Ino, h, SetAttr{Size: &short}); !errors.Is(err, content.ErrPunched) {
		t.Errorf("truncation into what was dropped: %v", err)
	}
	short = 0
	_, err = r.e.Setattr(ctx, someone, a.Ino, h, SetAttr{Size: &short})
	r.must(err)
	data := pattern(3<<20, 2)
	r.writeAll(h, data, 0)
	h.Release()
	r.sync()
	r.expect(a.Ino, data)
	r.wantClean(false)
	// Sync has only seen the record, perhaps.
	eventually(t, func() bool { return r.e.store.Usage().StagingBytes == 0 })
}

func TestStreamsDeletedWhileOpen(t *testing.T) {
	r := streamRig(t, nil)
	ctx := context.Background()
	_, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
	r.must(err)
	data := pattern(20<<20, 1)
	r.writeAll(h, data, 0)
	r.must(r.e.Unlink(ctx, r.vault, "f"))
	h.Release()
	r.wantClean(false)
	r.wantArchives(0)
}

// Many writers fill the staging area together, none of them with a segment.
func TestManyStreams(t *testing.T) {
	r := streamRig(t, nil)
	ctx := context.Background()
	const n = 8
	datas := make([][]byte, n)
	inos := make([]uint64, n)
	done := make(chan error, n)
	for i := range n {
		datas[i] = pattern(6<<20, uint64(i))
		a, h, err := r.e.Create(ctx, someone, r.vault, string(rune('a'+i)), 0o644, OpenFlags{Write: true})
		r.must(err)
		inos[i] = a.Ino
		go func() {
			defer h.Release()
			for off := 0; off < len(datas[i]); off += 256 << 10 {
				if _, err := h.WriteAt(ctx, someone, datas[i][off:off+256<<10], int64(off)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range n {
		r.must(<-done)
	}
	r.sync()
	for i := range n {
		r.expect(inos[i], datas[i])
	}
	r.wantClean(false)
}

// What comes between the record of a streamed file's archives and the end of its staging file finds the
// vault's bytes, and builds nothing on a file that is about to go.
func TestStreamIsReadWhileItIsCommitted(t *testing.T) {
	r := streamRig(t, nil)
	data := pattern(40<<20+5, 3)
	var ino uint64
	reads := 0
	removed := make(chan struct{})
	r.e.atPoints(func(point string) {
		switch {
		case point == "committed" && ino != 0 && reads == 0:
			reads++
			r.expect(ino, data)
		case point == "stream.removed":
			close(removed)
		}
	})
	ino = r.write("f", data)
	r.sync()
	<-removed // Sync has only seen the record
	if reads != 1 {
		t.Fatalf("%d reads at the point", reads)
	}
	r.expect(ino, data)
	r.wantClean(false)
	r.reopen()
	r.expect(ino, data)
}
