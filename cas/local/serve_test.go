package local

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a raw connection to a served store.
type wire struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
	s  *Store
}

func dial(t *testing.T, s *Store, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{t: t, Conn: c, br: bufio.NewReader(c), s: s}
}

func (w *wire) write(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		w.t.Log(err) // the reply says more
	}
}

// head makes a signed head.
func (w *wire) head(method, path string, h header) string {
	cr := w.s.Credentials()
	signed := map[string]string{"host": "127.0.0.1"}
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n", method, path)
	for k, v := range h {
		if n, unsigned := strings.CutPrefix(k, "!"); unsigned {
			k = n
		} else {
			signed[k] = v
		}
		fmt.Fprintf(&sb, "%s: %s\r\n", k, v)
	}
	fmt.Fprintf(&sb, "Authorization: %s\r\n\r\n", signer{cr.SecretID, cr.SecretKey, w.s.now}.sign(method, path, nil, signed))
	return sb.String()
}

func (w *wire) reply() response {
	w.t.Helper()
	r, err := http.ReadResponse(w.br, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	resp := response{r, b}
	checkReply(w.t, resp)
	return resp
}

func (w *wire) closed() {
	w.t.Helper()
	if b, err := w.br.ReadByte(); err == nil {
		w.t.Errorf("the connection is still open: %q", b)
	}
}

func (w *wire) expect(status int, code string) {
	w.t.Helper()
	if r := w.reply(); r.StatusCode != status || r.code() != code {
		w.t.Errorf("%d %s, want %d %s", r.StatusCode, r.body, status, code)
	}
}

func uploadHead(b []byte) header {
	h := hashes(b)
	h["content-length"] = strconv.Itoa(len(b))
	return h
}

func TestKeepAlive(t *testing.T) {
	s, addr := serve(t, Options{})
	w := dial(t, s, addr)
	b := pattern(1<<20 + 5)
	put := w.head("PUT", "/-/vaults/v", nil)
	up := w.head("POST", "/-/vaults/v/archives", uploadHead(b))
	w.write(put)
	w.expect(201, "")
	for range 3 {
		w.write(up + string(b))
		w.expect(201, "")
	}
	go w.write(put + up + string(b) + put) // pipelined
	w.expect(201, "")
	w.expect(201, "")
	w.expect(201, "")
	w.write(w.head("POST", "/-/vaults/w/archives", uploadHead(b)) + string(b))
	w.expect(404, "ResourceNotFoundException") // and the connection lives on
	w.write(put)
	w.expect(201, "")
}

func TestHostileHeads(t *testing.T) {
	s, addr := serve(t, Options{})
	for name, x := range map[string]struct {
		send   string
		status int
		code   string
	}{
		"garbage":     {"hello\r\n\r\n", 400, "BadRequest"},
		"TLS":         {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400, "BadRequest"},
		"HTTP/2":      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "BadRequest"},
		"gigantic":    {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 3*maxHead) + "\r\n\r\n", 431, "BadRequest"},
		"many lines":  {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", maxHead/6) + "\r\n", 431, "BadRequest"},
		"no host":     {"GET / HTTP/1.1\r\n\r\n", 400, "BadRequest"},
		"unsigned":    {"GET /-/vaults HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400, "MissingAuthenticationTokenException"},
		"options":     {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "BadRequest"},
		"connect":     {"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "BadRequest"},
		"long signed": {"GET /-/vaults HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: " + strings.Repeat("a=b&", 10000) + "\r\n\r\n", 400, "InvalidSignatureException"},
	} {
		t.Run(name, func(t *testing.T) {
			w := dial(t, s, addr)
			w.write(x.send)
			w.expect(x.status, x.code)
			w.closed()
		})
	}
}

func TestChunked(t *testing.T) {
	s, addr := serve(t, Options{})
	w := dial(t, s, addr)
	w.write(w.head("PUT", "/-/vaults/v", nil))
	w.expect(201, "")
	h := hashes([]byte("hello"))
	h["!transfer-encoding"] = "chunked"
	w.write(w.head("POST", "/-/vaults/v/archives", h) + "5\r\nhello\r\n0\r\n\r\n")
	w.expect(400, "MissingParameterValueException")
	w.closed()
	w = dial(t, s, addr)
	w.write(w.head("PUT", "/-/vaults/v/access-policy", header{"!transfer-encoding": "chunked"}) + "e\r\n{\"policy\":\"x\"}\r\n0\r\n\r\n")
	w.expect(204, "")
	w.closed()
}

func TestLyingLength(t *testing.T) {
	s, addr := serve(t, Options{})
	w := dial(t, s, addr)
	w.write(w.head("PUT", "/-/vaults/v", nil))
	w.expect(201, "")
	// Longer than the body: the client ends its side.
	b := []byte("hello")
	h := hashes(b)
	h["content-length"] = "50"
	w.write(w.head("POST", "/-/vaults/v/archives", h) + "hello")
	w.Conn.(*net.TCPConn).CloseWrite()
	w.expect(400, "InvalidParameterValueException")
	w.closed()
	// Shorter: the hash tells, and the rest is no request.
	w = dial(t, s, addr)
	h["content-length"] = "3"
	w.write(w.head("POST", "/-/vaults/v/archives", h) + "hello\r\n\r\n")
	w.expect(400, "InvalidDigest")
	w.expect(400, "BadRequest")
	w.closed()
	// Absurd: refused without waiting for it.
	w = dial(t, s, addr)
	h["content-length"] = "9000000000000000000"
	w.write(w.head("POST", "/-/vaults/v/archives", h) + "hello")
	w.expect(400, "InvalidParameterValueException")
	w.closed()
}

func TestExpectContinue(t *testing.T) {
	s, addr := serve(t, Options{})
	b := pattern(1000)
	h := uploadHead(b)
	h["!expect"] = "100-continue"
	w := dial(t, s, addr)
	w.write(w.head("POST", "/-/vaults/v/archives", h))
	w.expect(404, "ResourceNotFoundException")
	w.closed()
	w = dial(t, s, addr)
	w.write(w.head("PUT", "/-/vaults/v", nil))
	w.expect(201, "")
	w.write(w.head("POST", "/-/vaults/v/archives", h))
	line, err := w.br.ReadString('\n')
	if err != nil || !strings.Contains(line, "100") {
		t.Fatal(line, err)
	}
	w.br.ReadString('\n')
	w.write(string(b))
	w.expect(201, "")
}

// pipeListener accepts what dial makes, without a network: its deadlines are those of a bubble's clock.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	over  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.over) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial(t *testing.T, s *Store) *wire {
	t.Helper()
	c, server := net.Pipe()
	l.conns <- server
	t.Cleanup(func() { c.Close() })
	return &wire{t: t, Conn: c, br: bufio.NewReader(c), s: s}
}

// Clients that send next to nothing are given up, and disturb nobody meanwhile. In virtual time, who is not slow
// takes none, however slow the machine is.
func TestSlowClients(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Options{Dir: dir, Stall: 700 * time.Millisecond, MinRate: 16 << 10})
		l := &pipeListener{conns: make(chan net.Conn), over: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, l) }()
		w := l.dial(t, s)
		w.write(w.head("PUT", "/-/vaults/v", nil))
		w.expect(201, "")
		b := pattern(1 << 20)
		head := w.head("POST", "/-/vaults/v/archives", uploadHead(b))

		// A pipe holds nothing: each reads, from the beginning, what it is told.
		var slowOnes sync.WaitGroup
		givenUp := func(send func(*wire), reply bool) {
			c := l.dial(t, s)
			send(c)
			slowOnes.Go(func() {
				if reply {
					c.expect(408, "RequestTimeoutException")
				}
				c.closed()
			})
		}
		givenUp(func(c *wire) { c.write(head + string(b[:10])) }, true) // silent
		givenUp(func(c *wire) {
			c.write(head)
			slowOnes.Go(func() {
				for i := range b {
					time.Sleep(20 * time.Millisecond)
					if _, err := c.Write(b[i : i+1]); err != nil {
						return
					}
				}
			})
		}, true)
		givenUp(func(c *wire) { c.write(head[:20]) }, true) // half a head
		givenUp(func(*wire) {}, false)                      // mute

		other := l.dial(t, s)
		for range 5 {
			other.write(head + string(b))
			other.expect(201, "")
		}
		slowOnes.Wait()
		for _, c := range []*wire{w, other} {
			c.Close()
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestTLS(t *testing.T) {
	cert := httptest.NewTLSServer(http.NotFoundHandler())
	defer cert.Close()
	s := mustOpen(t, Options{Dir: t.TempDir()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, tls.NewListener(l, &tls.Config{Certificates: cert.TLS.Certificates})) }()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := &wire{t, conn, bufio.NewReader(conn), s}
	w.write(w.head("PUT", "/-/vaults/v", nil))
	w.expect(201, "")
	b := pattern(1<<20 + 1)
	w.write(strings.Replace(w.head("POST", "/-/vaults/v/archives", uploadHead(b)), "Host:", "Host: other\r\nHost:", 1) + string(b))
	w.expect(201, "")
	w.write("nonsense\n\n")
	w.expect(400, "BadRequest")
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// What is being served when the context ends is served to its end.
func TestShutdown(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	w := dial(t, s, l.Addr().String())
	w.write(w.head("PUT", "/-/vaults/v", nil))
	w.expect(201, "")
	b := pattern(1000)
	h := uploadHead(b)
	h["!expect"] = "100-continue" // its reply shows that the handler runs
	w.write(w.head("POST", "/-/vaults/v/archives", h))
	if line, err := w.br.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatal(line, err)
	}
	w.br.ReadString('\n')
	cancel()
	w.write(string(b))
	w.expect(201, "")
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

// A reader that goes away in the middle of an output leaves nothing behind.
func TestReaderGone(t *testing.T) {
	s, addr := serve(t, Options{})
	c := &client{t: t, s: s}
	c.create("v")
	b := bytes.Repeat(pattern(251), 16<<20/251)
	id := c.upload("v", b, "")
	job := c.retrieve("v", id)
	w := dial(t, s, addr)
	w.write(w.head("GET", "/-/vaults/v/jobs/"+job+"/output", nil))
	if _, err := io.ReadFull(w.br, make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	w = dial(t, s, addr)
	w.write(w.head("GET", "/-/vaults/v/jobs/"+job+"/output", nil))
	if r := w.reply(); !bytes.Equal(r.body, b) {
		t.Error("output differs")
	}
}
