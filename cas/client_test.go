package cas

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var testCred = Credentials{"AKIDtest", "SKtest"}

// fake is a scripted service: it checks the signature of every request as
// cas-api.md §3 tells a server to, and records what came.
type fake struct {
	t       testing.TB
	srv     *httptest.Server
	handler func(w http.ResponseWriter, r *http.Request, n int) // n counts from 1
	now     func() time.Time
	conns   atomic.Int32 // accepted

	mu   sync.Mutex
	reqs []*http.Request // bodies read
	auth []string
	body [][]byte
}

func newFake(t testing.TB, h func(w http.ResponseWriter, r *http.Request, n int)) *fake {
	f := &fake{t: t, handler: h, now: time.Now}
	f.srv = httptest.NewUnstartedServer(f)
	f.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	f.srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			f.conns.Add(1)
		}
	}
	f.srv.Start()
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fake) client(mod ...func(*Options)) *Client {
	f.t.Helper()
	o := Options{
		Endpoint: f.srv.URL, Credentials: testCred,
		Retry: RetryPolicy{Initial: time.Microsecond, Max: time.Millisecond},
	}
	for _, m := range mod {
		m(&o)
	}
	c, err := New(o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.reqs)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	f.mu.Lock()
	f.reqs = append(f.reqs, r)
	f.auth = append(f.auth, r.Header.Get("Authorization"))
	f.body = append(f.body, body)
	n := len(f.reqs)
	f.mu.Unlock()
	w.Header().Set("x-cas-requestid", fmt.Sprintf("req-%d", n))
	w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
	if err != nil {
		return
	}
	switch why := f.verify(r); why {
	case "":
		f.handler(w, r, n)
	case "window":
		refuse(w, 403, "ExpiredTokenException", "the signature is not valid now")
	default:
		refuse(w, 400, "InvalidSignatureException", why)
	}
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code": %q, "message": %q, "type": "Client"}`, code, message)
}

func (f *fake) verify(r *http.Request) string {
	kv := map[string]string{}
	for p := range strings.SplitSeq(r.Header.Get("Authorization"), "&") {
		k, v, _ := strings.Cut(p, "=")
		kv[k] = v
	}
	if kv["q-sign-algorithm"] != "sha1" || kv["q-ak"] != testCred.SecretID {
		return "who?"
	}
	a, b, _ := strings.Cut(kv["q-sign-time"], ";")
	from, _ := strconv.ParseInt(a, 10, 64)
	to, _ := strconv.ParseInt(b, 10, 64)
	if now := f.now().Unix(); now < from || now > to {
		return "window"
	}
	q, _ := url.ParseQuery(r.URL.RawQuery)
	text := func(list string, get func(string) (string, bool)) (string, error) {
		var out []string
		for name := range strings.SplitSeq(list, ";") {
			if name == "" {
				continue
			}
			v, ok := get(name)
			if !ok {
				return "", fmt.Errorf("%s is signed but missing", name)
			}
			out = append(out, name+"="+strings.ReplaceAll(url.QueryEscape(v), "+", "%20"))
		}
		return strings.Join(out, "&"), nil
	}
	ps, err := text(kv["q-url-param-list"], func(n string) (string, bool) { return strings.ToLower(q.Get(n)), q.Has(n) })
	if err != nil {
		return err.Error()
	}
	hs, err := text(kv["q-header-list"], func(n string) (string, bool) {
		switch n {
		case "host":
			return r.Host, true
		case "content-length":
			return strconv.FormatInt(r.ContentLength, 10), true
		}
		return r.Header.Get(n), r.Header.Get(n) != ""
	})
	if err != nil {
		return err.Error()
	}
	mac := func(k, m string) string {
		h := hmac.New(sha1.New, []byte(k))
		io.WriteString(h, m)
		return hex.EncodeToString(h.Sum(nil))
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	sum := sha1.Sum([]byte(strings.ToLower(r.Method) + "\n" + path + "\n" + ps + "\n" + hs + "\n"))
	want := mac(mac(testCred.SecretKey, kv["q-key-time"]), "sha1\n"+kv["q-sign-time"]+"\n"+hex.EncodeToString(sum[:])+"\n")
	if want != kv["q-signature"] {
		return "the signature does not fit"
	}
	signed := strings.Split(kv["q-header-list"], ";")
	for h := range r.Header {
		if n := strings.ToLower(h); (strings.HasPrefix(n, "x-cas-") || n == "range") && !slices.Contains(signed, n) {
			return n + " is not signed"
		}
	}
	if !slices.Contains(signed, "host") || r.Header.Get("x-cas-content-sha256") != "" && !slices.Contains(signed, "content-length") {
		return "host or length is not signed"
	}
	for n := range q {
		if !slices.Contains(strings.Split(kv["q-url-param-list"], ";"), n) {
			return n + " is not signed"
		}
	}
	return ""
}

func TestEndpoints(t *testing.T) {
	for _, x := range []struct{ in, scheme, host, socket string }{
		{"cas.ap-chengdu.myqcloud.com", "https", "cas.ap-chengdu.myqcloud.com", ""},
		{"cas.ap-chengdu.myqcloud.com:443", "https", "cas.ap-chengdu.myqcloud.com", ""},
		{"127.0.0.1:8080", "https", "127.0.0.1:8080", ""},
		{"http://127.0.0.1:8080/", "http", "127.0.0.1:8080", ""},
		{"http://h:80", "http", "h", ""},
		{"HTTPS://h:80", "https", "h:80", ""},
		{"http://[::1]:81", "http", "[::1]:81", ""},
		{"unix:///run/casfs.sock", "http", "localhost", "/run/casfs.sock"},
	} {
		scheme, host, socket, err := parseEndpoint(x.in)
		if err != nil || scheme != x.scheme || host != x.host || socket != x.socket {
			t.Errorf("parseEndpoint(%q) = %q %q %q %v", x.in, scheme, host, socket, err)
		}
	}
	for _, s := range []string{"", "ftp://h", "http://", "http://u:p@h", "http://h/path", "http://h?q", "h:port", "h:99999", "unix://rel", "unix://", "http://h ost", "夏.example"} {
		if _, err := New(Options{Endpoint: s, Credentials: testCred}); !errors.Is(err, ErrInvalid) {
			t.Errorf("New(%q) = %v, want ErrInvalid", s, err)
		}
	}
	for _, o := range []Options{
		{Endpoint: "h"}, {Endpoint: "h", Credentials: Credentials{SecretID: "x"}},
		{Endpoint: "h", Credentials: testCred, AppID: "12x"}, {Endpoint: "h", Credentials: Credentials{"a&b", "k"}},
	} {
		if _, err := New(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("New(%v) = %v, want ErrInvalid", o, err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "cas") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, now: time.Now, handler: func(w http.ResponseWriter, r *http.Request, n int) {
		if r.Host != "localhost" || r.URL.Path != "/-/vaults/v" {
			t.Errorf("Host %q, path %q", r.Host, r.URL.Path)
		}
		io.WriteString(w, `{"VaultName":"v"}`)
	}}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	defer srv.Close()
	f.srv = &httptest.Server{URL: "unix://" + sock}
	v, err := f.client().DescribeVault(t.Context(), "v")
	if err != nil || v.Name != "v" {
		t.Error(v, err)
	}
}

// TestOperations sends every operation once and compares what went over the wire.
func TestOperations(t *testing.T) {
	const id = "-_AbC123"
	body := []byte("hello")
	h := HashPart(body)
	when := time.Date(2017, 2, 28, 18, 3, 43, 5e8, time.FixedZone("", 3600))
	yes := true
	type result struct {
		v   any
		err error
	}
	on := func(v any, err error) result { return result{v, err} }
	only := func(err error) result { return result{nil, err} }
	tests := []struct {
		op          string
		call        func(ctx context.Context, c *Client) result
		method, uri string
		headers     map[string]string
		body        string
		status      int
		reply       http.Header
		text        string
		want        string // of %+v
	}{
		{OpCreateVault, func(ctx context.Context, c *Client) result { return on(c.CreateVault(ctx, "v.1_-")) },
			"PUT", "/1250000000/vaults/v.1_-", nil, "", 201, http.Header{"Location": {"/1250000000/vaults/v.1_-"}}, "", "/1250000000/vaults/v.1_-"},
		{OpDeleteVault, func(ctx context.Context, c *Client) result { return only(c.DeleteVault(ctx, "v")) },
			"DELETE", "/1250000000/vaults/v", nil, "", 204, nil, "", "<nil>"},
		{OpDescribeVault, func(ctx context.Context, c *Client) result { return on(c.DescribeVault(ctx, "v")) },
			"GET", "/1250000000/vaults/v", nil, "", 200, nil,
			`{"CreationDate":"2017-03-20T17:03:43.221Z","LastInventoryDate":null,"NumberOfArchives":null,"SizeInBytes":null,"VaultQCS":"q","VaultName":"v"}`,
			"{Name:v QCS:q CreationDate:2017-03-20 17:03:43.221 +0000 UTC LastInventoryDate:0001-01-01 00:00:00 +0000 UTC NumberOfArchives:-1 Size:-1}"},
		{OpListVaults, func(ctx context.Context, c *Client) result {
			return on(c.ListVaults(ctx, Page{Marker: "qcs:id/0:cas:ap-guangzhou:uid/1250000000:vaults/My Photos_2019~A+B", Limit: 10}))
		}, "GET", "/1250000000/vaults?marker=qcs%3Aid%2F0%3Acas%3Aap-guangzhou%3Auid%2F1250000000%3Avaults%2FMy%20Photos_2019~A%2BB&limit=10", nil, "", 200, nil,
			`{"Marker":"m2","VaultList":[{"VaultName":"v","NumberOfArchives":"7","SizeInBytes":9}]}`,
			"{Vaults:[{Name:v QCS: CreationDate:0001-01-01 00:00:00 +0000 UTC LastInventoryDate:0001-01-01 00:00:00 +0000 UTC NumberOfArchives:7 Size:9}] Marker:m2}"},
		{OpUploadArchive, func(ctx context.Context, c *Client) result {
			return on(c.UploadArchive(ctx, "v", " 照片/2019年 夏+秋 (1)~*'\"&=%;.jpg ", bytes.NewReader(body), PartHash{}))
		}, "POST", "/1250000000/vaults/v/archives", map[string]string{
			"x-cas-content-sha256": h.Linear.String(), "x-cas-sha256-tree-hash": h.Tree.String(),
			"x-cas-archive-description": "照片/2019年 夏+秋 (1)~*'\"&=%;.jpg", "Content-Length": "5",
		}, "hello", 201, http.Header{"X-Cas-Archive-Id": {id}}, "", id},
		{OpUploadArchive, func(ctx context.Context, c *Client) result {
			return on(c.UploadArchive(ctx, "v", "", bytes.NewReader(body), h))
		}, "POST", "/1250000000/vaults/v/archives", map[string]string{"x-cas-archive-description": ""}, "hello", 200,
			http.Header{"Location": {"/1250000000/vaults/v/archives/" + id}}, "", id},
		{OpDeleteArchive, func(ctx context.Context, c *Client) result { return only(c.DeleteArchive(ctx, "v", id)) },
			"DELETE", "/1250000000/vaults/v/archives/" + id, nil, "", 204, nil, "", "<nil>"},
		{OpInitiateUpload, func(ctx context.Context, c *Client) result { return on(c.InitiateUpload(ctx, "v", "d", 16<<20)) },
			"POST", "/1250000000/vaults/v/multipart-uploads", map[string]string{"x-cas-part-size": "16777216", "x-cas-archive-description": "d", "Content-Length": "0"},
			"", 201, http.Header{"X-Cas-Multipart-Upload-Id": {id}}, "", id},
		{OpUploadPart, func(ctx context.Context, c *Client) result {
			return only(c.UploadPart(ctx, "v", id, 1<<20, io.NewSectionReader(bytes.NewReader(body), 0, 5), h))
		}, "PUT", "/1250000000/vaults/v/multipart-uploads/" + id, map[string]string{
			"Content-Range": "bytes 1048576-1048580/*", "x-cas-content-sha256": h.Linear.String(), "x-cas-sha256-tree-hash": h.Tree.String(),
		}, "hello", 204, http.Header{"X-Cas-Sha256-Tree-Hash": {strings.ToUpper(h.Tree.String())}}, "", "<nil>"},
		{OpCompleteUpload, func(ctx context.Context, c *Client) result { return on(c.CompleteUpload(ctx, "v", id, 5, h.Tree)) },
			"POST", "/1250000000/vaults/v/multipart-uploads/" + id, map[string]string{"x-cas-archive-size": "5", "x-cas-sha256-tree-hash": h.Tree.String()},
			"", 201, http.Header{"X-Cas-Archive-Id": {"A"}}, "", "A"},
		{OpAbortUpload, func(ctx context.Context, c *Client) result { return only(c.AbortUpload(ctx, "v", id)) },
			"DELETE", "/1250000000/vaults/v/multipart-uploads/" + id, nil, "", 204, nil, "", "<nil>"},
		{OpListParts, func(ctx context.Context, c *Client) result {
			return on(c.ListParts(ctx, "v", id, Page{Marker: "1048576"}))
		}, "GET", "/1250000000/vaults/v/multipart-uploads/" + id + "?marker=1048576", nil, "", 200, nil,
			`{"ArchiveDescription":null,"CreationDate":"2017-08-29T08:29:41.000Z","Marker":2097152,"MultipartUploadId":"u","PartSizeInBytes":"1048576","Parts":[{"RangeInBytes":"1048576-2097151","SHA256TreeHash":"` + strings.Repeat("AB", 32) + `"}],"VaultQCS":"q"}`,
			"{Upload:{UploadID:u Description: CreationDate:2017-08-29 08:29:41 +0000 UTC PartSize:1048576 VaultQCS:q} Parts:[{Range:1048576-2097151 TreeHash:" + strings.Repeat("ab", 32) + "}] Marker:2097152}"},
		{OpListUploads, func(ctx context.Context, c *Client) result { return on(c.ListUploads(ctx, "v", Page{})) },
			"GET", "/1250000000/vaults/v/multipart-uploads", nil, "", 200, nil,
			`{"Marker":null,"UploadsList":[{"ArchiveDescription":"","CreationDate":"2017-08-29T08:29:41.000Z","MultipartUploadId":"u","PartSizeInBytes":1,"VaultQCS":"q"}]}`,
			"{Uploads:[{UploadID:u Description: CreationDate:2017-08-29 08:29:41 +0000 UTC PartSize:1 VaultQCS:q}] Marker:}"},
		{OpInitiateJob, func(ctx context.Context, c *Client) result {
			return on(c.InitiateJob(ctx, "v", JobRequest{Type: ArchiveRetrieval, ArchiveID: "AID", Tier: Bulk, Range: Range{0, 1 << 20}, CallBackURL: "http://x/?a&b"}))
		}, "POST", "/1250000000/vaults/v/jobs", nil,
			`{"Type":"archive-retrieval","CallBackUrl":"http://x/?a&b","ArchiveId":"AID","RetrievalByteRange":"0-1048575","Tier":"Bulk"}`,
			202, http.Header{"X-Cas-Job-Id": {id}}, "", id},
		{OpInitiateJob, func(ctx context.Context, c *Client) result {
			return on(c.InitiateJob(ctx, "v", JobRequest{Type: InventoryRetrieval, Description: "归档", Marker: "m", StartDate: when, Limit: 5, Format: "CSV"}))
		}, "POST", "/1250000000/vaults/v/jobs", nil,
			`{"Type":"inventory-retrieval","Description":"归档","Format":"CSV","InventoryRetrievalParameters":{"StartDate":"2017-02-28T17:03:43Z","Limit":"5","Marker":"m"}}`,
			202, http.Header{"Location": {"/1250000000/vaults/v/jobs/J"}}, "", "J"},
		{OpInitiateJob, func(ctx context.Context, c *Client) result {
			return on(c.InitiateJob(ctx, "v", JobRequest{Type: InventoryRetrieval}))
		}, "POST", "/1250000000/vaults/v/jobs", nil, `{"Type":"inventory-retrieval","InventoryRetrievalParameters":{}}`, 202, http.Header{"X-Cas-Job-Id": {"J"}}, "", "J"},
		{OpInitiateJob, func(ctx context.Context, c *Client) result {
			return on(c.InitiateJob(ctx, "v", JobRequest{Type: PullFromCOS, Bucket: "b", Object: "o", COSRange: "bytes=0-", Condition: map[string]string{"If-Match": "e"}, ArchiveDescription: "d"}))
		}, "POST", "/1250000000/vaults/v/jobs", nil,
			`{"Type":"pull-from-cos","Bucket":"b","Object":"o","Range":"bytes=0-","Condition":{"If-Match":"e"},"ArchiveDescription":"d"}`, 202, http.Header{"X-Cas-Job-Id": {"J"}}, "", "J"},
		{OpInitiateJob, func(ctx context.Context, c *Client) result {
			return on(c.InitiateJob(ctx, "v", JobRequest{Type: PushToCOS, ArchiveID: "A", Bucket: "b", Object: "o"}))
		}, "POST", "/1250000000/vaults/v/jobs", nil, `{"Type":"push-to-cos","ArchiveId":"A","Bucket":"b","Object":"o"}`, 202, http.Header{"X-Cas-Job-Id": {"J"}}, "", "J"},
		{OpListJobs, func(ctx context.Context, c *Client) result {
			return on(c.ListJobs(ctx, "v", JobFilter{Completed: &yes, StatusCode: "Succeeded", Page: Page{Limit: 50}}))
		}, "GET", "/1250000000/vaults/v/jobs?limit=50&statuscode=Succeeded&completed=true", nil, "", 200, nil, `{"JobList":[],"Marker":""}`, "{Jobs:[] Marker:}"},
		{OpSetAccessPolicy, func(ctx context.Context, c *Client) result {
			return only(c.SetAccessPolicy(ctx, "v", "{\n \"version\": \"2.0\"\n}"))
		}, "PUT", "/-/vaults/v/access-policy", nil, `{"policy":"{\"version\":\"2.0\"}"}`, 204, nil, "", "<nil>"},
		{OpAccessPolicy, func(ctx context.Context, c *Client) result { return on(c.AccessPolicy(ctx, "v")) },
			"GET", "/-/vaults/v/access-policy", nil, "", 200, nil, `{"policy":"{\"version\":\"2.0\"}"}`, `{"version":"2.0"}`},
		{OpDeleteAccessPolicy, func(ctx context.Context, c *Client) result { return only(c.DeleteAccessPolicy(ctx, "v")) },
			"DELETE", "/-/vaults/v/access-policy", nil, "", 204, nil, "", "<nil>"},
		{OpSetNotification, func(ctx context.Context, c *Client) result {
			return only(c.SetNotification(ctx, "v", Notification{"http://x", []string{"ArchiveRetrievalCompleted"}}))
		}, "PUT", "/1250000000/vaults/v/notification-configuration", nil, `{"CallBackUrl":"http://x","Events":["ArchiveRetrievalCompleted"]}`, 204, nil, "", "<nil>"},
		{OpNotificationConfig, func(ctx context.Context, c *Client) result { return on(c.NotificationConfig(ctx, "v")) },
			"GET", "/1250000000/vaults/v/notification-configuration", nil, "", 200, nil, `{"CallBackUrl":"http://x","Events":["E"]}`, "{CallBackURL:http://x Events:[E]}"},
		{OpDeleteNotification, func(ctx context.Context, c *Client) result { return only(c.DeleteNotification(ctx, "v")) },
			"DELETE", "/1250000000/vaults/v/notification-configuration", nil, "", 204, nil, "", "<nil>"},
	}
	for _, x := range tests {
		t.Run(x.op, func(t *testing.T) {
			f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if strings.HasSuffix(x.uri, "/access-policy") && r.URL.Path == "/-/vaults/v" {
					io.WriteString(w, `{"VaultQCS":"qcs:id/0:cas:r:uid/1250000000:vaults/v"}`)
					return
				}
				if r.Method != x.method || r.RequestURI != x.uri {
					t.Errorf("%s %s\nwant %s %s", r.Method, r.RequestURI, x.method, x.uri)
				}
				for k, v := range x.headers {
					got := r.Header.Get(k)
					if k == "Content-Length" {
						got = strconv.FormatInt(r.ContentLength, 10)
					}
					if got != v {
						t.Errorf("%s: %q, want %q", k, got, v)
					}
				}
				for k, v := range x.reply {
					w.Header()[k] = v
				}
				w.WriteHeader(x.status)
				io.WriteString(w, x.text)
			})
			got := x.call(t.Context(), f.client(func(o *Options) { o.AppID = "1250000000" }))
			if got.err != nil {
				t.Fatal(got.err)
			}
			if s := fmt.Sprintf("%+v", got.v); s != x.want {
				t.Errorf("got %s\nwant %s", s, x.want)
			}
			last := len(f.reqs) - 1
			if s := string(f.body[last]); s != x.body {
				t.Errorf("body %s\nwant %s", s, x.body)
			}
			if enc := f.reqs[last].Header.Get("Accept-Encoding"); enc != "" {
				t.Errorf("Accept-Encoding: %s", enc)
			}
		})
	}
}
