package local

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestUploadRefusals(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(2<<20 + 3)
	other := linearHex([]byte("other"))
	path := "/-/vaults/v/archives"
	with := func(k, v string) header {
		h := hashes(b)
		if v == "-" {
			delete(h, k)
		} else {
			h[k] = v
		}
		return h
	}
	const linear, tree, desc = "x-cas-content-sha256", "x-cas-sha256-tree-hash", "x-cas-archive-description"
	for _, x := range []struct {
		name, code string
		h          header
	}{
		{"no linear hash", "MissingParameterValueException", with(linear, "-")},
		{"no tree hash", "MissingParameterValueException", with(tree, "-")},
		{"linear hash malformed", "InvalidParameterValueException", with(linear, "xyz")},
		{"tree hash empty", "InvalidParameterValueException", with(tree, "")},
		{"linear hash wrong", "InvalidDigest", with(linear, other)},
		{"tree hash wrong", "InvalidDigest", with(tree, other)},
		{"tree hash is the linear one", "InvalidDigest", with(tree, linearHex(b))},
		{"description too long", "InvalidParameterValueException", with(desc, strings.Repeat("x", 1025))},
		{"description with control characters", "InvalidParameterValueException", with("!"+desc, "a\x01b")},
	} {
		t.Run(x.name, func(t *testing.T) { c.refused(400, x.code, c.do("POST", path, b, x.h)) })
	}
	c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/other/archives", b, hashes(b)))
	empty := header{"content-length": "0", linear: linearHex(nil), tree: ""} // what cascmd sends for an empty file
	c.refused(400, "InvalidParameterValueException", c.do("POST", path, nil, empty))
	c.refused(400, "MissingParameterValueException", c.doBody("POST", path, bytes.NewReader(b), -1, hashes(b)))
	r := c.doBody("POST", path, bytes.NewReader(b), maxBody+1, hashes(b))
	c.refused(400, "InvalidParameterValueException", r)
	if r.Header.Get("Connection") != "close" {
		t.Error("an absurd length must end the connection")
	}
	c.refused(400, "InvalidParameterValueException", c.doBody("POST", path, bytes.NewReader(b[:1<<20]), int64(len(b)), hashes(b)))
	c.refused(400, "BadRequest", c.doBody("POST", path, io.MultiReader(bytes.NewReader(b[:1<<20]), failing{}), int64(len(b)), hashes(b)))
	if left := files(t, c); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil)) // nothing counts as being written
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken") }

// A refused upload is read to its end first.
func TestBodyReadBeforeRefusal(t *testing.T) {
	c := open(t, Options{})
	b := pattern(3 << 20)
	for name, h := range map[string]header{"no vault": hashes(b), "no hashes": nil, "no signature": {"!authorization": "q-ak=x"}} {
		body := bytes.NewReader(b)
		if r := c.doBody("POST", "/-/vaults/v/archives", body, int64(len(b)), h); r.StatusCode < 400 {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
		if body.Len() > 0 {
			t.Errorf("%s: %d bytes were not read", name, body.Len())
		}
	}
	// A client that waits for 100-continue is told at once.
	body := bytes.NewReader(b)
	c.refused(404, "ResourceNotFoundException", c.doBody("POST", "/-/vaults/v/archives", body, int64(len(b)), header{"!expect": "100-continue"}))
	if body.Len() != len(b) {
		t.Error("the body was asked for")
	}
}

// files lists the files below archives and jobs of all vaults.
func files(t *testing.T, c *client) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(c.s.dir, "vaults"), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Base(p) != "log" {
			names = append(names, filepath.Base(p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDescriptions(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	for in, want := range map[string]string{
		"":                          "",
		"照片/2019年 <b>&\\ \"x\".jpg": "照片/2019年 <b>&\\ \"x\".jpg",
		"bad \xff\xe7\x85 end":      "bad \ufffd\ufffd\ufffd end",
		strings.Repeat("y", 1024):   strings.Repeat("y", 1024),
	} {
		id := c.upload("v", []byte("x"), in)
		v, _ := c.s.vault("v")
		if got := v.archives[id].desc; got != want {
			t.Errorf("%q became %q", in, got)
		}
		job := c.retrieve("v", id)
		r := c.must(200, c.output("v", job, ""))
		if got := r.Header.Get("x-cas-archive-description"); got != want {
			t.Errorf("%q came back as %q", in, got)
		}
	}
}

// Upper-case hashes are accepted and come back in lower case.
func TestUpperCaseHashes(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := []byte("upper")
	h := hashes(b)
	for k, v := range h {
		h[k] = strings.ToUpper(v)
	}
	r := c.must(201, c.do("POST", "/-/vaults/v/archives", b, h))
	if r.Header.Get("x-cas-sha256-tree-hash") != linearHex(b) || r.Header.Get("x-cas-content-sha256") != linearHex(b) {
		t.Error(r.Header)
	}
	if r.Header.Get("Location") != "/-/vaults/v/archives/"+r.Header.Get("x-cas-archive-id") {
		t.Error(r.Header)
	}
}

func TestSparse(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := make([]byte, 32<<20)
	b[5<<20] = 1
	id := c.upload("v", b, "")
	v, _ := c.s.vault("v")
	st, err := os.Stat(v.archivePath(0, id))
	if err != nil || st.Size() != 32<<20 {
		t.Fatal(st, err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Blocks*512 > 4<<20 {
		t.Errorf("%d bytes on disk", sys.Blocks*512)
	}
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("output differs")
	}
}

// Uploads at the same time share the log.
func TestParallelUploads(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				c.upload("v", []byte{byte(i), byte(j)}, "")
			}
		})
	}
	wg.Wait()
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now})
	var v vaultReply
	c.json(c.do("GET", "/-/vaults/v", nil, nil), &v)
	if *v.NumberOfArchives != 200 || *v.SizeInBytes != 400 {
		t.Errorf("%d archives, %d bytes", *v.NumberOfArchives, *v.SizeInBytes)
	}
	if n := len(files(t, c)); n != 200 {
		t.Errorf("%d files", n)
	}
}

func mustOpen(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
