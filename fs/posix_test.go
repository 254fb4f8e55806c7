package fs

import (
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// notRun are the conformance tests that do not apply, with the reason.
var notRun = map[string]string{
	"FcntlFlockLocksFile": "wants two descriptors of one process to conflict, which POSIX record locks never do; locks are the kernel's own here",
}

// TestPosix runs go-fuse's conformance tests, each in a fresh and empty mount.
func TestPosix(t *testing.T) {
	var names []string
	for name := range posixtest.All {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if reason := notRun[name]; reason != "" {
			t.Logf("%s: not run: %s", name, reason)
			continue
		}
		t.Run(name, func(t *testing.T) {
			x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) { j.Vault = vault })
			posixtest.All[name](t, x.dir)
		})
	}
}
