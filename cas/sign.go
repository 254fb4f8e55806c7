package cas

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Signatures are valid from skewSlack before they are made, for clocks that run
// ahead of the server's, until signLife after that. Uploads get longer: it is not said
// whether the service checks before or after it has read a body.
const (
	skewSlack      = time.Minute
	signLife       = 20 * time.Minute
	signLifeUpload = time.Hour
)

// String names the key and hides the secret.
func (c Credentials) String() string { return "{" + c.SecretID + " ***}" }

// Format hides the secret from every verb of package fmt.
func (c Credentials) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue hides the secret from slog.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// pair is a header or query parameter to be signed.
type pair struct{ name, value string }

// signature is what goes into and comes out of signing, with the steps in
// between for the tests against cas-api.md §3.1.
type signature struct {
	format, toSign, authorization string
}

// sign computes the Authorization value of a request (cas-api.md §3). path is
// what is sent before "?"; headers and params are all that is to be covered.
func sign(c Credentials, method, path string, headers, params []pair, start, end time.Time) signature {
	keyTime := fmt.Sprintf("%d;%d", start.Unix(), end.Unix())
	paramList, paramText := canonical(params, lowerASCII)
	headerList, headerText := canonical(headers, func(s string) string { return s })

	var s signature
	s.format = lowerASCII(method) + "\n" + path + "\n" + paramText + "\n" + headerText + "\n"
	sum := sha1.Sum([]byte(s.format))
	s.toSign = "sha1\n" + keyTime + "\n" + hex.EncodeToString(sum[:]) + "\n"
	// The next key is the hexadecimal text, not the raw bytes.
	sig := hmacSHA1(hmacSHA1(c.SecretKey, keyTime), s.toSign)
	s.authorization = "q-sign-algorithm=sha1&q-ak=" + c.SecretID +
		"&q-sign-time=" + keyTime + "&q-key-time=" + keyTime +
		"&q-header-list=" + headerList + "&q-url-param-list=" + paramList +
		"&q-signature=" + sig
	return s
}

func hmacSHA1(key, msg string) string {
	m := hmac.New(sha1.New, []byte(key))
	m.Write([]byte(msg))
	return hex.EncodeToString(m.Sum(nil))
}

// canonical returns the list of names and the text that is signed. An empty
// value is signed as the name alone.
func canonical(ps []pair, value func(string) string) (list, text string) {
	ps = slices.Clone(ps)
	for i, p := range ps {
		ps[i].name = lowerASCII(strings.TrimSpace(p.name))
	}
	slices.SortStableFunc(ps, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	names, texts := make([]string, len(ps)), make([]string, len(ps))
	for i, p := range ps {
		names[i] = p.name
		texts[i] = strings.ReplaceAll(escape(p.name), "%2F", "/")
		if p.value != "" {
			texts[i] += "=" + escape(value(p.value))
		}
	}
	return strings.Join(names, ";"), strings.Join(texts, "&")
}

// escape is RFC 3986: all but A-Za-z0-9-_.~ as %XX, upper case.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// lowerASCII leaves all but A-Z alone, byte by byte, as the official SDK does.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
