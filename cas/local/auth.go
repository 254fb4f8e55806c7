package local

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockLeeway is how far a client's clock may be off beyond its own window.
const clockLeeway = 300 * time.Second

// authorization is a parsed Authorization header.
type authorization struct {
	ak                string
	signTime, keyTime string // as sent: they enter the signature
	signWin, keyWin   [2]int64
	headers, params   []string // lower-cased, sorted
	signature         string
}

// parseAuthorization reads the seven keys of the header. Values hold raw
// semicolons, so this is no query string.
func parseAuthorization(s string) (authorization, error) {
	var a authorization
	seen := map[string]bool{}
	for f := range strings.SplitSeq(strings.TrimSpace(s), "&") {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return a, badSignature("the Authorization header has a field without a value: %.40q", f)
		}
		if seen[k] {
			return a, badSignature("the Authorization header has %.40q twice", k)
		}
		seen[k] = true
		switch k {
		case "q-sign-algorithm":
			if v != "sha1" {
				return a, badSignature("q-sign-algorithm must be sha1")
			}
		case "q-ak":
			a.ak = v
		case "q-sign-time":
			a.signTime = v
			if a.signWin, ok = parseWindow(v); !ok {
				return a, badSignature("q-sign-time must be START;END in Unix seconds")
			}
		case "q-key-time":
			a.keyTime = v
			if a.keyWin, ok = parseWindow(v); !ok {
				return a, badSignature("q-key-time must be START;END in Unix seconds")
			}
		case "q-header-list":
			a.headers = splitNames(v)
		case "q-url-param-list":
			a.params = splitNames(v)
		case "q-signature":
			a.signature = v
		}
	}
	for _, k := range []string{"q-sign-algorithm", "q-ak", "q-sign-time", "q-key-time", "q-header-list", "q-url-param-list", "q-signature"} {
		if !seen[k] {
			return a, badSignature("the Authorization header lacks %s", k)
		}
	}
	return a, nil
}

func parseWindow(s string) (w [2]int64, ok bool) {
	a, b, ok := strings.Cut(s, ";")
	if !ok {
		return w, false
	}
	var ok0, ok1 bool
	w[0], ok0 = parseDecimal(a)
	w[1], ok1 = parseDecimal(b)
	return w, ok0 && ok1 && w[0] <= w[1]
}

// splitNames reads "a;b;c"; names are compared in lower case.
func splitNames(s string) []string {
	if s == "" {
		return nil
	}
	names := strings.Split(asciiLower(s), ";")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// asciiLower lower-cases A-Z only, as Python 2's str.lower does on the bytes
// that the official SDK signs.
func asciiLower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// escape percent-encodes every byte but RFC 3986's unreserved ones.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

func hmacHex(key, msg string) string {
	h := hmac.New(sha1.New, []byte(key))
	h.Write([]byte(msg))
	return hex.EncodeToString(h.Sum(nil))
}

// signature computes q-signature over a format string.
func signature(secretKey, keyTime, signTime, format string) string {
	sum := sha1.Sum([]byte(format))
	return hmacHex(hmacHex(secretKey, keyTime), "sha1\n"+signTime+"\n"+hex.EncodeToString(sum[:])+"\n")
}

// queryParam is one decoded parameter of a request.
type queryParam struct{ name, value string }

// parseQuery decodes a query string; unlike url.ParseQuery it takes semicolons
// as they are.
func parseQuery(raw string) ([]queryParam, error) {
	var ps []queryParam
	for f := range strings.SplitSeq(raw, "&") {
		if f == "" {
			continue
		}
		k, v, _ := strings.Cut(f, "=")
		name, err := url.QueryUnescape(k)
		if err != nil {
			return nil, badRequest("the query string is malformed")
		}
		value, err := url.QueryUnescape(v)
		if err != nil {
			return nil, badRequest("the query string is malformed")
		}
		ps = append(ps, queryParam{name, value})
	}
	return ps, nil
}

// authenticate checks the signature of a request over exactly the names it
// lists. The same request has several readings (raw or decoded path, "name" or
// "name=" for an empty parameter, the Host values seen with and without their
// port): any of them may have been signed.
func (s *Store) authenticate(r *request) error {
	h := r.http.Header.Get("Authorization")
	if h == "" {
		return refuse(http.StatusBadRequest, "MissingAuthenticationTokenException", "the request has no Authorization header")
	}
	a, err := parseAuthorization(h)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(a.ak), []byte(s.creds.SecretID)) != 1 {
		return refuse(http.StatusBadRequest, "UnrecognizedClientException", "q-ak is unknown here")
	}
	now, leeway := s.now().Unix(), int64(clockLeeway/time.Second)
	for _, w := range [][2]int64{a.signWin, a.keyWin} {
		if now < w[0]-leeway || now > w[1]+leeway {
			return refuse(http.StatusForbidden, "ExpiredTokenException",
				"the signature is valid from %d to %d, now is %d", w[0], w[1], now)
		}
	}

	headers, err := s.signedHeaders(a.headers, r)
	if err != nil {
		return err
	}
	params, err := signedParams(a.params, r.query)
	if err != nil {
		return err
	}
	paths := []string{r.rawPath}
	if p, err := url.PathUnescape(r.rawPath); err == nil && p != r.rawPath {
		paths = append(paths, p)
	}
	method := asciiLower(r.http.Method)
	want := []byte(a.signature)
	for _, path := range paths {
		for _, p := range params {
			for _, h := range headers {
				got := signature(s.creds.SecretKey, a.keyTime, a.signTime, method+"\n"+path+"\n"+p+"\n"+h+"\n")
				if subtle.ConstantTimeCompare([]byte(got), want) == 1 {
					return nil
				}
			}
		}
	}
	return badSignature("the signature does not match the request")
}

// signedHeaders returns the possible header lines of the format string.
func (s *Store) signedHeaders(names []string, r *request) ([]string, error) {
	lines := []string{""}
	for _, name := range names {
		var values []string
		switch name {
		case "host":
			values = hostReadings(append(slices.Clip(r.hosts), s.names()...))
		case "content-length":
			if v := r.http.Header.Get("Content-Length"); v != "" {
				values = []string{v}
			} else if r.http.ContentLength >= 0 {
				values = []string{strconv.FormatInt(r.http.ContentLength, 10)}
			}
		default:
			values = slices.Compact(slices.Clone(r.http.Header.Values(name)))
			if len(values) > 1 {
				return nil, badSignature("signed header %q was sent twice", name)
			}
		}
		if len(values) == 0 {
			return nil, badSignature("signed header %.64q was not sent", name)
		}
		next := make([]string, 0, len(lines)*len(values))
		for _, l := range lines {
			for _, v := range values {
				next = append(next, join(l, field(escape(name), v, "")))
			}
		}
		lines = next
	}
	return lines, nil
}

// signedParams returns the possible parameter lines of the format string.
func signedParams(names []string, query []queryParam) ([]string, error) {
	bare, full := "", ""
	for _, name := range names {
		value, found := "", false
		for _, p := range query {
			if asciiLower(strings.TrimSpace(p.name)) != name {
				continue
			}
			if found && p.value != value {
				return nil, badSignature("signed parameter %.64q was sent twice", name)
			}
			value, found = p.value, true
		}
		if !found {
			return nil, badSignature("signed parameter %.64q was not sent", name)
		}
		v := asciiLower(value)
		// The SDK leaves "/" alone in names of parameters.
		n := strings.ReplaceAll(escape(name), "%2F", "/")
		bare = join(bare, field(n, v, ""))
		full = join(full, field(n, v, "="))
	}
	if bare == full {
		return []string{bare}, nil
	}
	return []string{bare, full}, nil
}

// field is "name=value" with the value encoded; ifEmpty follows the name when
// there is no value.
func field(name, value, ifEmpty string) string {
	if value == "" {
		return name + ifEmpty
	}
	return name + "=" + escape(value)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "&" + b
}

// hostReadings are the values a client may have signed as host: what it sent,
// with and without the port.
func hostReadings(hosts []string) []string {
	var out []string
	add := func(v string) {
		if v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	for i, h := range hosts {
		if i == 8 {
			break
		}
		add(h)
		if name, _, err := net.SplitHostPort(h); err == nil {
			add(name)
			if strings.Contains(name, ":") {
				add("[" + name + "]")
			}
		}
	}
	return out
}
