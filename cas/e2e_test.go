package cas_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/noise"
	"golang.org/x/time/rate"
)

const mib = 1 << 20

// random is n bytes that differ everywhere, so that no part can pass for another.
func random(n int) []byte { return noise.Bytes(n, uint64(n)) }

type world struct {
	*testing.T
	srv *castest.Server
	c   *cas.Client
	dir string
}

func newWorld(t *testing.T, o local.Options) *world {
	t.Helper()
	srv := castest.New(t, o)
	w := &world{t, srv, srv.Client(t), t.TempDir()}
	w.must(w.c.CreateVault(t.Context(), "v"))
	return w
}

func (w *world) must(_ any, err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) is(err error, want ...error) {
	w.Helper()
	for _, k := range want {
		if !errors.Is(err, k) {
			w.Errorf("%v does not match %q", err, k)
		}
	}
}

func (w *world) upload(b []byte) string {
	w.Helper()
	id, err := w.c.UploadArchive(w.Context(), "v", "", bytes.NewReader(b), cas.PartHash{})
	w.must(id, err)
	return id
}

func (w *world) job(id string, r cas.Range) string {
	w.Helper()
	job, err := w.c.InitiateJob(w.Context(), "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: id, Range: r})
	w.must(job, err)
	return job
}

func (w *world) file(name string, b []byte) string {
	w.Helper()
	p := filepath.Join(w.dir, name)
	w.must(nil, os.WriteFile(p, b, 0o600))
	return p
}

func (w *world) same(path string, want []byte) {
	w.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		w.Errorf("%s: %d bytes, %v; want the %d that were archived", path, len(got), err, len(want))
	}
	for _, left := range []string{".casfs-part", ".casfs-part.state"} {
		if _, err := os.Stat(path + left); !errors.Is(err, fs.ErrNotExist) {
			w.Errorf("%s%s is left behind", path, left)
		}
	}
}

// inventory lists the vault.
func (w *world) inventory(format string) []cas.InventoryEntry {
	w.Helper()
	job, err := w.c.InitiateJob(w.Context(), "v", cas.JobRequest{Type: cas.InventoryRetrieval, Format: format})
	w.must(job, err)
	var all []cas.InventoryEntry
	h, err := w.c.Inventory(w.Context(), "v", job, func(e cas.InventoryEntry) error { all = append(all, e); return nil })
	w.must(h, err)
	return all
}

// TestHandles walks the whole life of a vault through the SDK's counterpart, over hours of virtual time.
func TestHandles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		srv := castest.New(t, local.Options{Dir: dir, Delays: local.Delays{Standard: 4 * time.Hour, Expedited: time.Minute, Inventory: 3 * time.Hour}})
		c := srv.Client(t)
		ctx := t.Context()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Vault(ctx, "photos"); !errors.Is(err, cas.ErrNotFound) {
			t.Errorf("a vault that is not there: %v", err)
		}
		v, err := c.NewVault(ctx, "photos")
		must(err)
		if v.Name != "photos" || !strings.HasSuffix(v.QCS, ":vaults/photos") || v.CreationDate.IsZero() {
			t.Errorf("%+v", v.VaultInfo)
		}
		data := random(5*mib + 7)
		path := filepath.Join(dir, "f")
		must(os.WriteFile(path, data, 0o600))
		up, err := v.UploadFile(ctx, path, cas.UploadOptions{Description: "a \"description\", 归档"})
		must(err)
		if up.TreeHash != cas.TreeHash(data) || up.UploadID != "" || up.Size != int64(len(data)) {
			t.Errorf("%+v", up)
		}
		a := v.Archive(up.ArchiveID)

		job, err := a.Retrieve(ctx, cas.RetrieveOptions{Description: "note", Tier: cas.Standard})
		must(err)
		if job.Completed || job.Description != "note" || job.Type != cas.ArchiveRetrieval || job.ArchiveSize != int64(len(data)) {
			t.Errorf("%+v", job.Job)
		}
		if err := job.Poll(ctx); !errors.Is(err, cas.ErrNotReady) {
			t.Errorf("poll: %v", err)
		}
		if _, err := job.FetchFile(ctx, path+".2", cas.FetchOptions{}); !errors.Is(err, cas.ErrNotReady) {
			t.Errorf("fetch: %v", err)
		}
		began := time.Now()
		must(job.Wait(ctx, 0))
		if d := time.Since(began); d < 4*time.Hour || d > 4*time.Hour+2*time.Minute {
			t.Errorf("waited %v", d)
		}
		if n := srv.Count(cas.OpDescribeJob); n > 300 {
			t.Errorf("looked %d times", n)
		}
		res, err := job.FetchFile(ctx, path+".2", cas.FetchOptions{PartSize: mib})
		must(err)
		got, _ := os.ReadFile(path + ".2")
		if !bytes.Equal(got, data) || !res.Verified || res.TreeHash != up.TreeHash {
			t.Errorf("%+v", res)
		}
		again, err := v.Job(ctx, job.ID)
		must(err)
		var some bytes.Buffer
		_, err = again.FetchRange(ctx, cas.Range{Off: 5, Len: 3 * mib}, &some, cas.FetchOptions{})
		must(err)
		if !bytes.Equal(some.Bytes(), data[5:5+3*mib]) {
			t.Error("a range differs")
		}
		n := 0
		for j, err := range v.Jobs(ctx, cas.JobFilter{StatusCode: "Succeeded"}) {
			must(err)
			if n++; j.ID != job.ID {
				t.Errorf("%+v", j.Job)
			}
		}
		if n != 1 {
			t.Errorf("%d jobs", n)
		}
		time.Sleep(25 * time.Hour)
		if _, err := job.FetchFile(ctx, path+".3", cas.FetchOptions{}); !errors.Is(err, cas.ErrExpired) {
			t.Errorf("a day later: %v", err)
		}

		for _, format := range []string{"", "JSON", "CSV"} {
			inv, err := v.RetrieveInventory(ctx, cas.InventoryOptions{Format: format, Limit: 10, StartDate: began.Add(-time.Hour), EndDate: time.Now()})
			must(err)
			must(inv.Wait(ctx, time.Minute))
			var es []cas.InventoryEntry
			_, err = inv.Inventory(ctx, func(e cas.InventoryEntry) error { es = append(es, e); return nil })
			must(err)
			if len(es) != 1 || es[0].ArchiveID != up.ArchiveID || es[0].Description != "a \"description\", 归档" || es[0].TreeHash != up.TreeHash || es[0].Size != up.Size {
				t.Errorf("inventory %q: %+v", format, es)
			}
			if inv.InventoryMarker != "" || inv.Limit != 10 {
				t.Errorf("%+v", inv.Job)
			}
			out, err := inv.FetchFile(ctx, filepath.Join(dir, "inventory"+format), cas.FetchOptions{})
			must(err)
			if out.Verified || out.Size != inv.OutputSize() {
				t.Errorf("%+v", out)
			}
		}

		must(c.SetAccessPolicy(ctx, "photos", `{"version": "2.0", "statement": []}`))
		if p, err := c.AccessPolicy(ctx, "photos"); err != nil || p != `{"version":"2.0","statement":[]}` {
			t.Errorf("policy %q, %v", p, err)
		}
		must(c.DeleteAccessPolicy(ctx, "photos"))
		if _, err := c.AccessPolicy(ctx, "photos"); !errors.Is(err, cas.ErrNotFound) {
			t.Errorf("policy: %v", err)
		}
		note := cas.Notification{CallBackURL: "http://127.0.0.1:1/x", Events: []string{"ArchiveRetrievalCompleted"}}
		must(c.SetNotification(ctx, "photos", note))
		if got, err := c.NotificationConfig(ctx, "photos"); err != nil || got.CallBackURL != note.CallBackURL || !slices.Equal(got.Events, note.Events) {
			t.Errorf("notification %+v, %v", got, err)
		}
		must(c.DeleteNotification(ctx, "photos"))

		if err := v.Delete(ctx); !errors.Is(err, cas.ErrNotEmpty) {
			t.Errorf("deleting a full vault: %v", err)
		}
		must(a.Delete(ctx))
		must(a.Delete(ctx))
		must(v.Refresh(ctx))
		if v.NumberOfArchives > 0 {
			t.Errorf("%+v", v.VaultInfo)
		}
		must(v.Delete(ctx))
	})
}

func TestBandwidthLimit(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		srv := castest.New(t, local.Options{Dir: dir})
		c := srv.Client(t)
		if _, err := c.CreateVault(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		data := random(8 * mib)
		for _, single := range []int64{100 * mib, 1} {
			began := time.Now()
			res, err := c.Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{
				PartSize: mib, SingleBelow: single, BandwidthLimit: rate.NewLimiter(64<<10, 64<<10), // slower than the watchdog's patience for the whole
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < 120*time.Second || d > 140*time.Second {
				t.Errorf("uploaded in %v, want 128s", d)
			}
			job, err := c.InitiateJob(t.Context(), "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: res.ArchiveID})
			if err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			if _, err := c.FetchJobRange(t.Context(), "v", job, cas.Range{}, io.Discard, cas.FetchOptions{PartSize: mib, BandwidthLimit: rate.NewLimiter(64<<10, 64<<10)}); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < 120*time.Second || d > 140*time.Second {
				t.Errorf("fetched in %v, want 128s", d)
			}
		}
	})
}

func TestWrongClock(t *testing.T) {
	for _, skew := range []time.Duration{3 * time.Hour, -3 * time.Hour} {
		w := newWorld(t, local.Options{Now: func() time.Time { return time.Now().Add(skew) }})
		id := w.upload([]byte("x"))
		w.must(nil, w.c.DeleteArchive(t.Context(), "v", id))
		if n := w.srv.Count("*"); n != 4 {
			t.Errorf("%d requests, want 3 and one to learn the time", n)
		}
	}
	w := newWorld(t, local.Options{})
	c, err := cas.New(cas.Options{
		Endpoint: "http://cas.test", Transport: w.srv.Transport(),
		Credentials: cas.Credentials{SecretID: w.srv.Store.Credentials().SecretID, SecretKey: "wrong"},
	})
	w.must(c, err)
	_, err = c.DescribeVault(t.Context(), "v")
	w.is(err, cas.ErrCredentials)
}
