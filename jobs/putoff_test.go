package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// stagingFile returns the only staging file.
func (r *rig) stagingFile() string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.o.StateDir, "staging", "*", "*"))
	r.must(err)
	if len(files) != 1 {
		r.t.Fatalf("staging files: %v", files)
	}
	return files[0]
}

// uploaded waits for ino to be archived, with nobody who asks for it.
func (r *rig) uploaded(ino uint64) {
	r.t.Helper()
	for range 3000 {
		if r.stat(ino).State == "resident" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s := r.stat(ino)
	_, _, task := r.e.up.active(ino)
	r.e.settle.mu.Lock()
	_, due := r.e.settle.items[ino]
	r.e.settle.mu.Unlock()
	r.t.Fatalf("%s is %s (%s); a task for it: %v, a time: %v", s.Path, s.State, s.Explain, task, due)
}

// A version that was sealed before a power loss took bytes of it becomes another one when its upload goes on, and that
// one is uploaded, too.
func TestSealedVersionThatLostBytesIsUploaded(t *testing.T) {
	r := newRig(t, nil)
	r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "AccessDeniedException", HTTPStatus: 403, Count: 1})
	data := pattern(300<<10, 1)
	ino := r.write("f", data)
	eventually(t, func() bool { s, _, ok := r.e.up.active(ino); return ok && s == taskWaiting })
	r.close()
	r.must(os.Truncate(r.stagingFile(), 200<<10))
	r.open()
	r.uploaded(ino)
	r.expect(ino, data[:200<<10])
}

// So does one that a mapping has stored to between two attempts, and nobody has it open any more but for that.
func TestStoreBetweenTwoAttemptsIsUploaded(t *testing.T) {
	r := newRig(t, nil)
	data := pattern(300<<10, 1)
	ino := r.write("f", data)
	r.sync()
	ctx := context.Background()
	reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
	r.must(err)
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	if h.Fd() < 0 {
		t.Fatal("the kernel does not have the descriptor")
	}
	mapping, err := os.Open(r.stagingFile()) // what the kernel holds for a mapping
	r.must(err)
	store := func(off int64, text string) {
		t.Helper()
		if _, err := unix.Pwrite(h.Fd(), []byte(text), off); err != nil {
			t.Fatal(err)
		}
		copy(data[off:], text)
	}
	fault := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "AccessDeniedException", HTTPStatus: 403})
	store(1000, "before the first attempt")
	h.Release()
	eventually(t, func() bool { s, _, ok := r.e.up.active(ino); return ok && s == taskWaiting })
	store(2000, "before the second")
	fault()
	r.e.settle.retry(ino, time.Now())
	eventually(t, func() bool { _, _, ok := r.e.up.active(ino); return !ok })
	mapping.Close()
	reader.Release()
	r.uploaded(ino)
	eventually(t, func() bool { // the mapping has gone, and that is seen a moment later
		res, err := r.e.Evict(ctx, []uint64{ino}, false)
		r.must(err)
		return len(res.Skipped) == 0
	})
	r.expect(ino, data)
}

// A truncation that fails after it has made a new version, since the disk is full by then, leaves a version that is uploaded.
func TestVersionOfAFailedTruncationIsUploaded(t *testing.T) {
	r := newRig(t, nil)
	ino := r.write("f", pattern(1000, 1))
	r.sync()
	r.close()
	r.openWith(func(e *Engine) bool { return false })
	e := r.e
	r.e = nil
	e.atPoints(func(p string) {
		if p == "supersede.recorded" {
			r.must(e.catalog.Close()) // nothing can be recorded from now on
		}
	})
	size := int64(10)
	if _, err := e.Setattr(bg, someone, ino, nil, SetAttr{Size: &size}); !errors.Is(err, catalog.ErrClosed) {
		t.Fatal(err)
	}
	e.settle.mu.Lock()
	_, due := e.settle.items[ino]
	e.settle.mu.Unlock()
	if !due {
		t.Error("nothing will upload it")
	}
	r.must(e.store.Close())
	r.open()
	r.uploaded(ino)
}

// O_RDONLY|O_TRUNC changes the file as well: its size is known after the close, and it is uploaded.
func TestTruncatedByAReader(t *testing.T) {
	for _, archived := range []bool{false, true} {
		r := newRig(t, func(o *Options) {
			if !archived {
				o.Settle = time.Hour
			}
		})
		ino := r.write("f", []byte("some bytes"))
		if archived {
			r.sync()
		}
		h, err := r.e.Open(bg, someone, ino, OpenFlags{Read: true, Truncate: true})
		r.must(err)
		h.Release()
		r.expect(ino, nil)
		if archived {
			r.uploaded(ino)
		}
	}
}
