package local

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A signing client of the tests' own, written from the wire contract alone.

type header map[string]string

// signer makes Authorization headers.
type signer struct {
	id, key string
	now     func() time.Time
}

func enc(s string) string {
	var sb strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~", c) >= 0 {
			sb.WriteByte(c)
		} else {
			fmt.Fprintf(&sb, "%%%02X", c)
		}
	}
	return sb.String()
}

func mac(key, msg string) string {
	m := hmac.New(sha1.New, []byte(key))
	io.WriteString(m, msg)
	return fmt.Sprintf("%x", m.Sum(nil))
}

func line(m map[string]string, lowerValues bool) (text, names string) {
	var keys []string
	low := map[string]string{}
	for k, v := range m {
		k = strings.ToLower(k)
		keys = append(keys, k)
		low[k] = v
	}
	sort.Strings(keys)
	var fs []string
	for _, k := range keys {
		v := low[k]
		if lowerValues {
			v = strings.ToLower(v)
		}
		if v == "" {
			fs = append(fs, k)
		} else {
			fs = append(fs, k+"="+enc(v))
		}
	}
	return strings.Join(fs, "&"), strings.Join(keys, ";")
}

func (s signer) sign(method, path string, params, headers map[string]string) string {
	t := s.now().Unix()
	win := fmt.Sprintf("%d;%d", t, t+1200)
	p, pn := line(params, true)
	h, hn := line(headers, false)
	format := strings.ToLower(method) + "\n" + path + "\n" + p + "\n" + h + "\n"
	sum := sha1.Sum([]byte(format))
	sig := mac(mac(s.key, win), "sha1\n"+win+"\n"+hex.EncodeToString(sum[:])+"\n")
	return "q-sign-algorithm=sha1&q-ak=" + s.id + "&q-sign-time=" + win + "&q-key-time=" + win +
		"&q-header-list=" + hn + "&q-url-param-list=" + pn + "&q-signature=" + sig
}

// naiveTree is the tree hash by the definition.
func naiveTree(b []byte) string {
	var level [][]byte
	for off := 0; off < len(b); off += 1 << 20 {
		d := sha256.Sum256(b[off:min(off+1<<20, len(b))])
		level = append(level, d[:])
	}
	for len(level) > 1 {
		var next [][]byte
		for i := 0; i < len(level); i += 2 {
			if i+1 == len(level) {
				next = append(next, level[i])
				continue
			}
			d := sha256.Sum256(slices.Concat(level[i], level[i+1]))
			next = append(next, d[:])
		}
		level = next
	}
	return hex.EncodeToString(level[0])
}

func linearHex(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// pattern is the contract's pattern P.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range min(len(b), 251) {
		b[i] = byte(i)
	}
	for k := 251; k < len(b); k *= 2 {
		copy(b[k:], b[:k])
	}
	return b
}

// clock is an injectable clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// client calls a store's handler.
type client struct {
	t *testing.T
	s *Store
	c *clock
}

// open opens a store on a clock of its own; o may name a directory.
func open(t *testing.T, o Options) *client {
	t.Helper()
	c := newClock()
	return reopen(t, c, o)
}

func reopen(t *testing.T, c *clock, o Options) *client {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Now == nil {
		o.Now = c.now
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	t.Cleanup(func() {
		if !closed {
			closed = true
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return &client{t: t, s: s, c: c}
}

type response struct {
	*http.Response
	body []byte
}

// do signs and sends a request; a "!" before a header's name leaves it unsigned.
func (c *client) do(method, path string, body []byte, h header) response {
	c.t.Helper()
	return c.doBody(method, path, bytes.NewReader(body), int64(len(body)), h)
}

func (c *client) doBody(method, path string, body io.Reader, size int64, h header) response {
	c.t.Helper()
	r := httptest.NewRequest(method, "http://cas.test"+path, body)
	r.ContentLength = size
	u, _ := url.Parse(path)
	params := map[string]string{}
	for k, v := range u.Query() {
		params[k] = v[0]
	}
	signed := map[string]string{"host": "cas.test"}
	for k, v := range h {
		if k, unsigned := strings.CutPrefix(k, "!"); unsigned {
			r.Header[http.CanonicalHeaderKey(k)] = []string{v}
		} else {
			signed[k] = v
			r.Header[http.CanonicalHeaderKey(k)] = []string{v}
		}
	}
	if r.Header.Get("Authorization") == "" {
		cr := c.s.Credentials()
		now := c.s.now
		p, _, _ := strings.Cut(path, "?")
		r.Header.Set("Authorization", signer{cr.SecretID, cr.SecretKey, now}.sign(method, p, params, signed))
	}
	w := httptest.NewRecorder()
	c.s.ServeHTTP(w, r)
	resp := response{w.Result(), w.Body.Bytes()}
	checkReply(c.t, resp)
	return resp
}

// checkReply holds every reply against what the official clients demand.
func checkReply(t *testing.T, r response) {
	t.Helper()
	if r.Header.Get("x-cas-requestid") == "" {
		t.Errorf("reply %d without x-cas-requestid", r.StatusCode)
	}
	if ct := r.Header.Get("Content-Type"); len(r.body) == 0 && ct != "" {
		t.Errorf("reply %d without a body has Content-Type %q", r.StatusCode, ct)
	} else if len(r.body) > 0 && ct != "application/json" && ct != "application/octet-stream" && ct != "text/csv" {
		t.Errorf("reply %d has Content-Type %q", r.StatusCode, ct)
	}
	if r.StatusCode >= 400 {
		var e map[string]string
		if err := json.Unmarshal(r.body, &e); err != nil || e["code"] == "" || e["message"] == "" || e["type"] == "" {
			t.Errorf("error body %q", r.body)
		}
	}
}

func (r response) code() string {
	var e struct{ Code string }
	json.Unmarshal(r.body, &e)
	return e.Code
}

// must fails the test unless the status is the one wanted.
func (c *client) must(status int, r response) response {
	c.t.Helper()
	if r.StatusCode != status {
		c.t.Fatalf("status %d, want %d: %s", r.StatusCode, status, r.body)
	}
	return r
}

// refused fails the test unless the reply is the error wanted.
func (c *client) refused(status int, code string, r response) {
	c.t.Helper()
	if r.StatusCode != status || r.code() != code {
		c.t.Errorf("got %d %s, want %d %s: %s", r.StatusCode, r.code(), status, code, r.body)
	}
}

func (c *client) json(r response, v any) {
	c.t.Helper()
	c.must(200, r)
	if err := json.Unmarshal(r.body, v); err != nil {
		c.t.Fatalf("%v in %s", err, r.body)
	}
}

func hashes(b []byte) header {
	return header{"x-cas-content-sha256": linearHex(b), "x-cas-sha256-tree-hash": naiveTree(b)}
}

func (c *client) create(vault string) {
	c.t.Helper()
	c.must(201, c.do("PUT", "/-/vaults/"+vault, nil, nil))
}

func (c *client) upload(vault string, b []byte, desc string) string {
	c.t.Helper()
	h := hashes(b)
	h["content-length"] = strconv.Itoa(len(b))
	if desc != "" {
		h["x-cas-archive-description"] = desc
	}
	id := c.must(201, c.do("POST", "/-/vaults/"+vault+"/archives", b, h)).Header.Get("x-cas-archive-id")
	if len(id) != 128 {
		c.t.Errorf("archive id %q", id)
	}
	return id
}

func (c *client) initiate(vault string, partSize int) string {
	c.t.Helper()
	r := c.must(201, c.do("POST", "/-/vaults/"+vault+"/multipart-uploads", nil, header{"x-cas-part-size": strconv.Itoa(partSize), "x-cas-archive-description": "mp"}))
	return r.Header.Get("x-cas-multipart-upload-id")
}

func (c *client) part(vault, upload string, off int, b []byte) response {
	c.t.Helper()
	h := hashes(b)
	h["!content-range"] = fmt.Sprintf("bytes %d-%d/*", off, off+len(b)-1)
	return c.do("PUT", "/-/vaults/"+vault+"/multipart-uploads/"+upload, b, h)
}

func (c *client) complete(vault, upload string, size int, tree string) response {
	c.t.Helper()
	return c.do("POST", "/-/vaults/"+vault+"/multipart-uploads/"+upload, nil,
		header{"x-cas-archive-size": strconv.Itoa(size), "x-cas-sha256-tree-hash": tree})
}

func (c *client) job(vault, body string) string {
	c.t.Helper()
	return c.must(202, c.do("POST", "/-/vaults/"+vault+"/jobs", []byte(body), nil)).Header.Get("x-cas-job-id")
}

func (c *client) describe(vault, job string) map[string]any {
	c.t.Helper()
	var m map[string]any
	c.json(c.do("GET", "/-/vaults/"+vault+"/jobs/"+job, nil, nil), &m)
	return m
}

func (c *client) output(vault, job, rng string) response {
	c.t.Helper()
	h := header{}
	if rng != "" {
		h["range"] = rng
	}
	return c.do("GET", "/-/vaults/"+vault+"/jobs/"+job+"/output", nil, h)
}

func (c *client) retrieve(vault, id string) string {
	c.t.Helper()
	return c.job(vault, `{"Type":"archive-retrieval","ArchiveId":"`+id+`"}`)
}
