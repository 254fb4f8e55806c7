package fs

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// TestColdFileOfManyArchives reads a file of 24 archives, three times as large as the cache: by read(2), through a mapping, and both
// at once. Each archive is asked for once, and the cache keeps its limit.
func TestColdFileOfManyArchives(t *testing.T) {
	const size, segment, cache = 48 << 20, 2 << 20, 16 << 20
	x := mountForTest(t, local.Delays{Standard: 200 * time.Millisecond}, func(j *jobs.Options, _ *Options) {
		j.PartSize, j.SegmentSize, j.SingleBelow = 1<<20, segment, 1<<20
		j.CacheSize, j.Window, j.WindowAbove, j.GuardFiles = cache, 1<<20, 4<<20, -1
	})
	name, model := x.path("big"), filepath.Join(t.TempDir(), "model")
	write(t, model, fill(size, 1))
	write(t, name, fill(size, 1))
	x.cold(name)
	look := func(what string) {
		t.Helper()
		s, err := x.e.Status(t.Context())
		if err != nil || s.Cache.Used > cache {
			t.Errorf("%s: %d bytes in the cache, %v", what, s.Cache.Used, err)
		}
		if got := x.recalls(); got != size/segment {
			t.Errorf("%s: %d jobs, want %d", what, got, size/segment)
		}
	}
	compare := func() (string, error) {
		out, err := programCmd("compare", name, model).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}

	if out, err := exec.Command("cmp", name, model).CombinedOutput(); err != nil {
		t.Fatalf("cmp: %v: %s", err, out)
	}
	look("cmp")
	x.cold(name)
	// The outputs are still there: nothing is asked for again.
	if out, err := compare(); err != nil || out != "same" {
		t.Fatalf("through a mapping: %v: %s", err, out)
	}
	look("a mapping")
	x.cold(name)
	read := make(chan error, 1)
	go func() { read <- exec.Command("cmp", name, model).Run() }()
	if out, err := compare(); err != nil || out != "same" {
		t.Errorf("through a mapping, while another reads: %v: %s", err, out)
	}
	if err := <-read; err != nil {
		t.Errorf("cmp, while another has it mapped: %v", err)
	}
	look("both")
}
