package local

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	vectorID   = "AKIDexampleexampleexampleexample0000"
	vectorKey  = "SKexampleSecretKey0123456789abcd"
	vectorHost = "cas.ap-guangzhou.myqcloud.com"
	vectorTime = 1510109254
)

// vectorStore is a store with the account and clock of the contract's vectors.
func vectorStore(t testing.TB) *Store {
	t.Helper()
	dir := t.TempDir()
	text := "[CASCredentials]\nendpoint = x\nappid = 1250000000\nsecretid = " + vectorID + "\nsecretkey = " + vectorKey + "\n"
	if err := os.WriteFile(filepath.Join(dir, "credentials"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, NoSync: true, Now: func() time.Time { return time.Unix(vectorTime, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func vectorAuth(headers, params, sig string) string {
	return "q-sign-algorithm=sha1&q-ak=" + vectorID + "&q-sign-time=1510109254;1510110454&q-key-time=1510109254;1510110454" +
		"&q-header-list=" + headers + "&q-url-param-list=" + params + "&q-signature=" + sig
}

const helloHash = "24670e87b8dbdb3acb41d88ddd423ca4b1cfca936caa68485cf9aad83ba001a7"

func TestSignatureVectors(t *testing.T) {
	s := vectorStore(t)
	hello := "hello, 归档存储\n"
	for _, v := range []struct {
		name, method, target, body string
		h                          header
		headers, params, sig       string
		status                     int
	}{
		{"A", "PUT", "/-/vaults/example", "", nil, "host", "", "25acb11f57ceee92592c8510d6e48eb9aac2822c", 201},
		{"B", "GET", "/1250000000/vaults?marker=qcs%3Aid/0%3Acas%3Aap-guangzhou%3Auid/1250000000%3Avaults/My%20Photos_2019%7EA%2BB&limit=10", "", nil,
			"host", "limit;marker", "c508df2a714de2fac1f1debbe918f57616817693", 200},
		{"C", "POST", "/-/vaults/Photos.2019_a-b/archives", hello, header{"x-cas-content-sha256": helloHash, "x-cas-sha256-tree-hash": helloHash,
			"x-cas-archive-description": `照片/2019年 夏+秋 (1)~*'"&=%;.jpg`},
			"content-length;host;x-cas-archive-description;x-cas-content-sha256;x-cas-sha256-tree-hash", "", "c5b57dc153ee454537624a910648f48de56b9e18", 404},
		{"D", "PUT", "/-/vaults/example/multipart-uploads/-Upload_Id-0123456789", hello, header{"content-range": "bytes 0-19/*",
			"x-cas-content-sha256": helloHash, "x-cas-sha256-tree-hash": helloHash},
			"content-length;host;x-cas-content-sha256;x-cas-sha256-tree-hash", "", "13d6fcf79d9c09f488415fed77594cc9da21be23", 404},
		{"E", "GET", "/-/vaults/example/jobs/E-nVoA6erIw71cTwI4gY6k/output", "", header{"range": "bytes=0-1048575"},
			"host;range", "", "a07224ca2d4ced2572d156b003511f6c5c30b434", 404},
		{"F", "GET", "/-/vaults/example/jobs?completed=True&statuscode=Succeeded&limit=50&marker=", "", nil,
			"host", "completed;limit;marker;statuscode", "86edb78f290778235502734a29938c1369e757ed", 200},
		{"G", "GET", "/-/vaults", "", nil, "", "", "25ec2412b2e5e080a54e10bbf776ad1f65fb695a", 200},
	} {
		send := func(auth string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(v.method, "http://"+vectorHost+v.target, strings.NewReader(v.body))
			r.Host = vectorHost + ":8080" // the port is not signed
			for k, val := range v.h {
				r.Header.Set(k, val)
			}
			r.Header.Set("Authorization", auth)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			return w
		}
		auth := vectorAuth(v.headers, v.params, v.sig)
		if w := send(auth); w.Code != v.status {
			t.Errorf("%s: %d %s", v.name, w.Code, w.Body)
		}
		flipped := auth[:len(auth)-1] + string("0123456789abcdef"[(strings.IndexByte("0123456789abcdef", auth[len(auth)-1])+1)%16])
		if w := send(flipped); w.Code != 400 || !strings.Contains(w.Body.String(), "InvalidSignatureException") {
			t.Errorf("%s flipped: %d %s", v.name, w.Code, w.Body)
		}
	}
}

func TestAuthRefusals(t *testing.T) {
	c := open(t, Options{})
	cr := c.s.Credentials()
	good := signer{cr.SecretID, cr.SecretKey, c.s.now}
	host := map[string]string{"host": "cas.test"}
	get := func(auth string) response {
		r := httptest.NewRequest("GET", "http://cas.test/-/vaults", nil)
		if auth != "" {
			r.Header.Set("Authorization", auth)
		}
		w := httptest.NewRecorder()
		c.s.ServeHTTP(w, r)
		resp := response{w.Result(), w.Body.Bytes()}
		checkReply(t, resp)
		return resp
	}
	sign := func(s signer) string { return s.sign("GET", "/-/vaults", nil, host) }
	at := func(d time.Duration) signer {
		return signer{cr.SecretID, cr.SecretKey, func() time.Time { return c.s.now().Add(d) }}
	}
	valid := sign(good)
	c.must(200, get(valid))
	c.must(200, get(sign(at(299*time.Second))))
	c.must(200, get(sign(at(-1499*time.Second))))
	c.must(200, get(strings.Replace(valid, "q-header-list=host", "q-header-list=Host", 1)))
	for _, x := range []struct {
		name, auth string
		status     int
		code       string
	}{
		{"none", "", 400, "MissingAuthenticationTokenException"},
		{"garbage", "Basic Zm9v", 400, "InvalidSignatureException"},
		{"unknown key", sign(signer{"AKIDother", cr.SecretKey, c.s.now}), 400, "UnrecognizedClientException"},
		{"wrong secret", sign(signer{cr.SecretID, "other", c.s.now}), 400, "InvalidSignatureException"},
		{"too early", sign(at(302 * time.Second)), 403, "ExpiredTokenException"},
		{"too late", sign(at(-1502 * time.Second)), 403, "ExpiredTokenException"},
		{"sha256", strings.Replace(valid, "=sha1&", "=sha256&", 1), 400, "InvalidSignatureException"},
		{"no list", strings.Replace(valid, "&q-url-param-list=", "", 1), 400, "InvalidSignatureException"},
		{"twice", valid + "&q-ak=x", 400, "InvalidSignatureException"},
		{"bad window", strings.Replace(valid, "q-sign-time=", "q-sign-time=-", 1), 400, "InvalidSignatureException"},
		{"missing header", strings.Replace(valid, "list=host", "list=host;range", 1), 400, "InvalidSignatureException"},
		{"missing param", strings.Replace(valid, "param-list=", "param-list=limit", 1), 400, "InvalidSignatureException"},
		{"unsigned host", strings.Replace(valid, "list=host", "list=", 1), 400, "InvalidSignatureException"},
	} {
		t.Run(x.name, func(t *testing.T) { c.refused(x.status, x.code, get(x.auth)) })
	}
}

// The key may be valid longer than the signature, and both forms of an empty
// parameter are accepted; so is a signature over the decoded path.
func TestAuthReadings(t *testing.T) {
	s := vectorStore(t)
	sum := func(format, signTime, keyTime string) string { return signature(vectorKey, keyTime, signTime, format) }
	send := func(target, auth string, hosts ...string) int {
		r := httptest.NewRequest("GET", "http://h"+target, nil)
		for _, h := range hosts {
			r.Header.Add(s.headKey, "host "+h)
		}
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code
	}
	sign, key := "1510109254;1510110454", "1510100000;1510200000"
	auth := func(headers, params, format string) string {
		return "q-sign-algorithm=sha1&q-ak=" + vectorID + "&q-sign-time=" + sign + "&q-key-time=" + key +
			"&q-header-list=" + headers + "&q-url-param-list=" + params + "&q-signature=" + sum(format, sign, key)
	}
	for _, x := range []struct {
		name, target, auth string
		hosts              []string
		want               int
	}{
		{"bare", "/-/vaults?marker=", auth("", "marker", "get\n/-/vaults\nmarker\n\n"), nil, 200},
		{"equals", "/-/vaults?marker=", auth("", "marker", "get\n/-/vaults\nmarker=\n\n"), nil, 200},
		{"raw path", "/%2D/vaults", auth("", "", "get\n/%2D/vaults\n\n\n"), nil, 200},
		{"decoded path", "/%2D/vaults", auth("", "", "get\n/-/vaults\n\n\n"), nil, 200},
		{"lower-cased path", "/-/Vaults", auth("", "", "get\n/-/vaults\n\n\n"), nil, 400},
		{"second host", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=127.0.0.1\n"), []string{"127.0.0.1:99", "127.0.0.1"}, 200},
		{"first host", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=127.0.0.1%3A99\n"), []string{"127.0.0.1:99", "other"}, 200},
		{"host without port", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=127.0.0.1\n"), []string{"127.0.0.1:99"}, 200},
		{"IPv6", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=%5B%3A%3A1%5D\n"), []string{"[::1]:99"}, 200},
		{"localhost", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=localhost\n"), []string{"127.0.0.1:99"}, 200},
		{"foreign host", "/-/vaults", auth("host", "", "get\n/-/vaults\n\nhost=evil\n"), []string{"127.0.0.1:99"}, 400},
		{"case of values", "/-/vaults?limit=1&marker=%C3%84B", auth("", "limit;marker", "get\n/-/vaults\nlimit=1&marker=%C3%84b\n\n"), nil, 200},
		{"semicolon", "/-/vaults?marker=a;b", auth("", "marker", "get\n/-/vaults\nmarker=a%3Bb\n\n"), nil, 200},
	} {
		t.Run(x.name, func(t *testing.T) {
			if got := send(x.target, x.auth, x.hosts...); got != x.want {
				t.Errorf("status %d, want %d", got, x.want)
			}
		})
	}
}

func TestForeignAccount(t *testing.T) {
	c := open(t, Options{AppID: "1250000000"})
	c.must(201, c.do("PUT", "/1250000000/vaults/v", nil, nil))
	c.must(200, c.do("GET", "/-/vaults/v", nil, nil))
	c.refused(403, "AccessDeniedException", c.do("GET", "/1250000001/vaults/v", nil, nil))
	c.refused(403, "AccessDeniedException", c.do("GET", "/x/vaults/v", nil, nil))
}

func FuzzAuthorization(f *testing.F) {
	f.Add(vectorAuth("host", "", "25acb11f57ceee92592c8510d6e48eb9aac2822c"), "limit=1&marker=")
	f.Add(vectorAuth("", "limit;marker", "25acb11f57ceee92592c8510d6e48eb9aac2822c"), "limit=1&marker=%zz")
	f.Add("q-ak=;;&&==", "a;b=c")
	f.Add("", "")
	s := vectorStore(f)
	f.Fuzz(func(t *testing.T, auth, query string) {
		a, err := parseAuthorization(auth)
		if err == nil && (a.signWin[0] > a.signWin[1] || a.keyWin[0] > a.keyWin[1]) {
			t.Errorf("window of %q", auth)
		}
		r := httptest.NewRequest("GET", "http://h/-/vaults", nil)
		r.Header["Authorization"] = []string{auth}
		req := &request{http: r, rawPath: "/-/vaults", hosts: []string{"h", "h:1"}}
		if req.query, err = parseQuery(query); err != nil {
			return
		}
		err = s.authenticate(req)
		if err == nil && !strings.Contains(auth, vectorID) {
			t.Errorf("accepted %q", auth)
		}
		if e, ok := err.(*apiError); err != nil && (!ok || e.status >= 500) {
			t.Errorf("%v", err)
		}
	})
}

// What escape keeps is RFC 3986's unreserved set, exactly.
func TestEscape(t *testing.T) {
	for i := range 256 {
		s := string([]byte{byte(i)})
		want := fmt.Sprintf("%%%02X", i)
		if strings.ContainsAny(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~") && i < 128 {
			want = s
		}
		if got := escape(s); got != want {
			t.Errorf("escape(%q) = %q, want %q", s, got, want)
		}
	}
	if got := asciiLower("ÄÖ ABZaz[@İ"); got != "ÄÖ abzaz[@İ" {
		t.Error(got)
	}
}
