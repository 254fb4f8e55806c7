package local

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bytesBelow returns every file below dir with its content.
func bytesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBrokenVault: a log that cannot be read concerns its own vault, which says so and loses nothing.
func TestBrokenVault(t *testing.T) {
	long := strings.Repeat("l", 200) // its directory does not tell the name; the mark does, if there is one
	for _, x := range []struct {
		name  string
		vault string
		harm  func(log []byte) []byte // nil: no log
		says  string
	}{
		{"empty", "v", func([]byte) []byte { return []byte{} }, "is empty"},
		{"torn", "v", func(b []byte) []byte { return b[:20] }, "is a record"},
		{"zeros", "v", func(b []byte) []byte { return make([]byte, len(b)) }, "is a record"},
		{"missing", "v", func([]byte) []byte { return nil }, "no such file"},
		{"not a record", "v", func(b []byte) []byte { return append(appendLine(nil, []byte(`["x"]`)), b...) }, "cannot unmarshal"},
		{"long name, empty", long, func([]byte) []byte { return []byte{} }, "is empty"},
		{"long name, first record lost", long, func(b []byte) []byte { b[0], b[9] = 0, 0; return b }, "record of the vault's name"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, Options{Dir: dir})
			c.create(x.vault)
			c.create("w")
			b := pattern(2<<20 + 5)
			id := c.upload(x.vault, b, "d")
			other := c.upload("w", b, "d")
			v, _ := c.s.vault(x.vault)
			made := formatTime(v.created)
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			if x.vault == long {
				if err := os.Remove(filepath.Join(dir, "mark")); err != nil {
					t.Fatal(err)
				}
			}
			later := time.Now().Add(time.Hour)
			if err := os.Chtimes(v.dir, later, later); err != nil {
				t.Fatal(err)
			}
			log := filepath.Join(v.dir, "log")
			whole, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(log); err != nil {
				t.Fatal(err)
			}
			if bad := x.harm(bytes.Clone(whole)); bad != nil {
				if err := os.WriteFile(log, bad, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := bytesBelow(t, v.dir)

			c = reopen(t, c.c, Options{Dir: dir})
			// The other vault does everything.
			if r := c.must(200, c.output("w", c.retrieve("w", other), "")); !bytes.Equal(r.body, b) {
				t.Error("the other vault's archive differs")
			}
			c.upload("w", b, "more")
			c.create("new")
			// This one says what is wrong and what to do, whatever is asked.
			for _, ask := range [][2]string{
				{"GET", ""}, {"PUT", ""}, {"DELETE", ""}, {"GET", "/jobs"}, {"POST", "/archives"}, {"DELETE", "/archives/" + id}, {"GET", "/multipart-uploads"},
			} {
				r := c.do(ask[0], "/-/vaults/"+x.vault+ask[1], nil, hashes([]byte("x")))
				c.refused(500, "ServiceUnavailableException", r)
				for _, want := range []string{x.says, "put a copy of the log back", "vaults/" + filepath.Base(v.dir)} {
					if !strings.Contains(string(r.body), want) {
						t.Errorf("%s %s does not say %q: %s", ask[0], ask[1], want, r.body)
					}
				}
			}
			var list struct{ VaultList []vaultReply }
			c.json(c.do("GET", "/-/vaults", nil, nil), &list)
			var names []string
			for _, e := range list.VaultList {
				names = append(names, e.VaultName)
				// A later date would say that it is another vault.
				if e.VaultName == x.vault && (e.NumberOfArchives != nil || e.CreationDate == "" || e.CreationDate > made) {
					t.Errorf("%+v, made %s", e, made)
				}
			}
			want := []string{"new", "v", "w"}
			if x.vault == long {
				want = []string{"new", "w"}
			}
			if !slices.Equal(names, want) {
				t.Errorf("listed: %q", names)
			}
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			if after := bytesBelow(t, v.dir); !maps.Equal(after, before) {
				t.Errorf("its files were changed: %q, before %q", slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
			}
			// First way on: a copy of the log. Second: a new vault.
			if err := os.WriteFile(log, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			c = reopen(t, c.c, Options{Dir: dir})
			if r := c.must(200, c.output(x.vault, c.retrieve(x.vault, id), "")); !bytes.Equal(r.body, b) {
				t.Error("its archive differs")
			}
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(log, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := reopen(t, c.c, Options{Dir: dir}).s.Close(); err != nil {
				t.Fatal(err)
			}
			aside := filepath.Join(dir, "aside")
			if err := os.Rename(v.dir, aside); err != nil {
				t.Fatal(err)
			}
			c = reopen(t, c.c, Options{Dir: dir})
			c.create(x.vault)
			c.upload(x.vault, b, "again")
			if got, err := os.ReadFile(filepath.Join(aside, "archives", "0000", id)); err != nil || !bytes.Equal(got, b) {
				t.Errorf("the bytes set aside: %v", err)
			}
		})
	}
}

// TestLostVaultRecord: a log without its first record still says everything about the archives; the name is the directory's.
func TestLostVaultRecord(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v-1.x")
	b := pattern(2<<20 + 5)
	id := c.upload("v-1.x", b, "d")
	v, _ := c.s.vault("v-1.x")
	made := formatTime(v.created)
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(v.dir, "log")
	bad, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	bad[12], bad[13] = 0, 0
	if err := os.WriteFile(log, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c = reopen(t, c.c, Options{Dir: dir})
		if r := c.must(200, c.output("v-1.x", c.retrieve("v-1.x", id), "")); !bytes.Equal(r.body, b) {
			t.Error("the archive differs")
		}
		var vr vaultReply
		c.json(c.do("GET", "/-/vaults/v-1.x", nil, nil), &vr)
		if vr.CreationDate == "" || vr.CreationDate > made || *vr.NumberOfArchives != 1 {
			t.Errorf("%+v, made %s", vr, made)
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	copies, _ := filepath.Glob(log + ".damaged-*")
	if len(copies) != 1 {
		t.Fatalf("copies of the damaged log: %q", copies)
	}
	if got, err := os.ReadFile(copies[0]); err != nil || !bytes.Equal(got, bad) {
		t.Errorf("the copy differs: %v", err)
	}
}

// TestCopiedVault: a copy of a vault's directory beside it is not taken for the vault.
func TestCopiedVault(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(v.dir+".old", os.DirFS(v.dir)); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	c.upload("v", []byte("x"), "")
	if got, err := c.s.vault("v"); err != nil || got.dir != v.dir {
		t.Errorf("%v %v", got, err)
	}
	var list struct{ VaultList []vaultReply }
	c.json(c.do("GET", "/-/vaults", nil, nil), &list)
	if len(list.VaultList) != 1 {
		t.Errorf("%v", list)
	}
}
