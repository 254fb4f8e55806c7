package cas

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Credentials sign requests. They are never logged; String hides the key.
type Credentials struct {
	SecretID  string
	SecretKey string
}

// Options configure a Client. Only Endpoint and Credentials are required.
type Options struct {
	// Endpoint is "host", "host:port", "http://…", "https://…" or
	// "unix:///path/to/socket". Without a scheme it is https.
	Endpoint string
	// AppID is the account in request paths, decimal, or "-" or "" for the account that signs.
	AppID       string
	Credentials Credentials
	// Transport replaces the client's own http.RoundTripper (tests, in-process store).
	Transport http.RoundTripper
	Logger    *slog.Logger // nil: discard
	Retry     RetryPolicy  // zero: DefaultRetry
	// Stall ends an attempt during which no byte moved for this long (0: 2 min).
	// The reply to a completed upload may take five times as long.
	Stall time.Duration
	// MaxConns bounds idle connections kept per host (0: 16).
	MaxConns  int
	UserAgent string // "" : casfs/<version>
}

// RetryPolicy bounds what the client repeats by itself. Every attempt is signed anew.
type RetryPolicy struct {
	MaxAttempts  int           // attempts in all; 0: 6; 1: never repeat
	MaxElapsed   time.Duration // no new attempt this long after the first failure; 0: 5 min
	Initial, Max time.Duration // backoff bounds; 0: 200 ms, 20 s
}

// DefaultRetry is what the zero RetryPolicy stands for.
var DefaultRetry = RetryPolicy{MaxAttempts: 6, MaxElapsed: 5 * time.Minute, Initial: 200 * time.Millisecond, Max: 20 * time.Second}

// Client calls the service. It is safe for concurrent use; it holds idle
// connections until Close.
type Client struct {
	scheme, host string // host as sent and signed, without the scheme's own port
	uid          string // first element of paths
	cred         Credentials
	retry        RetryPolicy
	stall        time.Duration
	agent        string
	log          *slog.Logger
	http         *http.Client
	own          *http.Transport // nil when Options.Transport is used
	now          func() time.Time
	skew         atomic.Int64 // nanoseconds the server's clock is ahead of ours

	ownerMu sync.Mutex
	owner   bool // uid is known to be the account that signs
}

// New checks o and returns a client; it contacts nothing. Errors match ErrInvalid.
func New(o Options) (*Client, error) {
	scheme, host, socket, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, err
	}
	uid := cmp.Or(o.AppID, "-")
	if uid != "-" && strings.Trim(uid, "0123456789") != "" {
		return nil, fmt.Errorf("cas: app id %q is neither decimal nor \"-\": %w", o.AppID, ErrInvalid)
	}
	if o.Credentials.SecretID == "" || o.Credentials.SecretKey == "" {
		return nil, fmt.Errorf("cas: credentials are missing: %w", ErrInvalid)
	}
	if strings.ContainsFunc(o.Credentials.SecretID, func(r rune) bool { return r <= ' ' || r > '~' || r == '&' }) {
		return nil, fmt.Errorf("cas: the secret id holds characters that none has: %w", ErrInvalid)
	}
	c := &Client{
		scheme: scheme, host: host, uid: uid, cred: o.Credentials,
		retry: RetryPolicy{
			MaxAttempts: cmp.Or(o.Retry.MaxAttempts, DefaultRetry.MaxAttempts),
			MaxElapsed:  cmp.Or(o.Retry.MaxElapsed, DefaultRetry.MaxElapsed),
			Initial:     cmp.Or(o.Retry.Initial, DefaultRetry.Initial),
			Max:         cmp.Or(o.Retry.Max, DefaultRetry.Max),
		},
		stall: cmp.Or(o.Stall, 2*time.Minute),
		agent: cmp.Or(o.UserAgent, defaultAgent()),
		log:   o.Logger,
		now:   time.Now,
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	rt := o.Transport
	if rt == nil {
		c.own = newTransport(socket, cmp.Or(o.MaxConns, 16))
		rt = c.own
	}
	c.http = &http.Client{
		Transport: rt,
		// A signature covers one path on one host: following would send it elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close drops idle connections. Calls in flight go on.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

var defaultAgent = sync.OnceValue(func() string {
	v := "devel"
	if bi, ok := debug.ReadBuildInfo(); ok {
		if m := strings.Trim(bi.Main.Version, "()"); m != "" {
			v = m
		}
	}
	return "casfs/" + v
})

func newTransport(socket string, conns int) *http.Transport {
	d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		// A DialContext of one's own also keeps HTTP/2 away: parts want a connection each.
		DialContext:         d.DialContext,
		MaxIdleConnsPerHost: conns,
		// Shorter than what servers commonly allow: on a connection the server has
		// just closed, an upload that must not be repeated would end in ErrUnknown.
		IdleConnTimeout:     20 * time.Second,
		TLSHandshakeTimeout: 30 * time.Second,
		DisableCompression:  true, // a compressed reply would not match its hash and length
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
	}
	if socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		}
	}
	return t
}

// parseEndpoint splits an endpoint into what URLs and signatures need.
func parseEndpoint(s string) (scheme, host, socket string, err error) {
	bad := func(why string) (string, string, string, error) {
		return "", "", "", fmt.Errorf("cas: endpoint %q: %s: %w", s, why, ErrInvalid)
	}
	if s == "" {
		return bad("missing")
	}
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return bad("a socket needs an absolute path, as unix:///run/casfs.sock")
		}
		return "http", "localhost", path, nil
	}
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return bad("not a host, host:port or URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("the scheme must be http, https or unix")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return bad("only scheme, host and port belong here")
	case u.Hostname() == "" || strings.ContainsFunc(u.Host, func(r rune) bool { return r <= ' ' || r > '~' }):
		return bad("no host name")
	}
	host = u.Host
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return bad("bad port")
		}
		if p == map[string]string{"http": "80", "https": "443"}[u.Scheme] {
			host = strings.TrimSuffix(host, ":"+p)
		}
	} else {
		host = strings.TrimSuffix(host, ":")
	}
	return u.Scheme, host, "", nil
}

// request is one operation, from which every attempt is built anew.
type request struct {
	op, method string
	path       string // below /<UID>
	uid        string // instead of the client's, when not empty
	query      []pair // empty values are not sent
	header     []pair // sent and signed; empty values are not sent
	unsigned   []pair // sent only
	body       Body   // nil: none

	upload bool      // body is archive data: its length is signed
	hash   *PartHash // of the uploaded body
	once   bool      // must not be repeated once the service may have acted on it
	slow   bool      // the reply may take minutes
	bare   bool      // the reply is all in its headers
	stream bool      // leave the reply's body to the caller
	meter  *meter    // told how far the body has been sent
}

// reply is an answer with a 2xx status.
type reply struct {
	status int
	header http.Header
	body   []byte        // all of it, unless the request was a stream
	stream io.ReadCloser // of a stream
	length int64         // of a stream, -1 unknown
}

const (
	maxReply      = 64 << 20 // a page of 1000 jobs is about 2 MB
	maxErrorReply = 64 << 10
)

// attemptResult says what else is known about a failed attempt.
type attemptResult struct {
	sent       bool          // the whole request may have reached the server
	sourceErr  error         // reading the body failed, on this side
	signSkew   time.Duration // correction of the clock that signed
	dateSkew   time.Duration // the server's clock minus ours; only with an Error that has a Date
	signedFor  time.Duration // how long the signature was meant to hold
	took       time.Duration
	retryAfter time.Duration
}

// attempt signs and sends r once.
func (c *Client) attempt(ctx context.Context, r *request) (*reply, attemptResult, error) {
	var res attemptResult
	began := time.Now()
	defer func() { res.took = time.Since(began) }()

	actx, cancel := context.WithCancelCause(ctx)
	wait := c.stall
	if r.slow {
		wait *= 5
	}
	dog := newWatchdog(c.stall, func() { cancel(errStalled) })
	finish := func() { dog.stop(); cancel(nil) }

	var snd *sender
	if r.body != nil {
		snd = &sender{ctx: actx, body: r.body, size: r.body.Size(), meter: r.meter, dog: dog, stall: c.stall, replyWait: wait}
		defer snd.detach()
	} else {
		dog.arm(wait)
	}
	skew := time.Duration(c.skew.Load())
	req, life := c.build(actx, r, snd, c.now().Add(skew))
	res.signSkew, res.signedFor = skew, life

	resp, err := c.http.Do(req)
	if err != nil {
		finish()
		res.sent = !notSent(err)
		if snd != nil {
			off, srcErr := snd.state()
			res.sent = res.sent && off == snd.size
			res.sourceErr = srcErr
		}
		if context.Cause(actx) == errStalled {
			err = errStalled
		}
		return nil, res, err
	}
	dog.rest()
	res.sent = true
	body := &replyBody{body: resp.Body, ctx: actx, dog: dog, wait: c.stall, finish: finish}
	if resp.StatusCode/100 == 2 {
		rep := &reply{status: resp.StatusCode, header: resp.Header}
		if r.stream {
			rep.stream, rep.length = body, resp.ContentLength
			return rep, res, nil
		}
		defer body.Close()
		rep.body, err = io.ReadAll(io.LimitReader(body, maxReply+1))
		if err != nil && !r.bare {
			return nil, res, err
		}
		if len(rep.body) > maxReply && !r.bare {
			return nil, res, badReply(r.op, "more than %d bytes", maxReply)
		}
		return rep, res, nil
	}
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorReply))
	e := c.parseError(r.op, resp, text)
	if !e.Date.IsZero() {
		res.dateSkew = e.Date.Sub(c.now())
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		res.retryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	return nil, res, e
}

// build makes a signed http.Request. now is the server's clock as far as we know it.
func (c *Client) build(ctx context.Context, r *request, snd *sender, now time.Time) (*http.Request, time.Duration) {
	path := "/" + cmp.Or(r.uid, c.uid) + r.path
	var params []pair
	var query []string
	for _, p := range r.query {
		if p.value != "" {
			params = append(params, p)
			query = append(query, p.name+"="+escape(p.value))
		}
	}
	req := (&http.Request{
		Method: r.method,
		// With RawPath the path goes out exactly as it is signed.
		URL:        &url.URL{Scheme: c.scheme, Host: c.host, Path: path, RawPath: path, RawQuery: strings.Join(query, "&")},
		Host:       c.host,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     make(http.Header),
	}).WithContext(ctx)
	req.Header.Set("User-Agent", c.agent)

	headers := []pair{{"host", c.host}}
	if snd != nil {
		req.ContentLength = snd.size
		req.Body, _ = snd.open()
		req.GetBody = snd.open
		if r.upload {
			headers = append(headers, pair{"content-length", strconv.FormatInt(snd.size, 10)})
		}
	}
	for _, h := range r.header {
		if h.value != "" {
			headers = append(headers, h)
			req.Header.Set(h.name, h.value)
		}
	}
	for _, h := range r.unsigned {
		req.Header.Set(h.name, h.value)
	}
	if !r.once {
		// Never sent; tells net/http that it may repeat the request on another
		// connection when the server has just closed an idle one.
		req.Header["Idempotency-Key"] = []string{}
	}
	life := signLife
	if r.upload {
		life = signLifeUpload
	}
	start := now.Add(-skewSlack)
	req.Header.Set("Authorization", sign(c.cred, r.method, path, headers, params, start, now.Add(life)).authorization)
	return req, life
}

func (c *Client) parseError(op string, resp *http.Response, body []byte) *Error {
	e := &Error{Op: op, Status: resp.StatusCode, RequestID: resp.Header.Get("x-cas-requestid")}
	e.Date, _ = http.ParseTime(resp.Header.Get("Date"))
	var doc struct{ Code, Message, Type flexString }
	if json.Unmarshal(body, &doc) == nil {
		e.Code, e.Message, e.Type = string(doc.Code), string(doc.Message), string(doc.Type)
	} else if t := strings.TrimSpace(string(body)); t != "" && t[0] != '<' {
		e.Message = oneLine(t)
	}
	return e
}

// notSent reports whether err proves that nothing reached the server.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// decode reads a JSON reply into v.
func (r *reply) decode(op string, v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return badReply(op, "%v", err)
	}
	return nil
}

// id returns an identifier from header, or the last element of Location.
func (r *reply) id(header string) string {
	if id := r.header.Get(header); id != "" {
		return id
	}
	l := r.header.Get("Location")
	return l[strings.LastIndexByte(l, '/')+1:]
}

// checkID refuses what cannot be an opaque identifier of the service, before
// it becomes part of a path.
func checkID(op, what, id string) error {
	if id == "" {
		return invalid(op, "%s is empty", what)
	}
	for i := range len(id) {
		switch b := id[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case strings.IndexByte("-_.~+=,:@!$()*;", b) >= 0:
		default:
			return invalid(op, "%q is no %s", id, what)
		}
	}
	if id == "." || id == ".." {
		return invalid(op, "%q is no %s", id, what)
	}
	return nil
}

func checkVault(op, name string) error {
	if err := ValidVaultName(name); err != nil {
		return fmt.Errorf("cas: %s: %w", op, err)
	}
	return nil
}
