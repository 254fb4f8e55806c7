package local

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLostRecords: no archive's bytes are removed because a log is not what it was.
func TestLostRecords(t *testing.T) {
	for _, x := range []struct {
		name string
		harm func(path string, early, late []byte) [][]byte // what the log is at one Open after the other
	}{
		{"older copy", func(_ string, early, late []byte) [][]byte { return [][]byte{early} }},
		{"older copy after an unreadable one", func(_ string, early, late []byte) [][]byte { return [][]byte{{}, late[:len(early)]} }},
		{"zeros at the end", func(_ string, early, late []byte) [][]byte {
			return [][]byte{append(bytes.Clone(early), make([]byte, len(late)-len(early))...)}
		}},
		{"cut within a record", func(_ string, early, late []byte) [][]byte { return [][]byte{late[:len(late)-9]} }},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, Options{Dir: dir})
			c.create("v")
			c.upload("v", []byte("early"), "")
			v, _ := c.s.vault("v")
			path := filepath.Join(v.dir, "log")
			early, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			late := c.upload("v", []byte("late"), "")
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range x.harm(path, early, whole) {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				c = reopen(t, c.c, Options{Dir: dir})
				if err := c.s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			// Not even later.
			for range 2 {
				c = reopen(t, c.c, Options{Dir: dir})
				if v, err = c.s.vault("v"); err != nil || v.count != 1 {
					t.Fatalf("%v", err)
				}
				c.upload("v", []byte("more"), "")
				c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+v.order[len(v.order)-1].id, nil, nil))
				if err := c.s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if b, err := os.ReadFile(v.archivePath(0, late)); err != nil || string(b) != "late" {
				t.Errorf("an archive that was acknowledged: %q, %v", b, err)
			}
			if copies, _ := filepath.Glob(path + ".damaged-*"); len(copies) != 1 {
				t.Errorf("copies of the log: %q", copies)
			}
			// With the log as it was, everything is back.
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			c = reopen(t, c.c, Options{Dir: dir})
			if r := c.must(200, c.output("v", c.retrieve("v", late), "")); string(r.body) != "late" {
				t.Errorf("%q", r.body)
			}
		})
	}
}

// TestVaultMadeAnew: a vault that was deleted and made again is not taken for one that has lost its records.
func TestVaultMadeAnew(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.c.advance(1)
	c = reopen(t, c.c, Options{Dir: dir})
	mark, err := os.ReadFile(filepath.Join(dir, "mark"))
	if err != nil {
		t.Fatal(err)
	}
	c.c.advance(1e9)
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
	c.create("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mark"), mark, 0o600); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	if v, err := c.s.vault("v"); err != nil || v.damaged {
		t.Errorf("%v", err)
	}
}

// TestDeleteVaultWithLostRecords: a vault that looks empty because its log has lost records is not removed.
func TestDeleteVaultWithLostRecords(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(v.dir, "log")
	bad, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(bad[len(bad)-20:], "\x00\x00")
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	known := c.upload("v", []byte("y"), "")
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+known, nil, nil))
	r := c.do("DELETE", "/-/vaults/v", nil, nil)
	c.refused(400, "BadRequest", r)
	if !strings.Contains(string(r.body), "remove log.damaged-*") {
		t.Errorf("%s", r.body)
	}
	if b, err := os.ReadFile(v.archivePath(0, id)); err != nil || string(b) != "x" {
		t.Errorf("%q %v", b, err)
	}
	copies, _ := filepath.Glob(path + ".damaged-*")
	for _, f := range copies {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
}

// TestOlderCopyAfterKill: a log that is an older copy is noticed also when the store was killed since it was taken, unless that was
// within moments of the copy.
func TestOlderCopyAfterKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, Options{Dir: dir})
		c.create("v")
		v, _ := c.s.vault("v")
		path := filepath.Join(v.dir, "log")
		c.upload("v", []byte("early"), "")
		older, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		late := c.upload("v", []byte("late"), "")
		time.Sleep(markEvery + time.Second)
		synctest.Wait()
		mark, err := os.ReadFile(filepath.Join(dir, "mark"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{filepath.Join(dir, "mark"): mark, path: older} { // as if it had been killed
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c = reopen(t, c.c, Options{Dir: dir})
		if v, err = c.s.vault("v"); err != nil || !v.damaged {
			t.Errorf("not noticed, %v", err)
		}
		if b, err := os.ReadFile(v.archivePath(0, late)); err != nil || string(b) != "late" {
			t.Errorf("an archive that was acknowledged: %q, %v", b, err)
		}
	})
}

// TestMarkIsBounded: the mark is written now and then, not with every record, and not when nothing happens.
func TestMarkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, NoSync: true})
		c.create("v")
		written := func() int {
			n, last := 0, ""
			for range 100 {
				c.upload("v", []byte("x"), "")
				time.Sleep(markEvery / 20)
				b, err := os.ReadFile(filepath.Join(dir, "mark"))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				if string(b) != last {
					n, last = n+1, string(b)
				}
			}
			return n
		}
		if n := written(); n < 4 || n > 7 {
			t.Errorf("written %d times in 5 intervals", n)
		}
		time.Sleep(2 * markEvery)
		synctest.Wait()
		c.s.markMu.Lock()
		idle := c.s.markTimer == nil
		c.s.markMu.Unlock()
		if !idle {
			t.Error("it is written although nothing happens")
		}
	})
}

// TestClosedTwice: a store that was closed does not touch its directory any more: somebody else may have it.
func TestClosedTwice(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	other := reopen(t, c.c, Options{Dir: dir})
	before, err := os.ReadFile(filepath.Join(dir, "mark"))
	if err != nil || len(before) == 0 {
		t.Fatalf("%q, %v", before, err)
	}
	if err := c.s.Close(); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "mark")); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the mark is %q, was %q, %v", after, before, err)
	}
	other.upload("v", []byte("x"), "")
}
