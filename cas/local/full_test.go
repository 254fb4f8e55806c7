package local

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// smallDisk returns a directory on a file system of its own with room for size bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}

// fill writes a file until the disk has no room for another byte.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 64 << 10; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
}

// TestFullDisk: on a disk without a free block the store opens, gives back what it has and deletes it.
func TestFullDisk(t *testing.T) {
	for _, x := range []struct {
		name    string
		history int // records that a start would like to be rid of
		restart bool
	}{{"running", 0, false}, {"started", 0, true}, {"compacting", 2000, true}} {
		t.Run(x.name, func(t *testing.T) {
			dir := smallDisk(t, "8m")
			store := filepath.Join(dir, "store")
			c := open(t, Options{Dir: store})
			c.create("v")
			b := pattern(1<<20 + 5)
			keep, gone := c.upload("v", b, ""), c.upload("v", b, "")
			v, _ := c.s.vault("v")
			for range x.history {
				v.log.enqueue((&record{Type: "notify"}).encode(), "", 0)
			}
			fill(t, filepath.Join(dir, "other"))
			for c.do("PUT", "/-/vaults/v/access-policy", []byte(`{"policy":"p"}`), nil).StatusCode == 204 {
				continue // until what is reserved for the log is used up
			}
			if x.restart {
				if err := c.s.Close(); err != nil {
					t.Fatal(err)
				}
				fill(t, filepath.Join(dir, "another"))
				c = reopen(t, c.c, Options{Dir: store})
			}
			if r := c.must(200, c.output("v", c.retrieve("v", keep), "")); !bytes.Equal(r.body, b) {
				t.Error("differs")
			}
			c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+gone, nil, nil))
			c.upload("v", b[:1<<19], "")
			if err := c.s.Close(); err != nil { // before its disk goes
				t.Fatal(err)
			}
		})
	}
}

// TestDamagedLogOnFullDisk: a damaged log waits, as it is, for the room to be written anew.
func TestDamagedLogOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "8m")
	store := filepath.Join(dir, "store")
	c := open(t, Options{Dir: store})
	c.create("v")
	c.upload("v", []byte("x"), "")
	id := c.upload("v", []byte("y"), "")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(v.dir, "log")
	f, err := os.OpenFile(log, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("\x00\x00"), 200); err != nil {
		t.Fatal(err)
	}
	f.Close()
	fill(t, filepath.Join(dir, "other"))
	before := bytesBelow(t, v.dir)
	for range 2 {
		c = reopen(t, c.c, Options{Dir: store})
		c.refused(500, "ServiceUnavailableException", c.do("GET", "/-/vaults/v", nil, nil))
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := bytesBelow(t, v.dir); !maps.Equal(after, before) {
		t.Errorf("changed: %q, before %q", slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
	}
	if err := os.Remove(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: store})
	if r := c.must(200, c.output("v", c.retrieve("v", id), "")); string(r.body) != "y" {
		t.Errorf("%q", r.body)
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDeleteVaultOnFullDisk: a vault can be deleted when there is no room for another mark, and is not missed afterwards.
func TestDeleteVaultOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "8m")
	store := filepath.Join(dir, "store")
	c := open(t, Options{Dir: store})
	c.create("v")
	c.create("w")
	c.s.follow()
	fill(t, filepath.Join(dir, "other"))
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
	mark, err := os.ReadFile(filepath.Join(store, "mark"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store, "mark"), mark, 0o600); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: store})
	c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v", nil, nil))
	if m := c.s.marks[vaultDir("w")]; m.seq != 1 {
		t.Errorf("the other vault's mark: %+v", m)
	}
	if err := c.s.Close(); err != nil { // before its disk goes
		t.Fatal(err)
	}
}
