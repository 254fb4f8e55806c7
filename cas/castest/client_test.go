package castest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/noise"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The real client brings an archive up and down again over hours of virtual
// time, through every fault.
func TestClient(t *testing.T) {
	data := noise.Bytes(9<<20+5, 1)
	synctest.Test(t, func(t *testing.T) {
		s := New(t, local.Options{Delays: local.Delays{Standard: 4 * time.Hour, Inventory: 3 * time.Hour}})
		c := s.Client(t)
		ctx := t.Context()
		if _, err := c.CreateVault(ctx, "v"); err != nil {
			t.Fatal(err)
		}
		var remove []func()
		for _, f := range []Fault{
			{Op: cas.OpUploadPart, Kind: Reset}, {Op: cas.OpUploadPart, Kind: CutRequest, Bytes: 1 << 19}, {Op: cas.OpUploadPart, Kind: LoseReply},
			{Op: cas.OpUploadPart, Kind: Status, Code: "ThrottlingException"}, {Op: cas.OpUploadPart, Kind: Delay, Delay: time.Second},
			{Op: cas.OpCompleteUpload, Kind: LoseReply},
			{Op: cas.OpJobOutput, Kind: CutReply, Bytes: 1000}, {Op: cas.OpJobOutput, Kind: Corrupt, Bytes: 77}, {Op: cas.OpJobOutput, Kind: WrongHash},
			{Op: cas.OpDescribeJob, Kind: Status},
		} {
			f.Count = 1
			f.Skip = 1
			if f.Op == cas.OpCompleteUpload {
				f.Skip = 0
			}
			remove = append(remove, s.Inject(f))
		}
		up, err := c.Upload(ctx, "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{PartSize: 1 << 20, SingleBelow: 1 << 20, Parallel: 2, Description: "照片"})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		job, err := c.InitiateJob(ctx, "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: up.ArchiveID})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.PollJob(ctx, "v", job); !errors.Is(err, cas.ErrNotReady) {
			t.Errorf("%v", err)
		}
		if _, err := c.WaitJob(ctx, "v", job, 0); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 4*time.Hour || d > 5*time.Hour {
			t.Errorf("took %v", d)
		}
		var got buffer
		if _, err := c.FetchJob(ctx, "v", job, &got, cas.FetchOptions{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.b, data) {
			t.Error("bytes differ")
		}
		for _, r := range remove {
			r()
		}
		job, err = c.InitiateJob(ctx, "v", cas.JobRequest{Type: cas.InventoryRetrieval})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WaitJob(ctx, "v", job, 0); err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := c.Inventory(ctx, "v", job, func(e cas.InventoryEntry) error {
			if n++; e.ArchiveID != up.ArchiveID || e.TreeHash != up.TreeHash || e.Description != "照片" {
				t.Errorf("%+v", e)
			}
			return nil
		}); err != nil || n != 1 {
			t.Errorf("%d archives, %v", n, err)
		}
		time.Sleep(25 * time.Hour)
		if _, err := c.JobOutput(ctx, "v", job, cas.Range{}); !errors.Is(err, cas.ErrNotFound) && !errors.Is(err, cas.ErrExpired) {
			t.Errorf("%v", err)
		}
	})
}

type buffer struct{ b []byte }

func (w *buffer) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(w.b) {
		w.b = append(w.b, make([]byte, n-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

// A reply that nobody finishes reading does not hold the server.
func TestAbandonedReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t, local.Options{})
		c := s.Client(t)
		if _, err := c.CreateVault(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 4<<20)
		id, err := c.UploadArchive(t.Context(), "v", "", bytes.NewReader(data), cas.PartHash{})
		if err != nil {
			t.Fatal(err)
		}
		job, err := c.InitiateJob(t.Context(), "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: id})
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.JobOutput(t.Context(), "v", job, cas.Range{})
		if err != nil {
			t.Fatal(err)
		}
		out.Body.Read(make([]byte, 10))
		out.Body.Close()

		ctx, cancel := context.WithCancel(t.Context())
		out, err = c.JobOutput(ctx, "v", job, cas.Range{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait() // until the connection has heard of it: what is under way before may still be read to its end
		for err == nil {
			_, err = out.Body.Read(make([]byte, 1<<20))
		}
		out.Body.Close()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// Objects are plain files under DIR/cos, in both directions.
func TestPushPull(t *testing.T) {
	dir := t.TempDir()
	s := New(t, local.Options{Dir: dir})
	c := s.Client(t)
	ctx := t.Context()
	if _, err := c.CreateVault(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "cos", "b-1.cos.local"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cos", "b-1.cos.local", "in"), []byte("object"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(r cas.JobRequest) cas.Job {
		t.Helper()
		id, err := c.InitiateJob(ctx, "v", r)
		if err != nil {
			t.Fatal(err)
		}
		j, err := c.PollJob(ctx, "v", id)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := run(cas.JobRequest{Type: cas.PullFromCOS, Bucket: "b-1.cos.local", Object: "in", COSRange: "bytes=0-", ArchiveDescription: "d"})
	run(cas.JobRequest{Type: cas.PushToCOS, ArchiveID: j.ArchiveID, Bucket: "b-1.cos.local", Object: "dir/out"})
	if b, err := os.ReadFile(filepath.Join(dir, "cos", "b-1.cos.local", "dir", "out")); err != nil || string(b) != "object" {
		t.Errorf("%q %v", b, err)
	}
}
