package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// archiveID is what a file of a mount says is its archive.
func archiveID(t *testing.T, path string) string {
	t.Helper()
	var b [256]byte
	n, err := unix.Getxattr(path, "user.cas.archive-id", b[:])
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return string(b[:n])
}

// TestCheckInventory compares a mount with its vault after others changed the vault.
func TestCheckInventory(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "0s")
	store := u.path("store")
	dir := filepath.Join(m.point, "v")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kept", "lost"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u.ok("sync", m.point)
	if out := u.ok("check", "--inventory", m.point); !strings.Contains(out, "no problems") {
		t.Errorf("a mount nobody touched: %s", out)
	}

	// Behind its back: one archive goes, a stranger's file comes, twice.
	lost := archiveID(t, filepath.Join(dir, "lost"))
	u.ok("archive", "delete", "--local", store, "cas://v", lost)
	strange := u.path("strange")
	if err := os.WriteFile(strange, []byte("strange"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u.ok("archive", "upload", "--local", store, "--desc", "from/elsewhere.txt", "cas://v", strange)
	}
	r := u.casfs("check", "--inventory", m.point)
	if r.code != 1 {
		t.Errorf("exit code of\n%v", r)
	}
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	count := func(what ...string) (n int) {
		for _, l := range lines {
			all := true
			for _, w := range what {
				all = all && strings.Contains(l, w)
			}
			if all {
				n++
			}
		}
		return n
	}
	if count("/v/lost: ", lost, "is missing from the inventory") != 1 {
		t.Errorf("the deleted archive is not reported:\n%s", r.out)
	}
	if count("/v/from/elsewhere", "was not known", "7 bytes") != 2 {
		t.Errorf("the unknown archives are not reported:\n%s", r.out)
	}
	if count("/v/from/elsewhere", "holds what archive", "described alike") != 1 {
		t.Errorf("the duplicate is not reported:\n%s", r.out)
	}
	if len(lines) != 4 {
		t.Errorf("%d problems, want 4:\n%s", len(lines), r.out)
	}

	// The second time they are known; what is missing and there twice still is.
	var again struct{ Problems []string }
	if r := u.casfs("check", "--inventory", "--json", m.point); r.code != 1 {
		t.Errorf("exit code of\n%v", r)
	} else if err := json.Unmarshal([]byte(r.out), &again); err != nil || len(again.Problems) != 2 {
		t.Errorf("problems the second time: %q", again.Problems)
	}
	// None of that recalled anything.
	var list struct {
		Jobs []struct{ Action, Type string }
	}
	u.json(&list, "job", "list", "--local", store, "cas://v")
	for _, j := range list.Jobs {
		if strings.Contains(strings.ToLower(j.Action+j.Type), "archive") {
			t.Errorf("a job %+v", j)
		}
	}
	if len(list.Jobs) != 3 {
		t.Errorf("%d jobs, want 3 inventories: %+v", len(list.Jobs), list.Jobs)
	}
}
