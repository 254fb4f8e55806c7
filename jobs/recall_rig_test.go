package jobs

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/noise"
)

// realistic is how long the service takes.
var realistic = local.Delays{Expedited: 3 * time.Minute, Standard: 4 * time.Hour, Bulk: 8 * time.Hour, Inventory: 4 * time.Hour}

// recallRig is an engine on the embedded store, all of it in a bubble of virtual time.
type recallRig struct {
	t      *testing.T
	srv    *castest.Server
	dir    string // of the service
	client *cas.Client
	opts   Options
	e      *Engine
	vault  uint64
	stop   func()
	seen   *changes

	inventories    bool // begin by themselves
	inventoryLimit int  // of archives per job
}

// changes notes what an Observer hears.
type changes struct {
	mu      sync.Mutex
	content map[uint64]int
	attr    map[uint64]int
	entries map[string]int
}

func (c *changes) ContentChanged(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.content[ino]++
}

func (c *changes) AttrChanged(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attr[ino]++
}

func (c *changes) EntryChanged(parent uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[name]++
}

// inBubble runs a test on virtual time.
func inBubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

// newRecallRig starts a service with a vault and an engine on it.
func newRecallRig(t *testing.T, delays local.Delays, change func(o *Options)) *recallRig {
	t.Helper()
	dir := t.TempDir()
	srv := castest.New(t, local.Options{Dir: dir, Delays: delays})
	r := &recallRig{
		t: t, srv: srv, dir: dir, client: srv.Client(t),
		seen: &changes{content: map[uint64]int{}, attr: map[uint64]int{}, entries: map[string]int{}},
	}
	r.opts = Options{
		StateDir: filepath.Join(t.TempDir(), "state"), Client: r.client, Observer: r.seen, Settle: -1,
		StagingSize: 1 << 30, CacheSize: 1 << 30, MinFree: -1, Logger: recallLogger(t), virtualTime: true,
	}
	if change != nil {
		change(&r.opts)
	}
	if _, err := r.client.CreateVault(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
	})
	return r
}

func recallLogger(t *testing.T) *slog.Logger {
	if os.Getenv("CASFS_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// start opens the state directory and runs the engine.
func (r *recallRig) start() {
	r.t.Helper()
	e, err := Open(r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.e = e
	e.recall.noInventory, e.recall.inventoryLimit = !r.inventories, r.inventoryLimit
	e.recall.watchCounts(r.t)
	if err := e.Probe(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	r.stop = func() {
		r.stop = nil
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		if err := e.Close(); err != nil {
			r.t.Errorf("Close: %v", err)
		}
	}
	a, err := e.Lookup(r.t.Context(), catalog.RootIno, "v")
	if err != nil {
		r.t.Fatal(err)
	}
	r.vault = a.Ino
}

// restart ends the engine and opens its state directory again.
func (r *recallRig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// blob returns n bytes that depend on name.
func blob(name string, n int) []byte {
	return noise.Named(n, name)
}

// write makes a file of the vault's root, or of dir.
func (r *recallRig) write(name string, data []byte) uint64 { return r.writeIn(r.vault, name, data) }

func (r *recallRig) writeIn(dir uint64, name string, data []byte) uint64 {
	r.t.Helper()
	ctx := context.Background()
	a, h, err := r.e.Create(ctx, Caller{}, dir, name, 0o644, OpenFlags{Read: true, Write: true})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, Caller{}, data, 0); err != nil {
		r.t.Fatal(err)
	}
	h.Release()
	return a.Ino
}

// cold archives everything and drops the local copies.
func (r *recallRig) cold(inos ...uint64) {
	r.t.Helper()
	ctx := context.Background()
	if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
		r.t.Fatal(err)
	}
	if len(inos) == 0 {
		inos = []uint64{r.vault}
	}
	res, err := r.e.Evict(ctx, inos, true)
	if err != nil || len(res.Skipped) > 0 {
		r.t.Fatalf("Evict: %+v, %v", res, err)
	}
}

// coldFile makes a file that is only in the vault.
func (r *recallRig) coldFile(name string, n int) (uint64, []byte) {
	r.t.Helper()
	data := blob(name, n)
	ino := r.write(name, data)
	r.cold(ino)
	return ino, data
}

// read reads a range through a new handle.
func (r *recallRig) read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error) {
	h, err := r.e.Open(ctx, Caller{}, ino, OpenFlags{Read: true})
	if err != nil {
		return nil, err
	}
	defer h.Release()
	b := make([]byte, n)
	m, err := h.ReadAt(ctx, Caller{}, b, off)
	return b[:m], err
}

// want reads a range and compares it.
func (r *recallRig) want(ino uint64, data []byte, off int64, n int) {
	r.t.Helper()
	got, err := r.read(context.Background(), ino, off, n)
	if err != nil {
		r.t.Fatalf("reading %d+%d: %v", off, n, err)
	}
	if want := data[off:min(off+int64(n), int64(len(data)))]; !bytes.Equal(got, want) {
		r.t.Fatalf("wrong bytes at %d+%d", off, n)
	}
}

// state returns user.cas.state.
func (r *recallRig) state(ino uint64) string {
	r.t.Helper()
	synctest.Wait() // a reader has its bytes before its retrieval ends
	s, err := r.e.Stat(r.t.Context(), ino)
	if err != nil {
		r.t.Fatal(err)
	}
	return s.State
}

// jobs returns how many jobs were asked for.
func (r *recallRig) jobs(want int) {
	r.t.Helper()
	if got := r.srv.Count(cas.OpInitiateJob); got != want {
		r.t.Errorf("%d jobs were asked for, want %d", got, want)
	}
}

// noneLeft expects that no retrieval is recorded.
func (r *recallRig) noneLeft() {
	r.t.Helper()
	for _, rec := range r.retrievals() {
		r.t.Errorf("left: %+v", rec)
	}
}

// retrievals returns the records.
func (r *recallRig) retrievals() (all []catalog.Retrieval) {
	r.t.Helper()
	synctest.Wait()
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		for rec, err := range tx.Retrievals() {
			if err != nil {
				return err
			}
			all = append(all, rec)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}
