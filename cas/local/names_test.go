package local

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestIDs(t *testing.T) {
	seen := map[byte]bool{}
	for range 300 {
		id := newID(archiveIDLen)
		if len(id) != 128 || strings.Trim(id, idAlphabet) != "" {
			t.Fatal(id)
		}
		seen[id[0]] = true
	}
	if len(seen) < 40 {
		t.Errorf("only %d first characters", len(seen))
	}
}

func TestRanges(t *testing.T) {
	for _, x := range []struct {
		s           string
		size        int64
		first, end  int64
		ok, satisfy bool
	}{
		{"bytes=0-0", 10, 0, 1, true, true},
		{"bytes=3-", 10, 3, 10, true, true},
		{"bytes=3-99", 10, 3, 10, true, true},
		{"Bytes= 3-4", 10, 3, 5, true, true},
		{"bytes=-3", 10, 7, 10, true, true},
		{"bytes=-30", 10, 0, 10, true, true},
		{"bytes=-0", 10, 10, 10, true, false},
		{"bytes=10-", 10, 0, 0, true, false},
		{"bytes=9223372036854775807-", 10, 0, 0, true, false},
		{"bytes=9-8", 10, 0, 0, false, false},
		{"bytes=0-1,3-4", 10, 0, 0, false, false},
		{"bytes=", 10, 0, 0, false, false},
		{"bytes=-", 10, 0, 0, false, false},
		{"bytes=+1-2", 10, 0, 0, false, false},
		{"bytes=0x1-2", 10, 0, 0, false, false},
		{"bytes=99999999999999999999-", 10, 0, 0, false, false},
		{"0-1", 10, 0, 0, false, false},
	} {
		first, end, ok, satisfy := parseOutputRange(x.s, x.size)
		if first != x.first || end != x.end || ok != x.ok || satisfy != x.satisfy {
			t.Errorf("%q: %d %d %v %v", x.s, first, end, ok, satisfy)
		}
	}
	for s, want := range map[string][2]int64{"bytes 0-13/*": {0, 13}, "bytes 5-5/100": {5, 5}, " Bytes  1-2/* ": {1, 2}} {
		if a, b, ok := parseContentRange(s); !ok || a != want[0] || b != want[1] {
			t.Errorf("%q: %d %d %v", s, a, b, ok)
		}
	}
	for _, s := range []string{"", "bytes 0-13", "bytes 3-2/*", "bytes -2/*", "bytes 1-/*", "bytes 0-1/x", "0-1/*", "bytes=0-1/*", "bytes 0-18446744073709551616/*"} {
		if _, _, ok := parseContentRange(s); ok {
			t.Errorf("accepted %q", s)
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes 0-1/*", "bytes=-5", "33554432-", "9-8", "bytes=1-2,3-4"} {
		f.Add(s, int64(100))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if size < 1 {
			return
		}
		if first, end, ok, satisfy := parseOutputRange(s, size); ok && satisfy && (first < 0 || first >= end || end > size) {
			t.Errorf("%q of %d: %d %d", s, size, first, end)
		}
		if first, last, ok := parseContentRange(s); ok && (first < 0 || last < first) {
			t.Errorf("%q: %d %d", s, first, last)
		}
	})
}

func FuzzDescription(f *testing.F) {
	f.Add("photo.jpg")
	f.Add("照片\xff\xfe")
	f.Add(strings.Repeat("x", 1025))
	f.Add("a\x00b\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := cleanDescription(s)
		if err != nil {
			if e := asAPIError(err); e.status != 400 {
				t.Error(err)
			}
			return
		}
		if !utf8.ValidString(d) || utf8.ValidString(s) && d != s || strings.ContainsAny(d, "\r\n\x00") || len(s) > maxDescription {
			t.Errorf("%q became %q", s, d)
		}
	})
}

func TestVaultDir(t *testing.T) {
	seen := map[string]string{}
	for _, n := range []string{".", "..", "a", "A", "...", "-", strings.Repeat("x", 255), strings.Repeat("x", 254) + "X", "con", "log"} {
		if !validVaultName(n) {
			t.Errorf("%q is legal", n)
		}
		d := strings.ToLower(vaultDir(n))
		if other, dup := seen[d]; dup || strings.ContainsAny(d, "/\\") || d[0] == '.' || len(d) > 200 {
			t.Errorf("%q and %q share %q", n, other, d)
		}
		seen[d] = n
	}
	for _, n := range []string{"", strings.Repeat("x", 256), "a/b", "a b", "é", "a\x00", "a%2f", "a~"} {
		if validVaultName(n) {
			t.Errorf("%q is not legal", n)
		}
	}
}
