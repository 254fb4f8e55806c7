package jobs

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxName is the longest name of a directory entry in bytes; maxDepth bounds
// the directories one description makes.
const (
	maxName  = 255
	maxDepth = 32
)

// displayName turns the description of an archive casfs did not write into the
// path it is shown under, below the vault's directory. It takes any bytes. No
// component is empty, ".", "..", longer than 255 bytes, or holds '/', NUL or
// other control characters.
func displayName(description, archiveID string) (path []string) {
	if m, ok := parseDescription(description); ok {
		path = splitForeign(m.Path)
	} else {
		s, _ := foreignPath(description)
		path = splitForeign(s)
	}
	if len(path) == 0 {
		return []string{fallbackName(archiveID)}
	}
	return path
}

// foreignPath finds the path in a description other tools wrote, and the
// file's modification time (zero when it is not told). Formats:
// mt-aws-glacier's mt1 and mt2, FastGlacier's markup, JSON with a Path
// (CloudBerry), else the text itself, which for cascmd is the local path as typed, cut after 128 bytes.
func foreignPath(description string) (string, time.Time) {
	s := strings.TrimSpace(description)
	for _, read := range []func(string) (string, time.Time, bool){mtPath, fastGlacierPath, jsonPath} {
		if p, t, ok := read(s); ok {
			return p, t
		}
	}
	return s, time.Time{}
}

// basicTime is the form in which those tools write times.
const basicTime = "20060102T150405Z"

func parseBasicTime(s string) time.Time {
	t, err := time.Parse(basicTime, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// mtPath reads mt-aws-glacier's "mt2 <base64url of JSON>", and mt1, whose JSON went
// through an encoding to UTF-8 twice.
func mtPath(s string) (string, time.Time, bool) {
	version, text, ok := strings.Cut(s, " ")
	if !ok || version != "mt1" && version != "mt2" {
		return "", time.Time{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return "", time.Time{}, false
	}
	if version == "mt1" {
		once := make([]byte, 0, len(raw))
		for _, r := range string(raw) {
			if r > 0xff {
				return "", time.Time{}, false
			}
			once = append(once, byte(r))
		}
		raw = once
	}
	var v struct{ Filename, Mtime string }
	if json.Unmarshal(raw, &v) != nil || v.Filename == "" {
		return "", time.Time{}, false
	}
	return v.Filename, parseBasicTime(v.Mtime), true
}

var (
	fastGlacier     = regexp.MustCompile(`(?s)^<m>\s*<v>\d+</v>.*<p>\s*([^<]*?)\s*</p>`)
	fastGlacierTime = regexp.MustCompile(`<lm>\s*(\d{8}T\d{6}Z)\s*</lm>`)
)

// fastGlacierPath reads FastGlacier's <m><v>4</v><p>base64</p><lm>time</lm></m>.
func fastGlacierPath(s string) (string, time.Time, bool) {
	m := fastGlacier.FindStringSubmatch(s)
	if m == nil || m[1] == "" {
		return "", time.Time{}, false
	}
	var at time.Time
	if lm := fastGlacierTime.FindStringSubmatch(s); lm != nil {
		at = parseBasicTime(lm[1])
	}
	if raw, err := base64.StdEncoding.DecodeString(m[1]); err == nil && utf8.Valid(raw) && len(raw) > 0 {
		return string(raw), at, true
	}
	return m[1], at, true
}

// jsonPath reads a JSON object with a Path, whose characters outside ASCII CloudBerry writes in UTF-7.
func jsonPath(s string) (string, time.Time, bool) {
	if !strings.HasPrefix(s, "{") {
		return "", time.Time{}, false
	}
	var v struct{ Path, UTCDateModified string }
	if json.Unmarshal([]byte(s), &v) != nil || v.Path == "" {
		return "", time.Time{}, false
	}
	return decodeUTF7(v.Path), parseBasicTime(v.UTCDateModified), true
}

var utf7Run = regexp.MustCompile(`\+([A-Za-z0-9+/]*)-?`)

// decodeUTF7 leaves what is no UTF-7 as it is.
func decodeUTF7(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return s
		}
	}
	return utf7Run.ReplaceAllStringFunc(s, func(run string) string {
		text := strings.TrimSuffix(run[1:], "-")
		if text == "" {
			if run == "+-" {
				return "+"
			}
			return run
		}
		raw, err := base64.RawStdEncoding.DecodeString(text)
		if err != nil || len(raw)%2 != 0 {
			return run
		}
		units := make([]uint16, 0, len(raw)/2)
		for i := 0; i < len(raw); i += 2 {
			units = append(units, binary.BigEndian.Uint16(raw[i:]))
		}
		out := string(utf16.Decode(units))
		for _, r := range out {
			if r < utf8.RuneSelf || r == utf8.RuneError {
				return run // an encoder writes only what ASCII cannot: this was a plus sign
			}
		}
		return out
	})
}

var driveLetter = regexp.MustCompile(`^[A-Za-z]:[\\/]`)

// splitForeign cuts a foreign path into safe components. Backslashes separate
// only where the text is a Windows path.
func splitForeign(s string) []string {
	s = trimCutRune(s)
	if d := driveLetter.FindString(s); d != "" {
		s = s[len(d):]
		s = strings.ReplaceAll(s, `\`, "/")
	} else if !strings.Contains(s, "/") {
		s = strings.ReplaceAll(s, `\`, "/")
	}
	s = strings.TrimPrefix(s, "~/")
	var path []string
	for c := range strings.SplitSeq(s, "/") {
		if c = safeForeign(c); c != "" {
			path = append(path, c)
		}
	}
	return shallow(path)
}

// trimCutRune drops a last character that is incomplete: cascmd cuts after 128 bytes.
func trimCutRune(s string) string {
	for i := len(s) - 1; i >= 0 && i >= len(s)-utf8.UTFMax+1; i-- {
		if utf8.RuneStart(s[i]) {
			if s[i] >= utf8.RuneSelf && !utf8.FullRuneInString(s[i:]) {
				return s[:i]
			}
			break
		}
	}
	return s
}

// safeForeign makes one component safe and readable, "" when nothing is left.
func safeForeign(c string) string {
	c = strings.ToValidUTF8(c, "\uFFFD")
	c = strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r', r == '\u2028', r == '\u2029':
			return ' '
		case unicode.IsControl(r), r == '/',
			'\u200e' <= r && r <= '\u200f', '\u202a' <= r && r <= '\u202e', '\u2066' <= r && r <= '\u2069', r == '\ufeff':
			return -1 // controls, and marks that reorder what people see
		}
		return r
	}, c)
	c = strings.TrimSpace(c)
	if c == "." || c == ".." {
		return ""
	}
	return shorten(c, maxName)
}

// shorten cuts a name to n bytes on a rune boundary, keeping a short extension.
func shorten(c string, n int) string {
	if len(c) <= n {
		return c
	}
	ext := ""
	if i := strings.LastIndexByte(c, '.'); i > 0 && len(c)-i <= 16 && len(c)-i < n {
		ext = c[i:]
	}
	head := c[:n-len(ext)]
	for range utf8.UTFMax - 1 {
		if len(head) == 0 || utf8.RuneStart(c[len(head)]) {
			break
		}
		head = head[:len(head)-1]
	}
	return head + ext
}

// shallow joins what is deeper than maxDepth by leaving out the leftmost directories.
func shallow(path []string) []string {
	if len(path) > maxDepth {
		path = path[len(path)-maxDepth:]
	}
	return path
}

// fallbackName is shown when a description tells no name.
func fallbackName(archiveID string) string {
	id := safeID(archiveID)
	if len(id) > 16 {
		id = id[:16]
	}
	if id == "" {
		return "archive"
	}
	return "archive-" + id
}

// safeID keeps of an archive ID what its alphabet allows.
func safeID(id string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return -1
	}, id)
}

// withSuffix is name made distinct by n characters of the archive's ID, before the extension.
func withSuffix(name, archiveID string, n int) string {
	id := safeID(archiveID)
	suffix := " (" + id[:min(n, len(id))] + ")"
	ext := ""
	if i := strings.LastIndexByte(name, '.'); i > 0 && len(name)-i <= 16 {
		name, ext = name[:i], name[i:]
	}
	return shorten(name, maxName-len(suffix)-len(ext)) + suffix + ext
}

// components cuts the path of casfs's own description. Names are the user's,
// byte by byte, as long as a directory can hold them; a description is untrusted
// all the same. A path that lost its left part begins with what is left of a name.
func (m Metadata) components() []string {
	var path []string
	for c := range strings.SplitSeq(m.Path, "/") {
		if c == "" || c == "." || c == ".." || strings.IndexByte(c, 0) >= 0 {
			continue
		}
		if len(c) > maxName {
			c = shorten(c, maxName)
		}
		path = append(path, c)
	}
	return path
}
