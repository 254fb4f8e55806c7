package cas

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

type signVectors struct {
	SecretID, SecretKey, Host, SignKey string
	Start, End                         int64
	Vectors                            []struct {
		Name, Method, Path string
		Headers, Params    [][2]string
		Format, SHA1, Auth string
		Body               string
	}
}

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(path, err)
	}
}

func pairs(in [][2]string) (out []pair) {
	for _, p := range in {
		out = append(out, pair{p[0], p[1]})
	}
	return out
}

func TestSignVectors(t *testing.T) {
	var v signVectors
	readJSON(t, "../testdata/wire/signing.json", &v)
	cred := Credentials{v.SecretID, v.SecretKey}
	start, end := time.Unix(v.Start, 0), time.Unix(v.End, 0)
	if got := hmacSHA1(v.SecretKey, fmt.Sprintf("%d;%d", v.Start, v.End)); got != v.SignKey {
		t.Errorf("SignKey = %s, want %s", got, v.SignKey)
	}
	if len(v.Vectors) != 7 {
		t.Fatalf("%d vectors, want 7", len(v.Vectors))
	}
	for _, x := range v.Vectors {
		got := sign(cred, x.Method, x.Path, pairs(x.Headers), pairs(x.Params), start, end)
		if got.format != x.Format {
			t.Errorf("%s: FormatString\n got %q\nwant %q", x.Name, got.format, x.Format)
		}
		sum := sha1.Sum([]byte(got.format))
		if h := hex.EncodeToString(sum[:]); h != x.SHA1 {
			t.Errorf("%s: SHA1 = %s, want %s", x.Name, h, x.SHA1)
		}
		if want := fmt.Sprintf("sha1\n%d;%d\n%s\n", v.Start, v.End, x.SHA1); got.toSign != want {
			t.Errorf("%s: StringToSign = %q, want %q", x.Name, got.toSign, want)
		}
		if got.authorization != x.Auth {
			t.Errorf("%s: Authorization\n got %s\nwant %s", x.Name, got.authorization, x.Auth)
		}
	}
}

func TestEscape(t *testing.T) {
	var all strings.Builder
	for b := range 256 {
		all.WriteByte(byte(b))
	}
	const keep = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
	got := escape(all.String())
	var want strings.Builder
	for b := range 256 {
		if strings.IndexByte(keep, byte(b)) >= 0 {
			want.WriteByte(byte(b))
		} else {
			fmt.Fprintf(&want, "%%%02X", b)
		}
	}
	if got != want.String() {
		t.Errorf("escape:\n got %s\nwant %s", got, want.String())
	}
	if got, want := lowerASCII("ÄÉK\xffAbZ"), "ÄÉk\xffabz"; got != want {
		t.Errorf("lowerASCII = %q, want %q", got, want)
	}
}

func TestCredentialsAreHidden(t *testing.T) {
	c := Credentials{"AKID", "hunter2"}
	type wrap struct{ C Credentials }
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", c, "p", &c)
	for _, s := range []string{
		c.String(), fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s %q %x %d", c, c, c, c, c, c, c),
		fmt.Sprintf("%+v %#v", wrap{c}, &wrap{c}), log.String(),
	} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, hex.EncodeToString([]byte("hunter2"))) {
			t.Errorf("the key shows in %s", s)
		}
		if !strings.Contains(s, "AKID") {
			t.Errorf("no id in %s", s)
		}
	}
}

// FuzzSign holds the client's Authorization to the rules a verifier follows.
func FuzzSign(f *testing.F) {
	f.Add("PUT", "/-/vaults/example", "host", "cas.ap-guangzhou.myqcloud.com", "marker", "A b+~/")
	f.Add("GET", "/-/vaults", "range", "bytes=0-1", "limit", "")
	f.Add("POST", "/1/vaults/v", "x-cas-archive-description", "夏\xff;&=", "K", "İ")
	f.Fuzz(func(t *testing.T, method, path, hn, hv, pn, pv string) {
		s := sign(Credentials{"id", "key"}, method, path, []pair{{hn, hv}}, []pair{{pn, pv}}, time.Unix(100, 0), time.Unix(200, 0))
		if strings.Count(path, "\n")+strings.Count(method, "\n") == 0 && strings.Count(s.format, "\n") != 4 {
			t.Errorf("FormatString has not four lines: %q", s.format)
		}
		rest := s.authorization
		for _, key := range []string{"q-sign-algorithm", "q-ak", "q-sign-time", "q-key-time"} {
			part, after, ok := strings.Cut(rest, "&")
			if name, _, _ := strings.Cut(part, "="); !ok || name != key {
				t.Fatalf("%q where %s belongs in %q", part, key, s.authorization)
			}
			rest = after
		}
		again := sign(Credentials{"id", "key"}, method, path, []pair{{hn, hv}}, []pair{{pn, pv}}, time.Unix(100, 0), time.Unix(200, 0))
		if again != s {
			t.Error("not deterministic")
		}
	})
}
