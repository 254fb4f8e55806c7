package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hangUp breaks the connection without a reply; the body has been read.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		conn.Close()
	}
}

func checkIs(t *testing.T, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%v does not match %q", err, w)
		}
	}
}

func checkNot(t *testing.T, err error, not ...error) {
	t.Helper()
	for _, n := range not {
		if errors.Is(err, n) {
			t.Errorf("%v matches %q", err, n)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	all := []error{
		ErrNotFound, ErrAccessDenied, ErrCredentials, ErrClockSkew, ErrThrottled, ErrUnavailable, ErrInvalid, ErrDigest, ErrLimit,
		ErrPolicy, ErrNotEmpty, ErrNotReady, ErrJobFailed, ErrExpired, ErrTooLarge, ErrEmpty, ErrMismatch, ErrUnknown, ErrProtocol,
	}
	for _, x := range []struct {
		e    Error
		want error
	}{
		{Error{Status: 403, Code: "AccessDeniedException"}, ErrAccessDenied},
		{Error{Status: 400, Code: "BadRequest"}, ErrInvalid},
		{Error{Op: OpDeleteVault, Status: 400, Code: "BadRequest"}, ErrNotEmpty},
		{Error{Status: 403, Code: "ExpiredTokenException"}, ErrCredentials},
		{Error{Status: 403, Code: "ExpiredTokenException", skewed: true}, ErrClockSkew},
		{Error{Status: 400, Code: "InvalidParameterValueException"}, ErrInvalid},
		{Error{Status: 400, Code: "InvalidSignatureException"}, ErrCredentials},
		{Error{Status: 400, Code: "LimitExceededException"}, ErrLimit},
		{Error{Status: 400, Code: "MissingAuthenticationTokenException"}, ErrCredentials},
		{Error{Status: 400, Code: "MissingParameterValueException"}, ErrInvalid},
		{Error{Status: 400, Code: "PolicyEnforcedException"}, ErrPolicy},
		{Error{Status: 404, Code: "ResourceNotFoundException"}, ErrNotFound},
		{Error{Status: 408, Code: "RequestTimeoutException"}, ErrUnavailable},
		{Error{Status: 400, Code: "SerializationException"}, ErrInvalid},
		{Error{Status: 400, Code: "ThrottlingException"}, ErrThrottled},
		{Error{Status: 400, Code: "UnrecognizedClientException"}, ErrCredentials},
		{Error{Status: 500, Code: "ServiceUnavailableException"}, ErrUnavailable},
		{Error{Status: 400, Code: "InvalidDigest"}, ErrDigest},
		{Error{Status: 400, Code: "InvalidParameter"}, ErrInvalid},
		// The code decides, the status only where there is none or an unknown one.
		{Error{Status: 500, Code: "ResourceNotFoundException"}, ErrNotFound},
		{Error{Status: 400, Code: "SomethingNew"}, ErrInvalid},
		{Error{Status: 500, Code: "SomethingNew"}, ErrUnavailable},
		{Error{Status: 502}, ErrUnavailable},
		{Error{Status: 429}, ErrThrottled},
		{Error{Status: 404}, ErrProtocol}, // no code, no request id: not the service
		{Error{Status: 404, RequestID: "r"}, ErrNotFound},
		{Error{Status: 403, RequestID: "r"}, ErrAccessDenied},
		{Error{Status: 413, RequestID: "r"}, ErrTooLarge},
		{Error{Status: 302}, ErrProtocol},
	} {
		for _, k := range all {
			if got := errors.Is(&x.e, k); got != (k == x.want) {
				t.Errorf("%+v: Is(%q) = %v", x.e, k, got)
			}
		}
	}
	e := &Error{Op: "Op", Status: 400, Code: "C", Message: "a\nb\x1b[31m", RequestID: "r1"}
	if got, want := e.Error(), "cas: Op: C: a b [31m (request r1)"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if got := (&Error{Op: "Op", Status: 502, Message: strings.Repeat("é", 1000)}).Error(); len(got) > 600 || !strings.HasPrefix(got, "cas: Op: HTTP 502 Bad Gateway: é") {
		t.Errorf("Error() = %q", got)
	}
}

func TestRetries(t *testing.T) {
	ok := func(w http.ResponseWriter) { io.WriteString(w, `{"VaultName":"v"}`) }
	for _, x := range []struct {
		name string
		fail func(w http.ResponseWriter)
		want error // nil: repeated until it works
	}{
		{"throttling is a 400", func(w http.ResponseWriter) { refuse(w, 400, "ThrottlingException", "") }, nil},
		{"unavailable", func(w http.ResponseWriter) { refuse(w, 500, "ServiceUnavailableException", "") }, nil},
		{"timeout", func(w http.ResponseWriter) { refuse(w, 408, "RequestTimeoutException", "") }, nil},
		{"gateway", func(w http.ResponseWriter) { w.WriteHeader(502); io.WriteString(w, "<html>") }, nil},
		{"429", func(w http.ResponseWriter) { w.WriteHeader(429) }, nil},
		{"hang up", hangUp, nil},
		{"cut body", func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); io.WriteString(w, `{"Va`) }, nil},
		{"final", func(w http.ResponseWriter) { refuse(w, 404, "ResourceNotFoundException", "no") }, ErrNotFound},
		{"final 5xx", func(w http.ResponseWriter) { refuse(w, 500, "AccessDeniedException", "no") }, ErrAccessDenied},
		{"no service", func(w http.ResponseWriter) { w.Header().Del("x-cas-requestid"); w.WriteHeader(404) }, ErrProtocol},
		{"redirect", func(w http.ResponseWriter) { w.Header().Set("Location", "http://127.0.0.1:1/"); w.WriteHeader(302) }, ErrProtocol},
		{"no JSON", func(w http.ResponseWriter) { io.WriteString(w, "<html>") }, ErrProtocol},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n <= 2 {
					x.fail(w)
				} else {
					ok(w)
				}
			})
			c := f.client()
			tick := time.Now()
			c.now = func() time.Time { tick = tick.Add(-time.Second); return tick }
			_, err := c.DescribeVault(t.Context(), "v")
			if x.want != nil {
				checkIs(t, err, x.want)
				if f.count() != 1 {
					t.Errorf("%d requests, want 1", f.count())
				}
				return
			}
			// net/http repeats by itself once when an idle connection turns out dead.
			if err != nil || f.count() != 3 {
				t.Errorf("%v after %d requests, want success after 3", err, f.count())
			}
			if f.auth[0] == f.auth[2] {
				t.Error("not signed anew")
			}
		})
	}
}

func TestRetryLimits(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { refuse(w, 500, "ServiceUnavailableException", "") })
	_, err := f.client(func(o *Options) { o.Retry.MaxAttempts = 3 }).DescribeVault(t.Context(), "v")
	checkIs(t, err, ErrUnavailable)
	var e *Error
	if !errors.As(err, &e) || e.RequestID != "req-3" || f.count() != 3 {
		t.Errorf("%v after %d", err, f.count())
	}
	f.client(func(o *Options) { o.Retry.MaxAttempts = 1 }).DescribeVault(t.Context(), "v")
	if f.count() != 4 {
		t.Errorf("MaxAttempts 1 makes %d requests", f.count()-3)
	}
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c, _ := New(Options{Endpoint: "h", Credentials: testCred, Retry: RetryPolicy{MaxAttempts: 1000}, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			n++
			return nil, errors.New("no network")
		})})
		began := time.Now()
		_, err := c.DescribeVault(t.Context(), "v")
		checkIs(t, err, ErrUnavailable)
		checkNot(t, err, ErrUnknown)
		if took := time.Since(began); took < 4*time.Minute || took > 5*time.Minute || n < 12 || n > 60 {
			t.Errorf("gave up after %v and %d attempts", took, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began = time.Now()
		_, err = c.DescribeVault(ctx, "v")
		checkIs(t, err, context.DeadlineExceeded)
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("ctx ended after 30s, the call after %v", took)
		}
		boom := errors.New("boom")
		cctx, ccancel := context.WithCancelCause(t.Context())
		ccancel(boom)
		_, err = c.DescribeVault(cctx, "v")
		checkIs(t, err, context.Canceled, boom)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(r *http.Request, status int, body string, headers ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c, _ := New(Options{Endpoint: "h", Credentials: testCred, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if n++; n == 1 {
				return answer(r, 429, "", "Retry-After", "7"), nil
			}
			return answer(r, 200, "{}"), nil
		})})
		began := time.Now()
		_, err := c.DescribeVault(t.Context(), "v")
		if took := time.Since(began); err != nil || took != 7*time.Second {
			t.Errorf("%v after %v, want 7s", err, took)
		}
	})
}

// shortConn fails after n bytes were read from it, as a server does that dies half way through a body.
type shortConn struct {
	net.Conn
	left int
}

func (c *shortConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		c.Close()
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

type shortListener struct {
	net.Listener
	short atomic.Int32 // connections still to be cut
}

func (l *shortListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.short.Add(-1) >= 0 {
		c = &shortConn{c, 64 << 10}
	}
	return c, err
}

// TestOnce: what costs money or leaves a copy is never repeated once it may have happened.
func TestOnce(t *testing.T) {
	body := pattern(100)
	upload := func(ctx context.Context, c *Client) error {
		id, err := c.UploadArchive(ctx, "v", "d", bytes.NewReader(body), PartHash{})
		if err == nil && id != "ID" {
			return fmt.Errorf("id %q", id)
		}
		return err
	}
	job := func(ctx context.Context, c *Client) error {
		id, err := c.InitiateJob(ctx, "v", JobRequest{Type: InventoryRetrieval})
		if err == nil && id != "ID" {
			return fmt.Errorf("id %q", id)
		}
		return err
	}
	for name, call := range map[string]func(context.Context, *Client) error{"upload": upload, "job": job} {
		for _, x := range []struct {
			name     string
			fail     func(w http.ResponseWriter)
			requests int
			want     []error
		}{
			{"lost reply", hangUp, 1, []error{ErrUnknown, ErrUnavailable}},
			{"gateway", func(w http.ResponseWriter) { w.WriteHeader(504) }, 1, []error{ErrUnknown, ErrUnavailable}},
			{"unknown 5xx", func(w http.ResponseWriter) { refuse(w, 500, "InternalError", "") }, 1, []error{ErrUnknown, ErrUnavailable}},
			{"unavailable", func(w http.ResponseWriter) { refuse(w, 500, "ServiceUnavailableException", "") }, 2, nil},
			{"throttled", func(w http.ResponseWriter) { refuse(w, 400, "ThrottlingException", "") }, 2, nil},
			{"timeout", func(w http.ResponseWriter) { refuse(w, 408, "RequestTimeoutException", "") }, 2, nil},
			{"refused", func(w http.ResponseWriter) { refuse(w, 400, "PolicyEnforcedException", "") }, 1, []error{ErrPolicy}},
			{"no id", func(w http.ResponseWriter) { w.WriteHeader(201) }, 1, []error{ErrUnknown, ErrProtocol}},
			{"cut after the header", func(w http.ResponseWriter) {
				w.Header().Set("x-cas-archive-id", "ID")
				w.Header().Set("x-cas-job-id", "ID")
				w.Header().Set("Content-Length", "10")
				w.WriteHeader(201)
				w.Write([]byte("x"))
			}, 1, nil},
		} {
			t.Run(name+" "+x.name, func(t *testing.T) {
				f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
					if n == 1 {
						x.fail(w)
						return
					}
					w.Header().Set("x-cas-archive-id", "ID")
					w.Header().Set("x-cas-job-id", "ID")
				})
				err := call(t.Context(), f.client())
				if x.want == nil && err != nil {
					t.Error(err)
				}
				checkIs(t, err, x.want...)
				if len(x.want) == 1 {
					checkNot(t, err, ErrUnknown)
				}
				if f.count() != x.requests {
					t.Errorf("%d requests, want %d", f.count(), x.requests)
				}
			})
		}

		t.Run(name+" cancelled while waiting", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { cancel(); <-r.Context().Done() })
			checkIs(t, call(ctx, f.client()), ErrUnknown, context.Canceled)
		})
		t.Run(name+" never connected", func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			f := newFake(t, nil)
			c := f.client(func(o *Options) { o.Endpoint = "http://" + l.Addr().String() })
			err = call(t.Context(), c)
			checkIs(t, err, ErrUnavailable)
			checkNot(t, err, ErrUnknown)
		})
	}

	t.Run("upload broken half way", func(t *testing.T) {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { w.Header().Set("x-cas-archive-id", "ID") })
		f.srv.Close()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sl := &shortListener{Listener: l}
		sl.short.Store(2)
		srv := &http.Server{Handler: f, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go srv.Serve(sl)
		defer srv.Close()
		body = pattern(32 * mib) // more than the sockets hold
		if err := upload(t.Context(), f.client(func(o *Options) { o.Endpoint = "http://" + l.Addr().String() })); err != nil {
			t.Error(err)
		}
	})
}

func TestUploadDigests(t *testing.T) {
	body := pattern(3 * mib)
	h := HashPart(body)
	digest := func(w http.ResponseWriter, r *http.Request, n int) { refuse(w, 400, "InvalidDigest", "") }
	t.Run("damaged on the way", func(t *testing.T) {
		f := newFake(t, digest)
		_, err := f.client().UploadArchive(t.Context(), "v", "", bytes.NewReader(body), h)
		checkIs(t, err, ErrDigest)
		checkNot(t, err, ErrUnknown)
		if f.count() != 4 {
			t.Errorf("%d requests, want 4", f.count())
		}
	})
	t.Run("changed here", func(t *testing.T) {
		f := newFake(t, digest)
		err := f.client().UploadPart(t.Context(), "v", "u", 0, bytes.NewReader(body[1:]), h)
		checkIs(t, err, ErrDigest)
		if f.count() != 1 {
			t.Errorf("%d requests, want 1", f.count())
		}
	})
	t.Run("named otherwise", func(t *testing.T) {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				refuse(w, 400, "InvalidParameterValueException", "")
			}
		})
		if err := f.client().UploadPart(t.Context(), "v", "u", 0, bytes.NewReader(body), h); err != nil || f.count() != 2 {
			t.Errorf("%v after %d requests", err, f.count())
		}
	})
	t.Run("stored otherwise", func(t *testing.T) {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("x-cas-archive-id", "ID")
			w.Header().Set("x-cas-sha256-tree-hash", h.Linear.String())
		})
		id, err := f.client().UploadArchive(t.Context(), "v", "", bytes.NewReader(body), h)
		checkIs(t, err, ErrDigest)
		if id != "ID" {
			t.Errorf("id %q", id)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {})
		boom := errors.New("boom")
		src := io.NewSectionReader(errorAt{bytes.NewReader(body), 2 * mib, boom}, 0, 3*mib)
		err := f.client().UploadPart(t.Context(), "v", "u", 0, src, h)
		checkIs(t, err, boom)
		checkNot(t, err, ErrUnavailable)
		_, err = f.client().UploadArchive(t.Context(), "v", "", src, h)
		checkIs(t, err, boom)
		checkNot(t, err, ErrUnknown)
	})
}

func TestCompleteUpload(t *testing.T) {
	call := func(f *fake) (string, error) {
		return f.client().CompleteUpload(t.Context(), "v", "u", 1, HashPart([]byte("x")).Tree)
	}
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n <= 2 {
			hangUp(w)
			return
		}
		w.Header().Set("x-cas-archive-id", "ID")
	})
	if id, err := call(f); err != nil || id != "ID" {
		t.Errorf("after lost replies: %q, %v", id, err)
	}
	f = newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			hangUp(w)
			return
		}
		refuse(w, 404, "ResourceNotFoundException", "")
	})
	_, err := call(f)
	checkIs(t, err, ErrUnknown, ErrNotFound)
	f = newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { refuse(w, 404, "ResourceNotFoundException", "") })
	_, err = call(f)
	checkIs(t, err, ErrNotFound)
	checkNot(t, err, ErrUnknown)
	f = newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { hangUp(w) })
	_, err = call(f)
	checkIs(t, err, ErrUnknown, ErrUnavailable)
	f = newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		refuse(w, 500, "ServiceUnavailableException", "")
	})
	_, err = call(f)
	checkIs(t, err, ErrUnavailable)
	checkNot(t, err, ErrUnknown)
}

func TestDeletesAreIdempotent(t *testing.T) {
	for _, vault := range []bool{true, false} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
			if r.Method == "GET" && vault {
				io.WriteString(w, "{}")
				return
			}
			refuse(w, 404, "ResourceNotFoundException", "")
		})
		c := f.client()
		for name, err := range map[string]error{
			"archive": c.DeleteArchive(t.Context(), "v", "A"), "upload": c.AbortUpload(t.Context(), "v", "U"),
		} {
			if vault && err != nil {
				t.Errorf("%s that is gone: %v", name, err)
			}
			if !vault {
				checkIs(t, err, ErrNotFound)
			}
		}
		checkIs(t, c.DeleteVault(t.Context(), "v"), ErrNotFound)
	}
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			hangUp(w)
			return
		}
		refuse(w, 404, "ResourceNotFoundException", "")
	})
	if err := f.client().DeleteVault(t.Context(), "v"); err != nil {
		t.Errorf("our own lost deletion: %v", err)
	}
	f = newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if r.Method == "PUT" {
			refuse(w, 400, "BadRequest", "exists")
			return
		}
		io.WriteString(w, "{}")
	})
	if loc, err := f.client().CreateVault(t.Context(), "v"); err != nil || loc != "/-/vaults/v" {
		t.Errorf("existing vault: %q, %v", loc, err)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { w.WriteHeader(204) })
	c := f.client()
	b := pattern(mib)
	h := HashPart(b)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range int64(8) {
				if err := c.UploadPart(t.Context(), "v", "u", i*mib, bytes.NewReader(b), h); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := f.conns.Load(); n > 12 {
		t.Errorf("64 parts from 8 workers opened %d connections", n)
	}
}

func TestNothingSecretIsLogged(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return log.Write(p) })
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch n {
		case 1:
			refuse(w, 400, "ThrottlingException", "slow down")
		case 2:
			hangUp(w)
		default:
			io.WriteString(w, "{}")
		}
	})
	c := f.client(func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	if _, err := c.DescribeVault(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	s := log.String()
	for _, bad := range []string{testCred.SecretKey, "q-signature", "q-ak"} {
		if strings.Contains(s, bad) {
			t.Errorf("%s is logged:\n%s", bad, s)
		}
	}
	for _, want := range []string{"req-1", "ThrottlingException", OpDescribeVault} {
		if !strings.Contains(s, want) {
			t.Errorf("%s is not logged:\n%s", want, s)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
