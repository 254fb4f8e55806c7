package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// rig is an engine on an in-process service.
type rig struct {
	t      testing.TB
	srv    *castest.Server
	client *cas.Client
	o      Options
	e      *Engine
	stop   func() error
	vault  uint64
}

type testLog struct {
	t  testing.TB
	mu sync.Mutex
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Logf("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}

func testLogger(t testing.TB) *slog.Logger {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		l.t = nil
		l.mu.Unlock()
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

var someone = Caller{UID: 1000, GID: 1000}

// newRig opens an engine with one vault, v, and small sizes: parts of 1 MiB, single uploads up to 2 MiB.
func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	srv := castest.New(t, local.Options{})
	r := &rig{t: t, srv: srv, client: srv.Client(t)}
	r.o = Options{
		StateDir: t.TempDir(), Client: r.client, Logger: testLogger(t),
		Settle: -1, PartSize: 1 << 20, SingleBelow: 2 << 20, SegmentSize: 8 << 20, MinFree: -1,
		StagingSize: 1 << 30, CacheSize: 1 << 30,
		PollMin: time.Millisecond, PollMax: 10 * time.Millisecond,
	}
	if change != nil {
		change(&r.o)
	}
	if _, err := r.client.CreateVault(context.Background(), "v"); err != nil {
		t.Fatal(err)
	}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	r.openWith(nil)
}

// openWith opens the engine and starts it, unless before says no.
func (r *rig) openWith(before func(e *Engine) bool) {
	r.t.Helper()
	e, err := Open(r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.e = e
	r.stop = func() error { return nil }
	if err := e.Probe(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	a, err := e.Lookup(context.Background(), catalog.RootIno, "v")
	if err != nil {
		r.t.Fatal(err)
	}
	r.vault = a.Ino
	if before == nil || before(e) {
		r.start()
	}
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	e := r.e
	go func() { done <- e.Run(ctx) }()
	r.stop = func() error {
		cancel()
		return <-done
	}
}

func (r *rig) close() {
	if r.e == nil {
		return
	}
	if err := r.stop(); err != nil {
		r.t.Errorf("Run: %v", err)
	}
	if err := r.e.Close(); err != nil {
		r.t.Errorf("Close: %v", err)
	}
	r.e = nil
}

func (r *rig) reopen() {
	r.t.Helper()
	r.close()
	r.open()
}

// recalls returns how many jobs of archives the service knows; the inventory
// that follows the first mount of a vault is none of them.
func (r *rig) recalls() (n int) {
	r.t.Helper()
	for j, err := range r.client.Jobs(context.Background(), "v", cas.JobFilter{}) {
		r.must(err)
		if j.Type == cas.ArchiveRetrieval {
			n++
		}
	}
	return n
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	c.Read(b)
	return b
}

// write creates (or with trunc opens) name and writes data to it.
func (r *rig) write(name string, data []byte) uint64 {
	r.t.Helper()
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, someone, r.vault, name, 0o644, OpenFlags{Write: true})
	if errors.Is(err, catalog.ErrExist) {
		if a, err = r.e.Lookup(ctx, r.vault, name); err == nil {
			h, err = r.e.Open(ctx, someone, a.Ino, OpenFlags{Write: true, Truncate: true})
		}
	}
	r.must(err)
	r.writeAll(h, data, 0)
	r.must(h.Flush(ctx))
	h.Release()
	return a.Ino
}

func (r *rig) writeAll(h *Handle, data []byte, off int64) {
	r.t.Helper()
	for len(data) > 0 {
		n := min(len(data), 128<<10)
		if _, err := h.WriteAt(context.Background(), someone, data[:n], off); err != nil {
			r.t.Fatal(err)
		}
		data = data[n:]
		off += int64(n)
	}
}

func (r *rig) read(ino uint64) []byte {
	r.t.Helper()
	h, err := r.e.Open(context.Background(), someone, ino, OpenFlags{Read: true})
	r.must(err)
	defer h.Release()
	return r.readHandle(h)
}

func (r *rig) readHandle(h *Handle) []byte {
	r.t.Helper()
	var out []byte
	buf := make([]byte, 128<<10)
	for {
		n, err := h.ReadAt(context.Background(), someone, buf, int64(len(out)))
		r.must(err)
		if n == 0 {
			return out
		}
		out = append(out, buf[:n]...)
	}
}

func (r *rig) expect(ino uint64, want []byte) {
	r.t.Helper()
	if got := r.read(ino); !bytes.Equal(got, want) {
		r.t.Fatalf("inode %d: got %d bytes, want %d; equal prefix %d", ino, len(got), len(want), prefix(got, want))
	}
	a, err := r.e.Getattr(context.Background(), ino)
	r.must(err)
	if a.Size != int64(len(want)) {
		r.t.Fatalf("inode %d: size %d, want %d", ino, a.Size, len(want))
	}
}

func prefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func (r *rig) sync() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r.must(r.e.Sync(ctx, nil, nil))
}

func (r *rig) stat(ino uint64) FileStatus {
	r.t.Helper()
	s, err := r.e.Stat(context.Background(), ino)
	r.must(err)
	return s
}

func (r *rig) wantState(ino uint64, want string) FileStatus {
	r.t.Helper()
	s := r.stat(ino)
	if s.State != want {
		r.t.Fatalf("%s is %s (%s, error %q), want %s", s.Path, s.State, s.Explain, s.Error, want)
	}
	return s
}

// archives lists what the service holds of the vault by the intents in the descriptions.
func (r *rig) archives() map[string]int {
	r.t.Helper()
	ctx := context.Background()
	id, err := r.client.InitiateJob(ctx, "v", cas.JobRequest{Type: cas.InventoryRetrieval})
	r.must(err)
	for {
		j, err := r.client.DescribeJob(ctx, "v", id)
		r.must(err)
		if j.Succeeded() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	out, err := r.client.JobOutput(ctx, "v", id, cas.Range{})
	r.must(err)
	defer out.Body.Close()
	list := map[string]int{}
	_, err = cas.DecodeInventory(out.Body, func(x cas.InventoryEntry) error {
		m, ok := parseDescription(x.Description)
		if !ok {
			r.t.Errorf("description %q", x.Description)
		}
		list[m.Intent]++
		return nil
	})
	r.must(err)
	return list
}

func (r *rig) wantArchives(n int) {
	r.t.Helper()
	list := r.archives()
	total := 0
	for intent, k := range list {
		total += k
		if k > 1 {
			r.t.Errorf("intent %s has %d archives", intent, k)
		}
	}
	if total != n {
		r.t.Errorf("%d archives at the service, want %d", total, n)
	}
}

func (r *rig) evict(ino uint64) {
	r.t.Helper()
	res, err := r.e.Evict(context.Background(), []uint64{ino}, false)
	r.must(err)
	if len(res.Skipped) > 0 {
		r.t.Fatalf("not evicted: %v", res.Skipped)
	}
}

func TestLifeOfAFile(t *testing.T) {
	for _, size := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2 << 20, 2<<20 + 1, 8<<20 + 5, 19 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := newRig(t, nil)
			data := pattern(size, 7)
			ino := r.write("file", data)
			r.expect(ino, data)
			r.sync()
			r.wantState(ino, "resident")
			r.expect(ino, data)
			segments := (size + 8<<20 - 1) / (8 << 20)
			r.wantArchives(segments)
			r.reopen()
			r.wantState(ino, "resident")
			r.expect(ino, data)
			if size > 0 {
				r.evict(ino)
				s := r.wantState(ino, "cold")
				if s.LocalBytes != 0 || len(s.Archives) != segments {
					t.Errorf("cold: %+v", s)
				}
				a, err := r.e.Getattr(context.Background(), ino)
				r.must(err)
				if a.Blocks != 1 {
					t.Errorf("%d blocks of a cold file", a.Blocks)
				}
				r.expect(ino, data)
				r.wantState(ino, "resident")
			}
			var bad []string
			r.must(r.e.checkLocal(context.Background(), false, func(p string) { bad = append(bad, p) }))
			if len(bad) > 0 {
				t.Errorf("check: %v", bad)
			}
		})
	}
}

func TestRewrite(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	data := pattern(3<<20, 1)
	ino := r.write("f", data)
	r.sync()

	// In place, resident.
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	copy(data[100:], "changed")
	r.writeAll(h, []byte("changed"), 100)
	h.Release()
	r.expect(ino, data)
	r.sync()
	r.expect(ino, data)
	if v := r.wantState(ino, "resident").Version; v != 2 {
		t.Errorf("version %d", v)
	}

	// Append to a cold file recalls it.
	r.evict(ino)
	h, err = r.e.Open(ctx, someone, ino, OpenFlags{Write: true, Append: true})
	r.must(err)
	r.writeAll(h, []byte("tail"), int64(len(data)))
	data = append(data, "tail"...)
	h.Release()
	r.sync()
	r.expect(ino, data)

	// Truncating a cold file does not.
	r.evict(ino)
	jobs := r.recalls()
	data = pattern(100, 3)
	if got := r.write("f", data); got != ino {
		t.Fatalf("inode %d, want %d", got, ino)
	}
	if n := r.recalls(); n != jobs {
		t.Errorf("%d jobs to truncate", n-jobs)
	}
	r.expect(ino, data)
	r.sync()
	r.evict(ino)
	r.expect(ino, data)

	// Shrinking and growing by truncate.
	for _, size := range []int64{50, 0, 1 << 20, 10} {
		_, err := r.e.Setattr(ctx, someone, ino, nil, SetAttr{Size: &size})
		r.must(err)
		grown := make([]byte, size)
		copy(grown, data)
		data = grown
		r.expect(ino, data)
		r.sync()
		r.expect(ino, data)
	}
	list, err := r.e.Trash(ctx)
	r.must(err)
	if len(list) != 6 {
		t.Errorf("%d archives in the trash", len(list))
	}
	for _, x := range list {
		if d := x.Deadline.Sub(x.Uploaded); d != 90*24*time.Hour {
			t.Errorf("deadline after %s", d)
		}
		if x.Path != "/v/f" {
			t.Errorf("path %q", x.Path)
		}
	}
}

func TestSameContentWhileReadersHoldTheDescriptor(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	ino := r.write("f", []byte("old content"))
	r.sync()
	reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
	r.must(err)
	if !reader.Local() || reader.Fd() < 0 {
		t.Fatal("a resident file is not local")
	}
	peek := func() string {
		b := make([]byte, 100)
		n, err := os.NewFile(dup(t, reader.Fd()), "").ReadAt(b, 0)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := peek(); got != "old content" {
		t.Fatalf("%q", got)
	}
	r.write("f", []byte("new"))
	if got := peek(); got != "new" {
		t.Errorf("descriptor shows %q after a rewrite", got)
	}
	second, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	if second.Fd() != reader.Fd() {
		t.Errorf("descriptors %d and %d while both are open", second.Fd(), reader.Fd())
	}
	r.sync()
	if got := peek(); got != "new" {
		t.Errorf("descriptor shows %q after the upload", got)
	}
	r.writeAll(second, []byte("NEW!"), 0)
	if got := peek(); got != "NEW!" {
		t.Errorf("descriptor shows %q after another rewrite", got)
	}
	second.Release()
	reader.Release()
	r.sync()
	r.evict(ino)
	r.expect(ino, []byte("NEW!"))
}

// The kernel may finish a later open first; an open that did not get the descriptor
// fails with EIO then. Only a call on the handle tells that its open is over.
func TestWriterOpenedBeforeTheDescriptorIsGivenOut(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	ino := r.write("f", []byte("content"))
	r.sync()
	for what, call := range map[string]func(*Handle){
		"flush":   func(h *Handle) { r.must(h.Flush(ctx)) },
		"write":   func(h *Handle) { r.writeAll(h, []byte("c"), 0) },
		"release": func(h *Handle) { h.Release() },
	} {
		writer, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
		r.must(err)
		if writer.Local() {
			t.Fatal("a first handle that writes got the descriptor")
		}
		for _, want := range []bool{false, true} {
			reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
			r.must(err)
			if reader.Local() != want {
				t.Errorf("%s: local %v, want %v", what, reader.Local(), want)
			}
			reader.Release()
			call(writer)
		}
		writer.Release()
		r.sync()
	}
}

func TestUnlink(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ctx := context.Background()
	// Never settled: never uploaded.
	ino := r.write("a", []byte("short-lived"))
	r.must(r.e.Unlink(ctx, r.vault, "a"))
	r.sync()
	eventually(t, func() bool {
		_, err := r.e.Getattr(ctx, ino)
		return errors.Is(err, catalog.ErrNotExist)
	})
	r.wantArchives(0)
	if st := r.e.catalog.Stats(); st.StagedFiles != 0 {
		t.Errorf("%d staged files", st.StagedFiles)
	}

	// Open while unlinked.
	a, h, err := r.e.Create(ctx, someone, r.vault, "b", 0o600, OpenFlags{Read: true, Write: true})
	r.must(err)
	r.writeAll(h, []byte("still here"), 0)
	r.must(r.e.Unlink(ctx, r.vault, "b"))
	time.Sleep(50 * time.Millisecond)
	if got := r.readHandle(h); string(got) != "still here" {
		t.Errorf("%q", got)
	}
	if b, err := r.e.Getattr(ctx, a.Ino); err != nil || b.Nlink != 0 || b.Size != 10 {
		t.Errorf("%+v, %v", b, err)
	}
	h.Release()
	eventually(t, func() bool {
		_, err := r.e.Getattr(ctx, a.Ino)
		return errors.Is(err, catalog.ErrNotExist)
	})

	// Archived: to the trash.
	r.write("c", []byte("archived"))
	r.sync()
	r.must(r.e.Unlink(ctx, r.vault, "c"))
	eventually(t, func() bool {
		list, err := r.e.Trash(ctx)
		return err == nil && len(list) == 1
	})
	if err := r.e.Rmdir(ctx, catalog.RootIno, "v"); !errors.Is(err, ErrBusy) {
		t.Errorf("rmdir of a vault with trash: %v", err)
	}
	n, err := r.e.Purge(ctx, nil)
	if err != nil || n != 1 {
		t.Errorf("purge: %d, %v", n, err)
	}
	r.wantArchives(0)
	r.must(r.e.Rmdir(ctx, catalog.RootIno, "v"))
	if len(r.e.store.List()) != 0 {
		t.Errorf("local files left: %v", r.e.store.List())
	}
}

func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	for range 500 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it never came true")
}

func TestVaults(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	if _, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "not a name", 0o755); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("%v", err)
	}
	a, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "w", 0o750)
	r.must(err)
	if a.Mode&0o777 != 0o750 || a.UID != 1000 {
		t.Errorf("%+v", a)
	}
	if _, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "w", 0o750); !errors.Is(err, catalog.ErrExist) {
		t.Errorf("%v", err)
	}
	if b, err := r.e.Getxattr(ctx, a.Ino, "user.cas.qcs"); err != nil || !strings.HasSuffix(string(b), "vaults/w") {
		t.Errorf("%q, %v", b, err)
	}
	if _, _, err := r.e.Create(ctx, someone, catalog.RootIno, "file", 0o644, OpenFlags{Write: true}); !errors.Is(err, catalog.ErrPerm) {
		t.Errorf("a file beside vaults: %v", err)
	}
	// Gone at the service, but nothing is forgotten.
	r.must(r.client.DeleteVault(ctx, "w"))
	r.must(r.e.Probe(ctx))
	st, err := r.e.Status(ctx)
	r.must(err)
	if len(st.Problems) != 1 || st.Vaults != 2 {
		t.Errorf("%+v", st)
	}
	r.must(r.e.Rmdir(ctx, catalog.RootIno, "w"))
	if _, err := r.e.Lookup(ctx, catalog.RootIno, "w"); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func dup(t testing.TB, fd int) uintptr {
	t.Helper()
	n, err := dupFd(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(n)
}

// A shared mapping of a descriptor the kernel uses itself stores past the engine; a write to the descriptor does the same.
func TestStoresPastTheEngine(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	data := pattern(100<<10, 1)
	ino := r.write("f", data)
	r.sync()
	r.evict(ino)
	r.expect(ino, data) // recalled: the local file's mtime is another
	mtime := func() int64 {
		a, err := r.e.Getattr(ctx, ino)
		r.must(err)
		return a.Mtime
	}
	before := mtime()
	open := func(fl OpenFlags) *Handle {
		h, err := r.e.Open(ctx, someone, ino, fl)
		r.must(err)
		return h
	}
	reader := open(OpenFlags{Read: true})
	writer := open(OpenFlags{Read: true, Write: true})
	if !writer.Local() || writer.Fd() != reader.Fd() {
		t.Fatalf("descriptors %d and %d", reader.Fd(), writer.Fd())
	}
	// Nothing is stored: nothing has happened.
	writer.Release()
	if s := r.wantState(ino, "resident"); s.Version != 1 {
		t.Errorf("version %d of a file nobody wrote to", s.Version)
	}
	if mtime() != before {
		t.Error("its mtime has moved")
	}

	store := func(off int) {
		copy(data[off:], "stored")
		f := os.NewFile(dup(t, writer.Fd()), "")
		defer f.Close()
		if _, err := f.WriteAt([]byte("stored"), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	// Stored: a new version, also after a crash before the close.
	writer = open(OpenFlags{Read: true, Write: true})
	store(5)
	r.reopen()
	r.expect(ino, data)
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 2 {
		t.Errorf("version %d", s.Version)
	}
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(50)
	writer.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 3 {
		t.Errorf("version %d", s.Version)
	}
	reader.Release()
	r.evict(ino)
	r.expect(ino, data)

	// Another writer, which has no descriptor, is the last to close.
	plain := open(OpenFlags{Write: true})
	r.must(plain.Flush(ctx)) // its open is over
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	if plain.Local() || !writer.Local() {
		t.Fatalf("local: %v, %v", plain.Local(), writer.Local())
	}
	store(70)
	writer.Release()
	plain.Release()
	reader.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 4 {
		t.Errorf("version %d", s.Version)
	}
	// A time that is set afterwards hides the store.
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(90)
	mode, set := uint32(0o600), time.Unix(1e9, 0)
	_, err := r.e.Setattr(ctx, someone, ino, nil, SetAttr{Mode: &mode, Mtime: &set})
	r.must(err)
	writer.Release()
	reader.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 5 {
		t.Errorf("version %d", s.Version)
	}
	r.evict(ino)
	r.expect(ino, data)

	// While the upload is under way.
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(500)
	slow := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Delay, Delay: 100 * time.Millisecond, Count: 1})
	n := r.srv.Count(cas.OpUploadArchive)
	done := make(chan error)
	go func() { done <- r.e.Sync(ctx, nil, nil) }()
	eventually(t, func() bool { return r.srv.Count(cas.OpUploadArchive) == n+1 })
	store(5000)
	r.must(<-done)
	slow()
	writer.Release()
	reader.Release()
	r.sync()
	r.evict(ino)
	r.expect(ino, data)
}
