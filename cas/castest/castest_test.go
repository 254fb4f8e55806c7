package castest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
)

// send makes an unsigned request, which the store answers with a 400 in its own form.
func send(t *testing.T, s *Server, ctx context.Context, body io.Reader, n int64) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://cas.test/-/vaults/v/archives", body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = n
	return s.Transport().RoundTrip(req)
}

func TestFaults(t *testing.T) {
	s := New(t, local.Options{})
	body := func() io.Reader { return strings.NewReader("0123456789") }
	read := func() (string, error) {
		resp, err := send(t, s, t.Context(), body(), 10)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	whole, err := read()
	if err != nil || !strings.Contains(whole, "MissingAuthenticationToken") {
		t.Fatalf("%q, %v", whole, err)
	}

	remove := s.Inject(Fault{Op: cas.OpUploadArchive, Kind: Status, Code: "ThrottlingException", Skip: 1, Count: 1})
	for i, want := range []string{"MissingAuth", "Throttling", "MissingAuth"} {
		if got, err := read(); err != nil || !strings.Contains(got, want) {
			t.Errorf("call %d: %q, %v; want %s", i, got, err, want)
		}
	}
	remove()

	for _, k := range []Kind{Reset, CutRequest, LoseReply} {
		remove := s.Inject(Fault{Kind: k, Bytes: 3})
		if got, err := read(); err == nil || got != "" {
			t.Errorf("kind %d: %q, %v", k, got, err)
		}
		remove()
	}

	remove = s.Inject(Fault{Kind: CutReply, Bytes: 5})
	if got, err := read(); !errors.Is(err, io.ErrUnexpectedEOF) || got != whole[:5] {
		t.Errorf("cut reply: %q, %v", got, err)
	}
	remove()

	remove = s.Inject(Fault{Kind: Corrupt, Bytes: 7})
	got, err := read()
	remove()
	if err != nil || len(got) != len(whole) || got[7] == whole[7] || got[:7] != whole[:7] || got[8:] != whole[8:] {
		t.Errorf("corrupt: %q, %v", got, err)
	}
	if n := s.Count(cas.OpUploadArchive); n != 9 {
		t.Errorf("counted %d", n)
	}
	if n := s.Count("*"); n != 9 {
		t.Errorf("counted %d in all", n)
	}
}

func TestProbability(t *testing.T) {
	s := New(t, local.Options{})
	s.Inject(Fault{Probability: 0.5, Kind: Reset})
	run := func() string {
		s.Seed(7)
		var sb strings.Builder
		for range 40 {
			if resp, err := send(t, s, t.Context(), strings.NewReader("x"), 1); err != nil {
				sb.WriteByte('x')
			} else {
				resp.Body.Close()
				sb.WriteByte('.')
			}
		}
		return sb.String()
	}
	a, b := run(), run()
	if n := strings.Count(a, "x"); a != b || n < 8 || n > 32 {
		t.Errorf("%s\n%s", a, b)
	}
}

func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t, local.Options{})
		s.Inject(Fault{Kind: Delay, Delay: time.Hour})
		start := time.Now()
		resp, err := send(t, s, t.Context(), strings.NewReader("x"), 1)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if d := time.Since(start); d != time.Hour {
			t.Errorf("took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := send(t, s, ctx, strings.NewReader("x"), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

func TestHold(t *testing.T) {
	for _, kind := range []Kind{Hold, HoldReply} {
		testHold(t, kind)
	}
}

func testHold(t *testing.T, kind Kind) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t, local.Options{})
		release := s.Inject(Fault{Kind: kind})
		done := make(chan error, 1)
		go func() {
			resp, err := send(t, s, t.Context(), strings.NewReader("x"), 1)
			if err == nil {
				resp.Body.Close()
			}
			done <- err
		}()
		time.Sleep(24 * time.Hour)
		select {
		case <-done:
			t.Fatal("not held")
		default:
		}
		release()
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
		defer s.Inject(Fault{Kind: kind})()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := send(t, s, ctx, strings.NewReader("x"), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// A body that blocks must not outlive the context.
func TestCancelBlockedBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t, local.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		pr, pw := io.Pipe()
		defer pw.Close()
		if _, err := send(t, s, ctx, pr, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if _, err := pw.Write(bytes.Repeat([]byte{1}, 10)); err == nil {
			t.Error("the body is still being read")
		}
	})
}
