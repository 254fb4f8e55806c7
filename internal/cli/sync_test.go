package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSyncOfSeveralMounts: what one of them cannot archive keeps the verb from none of the others, and each failure is told.
func TestSyncOfSeveralMounts(t *testing.T) {
	u, other := newUser(t), newUser(t)
	bad, good := u.mount("--settle", "1h"), other.mount("--settle", "1h")
	write := func(m *mounted, vault, name string) string {
		t.Helper()
		p := filepath.Join(m.point, vault, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	lost := []string{write(bad, "gone", "lost"), write(bad, "gone", "too")}
	u.ok("vault", "delete", "gone", "--local", u.path("store"))

	r := u.casfs("sync", bad.point, good.point)
	if r.code != exitPartial {
		t.Errorf("nothing was to be done in the second mount, want exit 3: %v", r)
	}
	saved := write(good, "v", "saved")
	nope := filepath.Join(good.point, "nope")
	r = u.casfs("sync", bad.point, nope, good.point)
	if r.code != exitPartial {
		t.Errorf("want exit 3: %v", r)
	}
	for _, want := range []string{"failed: " + lost[0] + ": ", "failed: " + lost[1] + ": ", "does not have the vault", nope + ": no such file", "the data is safe"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("it does not say %q: %v", want, r)
		}
	}
	if got := other.fileState(saved); got != "resident" {
		t.Errorf("the file in the mount behind the one that failed is %s", got)
	}

	var out struct {
		Files    int64
		Failures []struct{ Path, Reason string }
	}
	saved = write(good, "v", "saved too")
	r = u.casfs("sync", "--json", bad.point, good.point)
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != exitPartial || out.Files != 1 || len(out.Failures) != 2 ||
		out.Failures[0].Path != lost[0] || !strings.Contains(out.Failures[0].Reason, "does not have the vault") {
		t.Errorf("%v: %v", err, r)
	}
	if got := other.fileState(saved); got != "resident" {
		t.Errorf("the file in the mount behind the one that failed is %s", got)
	}
	// Some of one mount, and nothing at all.
	write(bad, "v", "saved")
	if r := u.casfs("sync", bad.point); r.code != exitPartial {
		t.Errorf("want exit 3: %v", r)
	}
	if r := u.casfs(append([]string{"sync"}, lost...)...); r.code != exitFailed || strings.Count(r.err, "does not have the vault") != 2 {
		t.Errorf("want exit 1 and both named: %v", r)
	}
	other.ok("umount", good.point)
}
