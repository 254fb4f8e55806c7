package local

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func headStore() *Store { return &Store{headKey: "X-Casfs-Test", stallTime: time.Minute} }

func TestMend(t *testing.T) {
	s := headStore()
	for _, x := range []struct {
		name, head string
		status     int // of the refusal; 0: accepted
		hosts      []string
		body       int64
		last       bool
	}{
		{"plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, []string{"a"}, 0, false},
		{"bare line feeds", "GET / HTTP/1.1\nHost: a\n\n", 0, []string{"a"}, 0, false},
		{"two hosts", "PUT /x HTTP/1.1\r\nHost: a:1\r\nContent-Length: 5\r\nhOST:\ta \r\n\r\n", 0, []string{"a:1", "a"}, 5, false},
		{"UTF-8 value", "GET / HTTP/1.1\r\nHost: a\r\nX: 照片\r\n\r\n", 0, []string{"a"}, 0, false},
		{"same length twice", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 0, []string{"a"}, 5, false},
		{"chunked", "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 0, []string{"a"}, 0, true},
		{"old", "GET / HTTP/1.0\r\n\r\n", 0, nil, 0, false},
		{"expect", "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n", 0, []string{"a"}, 0, false},
		{"absolute", "GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 0, []string{"a"}, 0, false},
		{"forged", "GET / HTTP/1.1\r\nHost: a\r\nx-casfs-test: host evil\r\n\r\n", 0, []string{"a"}, 0, false},
		{"invalid host", "GET / HTTP/1.1\r\nHost: a b/c\r\n\r\n", 0, []string{"a b/c"}, 0, false},

		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, nil, 0, false},
		{"no version", "GET /\r\nHost: a\r\n\r\n", 400, nil, 0, false},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505, nil, 0, false},
		{"blank in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 505, nil, 0, false},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, nil, 0, false},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, nil, 0, false},
		{"control in target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, nil, 0, false},
		{"bad method", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, nil, 0, false},
		{"folded", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400, nil, 0, false},
		{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n", 400, nil, 0, false},
		{"blank before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, nil, 0, false},
		{"control in value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00\r\n\r\n", 400, nil, 0, false},
		{"carriage return in value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400, nil, 0, false},
		{"two lengths", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, nil, 0, false},
		{"negative length", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", 400, nil, 0, false},
		{"signed length", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400, nil, 0, false},
		{"huge length", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400, nil, 0, false},
		{"length and chunked", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, nil, 0, false},
		{"gzip", "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, nil, 0, false},
		{"odd expectation", "PUT / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\n\r\n", 417, nil, 0, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			if n := headLength([]byte(x.head+"rest"), 0); n != len(x.head) {
				t.Fatalf("head of %d bytes, want %d", n, len(x.head))
			}
			m, e := s.mend([]byte(x.head))
			if e != nil {
				if e.status != x.status {
					t.Fatalf("refused with %v, want %d", e, x.status)
				}
				m = s.refusedHead(e)
			} else if x.status != 0 {
				t.Fatalf("accepted as %q", m.head)
			}
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(m.head)))
			if err != nil {
				t.Fatalf("net/http: %v in %q", err, m.head)
			}
			req := &request{http: r}
			err = s.readHead(req)
			if e != nil {
				if got := asAPIError(err); got.status != e.status || got.msg != e.msg || got.code != e.code {
					t.Errorf("%v became %v", e, err)
				}
				return
			}
			if err != nil || strings.Join(req.hosts, "|") != strings.Join(x.hosts, "|") || m.body != x.body || m.last != x.last {
				t.Errorf("hosts %q, body %d, last %v, %v", req.hosts, m.body, m.last, err)
			}
		})
	}
}

// Whatever comes, net/http gets a head it accepts, and forged notes never pass.
func FuzzMend(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"))
	f.Add([]byte("PUT /-/vaults/v HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Casfs-Test: host b\r\n\r\nhello"))
	f.Add([]byte("GET http://x/%41 HTTP/1.0\n\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Host\r\n\r\n0\r\n\r\n"))
	s := headStore()
	f.Fuzz(func(t *testing.T, b []byte) {
		n := headLength(b, 0)
		if n == 0 || n > maxHead {
			return
		}
		for from := range n { // an incremental search finds the same end
			if got := headLength(b, from); from < n-4 && got != n {
				t.Fatalf("from %d: %d, want %d", from, got, n)
			}
		}
		m, e := s.mend(b[:n])
		if e != nil {
			m = s.refusedHead(e)
		}
		r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(m.head), iotest.ErrReader(errors.New("read on")))))
		if err != nil {
			t.Fatalf("%v in %q", err, m.head)
		}
		if e == nil && !m.last && m.body != r.ContentLength {
			t.Fatalf("body of %d bytes, net/http says %d", m.body, r.ContentLength)
		}
		req := &request{http: r}
		if err := s.readHead(req); e == nil && err != nil {
			t.Fatal(err)
		} else if e != nil && asAPIError(err).msg != e.msg {
			t.Fatalf("%q became %v", e.msg, err)
		}
		if r.Header.Get(s.headKey) != "" {
			t.Fatal("the note stayed")
		}
	})
}

// Pipelined requests, cut anywhere, are found again.
func TestHeadConn(t *testing.T) {
	in := "GET /1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" +
		"\r\nPUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /no HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n\r\n" +
		"GET /3 HTTP/1.1\r\nHost: c\r\n\r\n"
	for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader} {
		c := &headConn{Conn: readConn{r: wrap(strings.NewReader(in))}, s: headStore()}
		out, err := io.ReadAll(iotest.OneByteReader(c))
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(bytes.NewReader(out))
		for _, want := range []struct{ path, hosts, body string }{{"/1", "host a|host b", ""}, {"/2", "host a", "GET /no HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n\r\n"[:40]}, {"/3", "host c", ""}} {
			r, err := http.ReadRequest(br)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, _ := io.ReadAll(r.Body)
			if r.URL.Path != want.path || strings.Join(r.Header["X-Casfs-Test"], "|") != want.hosts || string(body) != want.body {
				t.Errorf("%s: %s %v %q", name, r.URL, r.Header, body)
			}
		}
	}
}

type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.r.Read(p) }
