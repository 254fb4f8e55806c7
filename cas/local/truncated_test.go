package local

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestTruncatedArchive: of an archive whose file has lost its end everything before that is served, and what is lost is called so: it
// is no outage that ends.
func TestTruncatedArchive(t *testing.T) {
	b := pattern(5<<20 + 7)
	for _, left := range []int64{3<<20 + 5, 0} {
		for _, leaves := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d bytes left, leaves %v", left, leaves), func(t *testing.T) {
				c := open(t, Options{})
				c.create("v")
				id := c.upload("v", b, "")
				job := c.retrieve("v", id)
				v, _ := c.s.vault("v")
				if err := os.Truncate(v.archivePath(0, id), left); err != nil {
					t.Fatal(err)
				}
				if !leaves {
					if err := os.Remove(v.archivePath(0, id) + ".tree"); err != nil {
						t.Fatal(err)
					}
				}
				for _, r := range [][2]int{{0, 1 << 20}, {2 << 20, 3 << 20}, {0, 2 << 20}, {3 << 20, 4 << 20}, {4 << 20, len(b)}, {0, len(b)}, {0, 2<<20 + 1}} {
					o := c.output("v", job, fmt.Sprintf("bytes=%d-%d", r[0], r[1]-1))
					if aligned := r[1]%mib == 0 || r[1] == len(b); int64(r[1]) > left || aligned && !leaves {
						c.refused(400, "InvalidDigest", o)
						if lost := fmt.Sprintf("%d-%d are lost", max(int64(r[0]), left), r[1]-1); int64(r[1]) > left && !strings.Contains(string(o.body), lost) {
							t.Errorf("it does not say that %s: %s", lost, o.body)
						}
					} else if c.must(206, o); !bytes.Equal(o.body, b[r[0]:r[1]]) || aligned && o.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b[r[0]:r[1]]) {
						t.Errorf("%v differs", r)
					}
				}
				c.refused(400, "InvalidDigest", c.output("v", job, ""))
				part := c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+id+`","RetrievalByteRange":"2097152-3145727"}`), nil)
				if leaves {
					c.must(202, part)
				} else {
					c.refused(404, "ResourceNotFoundException", part)
				}
			})
		}
	}
}

// TestTruncatedInventory: an inventory's output that is not whole is lost; another can be asked for.
func TestTruncatedInventory(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	job := c.job("v", `{"Type":"inventory-retrieval"}`)
	c.must(200, c.output("v", job, ""))
	v, _ := c.s.vault("v")
	if err := os.Truncate(v.outputPath(job), 10); err != nil {
		t.Fatal(err)
	}
	c.refused(404, "ResourceNotFoundException", c.output("v", job, ""))
}
