package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// readPoints are the places between two durable steps of a recall and an eviction. After a crash at any of them what is
// missing is brought, every byte is right, and no job is asked for that was asked for before.
var readPoints = []string{
	"recall.requested", "recall.recorded", "recall.asked", "recall.noted", "recall.fetched", "recall.verified", "recall.complete",
	"recall.finished", "evict.recorded", "evict.removed",
}

// readFiles are what the vault holds: one archive in several pieces, two archives, and two for an explicit recall.
var readFiles = sync.OnceValue(func() map[string][]byte {
	return map[string][]byte{
		"big": pattern(5<<20+3, 1), "segs": pattern(9<<20, 2), "more1": pattern(1000, 3), "more2": pattern(3<<20, 4),
	}
})

const readArchives = 1 + 2 + 2

// readOptions have pieces of 2 MiB.
func readOptions(dir string, c *cas.Client) Options {
	o := crashOptions(dir, c)
	o.SegmentSize, o.CacheSize, o.StagingSize, o.StreamAbove = 8<<20, 40<<20, 1<<30, 1<<30
	return o
}

// readStory reads everything in the child: through open files, and by a recall; and drops it and reads it again.
func readStory() []storyStep {
	files := readFiles()
	read := func(name string) func(*teller) error {
		return func(c *teller) error {
			ino, err := c.ino(name)
			if err != nil {
				return err
			}
			h, err := c.e.Open(bg, someone, ino, OpenFlags{Read: true})
			if err != nil {
				return err
			}
			defer h.Release()
			want, buf := files[name], make([]byte, 256<<10)
			for off := 0; off < len(want); {
				n, err := h.ReadAt(bg, someone, buf, int64(off))
				if err != nil {
					return fmt.Errorf("%s at %d: %w", name, off, err)
				}
				if n == 0 || !bytes.Equal(buf[:n], want[off:off+n]) {
					return fmt.Errorf("%s at %d: wrong bytes", name, off)
				}
				off += n
			}
			return nil
		}
	}
	return []storyStep{
		{run: read("big")},
		{run: func(c *teller) error {
			ino, err := c.ino("big")
			if err != nil {
				return err
			}
			res, err := c.e.Evict(bg, []uint64{ino}, false)
			if err == nil && len(res.Skipped) > 0 {
				err = errors.New(res.Skipped[0].Reason)
			}
			return err
		}},
		{run: read("big")}, // its job's output is still there
		{run: read("segs")},
		{run: func(c *teller) error {
			var inos []uint64
			for _, name := range []string{"more1", "more2"} {
				ino, err := c.ino(name)
				if err != nil {
					return err
				}
				inos = append(inos, ino)
			}
			res, err := c.e.Recall(bg, RecallRequest{Inos: inos, Wait: true}, nil)
			if err == nil && res.Local != 2 {
				err = fmt.Errorf("recall: %+v", res)
			}
			return err
		}},
	}
}

// crashRead reads in a child that dies at the nth visit to a point, and goes on from there. It reports whether the child died.
func crashRead(t *testing.T, point string, nth int) bool {
	srv, endpoint := crashServer(t)
	client := srv.Client(t)
	if _, err := client.CreateVault(bg, "v"); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	r := &rig{t: t, srv: srv, client: client, o: readOptions(state, client)}
	r.o.Logger = testLogger(t)
	r.open()
	inos := make(map[string]uint64)
	for name, data := range readFiles() {
		inos[name] = r.write(name, data)
	}
	r.sync()
	for _, ino := range inos {
		r.evict(ino)
	}
	r.close()

	cmd := crashCmd(srv, endpoint, state, point, nth)
	cmd.Env = append(cmd.Env, envStory+"=read")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if !crashed(t, cmd.Run(), &stderr) {
		return false
	}
	defer func() {
		if t.Failed() {
			t.Logf("the child did\n%s and its log:\n%s", out.Bytes(), stderr.Bytes())
		}
	}()
	r.open()
	defer r.close()
	if strings.HasPrefix(point, "recall.requested") { // the command has gone with the child; the recall has not
		for _, name := range []string{"more1", "more2"} {
			eventually(t, func() bool { return r.stat(inos[name]).State == "resident" })
		}
	}
	for name, data := range readFiles() {
		r.expect(inos[name], data)
	}
	eventually(t, func() bool {
		left := 0
		r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
			for _, err := range tx.Retrievals() {
				if err != nil {
					return err
				}
				left++
			}
			return nil
		}))
		return left == 0
	})
	if got := r.recalls(); got != readArchives {
		t.Errorf("%d jobs were asked for, want %d", got, readArchives)
	}
	for _, ino := range inos {
		r.wantState(ino, "resident")
	}
	r.wantClean(false)
	return true
}

func TestCrashAtEveryPointOfARecall(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills a child at each of many points")
	}
	for _, point := range readPoints {
		first := 1
		if point == "recall.fetched" || point == "recall.verified" {
			first = 2 // the first piece is there, others are not
		}
		for nth := first; nth < first+min(crashes(1), 5); nth++ {
			ok := true
			t.Run(fmt.Sprintf("%s/%d", point, nth), func(t *testing.T) {
				ok = crashRead(t, point, nth)
				if !ok && nth == first {
					t.Error("never reached")
				}
			})
			if !ok {
				break
			}
		}
	}
}

func TestCrashWhileReading(t *testing.T) {
	if testing.Short() {
		t.Skip("kills a child many times")
	}
	n := crashes(2)
	for i := range n {
		at := fmt.Sprintf("after %dms", 50+i*400/n)
		t.Run(at, func(t *testing.T) { crashRead(t, at, 1) })
	}
}
