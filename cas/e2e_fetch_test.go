package cas_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

func TestFetchJobFileResumes(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := random(20*mib + 3)
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
	other := random(20*mib + 4)
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
	data := random(12*mib + 5)
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

// TestFetchLostBytes: what the service says it has no bytes for is not asked for again and again.
func TestFetchLostBytes(t *testing.T) {
	w := newWorld(t, local.Options{})
	job := w.job(w.upload(random(2*mib)), cas.Range{})
	w.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, Code: "InvalidDigest"})
	err := w.c.FetchRange(t.Context(), "v", job, cas.Range{Off: mib, Len: mib}, make([]byte, mib))
	w.is(err, cas.ErrDigest)
	if n := w.srv.Count(cas.OpJobOutput); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestFetchRanges compares ranges of outputs of ranges with the data.
func TestFetchRanges(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := random(11*mib + 77)
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
	data := random(4 * mib)
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

// endingTransport ends a context once a reply of op has been read to its end.
type endingTransport struct {
	http.RoundTripper
	path string
	end  context.CancelFunc
}

func (e endingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	if err == nil && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, e.path) {
		resp.Body = endingBody{resp.Body, e.end}
	}
	return resp, err
}

type endingBody struct {
	io.ReadCloser
	end context.CancelFunc
}

func (e endingBody) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}

// A wait whose context ends while "not yet" is on its way back ends by the context's error.
func TestWaitJobEndsBetweenReplyAndSleep(t *testing.T) {
	srv := castest.New(t, local.Options{Dir: t.TempDir(), Delays: local.Delays{Inventory: time.Hour}})
	c := srv.Client(t)
	v, err := c.NewVault(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	job, err := v.RetrieveInventory(t.Context(), cas.InventoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cr := srv.Store.Credentials()
	ending, err := cas.New(cas.Options{Endpoint: "http://cas.test", AppID: cr.AppID,
		Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey},
		Transport:   endingTransport{srv.Transport(), "/jobs/" + job.ID, cancel}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ending.WaitJob(ctx, "v", job.ID, time.Minute); !errors.Is(err, context.Canceled) || errors.Is(err, cas.ErrNotReady) {
		t.Errorf("%v", err)
	}
}
