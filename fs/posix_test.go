package fs

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// asOnDisk are the conformance tests that a local disk fails as well; here
// they must have the same outcome as there. FcntlFlockLocksFile wants the record locks of two descriptors of one
// process to conflict, which POSIX forbids: they belong to the process.
var asOnDisk = []string{"FcntlFlockLocksFile"}

// TestPosix runs go-fuse's conformance tests, each in a fresh and empty mount.
func TestPosix(t *testing.T) {
	var names []string
	for name := range posixtest.All {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) { j.Vault = vault })
			if !slices.Contains(asOnDisk, name) {
				posixtest.All[name](t, x.dir)
				return
			}
			here, disk := conformance(t, name, x.dir), conformance(t, name, t.TempDir())
			if here != disk {
				t.Errorf("in the mount: %s\non the local disk: %s", here, disk)
			}
			if disk == "" {
				t.Error("the local disk passes: it must be passed here, too")
			}
		})
	}
}

// conformance runs one of the tests in a process of its own, and returns what failed.
func conformance(t *testing.T, name, dir string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestOneConformance$")
	cmd.Env = append(os.Environ(), "CASFS_CONFORMANCE="+name, "CASFS_CONFORMANCE_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	var failed []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, ".go:") {
			failed = append(failed, strings.TrimSpace(line))
		}
	}
	if len(failed) == 0 {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return strings.Join(failed, "\n")
}

// TestOneConformance is run by conformance.
func TestOneConformance(t *testing.T) {
	if name := os.Getenv("CASFS_CONFORMANCE"); name != "" {
		posixtest.All[name](t, os.Getenv("CASFS_CONFORMANCE_DIR"))
	}
}
