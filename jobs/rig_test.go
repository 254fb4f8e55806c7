package jobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/noise"
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
	// What is written before the uploader runs is streamed with the next write only, and many a test makes none.
	for running := e.opts.ReadOnly; !running; runtime.Gosched() {
		e.up.mu.Lock()
		running = e.up.ctx != nil
		e.up.mu.Unlock()
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
	return noise.Bytes(n, seed)
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
	a, err := r.e.Getattr(context.Background(), h.Ino())
	r.must(err)
	out := make([]byte, 0, a.Size+1) // grown piece by piece it would be copied several times
	for {
		n, err := h.ReadAt(context.Background(), someone, out[len(out):min(cap(out), len(out)+128<<10)], int64(len(out)))
		r.must(err)
		if n == 0 {
			return out
		}
		out = out[:len(out)+n]
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
	if want == "resident" && s.State == "recalling" {
		// Readers get bytes before all of the archive has been checked.
		eventually(r.t, func() bool { s = r.stat(ino); return s.State != "recalling" })
	}
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

func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	for range 6000 { // a minute: machines are slow when others use them, too
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it never came true")
}
