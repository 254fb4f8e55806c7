package local

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// The official SDK sends two Host lines on uploads, which net/http refuses
// before any handler runs, and net/http's own refusals lack what every reply
// of this service must have. So heads are read here first: a good one is handed to
// net/http with a single Host line and the values seen in a header of a random
// name; a bad one is replaced by a request that makes the handler answer the error.

const maxHead = 64 << 10 // bytes of a request line and headers

// headLength returns the length of the head that b begins with, 0 when it is
// not complete. Nothing before from needs to be looked at again.
func headLength(b []byte, from int) int {
	for i := max(0, from-3); ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return 0
		}
		i += j + 1
		rest := b[i:]
		switch {
		case len(rest) >= 1 && rest[0] == '\n':
			return i + 1
		case len(rest) >= 2 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2
		}
	}
}

// mended is what net/http gets to see of a head, and where the body ends.
type mended struct {
	head []byte
	body int64 // bytes that follow
	last bool  // the connection closes after this request, what follows is not looked at
}

func badHead(status int, format string, args ...any) *apiError {
	return &apiError{status: status, code: "BadRequest", msg: fmt.Sprintf(format, args...), close: true}
}

// refusedHead makes a request that the handler answers with e.
func (s *Store) refusedHead(e *apiError) mended {
	head := fmt.Sprintf("GET /refused HTTP/1.1\r\nHost: casfs\r\nConnection: close\r\n%s: refuse %d %s %s\r\n\r\n",
		s.headKey, e.status, e.code, strconv.QuoteToASCII(e.msg))
	return mended{head: []byte(head), last: true}
}

// mend checks a complete head as strictly as net/http does and rewrites it.
func (s *Store) mend(head []byte) (mended, *apiError) {
	lines := strings.Split(string(head), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	requestLine, fields := lines[0], lines[1:]
	method, rest, _ := strings.Cut(requestLine, " ")
	target, version, ok := strings.Cut(rest, " ")
	if !ok || !isToken(method) {
		return mended{}, badHead(http.StatusBadRequest, "the request line is malformed")
	}
	if version != "HTTP/1.1" && version != "HTTP/1.0" {
		return mended{}, badHead(http.StatusHTTPVersionNotSupported, "only HTTP/1.1 is spoken here")
	}
	if !strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "http://") && !strings.HasPrefix(target, "https://") {
		return mended{}, badHead(http.StatusBadRequest, "the request target is malformed")
	}
	if _, err := url.ParseRequestURI(target); err != nil {
		return mended{}, badHead(http.StatusBadRequest, "the request target is malformed")
	}

	var out bytes.Buffer
	var hosts []string
	m := mended{}
	length := ""
	fmt.Fprintf(&out, "%s %s %s\r\nHost: casfs\r\n", method, target, version)
	for _, f := range fields {
		if f == "" {
			continue // the end, and what Split adds to it
		}
		name, value, ok := strings.Cut(f, ":")
		value = strings.Trim(value, " \t")
		if !ok || !isToken(name) || !isFieldValue(value) {
			return mended{}, badHead(http.StatusBadRequest, "a header line is malformed: %.40q", f)
		}
		switch http.CanonicalHeaderKey(name) {
		case "Host":
			hosts = append(hosts, value)
			continue
		case "Content-Length":
			n, ok := parseDecimal(value)
			if !ok || length != "" && length != value {
				return mended{}, badHead(http.StatusBadRequest, "Content-Length is malformed")
			}
			if length != "" {
				continue
			}
			length, m.body = value, n
		case "Transfer-Encoding":
			if !strings.EqualFold(value, "chunked") || m.last {
				return mended{}, badHead(http.StatusNotImplemented, "this Transfer-Encoding is not supported")
			}
			m.last = true
		case "Expect":
			if !strings.EqualFold(value, "100-continue") {
				return mended{}, badHead(http.StatusExpectationFailed, "this expectation cannot be met")
			}
		case "Trailer", s.headKey:
			continue
		}
		fmt.Fprintf(&out, "%s: %s\r\n", name, value)
	}
	if len(hosts) == 0 && version == "HTTP/1.1" {
		return mended{}, badHead(http.StatusBadRequest, "the request has no Host header")
	}
	if m.last {
		if length != "" {
			return mended{}, badHead(http.StatusBadRequest, "both Content-Length and Transfer-Encoding are given")
		}
		// Where a chunked body ends is not followed here, so no second head is read.
		out.WriteString("Connection: close\r\n")
	}
	if len(hosts) == 0 {
		fmt.Fprintf(&out, "%s: none\r\n", s.headKey)
	}
	for _, h := range hosts {
		fmt.Fprintf(&out, "%s: host %s\r\n", s.headKey, h)
	}
	out.WriteString("\r\n")
	m.head = out.Bytes()
	return m, nil
}

// readHead takes what Serve found in the head of the request, and removes it.
func (s *Store) readHead(r *request) error {
	notes := r.http.Header.Values(s.headKey)
	if len(notes) == 0 {
		r.hosts = []string{r.http.Host}
		return nil
	}
	r.http.Header.Del(s.headKey)
	for _, n := range notes {
		if h, ok := strings.CutPrefix(n, "host "); ok {
			r.hosts = append(r.hosts, h)
			continue
		}
		if n == "none" || n == "host" { // "host" is an empty value
			continue
		}
		e := &apiError{close: true}
		msg := ""
		if _, err := fmt.Sscanf(n, "refuse %d %s %q", &e.status, &e.code, &msg); err != nil {
			return err
		}
		e.msg = msg
		return e
	}
	return nil
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isAlnum(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

func isFieldValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
