package local

import (
	"crypto/rand"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	archiveIDLen = 128 // as the service's
	shortIDLen   = 64  // jobs and uploads
	idAlphabet   = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
)

// newID returns n random characters of the alphabet of identifiers; they may
// begin with a hyphen, as the service's do.
func newID(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	for i, c := range b {
		b[i] = idAlphabet[c&63]
	}
	return string(b)
}

// newKey returns n random letters and digits.
func newKey(n int) string {
	var sb strings.Builder
	for sb.Len() < n {
		for _, c := range newID(n) {
			if c != '-' && c != '_' && sb.Len() < n {
				sb.WriteRune(c)
			}
		}
	}
	return sb.String()
}

func validVaultName(s string) bool {
	if len(s) < 1 || len(s) > 255 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !isAlnum(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// parseDecimal reads a non-negative number of digits only (no sign, no blank).
func parseDecimal(s string) (int64, bool) {
	if s == "" || len(s) > 19 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// parseFirstLast reads "first-last" (inclusive) or, when open is allowed,
// "first-", for which last is -1.
func parseFirstLast(s string, open bool) (first, last int64, ok bool) {
	a, b, found := strings.Cut(s, "-")
	if !found {
		return 0, 0, false
	}
	if first, ok = parseDecimal(a); !ok {
		return 0, 0, false
	}
	if b == "" {
		return first, -1, open
	}
	if last, ok = parseDecimal(b); !ok || last < first {
		return 0, 0, false
	}
	return first, last, true
}

// parseContentRange reads the "bytes first-last/*" of Upload Part; a total in
// place of the asterisk is ignored.
func parseContentRange(s string) (first, last int64, ok bool) {
	s = strings.TrimSpace(s)
	if len(s) < 6 || !strings.EqualFold(s[:6], "bytes ") {
		return 0, 0, false
	}
	s = strings.TrimSpace(s[6:])
	r, total, found := strings.Cut(s, "/")
	if !found {
		return 0, 0, false
	}
	if _, isNumber := parseDecimal(total); total != "*" && !isNumber {
		return 0, 0, false
	}
	return parseFirstLast(r, false)
}

// parseOutputRange resolves a Range header against an output of size bytes to
// [first, end). ok is false when the header is malformed, which HTTP says to
// ignore; satisfiable is false when it lies outside.
func parseOutputRange(s string, size int64) (first, end int64, ok, satisfiable bool) {
	s = strings.TrimSpace(s)
	if len(s) < 6 || !strings.EqualFold(s[:6], "bytes=") {
		return 0, 0, false, false
	}
	s = strings.TrimSpace(s[6:])
	if n, isSuffix := strings.CutPrefix(s, "-"); isSuffix {
		k, valid := parseDecimal(n)
		if !valid {
			return 0, 0, false, false
		}
		k = min(k, size)
		return size - k, size, true, k > 0
	}
	first, last, valid := parseFirstLast(s, true)
	if !valid {
		return 0, 0, false, false
	}
	if first >= size {
		return 0, 0, true, false
	}
	if last < 0 || last >= size {
		last = size - 1
	}
	return first, last + 1, true, true
}

const maxDescription = 1024

// cleanDescription checks a description and returns it as valid UTF-8, each
// stray byte replaced, since it comes back in JSON.
func cleanDescription(s string) (string, error) {
	if len(s) > maxDescription {
		return "", invalid("description is longer than %d bytes", maxDescription)
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return "", invalid("description contains a control character")
		}
	}
	if utf8.ValidString(s) {
		return s, nil
	}
	return string([]rune(s)), nil
}
