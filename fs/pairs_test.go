package fs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// steps are operations of one effect: of two done at once, one comes first.
var steps = []struct {
	name string
	do   func(p string) error
}{
	{"rename", func(p string) error { return unix.Rename(p, p+".moved") }},
	{"rename over", func(p string) error { return unix.Rename(p, p+".other") }},
	{"replace", func(p string) error { return unix.Rename(p+".new", p) }},
	{"exchange", func(p string) error {
		return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, p+".other", unix.RENAME_EXCHANGE)
	}},
	{"unlink", unix.Unlink},
	{"link", func(p string) error { return unix.Link(p, p+".link") }},
	{"chmod", func(p string) error { return unix.Chmod(p, 0o600) }},
	{"chown", func(p string) error { return unix.Chown(p, 5, 6) }},
	{"setxattr", func(p string) error { return unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_CREATE) }},
	{"cut", func(p string) error { return unix.Truncate(p, 10) }},
	{"cut to nothing", func(p string) error { return unix.Truncate(p, 0) }},
	{"grow", func(p string) error { return unix.Truncate(p, 20_000) }},
	{"append", func(p string) error {
		return withFile(p, os.O_WRONLY|os.O_APPEND, func(f *os.File) error { _, err := f.WriteString("appended"); return err })
	}},
	{"overwrite", func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error { _, err := f.WriteAt([]byte("overwritten"), 5); return err })
	}},
}

// TestPairs does two steps to one file at the same time, in every state that differs for the engine, and wants
// what they would have done to a plain directory one after the other, in either order. It takes a third of all
// pairs, the one that CASFS_PAIRS says or a random one; with CASFS_TEST_BIG=1 all.
func TestPairs(t *testing.T) {
	// pairDir makes the directory for the steps a and b.
	pairDir := func(root string, a, b int) string {
		dir := filepath.Join(root, fmt.Sprintf("%s, %s", steps[a].name, steps[b].name))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"f", "f.other", "f.new"} {
			if name == "f.new" && steps[a].name != "replace" && steps[b].name != "replace" {
				continue
			}
			write(t, filepath.Join(dir, name), fill(5000, uint64(len(name))))
		}
		return dir
	}
	outcome := func(dir string, a, b error) string {
		t.Helper()
		return strings.Join(append([]string{fmt.Sprintf("%v, %v", errnoOf(a), errnoOf(b))}, everything(t, dir)...), "\n")
	}
	type pair struct{ a, b int }
	var pairs []pair
	want := map[pair][]string{}
	third := envInt(t, "CASFS_PAIRS", rand.IntN(3))
	t.Logf("CASFS_PAIRS=%d", third)
	for a := range steps {
		for b := a; b < len(steps); b++ {
			if (a+b)%3 != third && os.Getenv("CASFS_TEST_BIG") == "" {
				continue
			}
			p := pair{a, b}
			pairs = append(pairs, p)
			for _, first := range []int{a, b} {
				dir := pairDir(t.TempDir(), a, b)
				f := filepath.Join(dir, "f")
				var errA, errB error
				if first == a {
					errA, errB = steps[a].do(f), steps[b].do(f)
				} else {
					errB, errA = steps[b].do(f), steps[a].do(f)
				}
				want[p] = append(want[p], outcome(dir, errA, errB))
				if steps[a].name == "replace" && steps[b].name == "link" {
					// As on a local disk, the kernel may have found the file that is replaced the moment after, and gives it no more names.
					dir := pairDir(t.TempDir(), a, b)
					want[p] = append(want[p], outcome(dir, steps[a].do(filepath.Join(dir, "f")), unix.ENOENT))
				}
				if a == b {
					want[p] = append(want[p], outcome(dir, errB, errA))
				}
			}
		}
	}
	for _, state := range []string{"staged", "uploading", "resident", "cold"} {
		t.Run(state, func(t *testing.T) {
			x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) {
				j.Settle = time.Hour
				j.Uploads, j.Parts, j.Fetches, j.GuardFiles = 400, 400, 64, -1
				j.PartSize, j.SingleBelow = 1<<20, 1<<20
			})
			dirs := map[pair]string{}
			var files []string
			for _, p := range pairs {
				dirs[p] = pairDir(x.path(), p.a, p.b)
				files = append(files, filepath.Join(dirs[p], "f"))
			}
			release := func() {}
			switch state {
			case "uploading":
				release = x.hold(cas.OpUploadArchive)
				x.background(func(ctx context.Context) { x.e.Sync(ctx, x.inos(files), nil) })
				for _, f := range files {
					eventually(t, "it is uploading", func() bool { return x.attr(f, "user.cas.state") == "uploading" })
				}
			case "resident":
				x.archive()
			case "cold":
				x.cold(files...)
			}
			errs := map[pair]*[2]error{}
			var all sync.WaitGroup
			start := make(chan struct{})
			for _, p := range pairs {
				e := &[2]error{}
				errs[p] = e
				f := filepath.Join(dirs[p], "f")
				for i, step := range []int{p.a, p.b} {
					all.Go(func() {
						<-start
						e[i] = steps[step].do(f)
					})
				}
			}
			close(start)
			all.Wait()
			release()
			check := func(when string) {
				t.Helper()
				for _, p := range pairs {
					got := outcome(dirs[p], errs[p][0], errs[p][1])
					if !slices.Contains(want[p], got) {
						t.Errorf("%s: %s and %s:\n%s", when, steps[p.a].name, steps[p.b].name, lineDiff(got, want[p][0]))
					}
				}
			}
			check("at once")
			x.evictAll()
			x.remount()
			check("cold, after a remount")
			if err := x.e.Check(t.Context(), false, false, func(p string) { t.Errorf("check: %s", p) }); err != nil {
				t.Error(err)
			}
		})
	}
}
