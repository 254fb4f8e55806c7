package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Unmounting says 0 only when everything is in the vault: of a mount whose process has died nobody knows.
func TestUmountOfADeadMount(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.point, "v", "file")
	data := []byte("not in the vault")
	for _, json := range []bool{false, true} {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		m.kill()
		args := []string{"umount", m.point}
		if json {
			args = append(args, "--json")
		}
		r := u.casfs(args...)
		if r.code != 3 || !json && !strings.Contains(r.err, "next mount") || json && !strings.Contains(r.out, `"stale": true`) {
			t.Errorf("%q: %v", args, r)
		}
		if r := u.casfs("umount", m.point); r.code != 1 {
			t.Errorf("it is still mounted: %v", r)
		}
		m.start()
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	u.ok("umount", m.point)
}
