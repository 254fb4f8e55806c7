package local

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestFlippedBit: one flipped bit anywhere in the log costs no archive, and the log as it was found is kept aside.
func TestFlippedBit(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir, NoSync: true})
	c.create("v")
	want := map[string]string{}
	for _, b := range []string{"one", "two", "three"} {
		want[c.upload("v", []byte(b), "J*"+b)] = b
	}
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(v.dir, "log")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(whole) {
		line := bytes.IndexByte(whole[bit/8:], '\n') == 0
		if !line && bit%37 != 0 && whole[bit/8]^1<<(bit%8) != '\n' {
			continue
		}
		bad := bytes.Clone(whole)
		bad[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c := reopen(t, c.c, Options{Dir: dir, NoSync: true})
		v, err := c.s.vault("v")
		if err != nil {
			t.Fatalf("bit %d of byte %d: %v", bit%8, bit/8, err)
		}
		for id, b := range want {
			if a := v.archives[id]; a == nil || a.desc != "J*"+b {
				t.Errorf("bit %d of byte %d (%q): %q is gone", bit%8, bit/8, whole[bit/8], b)
			} else if got, err := os.ReadFile(v.archivePath(a.shard, id)); err != nil || string(got) != b {
				t.Errorf("bit %d of byte %d: %q is %q, %v", bit%8, bit/8, b, got, err)
			}
		}
		if v.seq != 4 || v.created != newClock().now().UnixMilli() {
			t.Errorf("bit %d of byte %d: seq %d, created %d", bit%8, bit/8, v.seq, v.created)
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		copies, _ := filepath.Glob(path + ".damaged-*")
		if len(copies) != 1 {
			t.Fatalf("bit %d of byte %d: copies %q", bit%8, bit/8, copies)
		}
		if got, err := os.ReadFile(copies[0]); err != nil || !bytes.Equal(got, bad) {
			t.Errorf("bit %d of byte %d: the log as it was found was not kept: %v", bit%8, bit/8, err)
		}
		os.Remove(copies[0])
		if t.Failed() {
			return
		}
	}
}
