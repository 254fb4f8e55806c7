package local

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMissingCredentials: a store that has lost its credentials file keeps its account, and makes a new key for it.
func TestMissingCredentials(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	c.create("w")
	id := c.upload("v", []byte("x"), "")
	was := c.s.Credentials()
	for range 2 {
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "credentials")); err != nil {
			t.Fatal(err)
		}
		c = reopen(t, c.c, Options{Dir: dir})
		is := c.s.Credentials()
		if is.AppID != was.AppID || is.SecretID != was.SecretID {
			t.Fatalf("the account is %v, was %v", is, was)
		}
		if is.SecretKey == was.SecretKey || len(is.SecretKey) < 32 {
			t.Error("no new key")
		}
		if r := c.must(200, c.output("v", c.retrieve("v", id), "")); string(r.body) != "x" {
			t.Errorf("%q", r.body)
		}
		// Also when the logs have been written anew.
		for _, v := range c.s.vaults {
			for range 2000 {
				v.log.enqueue((&record{Type: "notify"}).encode(), "", 0)
			}
		}
	}
}

// TestAccountOfOlderPrograms: the logs of older programs do not tell the account. They do once such a store was opened with its
// credentials; without these it is refused, and nothing is changed.
func TestAccountOfOlderPrograms(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	c.upload("v", []byte("x"), "")
	was := c.s.Credentials()
	v, _ := c.s.vault("v")
	log, path := filepath.Join(v.dir, "log"), filepath.Join(dir, "credentials")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	var old []byte
	if _, err := replay(log, slog.New(slog.DiscardHandler), func(b []byte) error {
		var r record
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		r.AppID, r.SecretID = "", ""
		old = appendLine(old, r.encode())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, old, 0o600); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Options{Dir: dir}); err == nil {
		t.Errorf("opened with %v, was %v", s.Credentials(), was)
		s.Close()
	} else if !strings.Contains(err.Error(), "Put a copy of it back") || !strings.Contains(err.Error(), "secret_id") {
		t.Error(err)
	}
	if b, err := os.ReadFile(log); err != nil || !bytes.Equal(b, old) {
		t.Errorf("the log was changed, %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("credentials were made")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c = reopen(t, c.c, Options{Dir: dir})
		if c.s.Credentials().AppID != was.AppID || c.s.Credentials().SecretID != was.SecretID {
			t.Fatalf("the account is %v, was %v", c.s.Credentials(), was)
		}
		if v, err = c.s.vault("v"); err != nil || v.count != 1 || v.damaged || v.created != newClock().now().UnixMilli() {
			t.Errorf("%+v, %v", v, err)
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExists: a store is told by its credentials or its vaults; a directory with a file of some name is none (casfs's state has a mark, too).
func TestExists(t *testing.T) {
	dir := t.TempDir()
	want := func(want bool) {
		t.Helper()
		if got, err := Exists(dir); got != want || err != nil {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	want(false)
	if err := os.WriteFile(filepath.Join(dir, "mark"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(false)
	c := open(t, Options{Dir: dir})
	want(true)
	c.create("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "credentials")); err != nil {
		t.Fatal(err)
	}
	want(true)
}

// TestTwoAccounts: vaults of two accounts do not tell which of them the store's is.
func TestTwoAccounts(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir, AppID: "41"})
	c.create("v")
	v, _ := c.s.vault("v")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	other := open(t, Options{Dir: t.TempDir(), AppID: "42"})
	other.create("w")
	w, _ := other.s.vault("w")
	if err := other.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "vaults", filepath.Base(w.dir)), os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "credentials")); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Options{Dir: dir}); err == nil {
		t.Errorf("opened with %v", s.Credentials())
		s.Close()
	} else if !strings.Contains(err.Error(), "41") || !strings.Contains(err.Error(), "42") {
		t.Error(err)
	}
	c = reopen(t, c.c, Options{Dir: dir, AppID: "41"})
	for _, x := range []*vault{v, w} {
		if got, err := c.s.vault(x.name); err != nil || got.account.appID != "41" {
			t.Errorf("%s: %v", x.name, err)
		}
	}
}

// TestTwoKeys: nor do vaults that tell two keys of one account.
func TestTwoKeys(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	c.create("w")
	w, _ := c.s.vault("w")
	was := c.s.Credentials()
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	path, aside := filepath.Join(dir, "credentials"), filepath.Join(t.TempDir(), "w")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The key is changed while one of them is on a disk that is not there.
	if err := os.Rename(w.dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(good, []byte(was.SecretID), []byte("AKIDother")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reopen(t, c.c, Options{Dir: dir}).s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, w.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Options{Dir: dir}); err == nil {
		t.Errorf("opened with %v", s.Credentials())
		s.Close()
	} else if !strings.Contains(err.Error(), was.SecretID) || !strings.Contains(err.Error(), "AKIDother") {
		t.Error(err)
	}
}
