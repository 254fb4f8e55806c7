package cas_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

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
		data := random(x.size)
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
	_, err = w.c.Upload(t.Context(), "nowhere", bytes.NewReader(random(2*mib)), 2*mib, cas.UploadOptions{PartSize: mib})
	w.is(err, cas.ErrNotFound)
	var ue *cas.UploadError
	if errors.As(err, &ue) {
		t.Errorf("there is no upload to resume: %v", err)
	}
}

// TestUploadSurvivesFaults breaks everything that may be repeated, and looks for duplicates.
func TestUploadSurvivesFaults(t *testing.T) {
	w := newWorld(t, local.Options{})
	data := random(12*mib + 5)
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
	data := random(20*mib + 3)
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
	path := w.file("f", random(3*mib+1))
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
	path := w.file("f", random(4*mib))
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
	data := random(8 * mib)
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

// TestResumeForeignParts resumes an upload in parts that are no power of two, as cascmd makes them.
func TestResumeForeignParts(t *testing.T) {
	w := newWorld(t, local.Options{Lenient: true})
	data := random(8*mib + 9)
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
