package local

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestUploadRetrieve(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	for _, n := range []int{1, 20, 1 << 20, 1<<20 + 1, 5<<20 + 7} {
		b := pattern(n)
		id := c.upload("v", b, "d")
		job := c.retrieve("v", id)
		d := c.describe("v", job)
		if d["Completed"] != true || d["StatusCode"] != "Succeeded" || d["SHA256TreeHash"] != naiveTree(b) {
			t.Errorf("job %v", d)
		}
		r := c.must(200, c.output("v", job, ""))
		if !bytes.Equal(r.body, b) || r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b) {
			t.Errorf("output of %d bytes differs", n)
		}
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	}
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
}

func TestMultipart(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(5<<20 + 7)
	u := c.initiate("v", 1<<20)
	for off := len(b) / (1 << 20) * (1 << 20); off >= 0; off -= 1 << 20 {
		c.must(204, c.part("v", u, off, b[off:min(off+1<<20, len(b))]))
	}
	id := c.must(201, c.complete("v", u, len(b), naiveTree(b))).Header.Get("x-cas-archive-id")
	if again := c.must(201, c.complete("v", u, len(b), naiveTree(b))).Header.Get("x-cas-archive-id"); again != id {
		t.Errorf("repeated Complete: %s, want %s", again, id)
	}
	job := c.retrieve("v", id)
	r := c.must(206, c.output("v", job, "bytes=2097152-4194303"))
	if !bytes.Equal(r.body, b[2<<20:4<<20]) || r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b[2<<20:4<<20]) {
		t.Error("range differs")
	}
	if got := r.Header.Get("Content-Range"); got != "bytes 2097152-4194303/5242887" {
		t.Error(got)
	}
}

func TestInventory(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	id := c.upload("v", pattern(20), "照片, \"x\"")
	job := c.job("v", `{"InventoryRetrievalParameters": {}, "Type": "inventory-retrieval"}`)
	var doc struct {
		ArchiveList []struct {
			ArchiveId, ArchiveDescription string
			Size                          int
		}
	}
	r := c.must(200, c.output("v", job, ""))
	if err := json.Unmarshal(r.body, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.ArchiveList) != 1 || doc.ArchiveList[0].ArchiveId != id || doc.ArchiveList[0].ArchiveDescription != "照片, \"x\"" {
		t.Errorf("%s", r.body)
	}
	if d := c.describe("v", job); int(d["InventorySizeInBytes"].(float64)) != len(r.body) {
		t.Errorf("%v", d)
	}
}
