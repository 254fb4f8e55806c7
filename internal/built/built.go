// Package built gives tests the real program: built once for a package's tests, started in an environment that
// shows nothing of the developer's own, on a machine that has what a test needs. For tests only.
package built

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Main is what a TestMain exits with: it builds casfs with these flags of go build, and -race when the tests have it,
// tells where it is, and runs the tests.
func Main(m *testing.M, program *string, flags ...string) int {
	dir, err := os.MkdirTemp("", "casfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	*program = filepath.Join(dir, "casfs")
	args := append([]string{"build"}, flags...)
	if Race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "-o", *program, "github.com/casfs/casfs")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// foreign are the variables that change what casfs or the programs of tests do; those with an underscore at the end are prefixes.
var foreign = []string{
	"CASFS_", "TENCENTCLOUD_", "XDG_", "GIT_", "LC_", "RESTIC_", "BORG_", "RSYNC_",
	"HOME", "TMPDIR", "LANG", "TZ", "TAR_OPTIONS",
}

// Env is the environment of somebody who lives in home and keeps casfs's state in its directory "state".
func Env(home string, more ...string) []string {
	// A program with the race detector sleeps for a second before it ends; tests start it hundreds of times.
	env := []string{"GORACE=atexit_sleep_ms=20 " + os.Getenv("GORACE"), "HOME=" + home, "CASFS_STATE_DIR=" + filepath.Join(home, "state")}
next:
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		for _, f := range foreign {
			if name == f || strings.HasSuffix(f, "_") && strings.HasPrefix(name, f) {
				continue next
			}
		}
		if name != "GORACE" {
			env = append(env, kv)
		}
	}
	return append(env, more...)
}

// packages says which Debian package a program comes from, where it has another name.
var packages = map[string]string{
	"borg": "borgbackup", "getfattr": "attr", "setfattr": "attr", "find": "findutils", "diff": "diffutils", "cmp": "diffutils",
	"fallocate": "util-linux", "flock": "util-linux", "unshare": "util-linux", "setpriv": "util-linux", "fusermount3": "fuse3",
}

// Require skips a test where FUSE or a program is missing; where FUSE is required (CASFS_REQUIRE_FUSE, as in CI), it fails there.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		missing("%v", err)
		return
	}
	f.Close()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			pkg := packages[p]
			if pkg == "" {
				pkg = p
			}
			missing("%s is missing: apt-get install %s", p, pkg)
		}
	}
}
