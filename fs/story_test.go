package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/casfs/casfs/cas/local"
)

// storyFiles are sizes around every boundary of the protocol and names of every kind.
func storyFiles(large bool) map[string]int {
	const mib = 1 << 20
	files := map[string]int{
		"empty":                        0,
		"one byte":                     1,
		"档案/照片.jpg":                    mib - 1,
		"with a\nnew line":             mib,
		strings.Repeat("n", 255):       mib + 1,
		strings.Repeat("长", 85):        7, // 255 bytes
		" leading and trailing blank ": 11,
		"-n":                           13,
		"quote'\"$(x)`y`\\":            17,
		"deep/" + strings.Repeat("d/", 50) + "file": 19,
		"bytes\xff\xfe": 23,
		"multipart":     32*mib + 5,
	}
	if large {
		files["large"] = 200 * mib
	}
	return files
}

// TestStory is what a user does: copy in, archive, evict, mount again, read back, compare.
func TestStory(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	// The inventory of a new vault makes requests of its own.
	eventually(t, "the inventory is merged", func() bool { return len(x.logs.grep("inventory merged")) > 0 })
	src := t.TempDir()
	files := storyFiles(!testing.Short())
	want := map[string][]byte{}
	seed := uint64(0)
	for name, size := range files {
		seed++
		want[name] = fill(size, seed)
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, p, want[name])
	}
	sh(t, x.path(), fmt.Sprintf("cp -a '%s'/. .", src))
	x.archive()
	inos := map[string]uint64{}
	for name, data := range want {
		inos[name] = inoOf(t, x.path(name))
		if len(data) > 0 {
			if got := x.attr(x.path(name), "user.cas.state"); got != "resident" {
				t.Errorf("%q is %s after sync, want resident", name, got)
			}
		}
		wantContent(t, x.path(name), data)
	}

	x.evictAll()
	before := x.store.Count("*")
	sh(t, x.path(), "ls -lR >/dev/null; find . -printf '%p %s %b' >/dev/null; du -s . >/dev/null")
	if n := x.store.Count("*") - before; n != 0 {
		t.Errorf("looking at a cold tree sent %d requests", n)
	}

	x.remount()
	before = x.store.Count("*")
	sh(t, x.path(), "ls -lR >/dev/null; find . -type f -exec getfattr -n user.cas.state {} + >/dev/null")
	if n := x.store.Count("*") - before; n != 0 {
		t.Errorf("looking at a cold tree after a remount sent %d requests", n)
	}
	for name, data := range want {
		if got := inoOf(t, x.path(name)); got != inos[name] {
			t.Errorf("%q has inode %d after a remount, had %d", name, got, inos[name])
		}
		if len(data) > 0 {
			if got := x.attr(x.path(name), "user.cas.state"); got != "cold" {
				t.Errorf("%q is %s, want cold", name, got)
			}
		}
		wantContent(t, x.path(name), data)
	}
	sh(t, x.path(), fmt.Sprintf("diff -r '%s' .", src))
	// What was read is served as a local file from now on.
	for name, data := range want {
		if len(data) > 0 {
			eventually(t, fmt.Sprintf("%q is resident", name), func() bool {
				return x.attr(x.path(name), "user.cas.state") == "resident"
			})
		}
		wantContent(t, x.path(name), data)
	}
}
