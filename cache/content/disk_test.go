package content

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func fill(t testing.TB, dir string, leave int64) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	name := filepath.Join(dir, "filler")
	must(t, os.WriteFile(name, make([]byte, int64(st.Bavail)*st.Bsize-leave), 0o600))
	return name
}

// The file system itself is full, whatever the limits say: writes wait for room, fail
// cleanly, keep what was written, and go on when somebody made room.
func TestRealFullDisk(t *testing.T) {
	dir := smallDisk(t, "16m")
	s, err := Open(Options{StateDir: dir, StagingLimit: 1 << 40, CacheLimit: 1 << 40, MinFree: -1, StagingWait: 3 * time.Second})
	must(t, err)
	defer s.Close()
	f := staged(t, s, 1, random(4*mib, 1))
	defer f.Close()
	g, err := s.CreateStaging(2)
	must(t, err)
	defer g.Close()
	part, err := s.CreateContent(3, 2*mib)
	must(t, err)
	defer part.Close()
	must(t, part.WriteVerified(random(mib, 3), 0))
	filler := fill(t, dir, mib)

	data := random(2*mib, 2)
	n, err := g.WriteAt(bg, data, 0)
	wantErr(t, err, ErrNoSpace)
	wantErr(t, err, unix.ENOSPC)
	if n <= 0 || n >= len(data) {
		t.Errorf("%d bytes written", n)
	}
	got := make([]byte, n)
	_, err = g.ReadAt(got, 0)
	must(t, err)
	same(t, got, data[:n])
	if err := part.WriteVerified(random(mib, 4), mib); !errors.Is(err, ErrNoSpace) {
		t.Errorf("content on a full disk: %v", err)
	}
	if part.Verified(mib, 1) || !part.Verified(0, mib) {
		t.Error("verified after failure")
	}
	u := s.Usage()
	sameFootprint(t, dir, allocated(t, dir), u.StagingBytes+u.CacheBytes)
	// Somebody who waits goes on at the next look.
	s.stagingWait = time.Minute
	done := make(chan error, 1)
	go func() {
		_, err := g.WriteAt(bg, data[n:], int64(n))
		done <- err
	}()
	eventually(t, "a writer waits", func() bool { return s.Usage().Throttled > 0 })
	must(t, os.Remove(filler))
	must(t, <-done)
	same(t, contents(t, g), data)
	must(t, part.WriteVerified(random(mib, 4), mib))

	// On a full disk, dropping what was uploaded still works, and makes room.
	filler = fill(t, dir, 0)
	must(t, f.DropUploaded(0, mib))
	_, err = g.WriteAt(bg, make([]byte, mib/2), 2*mib)
	must(t, err)
	must(t, os.Remove(filler))
	filler = fill(t, dir, 0)
	must(t, part.Drop(0, mib))
	must(t, os.Remove(filler))
	// New files are refused cleanly when there are no inodes or blocks for them.
	if e, err := s.Stat(2); err != nil || e.Size != 2*mib+mib/2 {
		t.Errorf("%+v %v", e, err)
	}
}

// The floor: staging evicts content when the file system is short, then waits; nothing goes below it.
func TestFloor(t *testing.T) {
	dir := smallDisk(t, "32m")
	const floor = 8 * mib
	var s *Store
	var evicted atomic.Int32
	s, err := Open(Options{
		StateDir: dir, StagingLimit: 1 << 40, CacheLimit: 1 << 40, MinFree: floor, StagingWait: 200 * time.Millisecond,
		Evict: func(id uint64) error { defer evicted.Add(1); return s.Remove(id) },
	})
	must(t, err)
	defer s.Close()
	for id := uint64(1); id <= 8; id++ {
		f, err := s.CreateContent(id, mib)
		must(t, err)
		must(t, f.WriteVerified(make([]byte, mib), 0))
		must(t, f.Close())
	}
	var lowest atomic.Int64
	lowest.Store(1 << 40)
	var full atomic.Int32
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			f, err := s.CreateStaging(uint64(100 + w))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for off := int64(0); off < 16*mib; {
				_, err := f.WriteAt(bg, make([]byte, 256<<10), off)
				var st unix.Statfs_t
				if unix.Statfs(dir, &st) == nil {
					if free := int64(st.Bavail) * st.Bsize; free < lowest.Load() {
						lowest.Store(free)
					}
				}
				switch {
				case err == nil:
					off += 256 << 10
				case !errors.Is(err, ErrNoSpace):
					t.Error(err)
					return
				case evicted.Load() == 8: // else the disk was slower than the writer is patient
					full.Add(1)
					return
				}
			}
		})
	}
	wg.Wait()
	if evicted.Load() != 8 || full.Load() != 4 {
		t.Errorf("%d evicted, %d writers told", evicted.Load(), full.Load())
	}
	if lowest.Load() < floor || lowest.Load() > floor+mib {
		t.Errorf("free space went down to %d, the floor is %d", lowest.Load(), floor)
	}
	_, err = s.ReserveContent(bg, mib)
	wantErr(t, err, ErrNoSpace)
}

// Without a disk to fill: the kernel's refusal is injected.
func TestInjectedFullDisk(t *testing.T) {
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO} {
		s := openStore(t, Options{StagingWait: 50 * time.Millisecond})
		f, err := s.CreateStaging(1)
		must(t, err)
		left := 3
		s.hook = func(step string) error {
			if step == "write" {
				if left--; left < 0 {
					return errno
				}
			}
			return nil
		}
		var n int
		for range 5 {
			n, err = f.WriteAt(bg, make([]byte, mib), 0)
			if err != nil {
				break
			}
		}
		wantErr(t, err, errno)
		if errors.Is(err, ErrNoSpace) != (errno != unix.EIO) || n != 0 {
			t.Errorf("%d, %v", n, err)
		}
		ctx, cancel := context.WithCancel(bg)
		cancel()
		_, err = f.WriteAt(ctx, make([]byte, mib), 2*mib)
		if errno == unix.EIO {
			wantErr(t, err, errno)
		} else {
			wantErr(t, err, context.Canceled)
		}
		s.hook = nil
		_, err = f.WriteAt(bg, make([]byte, mib), 2*mib)
		must(t, err)
		must(t, f.Close())
		if u := s.Usage(); u.StagingBytes != 2*mib {
			t.Errorf("%+v", u)
		}
	}
}

// otherDisk returns a directory on another file system than dir.
func otherDisk(t *testing.T, dir string) string {
	t.Helper()
	var a, b unix.Stat_t
	must(t, unix.Stat(dir, &a))
	if other, err := os.MkdirTemp("/dev/shm", "content"); err == nil {
		t.Cleanup(func() { os.RemoveAll(other) })
		if unix.Stat(other, &b) == nil && a.Dev != b.Dev {
			return other
		}
	}
	return smallDisk(t, "64m")
}

func TestCacheOnAnotherFileSystem(t *testing.T) {
	dir := t.TempDir()
	o := Options{StateDir: dir, CacheDir: otherDisk(t, dir)}
	s := openStore(t, o)
	data := random(2*mib+5, 1)
	// Promoted files stay.
	f := staged(t, s, 1, data)
	must(t, s.Promote(1))
	if f.Moves() {
		t.Error("moves")
	}
	must(t, f.Close())
	if _, err := os.Stat(filepath.Join(dir, "content/01/0000000000000001")); err != nil {
		t.Error(err)
	}
	// Recalled ones are in CacheDir.
	f, err := s.CreateContent(2, int64(len(data)))
	must(t, err)
	must(t, f.WriteVerified(data, 0))
	if _, err := os.Stat(filepath.Join(o.CacheDir, "content/02/0000000000000002")); err != nil {
		t.Error(err)
	}
	if !f.Moves() {
		t.Error("does not move")
	}
	fd := f.Fd()
	// Demoted it must be on StateDir; File and descriptor go on working.
	must(t, s.Demote(2))
	if f.Kind() != Staging || f.Moves() {
		t.Error("not staging")
	}
	_, err = f.WriteAt(bg, []byte("new"), 1)
	must(t, err)
	p := make([]byte, 5)
	_, err = unix.Pread(fd, p, 0)
	must(t, err)
	same(t, p, data[:5])
	want := bytes.Clone(data)
	copy(want[1:], "new")
	same(t, contents(t, f), want)
	must(t, f.Sync())
	must(t, f.Close())
	if got := allocated(t, o.CacheDir); got != 0 {
		t.Errorf("%d bytes stay in the cache", got)
	}
	must(t, s.Close())
	s = openStore(t, o)
	for id, data := range map[uint64][]byte{1: data, 2: want} {
		must(t, withFile(s, id, func(f *File) error { same(t, contents(t, f), data); return nil }))
	}
	u := s.Usage()
	sameFootprint(t, dir, allocatedOf(t, s), u.StagingBytes+u.CacheBytes)
}

// Staging and content on different file systems, by a mount or by a link: archived files could not leave staging.
func TestStagingOnAnotherFileSystem(t *testing.T) {
	for _, name := range []string{"staging", "content"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, Options{StateDir: dir})
			must(t, staged(t, s, 1, random(mib, 1)).Close())
			must(t, s.Close())
			// As somebody does who wants it on a larger disk.
			other := otherDisk(t, dir)
			must(t, os.CopyFS(filepath.Join(other, name), os.DirFS(filepath.Join(dir, name))))
			must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, "old")))
			must(t, os.Symlink(filepath.Join(other, name), filepath.Join(dir, name)))
			_, err := Open(Options{StateDir: dir})
			if err == nil {
				t.Fatal("opened")
			}
			for _, want := range []string{filepath.Join(dir, "staging"), filepath.Join(dir, "content"), "different file systems"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			// Put right, it opens with everything.
			must(t, os.Remove(filepath.Join(dir, name)))
			must(t, os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(other, name))))
			s = openStore(t, Options{StateDir: dir})
			if list := s.List(); len(list) != 1 || list[0].Size != mib {
				t.Errorf("%v", list)
			}
			must(t, s.Close())
		})
	}
}

// Every step of a Demote that copies.
func TestKilledWhileCopying(t *testing.T) {
	for k := 0; ; k++ {
		dir := t.TempDir()
		o := Options{StateDir: dir, CacheDir: otherDisk(t, dir)}
		s := openStore(t, o)
		setupContent(t, s)
		step := interrupted(t, s, k, func(s *Store) error { return s.Demote(1) }, func() {})
		abandon(t, o.StateDir)
		abandon(t, o.CacheDir)
		s = openStore(t, o)
		keepsPromise(t, s, crashData, false)
		must(t, s.Demote(1))
		if e := keepsPromise(t, s, crashData, false); e.Kind != Staging || !e.Complete {
			t.Errorf("%+v", e)
		}
		must(t, s.Close())
		s = openStore(t, o)
		keepsPromise(t, s, crashData, false)
		must(t, s.Close())
		if step == "" {
			if k < 4 {
				t.Errorf("%d steps", k)
			}
			return
		}
	}
}

// A cache directory elsewhere on the same file system: no copying either way.
func TestCacheBesideState(t *testing.T) {
	dir := t.TempDir()
	o := Options{StateDir: filepath.Join(dir, "state"), CacheDir: filepath.Join(dir, "cache")}
	s := openStore(t, o)
	f := staged(t, s, 1, random(mib, 1))
	must(t, s.Promote(1))
	if _, err := os.Stat(filepath.Join(o.CacheDir, "content/01/0000000000000001")); err != nil {
		t.Error(err)
	}
	if f.Moves() {
		t.Error("moves")
	}
	must(t, s.Demote(1))
	must(t, f.Close())
	must(t, s.Promote(1))
	must(t, s.Close())
	// Without CacheDir its files are not seen, but nothing is lost.
	s = openStore(t, Options{StateDir: o.StateDir})
	if len(s.List()) != 0 {
		t.Error(s.List())
	}
	must(t, s.Close())
	s = openStore(t, o)
	if len(s.List()) != 1 {
		t.Error(s.List())
	}
}
