package cas

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// output is a fake's job output.
type output struct {
	data   []byte
	noHash bool
}

func (o output) serve(w http.ResponseWriter, r *http.Request) (Range, []byte) {
	rng := Range{0, int64(len(o.data))}
	status := 200
	if h := r.Header.Get("Range"); h != "" {
		rng, _ = ParseRange(strings.TrimPrefix(h, "bytes="), rng.Len)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %s/%d", rng, len(o.data)))
		status = 206
	}
	b := o.data[rng.Off:rng.End()]
	if TreeAligned(rng, int64(len(o.data))) && !o.noHash {
		w.Header().Set("x-cas-sha256-tree-hash", TreeHash(b).String())
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(status)
	return rng, b
}

func TestJobOutputReplies(t *testing.T) {
	o := output{data: pattern(3*mib + 5)}
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		_, b := o.serve(w, r)
		w.Write(b)
	})
	c := f.client()
	for _, x := range []struct {
		ask, got Range
		hash     bool
	}{
		{Range{}, Range{0, 3*mib + 5}, true}, {Range{mib, mib}, Range{mib, mib}, true},
		{Range{mib, 2 * mib}, Range{mib, 2 * mib}, false}, {Range{7, 1}, Range{7, 1}, false},
	} {
		out, err := c.JobOutput(t.Context(), "v", "j", x.ask)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(out.Body)
		out.Body.Close()
		if err != nil || !bytes.Equal(b, o.data[x.got.Off:x.got.End()]) || out.Range != x.got || out.Total != 3*mib+5 || out.TreeHash.IsZero() == x.hash || out.ContentType != "application/octet-stream" {
			t.Errorf("%v: %d bytes, %+v, %v", x.ask, len(b), out, err)
		}
	}
	for _, h := range []map[string]string{
		{}, {"Content-Range": "bytes 0-9"}, {"Content-Range": "bytes 1-10/20"}, {"Content-Range": "bytes 0-8/20"}, {"Content-Range": "bytes 0-10/20"},
		{"Content-Range": "bytes 0-9/5"}, {"Content-Range": "bytes 9-0/20"}, {"Content-Range": "bytes */20"}, {"Content-Range": "lines 0-9/20"},
		{"Content-Range": "bytes 0-9/20", "x-cas-sha256-tree-hash": "zz"},
	} {
		f.handler = func(w http.ResponseWriter, r *http.Request, n int) {
			for k, v := range h {
				w.Header().Set(k, v)
			}
			w.WriteHeader(206)
			w.Write(make([]byte, 10))
		}
		if _, err := c.JobOutput(t.Context(), "v", "j", Range{0, 10}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%v: %v, want ErrProtocol", h, err)
		}
	}
	// 200 is the whole output: right only where that was asked for.
	f.handler = func(w http.ResponseWriter, r *http.Request, n int) { w.Write(make([]byte, 10)) }
	if out, err := c.JobOutput(t.Context(), "v", "j", Range{0, 10}); err != nil {
		t.Error(err)
	} else {
		out.Body.Close()
	}
	for _, r := range []Range{{0, 5}, {1, 9}} {
		if _, err := c.JobOutput(t.Context(), "v", "j", r); !errors.Is(err, ErrProtocol) {
			t.Errorf("200 for %v: %v", r, err)
		}
	}
	for _, r := range []Range{{-1, 5}, {5, 0}, {5, -1}, {1 << 62, 1 << 62}} {
		if _, err := c.JobOutput(t.Context(), "v", "j", r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", r, err)
		}
	}
	// A break is an unexpected end, never a short output.
	f.handler = func(w http.ResponseWriter, r *http.Request, n int) {
		w.Header().Set("Content-Length", "10")
		w.Write(make([]byte, 4))
	}
	out, err := c.JobOutput(t.Context(), "v", "j", Range{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(out.Body)
	out.Body.Close()
	checkIs(t, err, io.ErrUnexpectedEOF)
	if len(b) != 4 {
		t.Errorf("%d bytes before the break", len(b))
	}
}

func TestWhyNoOutput(t *testing.T) {
	refusal, job := "InvalidParameterValueException", ""
	status := 400
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/output"):
			refuse(w, status, refusal, "no output")
		case job == "":
			refuse(w, 404, "ResourceNotFoundException", "")
		default:
			io.WriteString(w, job)
		}
	})
	c := f.client()
	call := func() error { _, err := c.JobOutput(t.Context(), "v", "j", Range{}); return err }
	checkIs(t, call(), ErrExpired)
	job = `{"JobId":"j","Completed":false,"StatusCode":"InProgress"}`
	checkIs(t, call(), ErrNotReady, ErrInvalid)
	_, err := c.FetchJob(t.Context(), "v", "j", nil, FetchOptions{})
	checkIs(t, err, ErrNotReady)
	job = `{"JobId":"j","Completed":true,"StatusCode":"Failed","StatusMessage":"gone"}`
	err = call()
	checkIs(t, err, ErrJobFailed)
	if !strings.Contains(err.Error(), "gone") {
		t.Error(err)
	}
	_, err = c.FetchJob(t.Context(), "v", "j", nil, FetchOptions{})
	checkIs(t, err, ErrJobFailed)
	job = `{"JobId":"j","Completed":true,"StatusCode":"Succeeded"}`
	err = call()
	checkIs(t, err, ErrInvalid)
	checkNot(t, err, ErrNotReady, ErrExpired)
	job = `{"JobId":"j","Completed":true,"StatusCode":"Succeeded","CompletionDate":"2017-01-01T00:00:00Z"}`
	checkIs(t, call(), ErrExpired, ErrInvalid)
	status = 416
	checkIs(t, call(), ErrInvalid)
	status, refusal = 404, "ResourceNotFoundException"
	checkIs(t, call(), ErrExpired, ErrNotFound)
}

func TestFetchRange(t *testing.T) {
	o := output{data: pattern(14*mib + 5)}
	want := Range{8 * mib, 6*mib + 5}
	var asked []string
	run := func(h func(w http.ResponseWriter, r *http.Request, n int)) error {
		asked = nil
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
			asked = append(asked, r.Header.Get("Range"))
			h(w, r, n)
		})
		buf := make([]byte, want.Len)
		err := f.client(func(o *Options) { o.Retry.MaxAttempts = 4 }).FetchRange(t.Context(), "v", "j", want, buf)
		if err == nil && !bytes.Equal(buf, o.data[want.Off:want.End()]) {
			t.Error("wrong bytes")
		}
		return err
	}
	serve := func(cut int, flip bool) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			_, b := o.serve(w, r)
			if flip {
				b = bytes.Clone(b)
				b[len(b)-1] ^= 1
			}
			w.Write(b[:min(cut, len(b))])
		}
	}
	t.Run("whole", func(t *testing.T) {
		if err := run(func(w http.ResponseWriter, r *http.Request, n int) { serve(1<<30, false)(w, r) }); err != nil || len(asked) != 1 {
			t.Errorf("%v, asked %v", err, asked)
		}
	})
	t.Run("many breaks with progress", func(t *testing.T) {
		// More breaks than attempts, but each brings a MiB.
		if err := run(func(w http.ResponseWriter, r *http.Request, n int) { serve(mib+100, false)(w, r) }); err != nil {
			t.Error(err)
		}
		if want := "bytes=9437184-14680068"; len(asked) != 6 || asked[1] != want {
			t.Errorf("asked %v, want the second %s", asked, want)
		}
	})
	t.Run("breaks without progress", func(t *testing.T) {
		err := run(func(w http.ResponseWriter, r *http.Request, n int) { serve(mib/2, false)(w, r) })
		checkIs(t, err, ErrUnavailable, io.ErrUnexpectedEOF)
		if len(asked) != 4 {
			t.Errorf("asked %v", asked)
		}
	})
	t.Run("damaged once", func(t *testing.T) {
		if err := run(func(w http.ResponseWriter, r *http.Request, n int) { serve(1<<30, n == 1)(w, r) }); err != nil || len(asked) != 2 || asked[0] != asked[1] {
			t.Errorf("%v, asked %v", err, asked)
		}
	})
	t.Run("damaged always", func(t *testing.T) {
		err := run(func(w http.ResponseWriter, r *http.Request, n int) { serve(1<<30, true)(w, r) })
		checkIs(t, err, ErrDigest)
		if len(asked) != 4 {
			t.Errorf("asked %v", asked)
		}
	})
	t.Run("damaged after a break", func(t *testing.T) {
		if err := run(func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				serve(3*mib, false)(w, r)
			} else {
				serve(1<<30, n == 2)(w, r)
			}
		}); err != nil || len(asked) != 3 || asked[2] != asked[0] {
			t.Errorf("%v, asked %v", err, asked)
		}
	})
	t.Run("no hash", func(t *testing.T) {
		o.noHash = true
		defer func() { o.noHash = false }()
		checkIs(t, run(func(w http.ResponseWriter, r *http.Request, n int) { serve(1<<30, false)(w, r) }), ErrProtocol)
	})
	t.Run("expires half way", func(t *testing.T) {
		checkIs(t, run(func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				serve(3*mib, false)(w, r)
				return
			}
			refuse(w, 404, "ResourceNotFoundException", "")
		}), ErrExpired, ErrNotFound)
	})
	t.Run("buffer of another size", func(t *testing.T) {
		c := newFake(t, nil).client()
		checkIs(t, c.FetchRange(t.Context(), "v", "j", Range{0, 5}, make([]byte, 4)), ErrInvalid)
	})
}

// A job that finishes between the refusal of its output and the look at it has an output.
func TestOutputOfAJobThatJustFinished(t *testing.T) {
	asked := 0
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case !strings.HasSuffix(r.URL.Path, "/output"):
			io.WriteString(w, `{"JobId":"j","Completed":true,"StatusCode":"Succeeded"}`)
		case asked == 0:
			asked++
			refuse(w, 400, "InvalidParameterValueException", "in progress")
		default:
			io.WriteString(w, "bytes")
		}
	})
	out, err := f.client().JobOutput(t.Context(), "v", "j", Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if b, err := io.ReadAll(out.Body); err != nil || string(b) != "bytes" {
		t.Errorf("%q, %v", b, err)
	}
}
