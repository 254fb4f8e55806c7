package local

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMissingVault: a vault whose directory is gone was not deleted. It is refused, not unknown, whatever came of it: a copy is put back, or
// the user says that there is none.
func TestMissingVault(t *testing.T) {
	for _, killed := range []bool{false, true} {
		dir := t.TempDir()
		c := open(t, Options{Dir: dir})
		c.create("v")
		c.create("deleted")
		id := c.upload("v", []byte("x"), "")
		v, _ := c.s.vault("v")
		if killed { // the mark knows both
			c.s.follow()
		}
		c.must(204, c.do("DELETE", "/-/vaults/deleted", nil, nil))
		mark := filepath.Join(dir, "mark")
		atKill, err := os.ReadFile(mark)
		if err != nil && killed {
			t.Fatal(err)
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if killed {
			if err := os.WriteFile(mark, atKill, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		aside := filepath.Join(t.TempDir(), "aside")
		if err := os.Rename(v.dir, aside); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c = reopen(t, c.c, Options{Dir: dir})
			for _, r := range []response{
				c.do("GET", "/-/vaults/v", nil, nil), c.do("PUT", "/-/vaults/v", nil, nil), c.do("DELETE", "/-/vaults/v", nil, nil),
				c.do("POST", "/-/vaults/v/archives", []byte("x"), hashes([]byte("x"))),
			} {
				c.refused(500, "ServiceUnavailableException", r)
				if !strings.Contains(string(r.body), "missing") || !strings.Contains(string(r.body), "mark") {
					t.Errorf("%s", r.body)
				}
			}
			var list struct{ VaultList []vaultReply }
			c.json(c.do("GET", "/-/vaults", nil, nil), &list)
			if len(list.VaultList) != 1 {
				t.Errorf("%+v", list)
			}
			c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/deleted", nil, nil))
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		// Either it comes back, elsewhere perhaps, or it is given up.
		if err := os.Symlink(aside, v.dir); err != nil {
			t.Fatal(err)
		}
		c = reopen(t, c.c, Options{Dir: dir})
		if r := c.must(200, c.output("v", c.retrieve("v", id), "")); !bytes.Equal(r.body, []byte("x")) {
			t.Errorf("%q", r.body)
		}
		c.upload("v", []byte("y"), "")
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(v.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
		c = reopen(t, c.c, Options{Dir: dir})
		c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v", nil, nil))
		c.create("v")
	}
}

// TestVaultOnAnotherDisk: a link to a vault that leads nowhere at the moment is a vault that cannot be opened.
func TestVaultOnAnotherDisk(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "v")
	if err := os.Rename(v.dir, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, v.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "mark")); err != nil {
		t.Fatal(err)
	}
	unmounted := elsewhere + ".unmounted"
	if err := os.Rename(elsewhere, unmounted); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	c.refused(500, "ServiceUnavailableException", c.do("GET", "/-/vaults/v", nil, nil))
	c.refused(500, "ServiceUnavailableException", c.do("PUT", "/-/vaults/v", nil, nil))
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(unmounted, elsewhere); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	id := c.upload("v", []byte("x"), "")
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
	c.create("v")
}

// TestMissingVaultWithALongName: a directory does not tell a name of more than 100 characters. A vault that is not listed counts as deleted.
func TestMissingVaultWithALongName(t *testing.T) {
	name := strings.Repeat("long-", 30)
	for what, harm := range map[string]func(v *vault) error{
		"missing": func(v *vault) error { return os.Rename(v.dir, filepath.Join(t.TempDir(), "aside")) },
		"empty":   func(v *vault) error { return os.WriteFile(filepath.Join(v.dir, "log"), nil, 0o600) },
		"first record lost": func(v *vault) error {
			b, err := os.ReadFile(filepath.Join(v.dir, "log"))
			if err != nil {
				return err
			}
			b[0], b[9] = 0, 0
			return os.WriteFile(filepath.Join(v.dir, "log"), b, 0o600)
		},
	} {
		dir := t.TempDir()
		c := open(t, Options{Dir: dir})
		c.create(name)
		c.upload(name, []byte("x"), "")
		v, _ := c.s.vault(name)
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := harm(v); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c = reopen(t, c.c, Options{Dir: dir})
			var list struct{ VaultList []vaultReply }
			c.json(c.do("GET", "/-/vaults", nil, nil), &list)
			if len(list.VaultList) != 1 || list.VaultList[0].VaultName != name {
				t.Errorf("%s: %+v", what, list)
			}
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestMarkOfOlderPrograms: older programs left vaults that they deleted in the mark until they were closed, which a killed one was not.
func TestMarkOfOlderPrograms(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	v, _ := c.s.vault("v")
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	old := appendLine(nil, (&record{Type: "mark", Name: filepath.Base(v.dir), At: v.created, Seq: 1}).encode())
	if err := os.WriteFile(filepath.Join(dir, "mark"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v", nil, nil))
	c.create("v")
}
