package local

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// thinDisk is an ext4 without a journal in an image on a small disk. Blocks that were never written cannot be, once the small disk is full.
type thinDisk struct {
	t                  *testing.T
	small, image, path string
}

func newThinDisk(t *testing.T) *thinDisk {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil && os.Getenv("CASFS_REQUIRE_FUSE") == "" {
		t.Skip(err)
	}
	d := &thinDisk{t: t, small: smallDisk(t, "24m"), path: t.TempDir()}
	d.image = filepath.Join(d.small, "image")
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	d.system("mkfs.ext4", "-q", "-F", "-O", "^has_journal", d.image)
	d.mount()
	t.Cleanup(func() { syscall.Unmount(d.path, syscall.MNT_DETACH) })
	return d
}

func (d *thinDisk) system(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		if os.Getenv("CASFS_REQUIRE_FUSE") == "" {
			d.t.Skipf("%q: %v: %s", args, err, out)
		}
		d.t.Fatalf("%q: %v: %s", args, err, out)
	}
}

func (d *thinDisk) mount() {
	d.t.Helper()
	d.system("mount", "-o", "loop", d.image, d.path)
}

func (d *thinDisk) unmount() {
	d.t.Helper()
	if err := syscall.Unmount(d.path, 0); err != nil {
		d.t.Fatal(err)
	}
}

// TestFailedSync: after a failed fsync the kernel still shows bytes that are not on the disk, and forgets that they are not. What the next
// Open shows is there after a power loss, and so is what is acknowledged from then on.
func TestFailedSync(t *testing.T) {
	d := newThinDisk(t)
	store, filler := filepath.Join(d.path, "store"), filepath.Join(d.small, "filler")
	c := open(t, Options{Dir: store})
	c.create("v")
	c.upload("v", []byte("x"), "")
	syscall.Sync()
	fill(t, filler)
	policy := `{"policy":"` + strings.Repeat("p", 16<<10) + `"}`
	c.refused(500, "ServiceUnavailableException", c.do("PUT", "/-/vaults/v/access-policy", []byte(policy), nil))
	c.s.Close()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}

	c = reopen(t, c.c, Options{Dir: store})
	before := c.do("GET", "/-/vaults/v/access-policy", nil, nil).StatusCode
	id := c.upload("v", []byte("y"), "")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	d.unmount()
	d.mount()
	c = reopen(t, c.c, Options{Dir: store})
	if after := c.do("GET", "/-/vaults/v/access-policy", nil, nil).StatusCode; after != before {
		t.Errorf("GET of what was refused: %d after a restart, %d after a power loss", before, after)
	}
	if r := c.must(200, c.output("v", c.retrieve("v", id), "")); string(r.body) != "y" {
		t.Errorf("%q", r.body)
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	d.unmount()
}

// TestUnsyncedRecords: what a process that was killed had written to the log and not synced is on the disk when Open has read it.
func TestUnsyncedRecords(t *testing.T) {
	d := newThinDisk(t)
	store := filepath.Join(d.path, "store")
	c := open(t, Options{Dir: store})
	c.create("v")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	policy := newKey(40)
	f, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(appendLine(nil, (&record{Type: "policy", Seq: 2, Text: policy}).encode())); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: store})
	c.must(200, c.do("GET", "/-/vaults/v/access-policy", nil, nil))
	if b, err := os.ReadFile(d.image); err != nil || !bytes.Contains(b, []byte(policy)) {
		t.Errorf("the record is not on the disk, %v", err)
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	d.unmount()
}
