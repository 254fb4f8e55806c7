package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/noise"
)

var bg = context.Background()

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.StateDir == "" {
		o.StateDir = memDir(t)
	}
	if o.MinFree == 0 {
		o.MinFree = -1
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// memDir returns a directory in memory where there is one: for tests that are not about the disk.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "content-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sameFootprint compares allocation with what is charged. Disk file systems allocate
// blocks of their own for a file's map, some of them only at writeback.
func sameFootprint(t testing.TB, dir string, disk, charged int64) {
	t.Helper()
	slack := int64(64 << 10)
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC {
		slack = 0
	}
	if disk < charged-slack || disk > charged+slack {
		t.Errorf("%d bytes on disk, %d charged", disk, charged)
	}
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not so after a minute: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func random(n int, seed uint64) []byte {
	return noise.Bytes(n, seed)
}

func staged(t testing.TB, s *Store, id uint64, p []byte) *File {
	t.Helper()
	f, err := s.CreateStaging(id)
	must(t, err)
	n, err := f.WriteAt(bg, p, 0)
	must(t, err)
	if n != len(p) {
		t.Fatalf("wrote %d of %d", n, len(p))
	}
	return f
}

func contents(t testing.TB, f *File) []byte {
	t.Helper()
	size, err := f.Size()
	must(t, err)
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); err != nil || int64(n) != size {
		t.Fatalf("read %d of %d: %v", n, size, err)
	}
	return p
}

func same(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("bytes differ (%d and %d of them)", len(got), len(want))
	}
}

func TestStagingToContentAndBack(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	data := random(300_000, 1)
	f := staged(t, s, 0x1234, data)
	mtime := time.Unix(1_600_000_000, 123_456_789)
	must(t, f.SetMtime(mtime))
	must(t, f.Sync())
	if got, _ := f.Mtime(); !got.Equal(mtime) {
		t.Errorf("mtime %v, want %v", got, mtime)
	}
	if f.Kind() != Staging {
		t.Error("not staging")
	}
	must(t, s.Promote(0x1234))
	must(t, s.Promote(0x1234))
	if f.Kind() != Content || !f.Verified(0, 300_000) {
		t.Error("not verified content")
	}
	if _, err := os.Stat(filepath.Join(dir, "content/34/0000000000001234")); err != nil {
		t.Error(err)
	}
	_, err := f.WriteAt(bg, data, 0)
	wantErr(t, err, ErrWrongKind)
	u := s.Usage()
	if u.StagingBytes != 0 || u.CacheBytes < 300_000 {
		t.Errorf("usage %+v", u)
	}
	must(t, s.Demote(0x1234))
	must(t, s.Demote(0x1234))
	_, err = f.WriteAt(bg, []byte("x"), 5)
	must(t, err)
	data[5] = 'x'
	same(t, contents(t, f), data)
	must(t, f.Close())
	must(t, s.Close())

	s = openStore(t, Options{StateDir: dir})
	l := s.List()
	if len(l) != 1 || l[0].ID != 0x1234 || l[0].Kind != Staging || l[0].Size != 300_000 || !l[0].Complete {
		t.Fatalf("%+v", l)
	}
	f, err = s.Open(0x1234)
	must(t, err)
	same(t, contents(t, f), data)
	must(t, s.Remove(0x1234))
	same(t, contents(t, f), data)
	if s.Usage().StagingBytes < 300_000 {
		t.Error("an open removed file is not charged")
	}
	must(t, f.Close())
	if u := s.Usage(); u.StagingBytes != 0 || u.CacheBytes != 0 {
		t.Errorf("usage %+v", u)
	}
	_, err = s.Open(0x1234)
	wantErr(t, err, ErrNotExist)
	wantErr(t, f.Close(), os.ErrClosed)
	_, err = f.ReadAt(data, 0)
	wantErr(t, err, os.ErrClosed)
}

func TestWriteVerified(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	data := random(3*mib+777, 2)
	release, err := s.ReserveContent(bg, int64(len(data)))
	must(t, err)
	f, err := s.CreateContent(7, int64(len(data)))
	must(t, err)
	must(t, f.WriteVerified(data[mib:2*mib], mib))
	must(t, f.WriteVerified(data[3*mib:], 3*mib))
	for _, c := range []struct {
		off, n int64
		want   bool
	}{{0, 1, false}, {mib, mib, true}, {mib, mib + 1, false}, {3 * mib, 777, true}, {3 * mib, mib, true}, {2 * mib, 1, false}} {
		if got := f.Verified(c.off, c.n); got != c.want {
			t.Errorf("Verified(%d, %d) = %v", c.off, c.n, got)
		}
	}
	_, err = f.ReadVerified(make([]byte, 10), 0)
	wantErr(t, err, ErrNotVerified)
	must(t, f.Close())
	must(t, s.Close())

	s = openStore(t, Options{StateDir: dir})
	f, err = s.Open(7)
	must(t, err)
	if got := f.VerifiedRanges(); len(got) != 2 || got[0] != (Range{mib, mib}) || got[1] != (Range{3 * mib, 777}) {
		t.Fatalf("%v", got)
	}
	p := make([]byte, mib)
	_, err = f.ReadVerified(p, mib)
	must(t, err)
	same(t, p, data[mib:2*mib])
	must(t, f.WriteVerified(data[:mib], 0))
	must(t, f.WriteVerified(data[2*mib:3*mib], 2*mib))
	release()
	same(t, contents(t, f), data)
	if e, _ := s.Stat(7); !e.Complete {
		t.Error("not complete")
	}
	must(t, f.Drop(0, 10*mib-1))
	if f.Verified(0, 1) || len(f.VerifiedRanges()) != 0 {
		t.Error("dropped and verified")
	}
	must(t, f.Close())
	if u := s.Usage(); u.CacheBytes != 0 {
		t.Errorf("%+v", u)
	}
}

func TestDropUploaded(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	data := random(4*mib, 3)
	f := staged(t, s, 9, data)
	before := s.Usage().StagingBytes
	must(t, f.DropUploaded(0, 2*mib))
	if got := before - s.Usage().StagingBytes; got != 2*mib {
		t.Errorf("freed %d", got)
	}
	check := func() {
		t.Helper()
		p := make([]byte, mib)
		_, err := f.ReadAt(p, 0)
		wantErr(t, err, ErrPunched)
		_, err = f.WriteAt(bg, p, 2*mib-1)
		wantErr(t, err, ErrPunched)
		_, err = f.ReadAt(p, 2*mib)
		must(t, err)
		if f.Verified(0, 1) || !f.Verified(2*mib, 2*mib) {
			t.Error("Verified")
		}
	}
	check()
	must(t, f.Close())
	must(t, s.Close())
	s = openStore(t, Options{StateDir: dir})
	var err error
	f, err = s.Open(9)
	must(t, err)
	check()
	// Promoted, only the rest is verified.
	must(t, s.Promote(9))
	if got := f.VerifiedRanges(); len(got) != 1 || got[0] != (Range{2 * mib, 2 * mib}) {
		t.Fatalf("%v", got)
	}
	must(t, f.Close())
	must(t, s.Close())
	s = openStore(t, Options{StateDir: dir})
	if e, err := s.Stat(9); err != nil || e.Kind != Content || e.Complete {
		t.Fatalf("%+v %v", e, err)
	}
}

func TestSeek(t *testing.T) {
	s := openStore(t, Options{})
	f := staged(t, s, 1, random(4096, 1))
	_, err := f.WriteAt(bg, random(4096, 1), 1<<30)
	must(t, err)
	if at, err := f.SeekHole(0); err != nil || at != 4096 {
		t.Error(at, err)
	}
	if at, err := f.SeekData(4096); err != nil || at != 1<<30 {
		t.Error(at, err)
	}
	_, err = f.SeekData(1<<30 + 4096)
	wantErr(t, err, io.EOF)
	if got := s.Usage().StagingBytes; got != 8192 {
		t.Errorf("charged %d", got)
	}
	must(t, f.Close())
}

func TestThrottle(t *testing.T) {
	s := openStore(t, Options{StagingLimit: 1 << 20, StagingWait: time.Minute})
	f := staged(t, s, 1, make([]byte, 1<<20))
	g, err := s.CreateStaging(2)
	must(t, err)
	done := make(chan error)
	go func() {
		_, err := g.WriteAt(bg, make([]byte, 4096), 0)
		done <- err
	}()
	eventually(t, "a writer waits", func() bool { return s.Usage().Throttled > 0 })
	must(t, f.Truncate(0))
	must(t, <-done)
	_, err = g.WriteAt(bg, make([]byte, 2<<20), 0)
	wantErr(t, err, ErrNoSpace)
	must(t, f.Close())
	must(t, g.Close())
}

func TestEvict(t *testing.T) {
	var s *Store
	s = openStore(t, Options{CacheLimit: 4 << 20, Evict: func(id uint64) error { return s.Remove(id) }})
	for id := uint64(1); id <= 6; id++ {
		if id == 5 {
			s.Touch(1)
		}
		release, err := s.ReserveContent(bg, mib)
		must(t, err)
		f, err := s.CreateContent(id, mib)
		must(t, err)
		must(t, f.WriteVerified(random(mib, id), 0))
		must(t, f.Close())
		release()
	}
	for id, want := range map[uint64]bool{1: true, 2: false, 3: false, 4: true, 5: true, 6: true} {
		if _, err := s.Stat(id); (err == nil) != want {
			t.Errorf("%d: %v", id, err)
		}
	}
	_, err := s.ReserveContent(bg, 5<<20)
	wantErr(t, err, ErrNoSpace)
}

// TestNothingVerifiedYet: a mount that ends before the first range of a recall has arrived is nothing to warn of.
func TestNothingVerifiedYet(t *testing.T) {
	dir := memDir(t)
	s := openStore(t, Options{StateDir: dir})
	f, err := s.CreateContent(7, 3*mib)
	must(t, err)
	must(t, f.Close())
	must(t, s.Close())

	var log bytes.Buffer
	s = openStore(t, Options{StateDir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if log.Len() > 0 {
		t.Errorf("logged:\n%s", log.String())
	}
	if list := s.List(); len(list) > 0 {
		t.Errorf("left: %+v", list)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "content", "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A mapping counts, also when the descriptor it was made with is closed.
func TestOpenElsewhere(t *testing.T) {
	s := openStore(t, Options{})
	f := staged(t, s, 1, make([]byte, 4096))
	defer f.Close()
	again, err := s.Open(1)
	must(t, err)
	defer again.Close()
	want := func(what string, held bool) {
		t.Helper()
		if f.OpenElsewhere() != held {
			t.Errorf("%s: %v", what, !held)
		}
	}
	want("opened twice here", false)
	for name, flags := range map[string]int{"a reader": os.O_RDONLY, "a writer": os.O_RDWR} {
		other, err := os.OpenFile(s.path(inStaging, 1, ""), flags, 0)
		must(t, err)
		want(name, true)
		m, err := unix.Mmap(int(other.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		must(t, other.Close())
		want(name+"'s mapping", true)
		must(t, unix.Munmap(m))
		want(name+" has gone", false)
	}
}
