package local

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestDamagedLeafFile: a leaf file that is lost or damaged costs a read, not the hashes of what is good.
func TestDamagedLeafFile(t *testing.T) {
	b := pattern(5<<20 + 7)
	for _, x := range []struct {
		name string
		harm func(leaves []byte) []byte // nil: no file
	}{
		{"lost", func([]byte) []byte { return nil }},
		{"empty", func([]byte) []byte { return []byte{} }},
		{"cut", func(l []byte) []byte { return l[:70] }},
		{"one bit", func(l []byte) []byte { l[70] ^= 4; return l }},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := open(t, Options{})
			c.create("v")
			id := c.upload("v", b, "")
			v, _ := c.s.vault("v")
			path := v.archivePath(0, id) + ".tree"
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			harm := func() {
				os.Remove(path)
				if bad := x.harm(bytes.Clone(good)); bad != nil {
					if err := os.WriteFile(path, bad, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			harm()
			job := c.retrieve("v", id)
			for _, r := range [][2]int{{2 << 20, 3 << 20}, {2 << 20, 4 << 20}, {4 << 20, len(b)}, {0, 1 << 20}} {
				o := c.must(206, c.output("v", job, fmt.Sprintf("bytes=%d-%d", r[0], r[1]-1)))
				if got, want := o.Header.Get("x-cas-sha256-tree-hash"), naiveTree(b[r[0]:r[1]]); got != want || !bytes.Equal(o.body, b[r[0]:r[1]]) {
					t.Errorf("%d-%d: hash %s, want %s", r[0], r[1], got, want)
				}
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, good) {
				t.Errorf("not made anew: %v", err)
			}
			harm()
			part := c.job("v", `{"Type":"archive-retrieval","ArchiveId":"`+id+`","RetrievalByteRange":"2097152-3145727"}`)
			if m := c.describe("v", part); m["SHA256TreeHash"] != naiveTree(b[2<<20:3<<20]) {
				t.Errorf("%v", m["SHA256TreeHash"])
			}
		})
	}
}

// TestDamagedBytes: bytes that have changed on the disk never come with a hash that says they have not, and
// take nothing along that is good.
func TestDamagedBytes(t *testing.T) {
	b := pattern(4 << 20)
	for _, x := range []struct {
		name   string
		leaves func(path string) error
		status [4]int // of each MiB
	}{
		{"leaves good", func(string) error { return nil }, [4]int{206, 206, 206, 206}},
		{"leaves damaged, too", func(path string) error {
			l, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			l[33] ^= 1 // of the second MiB
			return os.WriteFile(path, l, 0o600)
		}, [4]int{206, 206, 206, 206}},
		{"leaves lost", os.Remove, [4]int{400, 400, 400, 400}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := open(t, Options{})
			c.create("v")
			id := c.upload("v", b, "")
			v, _ := c.s.vault("v")
			path := v.archivePath(0, id)
			bad := bytes.Clone(b)
			bad[2<<20+9] ^= 1
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := x.leaves(path + ".tree"); err != nil {
				t.Fatal(err)
			}
			job := c.retrieve("v", id)
			for range 2 {
				for i, status := range x.status {
					from, to := i<<20, (i+1)<<20
					r := c.must(status, c.output("v", job, fmt.Sprintf("bytes=%d-%d", from, to-1)))
					if status != 206 {
						continue
					}
					hash := r.Header.Get("x-cas-sha256-tree-hash")
					if i == 2 && hash == naiveTree(r.body) {
						t.Error("damaged bytes come with their own hash")
					}
					if (i == 0 || i == 3) && hash != naiveTree(b[from:to]) {
						t.Errorf("MiB %d: %s", i, hash)
					}
				}
			}
			if r := c.must(200, c.output("v", job, "")); r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b) {
				t.Error("the archive's hash differs")
			}
		})
	}
}

// TestPushDamaged: bytes that have changed on the disk do not get into a bucket; a damaged leaf file keeps none from it.
func TestPushDamaged(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(4 << 20)
	id := c.upload("v", b, "")
	v, _ := c.s.vault("v")
	path := v.archivePath(0, id)
	push := func(rng string) (status string, object []byte) {
		t.Helper()
		job := c.job("v", `{"Type":"push-to-cos","ArchiveId":"`+id+`","Bucket":"b","Object":"o"`+rng+`}`)
		status = c.describe("v", job)["StatusCode"].(string)
		name := filepath.Join(c.s.dir, "cos", "b", "o")
		object, _ = os.ReadFile(name)
		os.Remove(name)
		return status, object
	}
	flip := func(path string, off int) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[off] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const odd = `,"RetrievalByteRange":"1048576-3145727"` // not a node of the tree
	flip(path+".tree", 33)
	if status, o := push(odd); status != "Succeeded" || !bytes.Equal(o, b[1<<20:3<<20]) {
		t.Errorf("leaves damaged: %s", status)
	}
	flip(path, 2<<20)
	for _, rng := range []string{"", odd, `,"RetrievalByteRange":"2097152-4194303"`} {
		if status, o := push(rng); status != "Failed" || o != nil {
			t.Errorf("bytes damaged, %s: %s", rng, status)
		}
	}
	if status, o := push(`,"RetrievalByteRange":"0-2097151"`); status != "Succeeded" || !bytes.Equal(o, b[:2<<20]) {
		t.Errorf("what is not damaged: %s", status)
	}
}

// TestLostBytes: an archive, or an output, whose file is gone is unknown, and not unavailable for a while: nobody waits for it to come back.
func TestLostBytes(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	id := c.upload("v", pattern(2<<20), "")
	v, _ := c.s.vault("v")
	job, inv := c.retrieve("v", id), c.job("v", `{"Type":"inventory-retrieval"}`)
	c.must(200, c.output("v", inv, ""))
	for _, f := range []string{v.archivePath(0, id), v.outputPath(inv)} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	c.refused(404, "ResourceNotFoundException", c.output("v", job, ""))
	c.refused(404, "ResourceNotFoundException", c.output("v", inv, ""))
	for _, rng := range []string{"", `,"RetrievalByteRange":"0-1048575"`} {
		c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+id+`"`+rng+`}`), nil))
	}
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
}
