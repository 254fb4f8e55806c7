package cas_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"golang.org/x/time/rate"
)

const mib = 1 << 20

// noise is n bytes that differ everywhere, so that no part can pass for another.
func noise(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

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
		data := noise(5*mib + 7)
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

func TestUploadChoosesParts(t *testing.T) {
	w := newWorld(t, local.Options{})
	for _, x := range []struct {
		size        int
		o           cas.UploadOptions
		part, parts int64
	}{
		{1, cas.UploadOptions{}, 0, 0},
		{20 * mib, cas.UploadOptions{}, 0, 0},
		{20 * mib, cas.UploadOptions{SingleBelow: 20*mib - 1}, 16 * mib, 2},
		{5*mib + 7, cas.UploadOptions{PartSize: 1}, mib, 6},
		{5*mib + 7, cas.UploadOptions{PartSize: 3 * mib}, 4 * mib, 2},
		{4 * mib, cas.UploadOptions{PartSize: 4 * mib}, 0, 0},
		{4*mib + 1, cas.UploadOptions{PartSize: 4 * mib, Parallel: 1}, 4 * mib, 2},
		{65 * mib, cas.UploadOptions{}, 0, 0}, // more than is held in memory at once
	} {
		data := noise(x.size)
		var steps []int64
		x.o.Progress = func(done, total int64) {
			if total != int64(x.size) || len(steps) > 0 && done <= steps[len(steps)-1] {
				t.Errorf("progress %d of %d after %v", done, total, steps)
			}
			steps = append(steps, done)
		}
		told := ""
		x.o.OnUploadID = func(id string) { told = id }
		before := w.srv.Count(cas.OpUploadPart)
		res, err := w.c.Upload(t.Context(), "v", bytes.NewReader(data), int64(x.size), x.o)
		w.must(res, err)
		if res.PartSize != x.part || int64(w.srv.Count(cas.OpUploadPart)-before) != x.parts || res.UploadID != told || (told == "") != (x.part == 0) {
			t.Errorf("%d bytes: %+v, %d parts", x.size, res, w.srv.Count(cas.OpUploadPart)-before)
		}
		if res.TreeHash != cas.TreeHash(data) || res.Size != int64(x.size) || len(steps) == 0 || steps[len(steps)-1] != int64(x.size) {
			t.Errorf("%d bytes: %+v, progress %v", x.size, res, steps)
		}
		back := new(bytes.Buffer)
		w.must(w.c.FetchJobRange(t.Context(), "v", w.job(res.ArchiveID, cas.Range{}), cas.Range{}, back, cas.FetchOptions{}))
		if !bytes.Equal(back.Bytes(), data) {
			t.Errorf("%d bytes came back otherwise", x.size)
		}
		w.must(nil, w.c.DeleteArchive(t.Context(), "v", res.ArchiveID))
	}
	for size, want := range map[int64]error{0: cas.ErrEmpty, cas.MaxArchiveSize + 1: cas.ErrTooLarge} {
		_, err := w.c.Upload(t.Context(), "v", nil, size, cas.UploadOptions{})
		w.is(err, want)
	}
	_, err := w.c.Upload(t.Context(), "v", strings.NewReader("abc"), 4, cas.UploadOptions{})
	w.is(err, io.ErrUnexpectedEOF)
	_, err = w.c.Upload(t.Context(), "nowhere", bytes.NewReader(noise(2*mib)), 2*mib, cas.UploadOptions{PartSize: mib})
	w.is(err, cas.ErrNotFound)
	var ue *cas.UploadError
	if errors.As(err, &ue) {
		t.Errorf("there is no upload to resume: %v", err)
	}
}

// TestUploadSurvivesFaults breaks everything that may be repeated, and looks for duplicates.
func TestUploadSurvivesFaults(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(12*mib + 5)
	for _, f := range []castest.Fault{
		{Op: cas.OpUploadPart, Kind: castest.Status, Code: "ThrottlingException", Count: 5},
		{Op: cas.OpUploadPart, Kind: castest.Status, Count: 3},
		{Op: cas.OpUploadPart, Kind: castest.Reset, Count: 5},
		{Op: cas.OpUploadPart, Kind: castest.CutRequest, Bytes: mib / 2, Count: 5},
		{Op: cas.OpUploadPart, Kind: castest.LoseReply, Count: 5},
		{Op: cas.OpInitiateUpload, Kind: castest.LoseReply, Count: 1},
		{Op: cas.OpCompleteUpload, Kind: castest.LoseReply, Count: 2},
		{Op: cas.OpUploadArchive, Kind: castest.Status, Code: "ServiceUnavailableException", Count: 2},
		{Op: cas.OpUploadArchive, Kind: castest.Reset, Count: 2},
		{Op: cas.OpUploadArchive, Kind: castest.CutRequest, Bytes: mib, Count: 2},
	} {
		remove := w.srv.Inject(f)
		want := map[cas.Hash]bool{}
		for _, part := range []int64{mib, 16 * mib} {
			res, err := w.c.Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{PartSize: part})
			if err != nil {
				t.Errorf("%+v: %v", f, err)
			}
			want[res.TreeHash] = true
		}
		remove()
		all := w.inventory("")
		if len(all) != 2 || len(want) != 1 {
			t.Errorf("%+v left %d archives, want 2", f, len(all))
		}
		for _, e := range all {
			if e.TreeHash != cas.TreeHash(data) {
				t.Errorf("%+v: %+v", f, e)
			}
			w.must(nil, w.c.DeleteArchive(t.Context(), "v", e.ArchiveID))
		}
	}

	w.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply})
	_, err := w.c.Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{})
	w.is(err, cas.ErrUnknown)
	if n := len(w.inventory("")); n != 1 {
		t.Errorf("a lost reply left %d archives, want 1", n)
	}
}

func TestUploadResumes(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(20*mib + 3)
	path := w.file("f", data)
	remove := w.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Status, Code: "AccessDeniedException", Skip: 7})
	_, err := w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{PartSize: mib, Parallel: 2})
	remove()
	w.is(err, cas.ErrAccessDenied)
	var ue *cas.UploadError
	if !errors.As(err, &ue) || ue.UploadID == "" || !strings.Contains(err.Error(), ue.UploadID) {
		t.Fatalf("%v is no UploadError", err)
	}

	v, err := w.c.Vault(t.Context(), "v")
	w.must(v, err)
	n := 0
	for u, err := range v.Uploads(t.Context()) {
		w.must(u, err)
		if n++; u.UploadID != ue.UploadID || u.PartSize != mib {
			t.Errorf("%+v", u.UploadInfo)
		}
	}
	u, err := v.MultipartUpload(t.Context(), ue.UploadID)
	w.must(u, err)
	have := 0
	var last cas.Range
	for p, err := range u.Parts(t.Context()) {
		w.must(p, err)
		last = p.Range
		have++
	}
	if n != 1 || have < 5 {
		t.Fatalf("%d uploads, %d parts", n, have)
	}

	// Another file, by content, size or kind of parts: refused before anything is sent.
	sent := w.srv.Count(cas.OpUploadPart)
	other := bytes.Clone(data)
	other[last.Off] ^= 1
	for name, b := range map[string][]byte{"content": other, "shorter": data[:last.Off], "shorter by a byte": data[:last.End()-1]} {
		_, err := w.c.Upload(t.Context(), "v", bytes.NewReader(b), int64(len(b)), cas.UploadOptions{UploadID: ue.UploadID})
		if !errors.Is(err, cas.ErrMismatch) {
			t.Errorf("%s: %v, want ErrMismatch", name, err)
		}
	}
	if n := w.srv.Count(cas.OpUploadPart); n != sent {
		t.Errorf("%d parts of another file were sent", n-sent)
	}

	first := int64(-1)
	res, err := u.ResumeFile(t.Context(), path, cas.UploadOptions{Progress: func(done, total int64) {
		if first < 0 {
			first = done
		}
	}})
	w.must(res, err)
	// A part whose reply came after the failure may have arrived since it was listed.
	if n := w.srv.Count(cas.OpUploadPart) - sent; res.Skipped < int64(have)*mib || n != 21-int(res.Skipped/mib) || first != mib {
		t.Errorf("%d parts were sent, %d were there: %+v, first progress %d", n, have, res, first)
	}
	dst := filepath.Join(w.dir, "back")
	w.must(w.c.FetchJobFile(t.Context(), "v", w.job(res.ArchiveID, cas.Range{}), dst, cas.FetchOptions{}))
	w.same(dst, data)

	// Once more, as after a kill between Complete and its reply: the same archive, not a second one.
	again, err := u.Resume(t.Context(), bytes.NewReader(data), int64(len(data)), cas.UploadOptions{})
	if err != nil || again.ArchiveID != res.ArchiveID || again.TreeHash != res.TreeHash || again.Skipped != int64(len(data)) {
		t.Errorf("resuming what is complete: %+v, %v; want %+v", again, err, res)
	}
	for name, b := range map[string][]byte{"content": other, "shorter": data[:last.Off]} {
		if _, err := u.Resume(t.Context(), bytes.NewReader(b), int64(len(b)), cas.UploadOptions{}); !errors.Is(err, cas.ErrNotFound) {
			t.Errorf("resuming what is complete with another file, %s: %v, want ErrNotFound", name, err)
		}
	}
	w.must(nil, u.Abort(t.Context()))
	if all := w.inventory(""); len(all) != 1 {
		t.Errorf("%d archives", len(all))
	}
}

// TestUploadResumesAfterLostComplete: nobody heard that the upload was complete.
func TestUploadResumesAfterLostComplete(t *testing.T) {
	w := newWorld(t, local.Options{})
	path := w.file("f", noise(3*mib+1))
	remove := w.srv.Inject(castest.Fault{Op: cas.OpCompleteUpload, Kind: castest.LoseReply})
	_, err := w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{PartSize: mib})
	remove()
	w.is(err, cas.ErrUnknown)
	var ue *cas.UploadError
	if !errors.As(err, &ue) {
		t.Fatalf("%v is no UploadError", err)
	}
	res, err := w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{UploadID: ue.UploadID})
	w.must(res, err)
	if all := w.inventory(""); len(all) != 1 || all[0].ArchiveID != res.ArchiveID {
		t.Errorf("resumed as %s; the vault has %+v, want this archive alone", res.ArchiveID, all)
	}

	// What is unknown for another reason stays unknown: nothing is made of it.
	_, err = w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{UploadID: strings.Repeat("u", 64)})
	w.is(err, cas.ErrNotFound)
}

func TestUploadOfAChangingFile(t *testing.T) {
	w := newWorld(t, local.Options{})
	path := w.file("f", noise(4*mib))
	appendByte := func() {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		w.must(f, err)
		f.Write([]byte("x"))
		w.must(nil, f.Close())
	}
	_, err := w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{PartSize: mib, OnUploadID: func(string) { appendByte() }})
	w.is(err, cas.ErrMismatch)
	_, err = w.c.UploadFile(t.Context(), "v", path, cas.UploadOptions{PartSize: mib, OnUploadID: func(string) { os.Truncate(path, mib) }})
	w.is(err, io.ErrUnexpectedEOF)
	if all := w.inventory(""); len(all) != 0 {
		t.Errorf("%d archives", len(all))
	}
	for _, p := range []string{w.dir, "/dev/null"} {
		if _, err := w.c.UploadFile(t.Context(), "v", p, cas.UploadOptions{}); !errors.Is(err, cas.ErrInvalid) {
			t.Errorf("%s: %v", p, err)
		}
	}
	_, err = w.c.UploadFile(t.Context(), "v", filepath.Join(w.dir, "none"), cas.UploadOptions{})
	w.is(err, fs.ErrNotExist)
}

func TestUploadCancelled(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(8 * mib)
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	_, err := w.c.Upload(ctx, "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{
		PartSize: mib, Progress: func(done, _ int64) {
			if done >= 3*mib {
				cancel(boom)
			}
		},
	})
	w.is(err, context.Canceled, boom)
	var ue *cas.UploadError
	if !errors.As(err, &ue) {
		t.Fatalf("%v is no UploadError", err)
	}
	w.must(w.c.Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{UploadID: ue.UploadID}))
}

func TestFetchJobFileResumes(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(20*mib + 3)
	id := w.upload(data)
	dst := filepath.Join(w.dir, "f")
	fetch := func(job string, o cas.FetchOptions) (cas.FetchResult, int, error) {
		before := w.srv.Count(cas.OpJobOutput)
		o.PartSize = mib
		res, err := w.c.FetchJobFile(t.Context(), "v", job, dst, o)
		return res, w.srv.Count(cas.OpJobOutput) - before, err
	}
	remove := w.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, Code: "AccessDeniedException", Skip: 9})
	_, _, err := fetch(w.job(id, cas.Range{}), cas.FetchOptions{Parallel: 2})
	remove()
	w.is(err, cas.ErrAccessDenied)
	if _, err := os.Stat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an incomplete file has its name: %v", err)
	}
	state, err := os.ReadFile(dst + ".casfs-part.state")
	w.must(nil, err)
	noted := bytes.Count(state, []byte("\n")) - 1
	if noted < 7 || noted > 9 {
		t.Fatalf("%d ranges are noted of 9 fetched:\n%s", noted, state)
	}

	// One of them is damaged on the disk, and the last line is torn.
	part, err := os.OpenFile(dst+".casfs-part", os.O_RDWR, 0)
	w.must(part, err)
	at, err := cas.ParseRange(strings.Fields(strings.Split(string(state), "\n")[2])[0], 0)
	w.must(at, err)
	part.WriteAt([]byte{^data[at.Off]}, at.Off)
	w.must(nil, part.Close())
	w.must(nil, os.WriteFile(dst+".casfs-part.state", append(state, "20971520-2097"...), 0o600))

	// A newer job for the same archive goes on; other part sizes do not matter.
	first := int64(-1)
	res, asked, err := fetch(w.job(id, cas.Range{}), cas.FetchOptions{Progress: func(done, total int64) {
		if first < 0 {
			first = done
		}
	}})
	w.must(res, err)
	if asked != 21-noted+1 || res.Skipped != int64(noted-1)*mib || !res.Verified || first != mib {
		t.Errorf("%d ranges asked for, %d were noted, one damaged: %+v, first progress %d", asked, noted, res, first)
	}
	w.same(dst, data)

	job := w.job(id, cas.Range{})
	if _, _, err := fetch(job, cas.FetchOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	w.file("f", []byte("old"))
	w.must(w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{Force: true}))
	w.same(dst, data)

	// What is left of another archive is no help.
	other := noise(20*mib + 4)
	job2 := w.job(w.upload(other), cas.Range{})
	remove = w.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, Code: "AccessDeniedException", Skip: 5})
	if _, _, err := fetch(job2, cas.FetchOptions{Force: true}); err == nil {
		t.Error("no error")
	}
	remove()
	res, asked, err = fetch(job, cas.FetchOptions{Force: true})
	w.must(res, err)
	if res.Skipped != 0 || asked != 21 {
		t.Errorf("%+v, %d asked", res, asked)
	}
	w.same(dst, data)
}

func TestFetchFaults(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(12*mib + 5)
	job := w.job(w.upload(data), cas.Range{})
	for i, f := range []castest.Fault{
		{Kind: castest.CutReply, Bytes: mib + mib/2, Count: 5},
		{Kind: castest.Corrupt, Bytes: 100, Count: 3},
		{Kind: castest.WrongHash, Count: 2},
		{Kind: castest.Reset, Count: 5},
		{Kind: castest.Status, Code: "ThrottlingException", Count: 5},
		{Kind: castest.LoseReply, Count: 5},
	} {
		f.Op = cas.OpJobOutput
		remove := w.srv.Inject(f)
		dst := filepath.Join(w.dir, fmt.Sprint(i))
		res, err := w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{PartSize: 4 * mib})
		if err != nil || !res.Verified {
			t.Errorf("%+v: %+v, %v", f, res, err)
		}
		w.same(dst, data)
		var last, total int64
		buf := new(bytes.Buffer)
		if _, err := w.c.FetchJobRange(t.Context(), "v", job, cas.Range{}, buf, cas.FetchOptions{
			PartSize: 2 * mib, Progress: func(d, n int64) { last, total = d, n },
		}); err != nil || !bytes.Equal(buf.Bytes(), data) || last != total || total != int64(len(data)) {
			t.Errorf("%+v to a writer: %v", f, err)
		}
		remove()
	}

	// What never fits its hash never gets the file's name.
	for _, k := range []castest.Kind{castest.Corrupt, castest.WrongHash} {
		remove := w.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: k})
		dst := filepath.Join(w.dir, "bad")
		_, err := w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{})
		w.is(err, cas.ErrDigest)
		if _, err := os.Stat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a damaged file has its name")
		}
		var got bytes.Buffer
		_, err = w.c.FetchJobRange(t.Context(), "v", job, cas.Range{Off: 3, Len: 5}, &got, cas.FetchOptions{})
		w.is(err, cas.ErrDigest)
		if got.Len() > 0 {
			t.Errorf("%d unverified bytes were written", got.Len())
		}
		remove()
	}
}

// TestFetchRanges compares ranges of outputs of ranges with the data.
func TestFetchRanges(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(11*mib + 77)
	id := w.upload(data)
	end := int64(len(data))
	for _, x := range []struct {
		job      cas.Range
		verified bool
	}{
		{cas.Range{}, true}, {cas.Range{Off: 4 * mib, Len: 4 * mib}, true}, {cas.Range{Off: 8 * mib, Len: end - 8*mib}, true},
		{cas.Range{Off: 1 * mib, Len: 5 * mib}, false}, {cas.Range{Off: 3 * mib, Len: end - 3*mib}, false},
	} {
		job := w.job(id, x.job)
		whole := data
		if x.job.Len > 0 {
			whole = data[x.job.Off:x.job.End()]
		}
		o := cas.FetchOptions{PartSize: 2 * mib}
		if !x.verified {
			_, err := w.c.FetchJob(t.Context(), "v", job, nil, o)
			w.is(err, cas.ErrUnverifiable)
			o.AllowUnverified = true
		}
		dst := filepath.Join(t.TempDir(), "f")
		res, err := w.c.FetchJobFile(t.Context(), "v", job, dst, o)
		if err != nil || res.Verified != x.verified || res.Size != int64(len(whole)) || res.TreeHash != cas.TreeHash(whole) && x.verified {
			t.Errorf("%v: %+v, %v", x.job, res, err)
		}
		w.same(dst, whole)
		for _, r := range []cas.Range{{Off: 0, Len: 1}, {Off: mib - 1, Len: 2}, {Off: 5, Len: int64(len(whole)) - 10}, {Off: int64(len(whole)) - 1, Len: 1}, {}, {Off: 2 * mib, Len: mib}} {
			want := whole
			if r.Len > 0 {
				want = whole[r.Off:r.End()]
			}
			var got bytes.Buffer
			res, err := w.c.FetchJobRange(t.Context(), "v", job, r, &got, o)
			if err != nil || !bytes.Equal(got.Bytes(), want) || res.Verified != x.verified || res.Size != int64(len(want)) || res.TreeHash != cas.TreeHash(want) && x.verified {
				t.Errorf("%v of %v: %d bytes, %+v, %v", r, x.job, got.Len(), res, err)
			}
		}
		for _, r := range []cas.Range{{Off: int64(len(whole)), Len: 1}, {Off: 0, Len: int64(len(whole)) + 1}, {Off: -1, Len: 1}, {Off: 1, Len: 0}} {
			_, err := w.c.FetchJobRange(t.Context(), "v", job, r, io.Discard, o)
			w.is(err, cas.ErrInvalid)
		}
	}
	boom := errors.New("boom")
	_, err := w.c.FetchJobRange(t.Context(), "v", w.job(id, cas.Range{}), cas.Range{}, failingWriter{boom}, cas.FetchOptions{PartSize: mib})
	w.is(err, boom)
	buf := make([]byte, 4*mib)
	w.must(nil, w.c.FetchRange(t.Context(), "v", w.job(id, cas.Range{}), cas.Range{Off: 4 * mib, Len: 4 * mib}, buf))
	if !bytes.Equal(buf, data[4*mib:8*mib]) {
		t.Error("FetchRange gives other bytes")
	}
	w.is(w.c.FetchRange(t.Context(), "v", w.job(id, cas.Range{}), cas.Range{Off: 3 * mib, Len: 4 * mib}, buf), cas.ErrProtocol)
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

func TestFetchJobFileIsLocked(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := noise(4 * mib)
	job := w.job(w.upload(data), cas.Range{})
	dst := filepath.Join(w.dir, "f")
	var once sync.Once
	_, err := w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{PartSize: mib, Parallel: 1, Progress: func(int64, int64) {
		once.Do(func() {
			_, err := w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{})
			if err == nil || !strings.Contains(err.Error(), "another process") {
				t.Errorf("a second fetch to the same file: %v", err)
			}
			w.file("f", []byte("mine")) // somebody takes the name meanwhile
		})
	}})
	w.is(err, fs.ErrExist)
	if b, _ := os.ReadFile(dst); string(b) != "mine" {
		t.Errorf("it was replaced by %d bytes", len(b))
	}
	w.must(nil, os.Remove(dst))
	before := w.srv.Count(cas.OpJobOutput)
	w.must(w.c.FetchJobFile(t.Context(), "v", job, dst, cas.FetchOptions{}))
	w.same(dst, data)
	if n := w.srv.Count(cas.OpJobOutput) - before; n != 0 {
		t.Errorf("%d ranges were fetched again", n)
	}
}

func TestInventoryOverBreaks(t *testing.T) {
	w := newWorld(t, local.Options{})
	for i := range 50 {
		w.must(w.c.UploadArchive(t.Context(), "v", fmt.Sprintf("number %d, \"quoted\" \\", i), strings.NewReader("x"), cas.PartHash{}))
	}
	for _, format := range []string{"JSON", "CSV"} {
		remove := w.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 1000, Count: 8})
		all := w.inventory(format)
		remove()
		if len(all) != 50 || all[7].Description != "number 7, \"quoted\" \\" {
			t.Errorf("%s: %d entries, %+v", format, len(all), all[:min(8, len(all))])
		}
	}
	// Ten at a time, by the marker of the finished job.
	v, err := w.c.Vault(t.Context(), "v")
	w.must(v, err)
	seen := map[string]bool{}
	for marker, more := "", true; more; {
		job, err := v.RetrieveInventory(t.Context(), cas.InventoryOptions{Limit: 10, Marker: marker})
		w.must(job, err)
		w.must(nil, job.Wait(t.Context(), 0))
		w.must(job.Inventory(t.Context(), func(e cas.InventoryEntry) error {
			if seen[e.ArchiveID] {
				t.Errorf("%s twice", e.ArchiveID)
			}
			seen[e.ArchiveID] = true
			return nil
		}))
		marker, more = job.InventoryMarker, job.InventoryMarker != ""
	}
	if len(seen) != 50 {
		t.Errorf("%d archives", len(seen))
	}
}

func TestWaitJobOutlivesOutages(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		srv := castest.New(t, local.Options{Dir: dir, Delays: local.Delays{Inventory: 3 * time.Hour}})
		c := srv.Client(t)
		v, err := c.NewVault(t.Context(), "v")
		if err != nil {
			t.Fatal(err)
		}
		job, err := v.RetrieveInventory(t.Context(), cas.InventoryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		srv.Inject(castest.Fault{Op: cas.OpDescribeJob, Kind: castest.Reset, Skip: 3, Count: 200})
		if err := job.Wait(t.Context(), 0); err != nil || !job.Succeeded() {
			t.Errorf("%+v, %v", job.Job, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		job, err = v.RetrieveInventory(t.Context(), cas.InventoryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := job.Wait(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
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
		data := noise(8 * mib)
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

// TestResumeForeignParts resumes an upload in parts that are no power of two, as cascmd makes them.
func TestResumeForeignParts(t *testing.T) {
	w := newWorld(t, local.Options{Lenient: true})
	data := noise(8*mib + 9)
	id, err := w.c.InitiateUpload(t.Context(), "v", "cascmd", 3*mib)
	w.must(id, err)
	w.must(nil, w.c.UploadPart(t.Context(), "v", id, 3*mib, bytes.NewReader(data[3*mib:6*mib]), cas.PartHash{}))
	res, err := w.c.Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), cas.UploadOptions{UploadID: id})
	w.must(res, err)
	want := cas.CombineTreeHashes([]cas.Hash{cas.TreeHash(data[:3*mib]), cas.TreeHash(data[3*mib : 6*mib]), cas.TreeHash(data[6*mib:])})
	if res.TreeHash != want || res.PartSize != 3*mib || res.Skipped != 3*mib {
		t.Errorf("%+v", res)
	}
}
