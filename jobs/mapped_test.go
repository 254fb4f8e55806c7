package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
)

// Stores through a shared mapping come past the engine, also when the file was archived meanwhile (casfs sync) under
// the hands of whoever has it mapped: they are part of the file, and what fsync has acknowledged stays.
func TestStoresIntoAMappedFileThatWasSynced(t *testing.T) {
	for name, end := range map[string]func(r *rig, h *Handle){
		"closed": func(r *rig, h *Handle) { h.Release() },
		"synced, and killed": func(r *rig, h *Handle) {
			r.must(h.Fsync(context.Background(), false))
			r.reopen() // nothing is released
		},
		"synced, and synced into the vault": func(r *rig, h *Handle) {
			r.must(h.Fsync(context.Background(), false))
			r.must(r.e.Sync(context.Background(), nil, nil))
			h.Release()
		},
		"synced into the vault": func(r *rig, h *Handle) {
			r.must(r.e.Sync(context.Background(), nil, nil))
			h.Release()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Settle = time.Hour })
			ctx := context.Background()
			data := pattern(300<<10, 1)
			ino := r.write("f", data)
			r.sync()
			reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
			r.must(err)
			h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
			r.must(err)
			if h.Fd() < 0 {
				t.Fatal("the kernel does not have the descriptor")
			}
			store := func(off int64, text string) {
				t.Helper()
				// As a store through a mapping: the local file and its mtime, and nobody is told.
				if _, err := unix.Pwrite(h.Fd(), []byte(text), off); err != nil {
					t.Fatal(err)
				}
				copy(data[off:], text)
			}
			store(1000, "before it was synced")
			r.sync()
			r.wantState(ino, "resident")
			// Once more, and nothing is sent.
			n := len(r.archives())
			r.sync()
			if now := len(r.archives()); now != n {
				t.Errorf("%d archives after another sync, %d before", now, n)
			}
			if left, err := r.e.Drain(ctx, nil); err != nil || len(left) > 0 {
				t.Errorf("drain: %v, %v", left, err)
			}
			store(2000, "after it was synced")
			end(r, h)
			if name != "synced, and killed" {
				reader.Release()
			}
			r.expect(ino, data)
			r.sync()
			r.wantState(ino, "resident")
			r.evict(ino)
			r.expect(ino, data)
		})
	}
}

// smallDisk mounts a file system of 400 MiB.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size=400m"); err != nil {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fillDisk leaves so many bytes free on it.
func fillDisk(t *testing.T, dir string, left int64) {
	t.Helper()
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left); err != nil {
		t.Fatal(err)
	}
}

// The same when the disk is so full that the catalog records what was archived, and nothing else.
func TestStoresIntoAMappedFileOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	r := newRig(t, func(o *Options) { o.Settle, o.StateDir = time.Hour, filepath.Join(dir, "state") })
	ctx := context.Background()
	data := pattern(300<<10, 1)
	ino := r.write("f", data)
	r.sync()
	reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
	r.must(err)
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	store := func(off int64, text string) {
		t.Helper()
		if _, err := unix.Pwrite(h.Fd(), []byte(text), off); err != nil {
			t.Fatal(err)
		}
		copy(data[off:], text)
	}
	store(1000, "before it was archived")

	fillDisk(t, dir, 40<<20)
	changes := func() error {
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error { return tx.PutMeta("test", []byte{1}) })
		return err
	}
	eventually(t, func() bool { return errors.Is(changes(), catalog.ErrNoSpace) })
	r.e.up.enqueue(ino)
	eventually(t, func() bool {
		_, _, busy := r.e.up.active(ino)
		return !busy
	})
	var v catalog.Version
	r.must(r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		v, err = tx.Version(ino, 2)
		return err
	}))
	if v.State != catalog.Archived {
		t.Fatalf("%+v", v)
	}
	store(2000, "after it was archived")
	r.must(os.Remove(filepath.Join(dir, "filler")))
	eventually(t, func() bool { return changes() == nil })
	h.Release()
	reader.Release()
	r.expect(ino, data)
	r.sync()
	r.evict(ino)
	r.expect(ino, data)
}

// A segment that is in the vault is no good any more when something was stored into it past the engine, whatever else changes first.
func TestStoresIntoASegmentThatWasSent(t *testing.T) {
	for name, late := range map[string]bool{"before a write": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Settle = time.Hour })
			data := pattern(20<<20, 1) // three segments
			ino := r.write("f", data)
			var once sync.Once
			r.e.atPoints(func(point string) {
				if point != "segment.recorded" {
					return
				}
				once.Do(func() {
					reader, err := r.e.Open(bg, someone, ino, OpenFlags{Read: true})
					r.must(err)
					h, err := r.e.Open(bg, someone, ino, OpenFlags{Read: true, Write: true})
					r.must(err)
					if h.Fd() < 0 {
						t.Error("the kernel does not have the descriptor")
					}
					store := func() {
						_, err := unix.Pwrite(h.Fd(), []byte("stored"), 1000)
						r.must(err)
						copy(data[1000:], "stored")
					}
					if !late {
						store()
					}
					r.writeAll(h, []byte("written"), 18<<20)
					copy(data[18<<20:], "written")
					if late {
						store()
					}
					h.Release()
					reader.Release()
				})
			})
			r.sync()
			r.wantState(ino, "resident")
			r.expect(ino, data)
			r.evict(ino)
			r.expect(ino, data)
		})
	}
}
