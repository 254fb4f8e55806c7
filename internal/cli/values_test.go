package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/jobs"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "1k": 1 << 10, "1K": 1 << 10, "16M": 16 << 20, "16MB": 16 << 20, "16MiB": 16 << 20,
		"2g": 2 << 30, "1.5G": 3 << 29, "1T": 1 << 40, "1P": 1 << 50, "5b": 5, " 7M ": 7 << 20, "8191P": 8191 << 50,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1X", "M", "1e5", "0x10", "1_000", "8192P", "9223372036854775808", "NaN", "inf", "1iB", "1.5.2"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "1.5G", "8191P", "16MiB", "-1", "1e5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n < 0 {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestParseDuration(t *testing.T) {
	day := 24 * time.Hour
	for in, want := range map[string]time.Duration{"0": 0, "30s": 30 * time.Second, "90d": 90 * day, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour, "1h30m": 90 * time.Minute} {
		if got, err := parseDuration(in); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "d", "-3s", "1d-5h", "1d5", "x", "99999999d"} {
		if got, err := parseDuration(in); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", in, got)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string][2]int64{"0-99": {0, 99}, "0-64M": {0, 64<<20 - 1}, "1M-2M": {1 << 20, 2<<20 - 1}, "5-": {5, -1}, "7-7": {7, 7}} {
		first, last, err := parseSpan(in)
		if err != nil || [2]int64{first, last} != want {
			t.Errorf("parseSpan(%q) = %d, %d, %v, want %v", in, first, last, err, want)
		}
	}
	for _, in := range []string{"", "5", "-", "-5", "9-3", "a-b", "1-2-3"} {
		if first, last, err := parseSpan(in); err == nil {
			t.Errorf("parseSpan(%q) = %d, %d, want an error", in, first, last)
		}
	}
}

func TestShieldIDs(t *testing.T) {
	id := "-" + strings.Repeat("x", 63)
	root := (&app{}).root()
	got := shieldIDs([]string{"job", "show", "v", id, "--json", "--recall-guard-files", "5", "--", id}, root)
	want := []string{"job", "show", "v", shield + id, "--json", "--recall-guard-files", "5", "--", id}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("argument %d: got %q, want %q", i, got[i], want[i])
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	const text = `36 35 0:50 / /mnt/a\040b rw,relatime shared:1 - fuse.casfs local:/s\134t rw,user_id=1000,group_id=1000
37 35 0:51 / /mnt/sshfs rw - fuse.sshfs x rw,user_id=0
38 35 0:52 / /mnt/中文 rw,nosuid - fuse.casfs cas.x/1 rw,user_id=0,group_id=0,allow_other
`
	got, err := parseMountinfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []mountEntry{{"/mnt/a b", `local:/s\t`, 1000}, {"/mnt/中文", "cas.x/1", 0}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{"plain": "plain", "照片.jpg": "照片.jpg", "a\nb": `a\nb`, "\x1b[31m": `\x1b[31m`, "\xff": `\xff`, "it's \"q\"": "it's \"q\""} {
		if got := shown(in); got != want {
			t.Errorf("shown(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDefaultDescription(t *testing.T) {
	for name, want := range map[string]string{
		"dir/照片 1.jpg":                           "dir/照片 1.jpg",
		" new\nline\x7f\u0085end\t":              "new line  end",
		strings.Repeat("片", 400):                 strings.Repeat("片", 341),
		"\xff" + strings.Repeat("a", 1022) + "片": "\ufffd" + strings.Repeat("a", 1021),
	} {
		if got := defaultDescription(name); got != want {
			t.Errorf("%.20q: got %q, want %q", name, got, want)
		}
	}
}

// TestFormatStatus: an error is told below what it is about, on lines that a terminal holds.
func TestFormatStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	later := now.Add(3 * time.Hour)
	long := strings.Repeat("no room in the local store ", 10)
	st := oneStatus{Status: jobs.Status{
		Mountpoint: "/m", PID: 7, Since: now.Add(-time.Minute),
		Uploads:    []jobs.UploadStatus{{Path: "v/up", Size: 100, Done: 50, Attempts: 3, Error: long}},
		Retrievals: []jobs.RetrievalStatus{{Path: "v/re", State: "waiting", Tier: "Bulk", Size: 10, Since: now.Add(-time.Second), ETA: &later, Error: "x\ny"}, {Path: "v/other", State: "waiting", Size: 10, Since: now}},
		Problems:   []string{long},
	}, Vault: "v"}
	got := formatStatus(st, 80, now)
	for l := range strings.Lines(got) {
		if len(l) > 81 {
			t.Errorf("a line of %d: %s", len(l), l)
		}
	}
	for _, want := range []string{" 50 %  100 B  up  attempt 3\n", "re     waiting, bulk, 1s ago, expected in 3h00m\n", "  x y\n", "  ! no room"} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
}
