package castest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type transport struct{ s *Server }

// reset is what a client sees of a connection that breaks.
func reset(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Err: syscall.ECONNRESET}
}

// RoundTrip implements http.RoundTripper: the handler runs on its own
// goroutine, as behind a connection, and streams its reply through a pipe. It ends when the
// reply is read or closed, or the request's context ends.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if !t.s.begin() {
		closeBody(req)
		return nil, errors.New("castest: the server is closed")
	}
	resp, err := t.roundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("castest: %s %s: %w", req.Method, req.URL.Path, err)
	}
	return resp, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

func (t transport) roundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	body := newBody(req)
	plan := t.s.arrive(opOf(req.Method, req.URL.EscapedPath()))
	done := func() {
		body.Close()
		t.s.running.Done()
	}

	for _, f := range plan {
		var over <-chan time.Time
		var held <-chan struct{}
		switch f.Kind {
		case Delay:
			timer := time.NewTimer(f.Delay)
			defer timer.Stop()
			over = timer.C
		case Hold:
			held = f.removed
		default:
			continue
		}
		select {
		case <-over:
		case <-held:
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
	}
	if err := ctx.Err(); err != nil {
		done()
		return nil, context.Cause(ctx)
	}
	rep := &reply{body: body, header: http.Header{}, ready: make(chan struct{}), corrupt: -1, cut: -1}
	for _, f := range plan {
		switch f.Kind {
		case Status:
			defer done()
			if _, err := io.Copy(io.Discard, body); err != nil {
				return nil, err
			}
			return t.refusal(req, f), nil
		case Reset:
			done()
			return nil, reset("write")
		case CutRequest:
			if body.cut < 0 {
				body.cut = f.Bytes
			}
		case CutReply:
			if rep.cut < 0 {
				rep.cut = f.Bytes
			}
		case Corrupt:
			if rep.corrupt < 0 {
				rep.corrupt = f.Bytes
			}
		case WrongHash:
			rep.wrongHash = true
		case LoseReply:
			rep.lose = true
		case CorruptRequest:
			body.corrupt = f.Bytes
		}
	}

	r := req.Clone(ctx)
	r.Body = body
	r.RequestURI = req.URL.RequestURI()
	r.RemoteAddr = "192.0.2.1:1"
	if r.Host == "" {
		r.Host = req.URL.Host
	}
	if req.Body == nil {
		r.ContentLength = 0
	}
	if r.ContentLength > 0 || req.Method == http.MethodPost || req.Method == http.MethodPut {
		r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	pr, pw := io.Pipe()
	rep.pipe = pw
	go func() {
		defer done()
		defer func() {
			if p := recover(); p != nil {
				rep.abort(reset("read"))
				if p != http.ErrAbortHandler {
					panic(p)
				}
			}
		}()
		t.s.Store.ServeHTTP(rep, r)
		switch {
		case body.wasCut():
			rep.abort(reset("write"))
		case rep.lose:
			rep.abort(reset("read"))
		default:
			rep.finish()
		}
	}()

	select {
	case <-rep.ready:
	case <-ctx.Done():
		err := context.Cause(ctx)
		pr.CloseWithError(err)
		body.Close()
		return nil, err
	}
	if rep.err != nil {
		return nil, rep.err
	}
	for _, f := range plan {
		if f.Kind != HoldReply {
			continue
		}
		select {
		case <-f.removed:
		case <-ctx.Done():
			pr.CloseWithError(context.Cause(ctx))
			return nil, context.Cause(ctx)
		}
	}
	out := &replyBody{PipeReader: pr}
	out.stop = context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	resp := response(req, rep.status, rep.sent)
	resp.Body = out
	return resp, nil
}

func response(req *http.Request, status int, h http.Header) *http.Response {
	n := int64(-1)
	if v, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		n = v
	} else if status == http.StatusNoContent {
		n = 0
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, ContentLength: n, Request: req,
	}
}

// refusal is an error reply in the service's form.
func (t transport) refusal(req *http.Request, f Fault) *http.Response {
	code, status, kind := f.Code, f.HTTPStatus, "Client"
	if code == "" {
		code = "ServiceUnavailableException"
	}
	if status == 0 {
		switch code {
		case "ServiceUnavailableException":
			status = http.StatusInternalServerError
		case "ResourceNotFoundException":
			status = http.StatusNotFound
		case "AccessDeniedException", "ExpiredTokenException":
			status = http.StatusForbidden
		case "RequestTimeoutException":
			status = http.StatusRequestTimeout
		default:
			status = http.StatusBadRequest
		}
	}
	if status >= 500 {
		kind = "Server"
	}
	b := fmt.Sprintf(`{"code":%q,"message":"injected","type":%q}`, code, kind)
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("X-Cas-Requestid", "injected")
	resp := response(req, status, h)
	resp.Body = io.NopCloser(strings.NewReader(b))
	return resp
}

// requestBody is what the handler reads: exactly ContentLength bytes, and none
// once it is closed, so that the caller's memory is its own again.
type requestBody struct {
	ctx  context.Context
	size int64
	cut  int64 // break here; -1: not
	// corrupt is where a byte is flipped; -1: nowhere.
	corrupt int64

	under io.ReadCloser
	once  sync.Once

	mu     sync.Mutex // held while under is being read
	n      int64
	isCut  bool
	closed bool
}

func newBody(req *http.Request) *requestBody {
	b := &requestBody{ctx: req.Context(), size: req.ContentLength, cut: -1, corrupt: -1, under: req.Body}
	if req.Body == nil {
		b.under, b.size = http.NoBody, 0
	}
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.cut >= 0 && int64(len(p)) > b.cut-b.n {
		p = p[:b.cut-b.n]
	}
	if b.size >= 0 && int64(len(p)) > b.size-b.n {
		p = p[:b.size-b.n]
	}
	if b.cut >= 0 && b.n == b.cut {
		b.isCut = true
		return 0, io.ErrUnexpectedEOF
	}
	if b.size >= 0 && b.n == b.size {
		return 0, io.EOF
	}
	n, err := b.under.Read(p)
	if i := b.corrupt - b.n; b.corrupt >= 0 && i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	b.n += int64(n)
	if err == io.EOF && b.size >= 0 && b.n < b.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *requestBody) wasCut() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.isCut
}

// Close closes the caller's body first, which ends a Read that blocks, and
// returns when no Read is under way.
func (b *requestBody) Close() error {
	var err error
	b.once.Do(func() { err = b.under.Close() })
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	return err
}

// reply is the handler's ResponseWriter: the head is handed over when it is
// written, the body streams through a pipe.
type reply struct {
	header    http.Header
	sent      http.Header
	status    int
	n         int64
	corrupt   int64 // flip the byte here; -1: none
	cut       int64 // break here; -1: not
	wrongHash bool
	lose      bool
	body      *requestBody

	pipe  *io.PipeWriter
	once  sync.Once
	ready chan struct{} // closed when status and sent, or err, are set
	err   error
}

// lost reports whether the connection is gone by now, as the client sees it.
func (r *reply) lost() bool { return r.lose || r.body.wasCut() }

func (r *reply) Header() http.Header { return r.header }

func (r *reply) WriteHeader(status int) {
	if r.status != 0 {
		return
	}
	r.status = status
	r.sent = r.header.Clone()
	if h := r.sent.Get("X-Cas-Sha256-Tree-Hash"); r.wrongHash && h != "" {
		first := "0"
		if h[0] == '0' {
			first = "1"
		}
		r.sent.Set("X-Cas-Sha256-Tree-Hash", first+h[1:])
	}
	if r.lost() {
		return // the head is never seen
	}
	if r.sent.Get("Content-Length") != "" {
		r.once.Do(func() { close(r.ready) })
	}
}

func (r *reply) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.lost() {
		return len(p), nil
	}
	r.once.Do(func() { close(r.ready) })
	out := p
	if r.cut >= 0 && r.n+int64(len(p)) > r.cut {
		r.pipe.Write(p[:r.cut-r.n])
		r.pipe.CloseWithError(io.ErrUnexpectedEOF)
		return 0, reset("write")
	}
	if i := r.corrupt - r.n; r.corrupt >= 0 && 0 <= i && i < int64(len(p)) {
		out = append([]byte(nil), p...)
		out[i] ^= 1
	}
	n, err := r.pipe.Write(out)
	r.n += int64(n)
	return n, err
}

// finish ends the reply after the handler returned.
func (r *reply) finish() {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.sent.Get("Content-Length") == "" && r.n == 0 {
		if r.status != http.StatusNoContent {
			r.sent.Set("Content-Length", "0")
		}
	}
	r.once.Do(func() { close(r.ready) })
	r.pipe.Close()
}

// abort breaks the reply: before the head as an error of RoundTrip, later as
// an error of the body.
func (r *reply) abort(err error) {
	r.once.Do(func() {
		r.err = err
		close(r.ready)
	})
	r.pipe.CloseWithError(err)
}

// replyBody closes the pipe, on which the handler's writes end.
type replyBody struct {
	*io.PipeReader
	stop func() bool
}

func (b *replyBody) Close() error {
	b.stop()
	return b.PipeReader.CloseWithError(io.ErrClosedPipe)
}
