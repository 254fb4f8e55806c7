package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("%v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Options{Dir: dir})
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	cr := s.Credentials()
	if cr.SecretID == "" || len(cr.SecretKey) < 32 || strings.Contains(fmt.Sprintf("%v", cr), cr.SecretKey) {
		t.Errorf("%v", cr)
	}
	if err := s.SetEndpoint("http://127.0.0.1:1234"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "credentials")
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	b, _ := os.ReadFile(path)
	want := "[CASCredentials]\nendpoint = http://127.0.0.1:1234\nappid = " + cr.AppID + "\nsecretid = " + cr.SecretID + "\nsecretkey = " + cr.SecretKey + "\n"
	if string(b) != want {
		t.Errorf("%s", b)
	}
	s.Close()
	if s = mustOpen(t, Options{Dir: dir}); s.Credentials() != cr {
		t.Error("another account after a restart")
	}
	s.Close()
	if s = mustOpen(t, Options{Dir: dir, AppID: "42"}); s.Credentials().AppID != "42" || s.Credentials().SecretKey != cr.SecretKey {
		t.Errorf("%v", s.Credentials())
	}
	s.Close()
	if _, err := Open(Options{Dir: dir, AppID: "x"}); err == nil {
		t.Error("an account must be a number")
	}
}

// TestDamagedCredentials: the account of a store with vaults is not replaced because one line of its file cannot be read.
func TestDamagedCredentials(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	creds := c.s.Credentials()
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "credentials")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{
		bytes.Replace(good, []byte("secretid"), []byte("sebretid"), 1), bytes.Replace(good, []byte("appid ="), []byte("appid -"), 1), {}, good[:len(good)-45],
	} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(Options{Dir: dir}); err == nil {
			t.Errorf("opened with %v, was %v, from %q", s.Credentials(), creds, bad)
			s.Close()
		} else if !strings.Contains(err.Error(), "Put a copy of it back") {
			t.Error(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, bad) {
			t.Errorf("changed: %q, %v", b, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := mustOpen(t, Options{Dir: dir}); s.Credentials() != creds {
		t.Error("another account")
	}
}

// Everything is there after a restart, also when the log has been compacted.
func TestReopen(t *testing.T) {
	for _, rewrite := range []bool{false, true} {
		c := open(t, Options{Delays: Delays{Standard: time.Hour}})
		c.create("v")
		b := pattern(2<<20 + 5)
		keep := c.upload("v", b, "keep")
		gone := c.upload("v", b, "gone")
		job := c.retrieve("v", keep)
		inv := c.job("v", `{"Type":"inventory-retrieval"}`)
		list := c.must(200, c.output("v", inv, "")).body
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+gone, nil, nil))
		policy := "/-/vaults/v/access-policy"
		c.must(204, c.do("PUT", policy, []byte(`{"policy":"p"}`), nil))
		u := c.initiate("v", 1<<20)
		c.must(204, c.part("v", u, 0, b[:1<<20]))
		u2 := c.initiate("v", 1<<20)
		c.must(204, c.part("v", u2, 0, b[:1<<20]))
		made := c.must(201, c.complete("v", u2, 1<<20, naiveTree(b[:1<<20]))).Header.Get("x-cas-archive-id")
		if rewrite {
			for range 2000 { // enough history to be worth a rewrite
				v, _ := c.s.vault("v")
				v.log.enqueue((&record{Type: "notify"}).encode(), "", 0)
			}
		}
		dir := c.s.dir
		for range 2 {
			if err := c.s.Close(); err != nil {
				t.Fatal(err)
			}
			c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now, Delays: Delays{Standard: time.Hour}})
		}
		v, _ := c.s.vault("v")
		if st, _ := os.Stat(filepath.Join(v.dir, "log")); rewrite && st.Size() > 6000 {
			t.Errorf("the log has %d bytes", st.Size())
		}
		if m := c.describe("v", job); m["ArchiveId"] != keep || m["StatusCode"] != "InProgress" {
			t.Errorf("%v", m)
		}
		c.c.advance(time.Hour)
		if r := c.output("v", job, ""); !bytes.Equal(r.body, b) || r.Header.Get("x-cas-archive-description") != "keep" {
			t.Error("output differs")
		}
		if got := c.output("v", inv, "").body; !bytes.Equal(got, list) {
			t.Error("inventory differs")
		}
		c.must(200, c.do("GET", policy, nil, nil))
		if again := c.must(201, c.complete("v", u2, 1<<20, naiveTree(b[:1<<20]))).Header.Get("x-cas-archive-id"); again != made {
			t.Error("a completed upload is forgotten")
		}
		c.must(204, c.part("v", u, 1<<20, b[1<<20:2<<20]))
		c.must(201, c.complete("v", u, 2<<20, naiveTree(b[:2<<20])))
		var vr vaultReply
		c.json(c.do("GET", "/-/vaults/v", nil, nil), &vr)
		if *vr.NumberOfArchives != 3 || vr.CreationDate != "2024-01-02T03:04:05.000Z" {
			t.Errorf("%d archives", *vr.NumberOfArchives)
		}
		if m := c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+gone+`"}`), nil); m.StatusCode != 202 {
			t.Errorf("a job on an archive deleted today: %d", m.StatusCode)
		}
	}
}

func TestGarbage(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	u := c.initiate("v", 1<<20)
	v, _ := c.s.vault("v")
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"archives/0000/" + newID(archiveIDLen), "archives/0000/x.tree", "archives/0000/" + v.uploads[u].archive + ".part-0-x", "jobs/y", ".new-1", "archives/7/z"} {
		p := filepath.Join(v.dir, f)
		os.MkdirAll(filepath.Dir(p), 0o700)
		if err := os.WriteFile(p, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.MkdirAll(filepath.Join(dir, "tmp", "vault-1", "archives"), 0o700)
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now})
	if got := files(t, c); len(got) != 1 || got[0] != id {
		t.Errorf("%v", got)
	}
	if left, _ := dirNames(filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("%v", left)
	}
}

// The log is cut and damaged in every way a crash or a disk can.
func TestDamagedLog(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	var ids []string
	for i := range 3 {
		ids = append(ids, c.upload("v", []byte{byte(i)}, ""))
	}
	v, _ := c.s.vault("v")
	path := filepath.Join(v.dir, "log")
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	reopen := func(b []byte) (live int) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// As after a crash: how far the log was is not known.
		if err := os.Remove(filepath.Join(dir, "mark")); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: dir, Now: c.c.now})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		v, err := s.vault("v")
		if err != nil {
			t.Fatal(err)
		}
		return int(v.count)
	}
	file := func(id string) bool {
		_, err := os.Stat(v.archivePath(0, id))
		return err == nil
	}
	flip := bytes.Clone(whole)
	copy(flip[len(lines[0])+20:], "\x00\x00") // in the first archive's record
	if n := reopen(flip); n != 2 || !file(ids[0]) {
		t.Errorf("after damage: %d archives", n)
	}
	// Not even later is a file removed that the lost record may have explained.
	if n := reopen(whole[:len(lines[0])+len(lines[1])]); n != 1 || !file(ids[2]) {
		t.Errorf("then: %d archives", n)
	}
	copies, _ := filepath.Glob(path + ".damaged-*")
	if len(copies) != 1 {
		t.Fatalf("%v", copies)
	}
	if err := os.Remove(copies[0]); err != nil {
		t.Fatal(err)
	}
	last := bytes.Clone(whole)
	copy(last[len(last)-20:], "\x00\x00") // in the last archive's record, which has its line feed
	if n := reopen(last); n != 2 || !file(ids[2]) {
		t.Errorf("after damage in the last record: %d archives", n)
	}
	copies, _ = filepath.Glob(path + ".damaged-*")
	if len(copies) != 1 {
		t.Fatalf("%v", copies)
	}
	if b, err := os.ReadFile(copies[0]); err != nil || !bytes.Equal(b, last) {
		t.Errorf("the damaged log was not kept: %v", err)
	}
	if err := os.Remove(copies[0]); err != nil {
		t.Fatal(err)
	}
	torn := append(bytes.Clone(whole[:len(whole)-len(lines[3])]), lines[3][:30]...)
	if n := reopen(torn); n != 2 || file(ids[2]) {
		t.Errorf("after a torn write: %d archives", n)
	}
	if n := reopen(append(bytes.Clone(lines[0]), make([]byte, 5000)...)); n != 0 {
		t.Errorf("zeros at the end: %d archives", n)
	}
}

// TestRepeatsAreDurable: whoever asks for what another request is still recording hears of success only when that is on disk.
func TestRepeatsAreDurable(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(1 << 20)
	id := c.upload("v", b, "")
	upload := c.initiate("v", 1<<20)
	c.must(204, c.part("v", upload, 0, b))
	v, err := c.s.vault("v")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		rec    *record
		repeat func() response
	}{
		{&record{Type: "part", Upload: upload, Off: 0, Size: 1 << 20, Tree: v.uploads[upload].parts[0].tree}, func() response { return c.part("v", upload, 0, b) }},
		{&record{Type: "del", ID: id, At: c.c.now().UnixMilli()}, func() response { return c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil) }},
	} {
		v.mu.Lock()
		ticket, err := v.commitLocked(r.rec, "") // by a request that has not come to waiting yet
		v.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		c.must(204, r.repeat())
		if v.log.flushed < ticket {
			t.Errorf("%s: acknowledged with batch %d of %d on disk", r.rec.Type, v.log.flushed, ticket)
		}
	}
}

// A disk that fails under the log stops further changes, and says so.
func TestBrokenLog(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	v, _ := c.s.vault("v")
	v.log.f.Close()
	b := []byte("y")
	c.refused(500, "ServiceUnavailableException", c.do("POST", "/-/vaults/v/archives", b, hashes(b)))
	c.refused(500, "ServiceUnavailableException", c.do("POST", "/-/vaults/v/archives", b, hashes(b)))
	c.refused(500, "ServiceUnavailableException", c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	c.must(200, c.do("GET", "/-/vaults/v", nil, nil))
	dir := c.s.dir
	c.s.Close()
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now})
	if got := files(t, c); len(got) != 1 || got[0] != id {
		t.Errorf("%v", got)
	}
}

// TestRepeatedCompleteOfBrokenLog: a Complete that waited for one whose record could not be written does not succeed either.
func TestRepeatedCompleteOfBrokenLog(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(1 << 20)
	upload := c.initiate("v", 1<<20)
	c.must(204, c.part("v", upload, 0, b))
	v, _ := c.s.vault("v")
	u := v.uploads[upload]
	tree := u.parts[0].tree
	v.log.f.Close()
	for i := range 2 { // past the look at the log that requests begin with
		if id, err := v.complete(u, 1<<20, tree); err == nil {
			t.Errorf("Complete %d: archive %.9s…, which is not in the log", i, id)
		}
	}
	c.s.Close()
}

// The store may be in a directory of any name.
func TestDirectoryOfAnyName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b*c?d\\")
	c := open(t, Options{Dir: dir})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c.c, Options{Dir: dir})
	if r := c.must(200, c.output("v", c.retrieve("v", id), "")); string(r.body) != "x" {
		t.Errorf("%q", r.body)
	}
}
