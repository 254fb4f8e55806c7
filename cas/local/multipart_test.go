package local

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestInitiateRefusals(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	path := "/-/vaults/v/multipart-uploads"
	c.refused(400, "MissingParameterValueException", c.do("POST", path, nil, nil))
	for _, size := range []string{"0", "1", "1048575", "1048577", "3145728", "8589934592", "-1048576", "1M", "99999999999999999999"} {
		c.refused(400, "InvalidParameterValueException", c.do("POST", path, nil, header{"x-cas-part-size": size}))
	}
	for _, size := range []string{"1048576", "4294967296"} {
		r := c.must(201, c.do("POST", path, nil, header{"x-cas-part-size": size}))
		id := r.Header.Get("x-cas-multipart-upload-id")
		if len(id) != 64 || r.Header.Get("Location") != "/-/vaults/v/multipart-uploads/"+id {
			t.Error(r.Header)
		}
	}
	c.refused(400, "InvalidParameterValueException", c.do("POST", path, nil, header{"x-cas-part-size": "1048576", "x-cas-archive-description": strings.Repeat("x", 1025)}))
	c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/w/multipart-uploads", nil, header{"x-cas-part-size": "1048576"}))
}

func TestPartRefusals(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	u := c.initiate("v", 2<<20)
	path := "/-/vaults/v/multipart-uploads/" + u
	b := pattern(2 << 20)
	send := func(cr string, b []byte) response {
		h := hashes(b)
		if cr != "" {
			h["!content-range"] = cr
		}
		return c.do("PUT", path, b, h)
	}
	c.refused(400, "MissingParameterValueException", send("", b))
	for _, cr := range []string{"bytes 0-2097150/*", "bytes 0-2097152/*", "bytes 1048576-3145727/*", "0-2097151", "bytes 5-4/*", "bytes 20971520000-20973617151/*"} {
		c.refused(400, "InvalidParameterValueException", send(cr, b))
	}
	c.refused(400, "InvalidParameterValueException", send("bytes 0-3145727/*", pattern(3<<20)))
	h := hashes(b)
	h["x-cas-sha256-tree-hash"] = linearHex(nil)
	h["!content-range"] = "bytes 0-2097151/*"
	c.refused(400, "InvalidDigest", c.do("PUT", path, b, h))
	delete(h, "x-cas-content-sha256")
	c.refused(400, "MissingParameterValueException", c.do("PUT", path, b, h))
	c.refused(404, "ResourceNotFoundException", c.part("v", "nonsense", 0, b))

	c.must(204, c.part("v", u, 2<<20, b))
	c.refused(400, "InvalidParameterValueException", c.part("v", u, 0, b[:5])) // not the last
	c.must(204, c.part("v", u, 4<<20, b[:5]))
	c.must(204, c.part("v", u, 0, b))
	c.must(204, c.part("v", u, maxParts*2<<20-2<<20, b)) // the last one possible
}

func TestCompleteRefusals(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(3<<20 + 9)
	u := c.initiate("v", 1<<20)
	c.refused(400, "InvalidParameterValueException", c.complete("v", u, len(b), naiveTree(b))) // no parts
	for _, off := range []int{0, 2 << 20, 3 << 20} {
		c.must(204, c.part("v", u, off, b[off:min(off+1<<20, len(b))]))
	}
	c.refused(400, "InvalidParameterValueException", c.complete("v", u, len(b), naiveTree(b))) // a gap
	c.must(204, c.part("v", u, 1<<20, b[1<<20:2<<20]))
	c.refused(400, "InvalidParameterValueException", c.complete("v", u, len(b)-1, naiveTree(b)))
	c.refused(400, "InvalidDigest", c.complete("v", u, len(b), linearHex(b)))
	path := "/-/vaults/v/multipart-uploads/" + u
	c.refused(400, "MissingParameterValueException", c.do("POST", path, nil, header{"x-cas-archive-size": "5"}))
	c.refused(400, "MissingParameterValueException", c.do("POST", path, nil, header{"x-cas-sha256-tree-hash": naiveTree(b)}))
	c.refused(400, "InvalidParameterValueException", c.do("POST", path, nil, header{"x-cas-archive-size": "x", "x-cas-sha256-tree-hash": naiveTree(b)}))
	c.refused(404, "ResourceNotFoundException", c.complete("v", "nonsense", len(b), naiveTree(b)))

	// It stayed open all the while.
	id := c.must(201, c.complete("v", u, len(b), strings.ToUpper(naiveTree(b)))).Header.Get("x-cas-archive-id")
	c.refused(404, "ResourceNotFoundException", c.part("v", u, 0, b[:1<<20]))
	c.refused(404, "ResourceNotFoundException", c.do("GET", path, nil, nil))
	c.refused(404, "ResourceNotFoundException", c.do("DELETE", path, nil, nil))
	c.refused(400, "InvalidParameterValueException", c.complete("v", u, len(b), linearHex(b)))
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("output differs")
	}
	c.c.advance(25 * time.Hour)
	c.refused(404, "ResourceNotFoundException", c.complete("v", u, len(b), naiveTree(b)))
}

func TestUploadLists(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	var ids []string
	for range 5 {
		ids = append(ids, c.initiate("v", 1<<20))
		c.c.advance(time.Second)
	}
	type page struct {
		Marker      *string
		UploadsList []struct {
			ArchiveDescription *string
			MultipartUploadId  string
			PartSizeInBytes    int
		}
	}
	var p page
	c.json(c.do("GET", "/-/vaults/v/multipart-uploads?limit=2", nil, nil), &p)
	if len(p.UploadsList) != 2 || p.UploadsList[0].MultipartUploadId != ids[0] || *p.UploadsList[1].ArchiveDescription != "mp" || p.Marker == nil {
		t.Fatalf("%+v", p)
	}
	// The marker holds although what it points at goes away.
	c.must(204, c.do("DELETE", "/-/vaults/v/multipart-uploads/"+ids[2], nil, nil))
	var q page
	c.json(c.do("GET", "/-/vaults/v/multipart-uploads?limit=2&marker="+*p.Marker, nil, nil), &q)
	if len(q.UploadsList) != 2 || q.UploadsList[0].MultipartUploadId != ids[3] || q.Marker != nil {
		t.Errorf("%+v", q)
	}
	c.refused(400, "InvalidParameterValueException", c.do("GET", "/-/vaults/v/multipart-uploads?marker=zz", nil, nil))

	b := pattern(1 << 20)
	for i := 5; i >= 0; i-- {
		c.must(204, c.part("v", ids[0], i<<20, b))
	}
	var parts struct {
		ArchiveDescription, MultipartUploadId string
		Marker                                *string
		PartSizeInBytes                       int
		Parts                                 []struct{ RangeInBytes, SHA256TreeHash string }
	}
	path := "/-/vaults/v/multipart-uploads/" + ids[0]
	c.json(c.do("GET", path+"?limit=4", nil, nil), &parts)
	if len(parts.Parts) != 4 || parts.Parts[1].RangeInBytes != "1048576-2097151" || parts.Parts[1].SHA256TreeHash != linearHex(b) || *parts.Marker != "4194304" || parts.PartSizeInBytes != 1<<20 {
		t.Errorf("%+v", parts)
	}
	c.json(c.do("GET", path+"?limit=4&marker="+*parts.Marker, nil, nil), &parts)
	if len(parts.Parts) != 2 || parts.Parts[0].RangeInBytes != "4194304-5242879" || parts.Marker != nil {
		t.Errorf("%+v", parts)
	}
	c.refused(400, "InvalidParameterValueException", c.do("GET", path+"?marker=-1", nil, nil))

	c.c.advance(24*time.Hour - 2*time.Second)
	q = page{}
	c.json(c.do("GET", "/-/vaults/v/multipart-uploads", nil, nil), &q)
	if len(q.UploadsList) != 1 || q.UploadsList[0].MultipartUploadId != ids[4] {
		t.Errorf("after a day: %+v", q)
	}
	c.refused(404, "ResourceNotFoundException", c.part("v", ids[0], 0, b))
	c.refused(404, "ResourceNotFoundException", c.complete("v", ids[0], 6<<20, linearHex(nil)))
	if left := files(t, c); len(left) != 0 {
		t.Errorf("an expired upload left %v", left)
	}
}

// With Lenient parts need not be powers of two. The combined hash of the parts is
// accepted, and downloads still verify.
func TestLenientParts(t *testing.T) {
	c := open(t, Options{Lenient: true})
	c.create("v")
	b := pattern(7 << 20)
	for _, combined := range []bool{true, false} {
		u := c.initiate("v", 3<<20)
		for off := 0; off < len(b); off += 3 << 20 {
			c.must(204, c.part("v", u, off, b[off:min(off+3<<20, len(b))]))
		}
		tree := naiveTree(b)
		if combined {
			tree = "ac9810f4b2b7ab6c3dac50c22819c44aeff26a57e3c9606eb1a141cf8488d750"
		}
		id := c.must(201, c.complete("v", u, len(b), tree)).Header.Get("x-cas-archive-id")
		if again := c.must(201, c.complete("v", u, len(b), tree)).Header.Get("x-cas-archive-id"); again != id {
			t.Error("repeated Complete gives another archive")
		}
		job := c.retrieve("v", id)
		if d := c.describe("v", job); d["SHA256TreeHash"] != naiveTree(b) {
			t.Errorf("%v", d)
		}
		r := c.output("v", job, "bytes=4194304-7340031")
		if !bytes.Equal(r.body, b[4<<20:]) || r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b[4<<20:]) {
			t.Error("range differs")
		}
	}
}

// A repetition that breaks, or is refused, leaves an acknowledged part alone;
// one that succeeds replaces it.
func TestResentParts(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	u := c.initiate("v", 4<<20)
	old, want := pattern(4<<20), bytes.Repeat([]byte{7}, 4<<20)
	zeros := make([]byte, 4<<20)
	tail := pattern(100)
	broken := func(off int, b []byte) {
		t.Helper()
		h := hashes(b)
		h["!content-range"] = fmt.Sprintf("bytes %d-%d/*", off, off+len(b)-1)
		if r := c.doBody("PUT", "/-/vaults/v/multipart-uploads/"+u, io.MultiReader(bytes.NewReader(b[:3<<20]), failing{}), int64(len(b)), h); r.StatusCode != 400 {
			t.Errorf("status %d", r.StatusCode)
		}
	}
	broken(4<<20, old)                        // nothing acknowledged: written in place
	c.must(204, c.part("v", u, 4<<20, zeros)) // zeros over what the broken attempt left
	c.must(204, c.part("v", u, 0, old))
	broken(0, want)
	c.must(204, c.part("v", u, 8<<20, tail))
	c.must(204, c.part("v", u, 8<<20, tail))
	check := func(first []byte, upload string) {
		t.Helper()
		whole := append(append(append([]byte(nil), first...), zeros...), tail...)
		id := c.must(201, c.complete("v", upload, len(whole), naiveTree(whole))).Header.Get("x-cas-archive-id")
		job := c.retrieve("v", id)
		if r := c.output("v", job, ""); !bytes.Equal(r.body, whole) {
			t.Error("output differs")
		}
		r := c.output("v", job, "bytes=0-2097151")
		if r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(first[:2<<20]) {
			t.Error("leaves differ")
		}
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	}
	c.must(204, c.part("v", u, 0, want))
	c.must(204, c.part("v", u, 0, old))
	c.must(204, c.part("v", u, 0, want))
	check(want, u)

	// The same across a restart.
	u = c.initiate("v", 4<<20)
	for off, b := range map[int][]byte{0: old, 4 << 20: zeros, 8 << 20: tail} {
		c.must(204, c.part("v", u, off, b))
	}
	c.must(204, c.part("v", u, 0, want))
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now})
	check(want, u)
	c.c.advance(25 * time.Hour)
	c.do("GET", "/-/vaults", nil, nil)
	if left := files(t, c); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A sender that is overtaken by Complete, Abort or another sender cannot touch
// the archive any more.
func TestOvertakenPart(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b, other := pattern(2<<20), bytes.Repeat([]byte{9}, 2<<20)
	slow := func(u string, off int, b []byte) (goOn func() response) {
		pr, pw := io.Pipe()
		h := hashes(b)
		h["!content-range"] = fmt.Sprintf("bytes %d-%d/*", off, off+len(b)-1)
		done := make(chan response)
		go func() { done <- c.doBody("PUT", "/-/vaults/v/multipart-uploads/"+u, pr, int64(len(b)), h) }()
		pw.Write(b[:1<<20])
		return func() response {
			pw.Write(b[1<<20:])
			pw.Close()
			return <-done
		}
	}

	u := c.initiate("v", 2<<20)
	goOn := slow(u, 0, other)
	c.must(204, c.part("v", u, 0, b)) // goes to a file of its own
	late := slow(u, 2<<20, other)     // beyond the end
	id := c.must(201, c.complete("v", u, len(b), naiveTree(b))).Header.Get("x-cas-archive-id")
	c.refused(404, "ResourceNotFoundException", goOn())
	c.refused(404, "ResourceNotFoundException", late())
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("the archive was touched")
	}

	// A failing Complete that had to write where the sender writes voids the sender.
	u = c.initiate("v", 2<<20)
	goOn = slow(u, 0, other)
	c.must(204, c.part("v", u, 0, b))
	c.refused(400, "InvalidDigest", c.complete("v", u, len(b), naiveTree(other)))
	if r := goOn(); r.StatusCode != 500 {
		t.Errorf("status %d", r.StatusCode)
	}
	id = c.must(201, c.complete("v", u, len(b), naiveTree(b))).Header.Get("x-cas-archive-id")
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("the archive was touched")
	}

	u = c.initiate("v", 2<<20)
	goOn = slow(u, 0, other)
	c.must(204, c.do("DELETE", "/-/vaults/v/multipart-uploads/"+u, nil, nil))
	c.refused(404, "ResourceNotFoundException", goOn())
	if n := len(files(t, c)); n != 4 { // two archives and their leaves
		t.Errorf("%d files: %v", n, files(t, c))
	}
}

// Random parts in random order from several senders, some of them broken.
func TestMultipartModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := open(t, Options{NoSync: true})
	c.create("v")
	const parts = 6
	u := c.initiate("v", 2<<20)
	size := parts*2<<20 - 12345
	var mu sync.Mutex
	want := make([]byte, size)
	var locks [parts]sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for n := range 12 {
				i := n % parts
				if n >= parts {
					i = rng.IntN(parts)
				}
				off := i * 2 << 20
				b := make([]byte, min(2<<20, size-off))
				if rng.IntN(3) > 0 {
					for j := range b {
						b[j] = byte(rng.Uint32())
					}
				}
				if rng.IntN(4) == 0 {
					h := hashes(b)
					h["!content-range"] = fmt.Sprintf("bytes %d-%d/*", off, off+len(b)-1)
					c.doBody("PUT", "/-/vaults/v/multipart-uploads/"+u, io.MultiReader(bytes.NewReader(b[:rng.IntN(len(b))]), failing{}), int64(len(b)), h)
					continue
				}
				// One sender per part at a time, so that the last one is known.
				locks[i].Lock()
				if r := c.part("v", u, off, b); r.StatusCode == 204 {
					mu.Lock()
					copy(want[off:], b)
					mu.Unlock()
				} else if r.StatusCode != 400 {
					t.Errorf("part %d: %d %s", i, r.StatusCode, r.body)
				}
				locks[i].Unlock()
			}
		})
	}
	wg.Wait()
	// The short part may have been refused; all others were sent.
	last := want[(parts-1)*2<<20:]
	c.must(204, c.part("v", u, (parts-1)*2<<20, last))
	for i := range parts - 1 {
		c.must(204, c.part("v", u, i*2<<20, want[i*2<<20:(i+1)*2<<20]))
	}
	id := c.must(201, c.complete("v", u, size, naiveTree(want))).Header.Get("x-cas-archive-id")
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, want) {
		t.Error("output differs")
	}
	if n := len(files(t, c)); n != 2 {
		t.Errorf("%v", files(t, c))
	}
}

// Leaves that do not belong to the acknowledged parts are noticed at Complete.
func TestDamagedLeaves(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(2 << 20)
	u := c.initiate("v", 2<<20)
	c.must(204, c.part("v", u, 0, b))
	v, _ := c.s.vault("v")
	up := v.uploads[u]
	path := v.archivePath(up.shard, up.archive) + ".tree"
	if err := os.WriteFile(path, make([]byte, 64), 0o600); err != nil {
		t.Fatal(err)
	}
	c.refused(500, "ServiceUnavailableException", c.complete("v", u, len(b), naiveTree(b)))
}

// TestOverlayStays: the file of a part that was sent again is not removed once its record is made, whatever fails then.
func TestOverlayStays(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	u := c.initiate("v", 1<<20)
	old, b := pattern(1<<20), make([]byte, 1<<20)
	b[0] = 1
	c.must(204, c.part("v", u, 0, old))
	old[0] = 7
	c.must(204, c.part("v", u, 0, old))
	v, _ := c.s.vault("v")
	up := v.uploads[u]
	path := v.archivePath(up.shard, up.archive)
	// A directory with something in it: the file of the second part cannot be removed.
	second := path + up.parts[0].overlay
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(second+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	c.part("v", u, 0, b)
	c.must(204, c.part("v", u, 0, b))
	id := c.must(201, c.complete("v", u, 1<<20, naiveTree(b))).Header.Get("x-cas-archive-id")
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("differs")
	}
}

// TestOverlayOfBrokenLog: a part whose record may have reached the disk keeps its file.
func TestOverlayOfBrokenLog(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Options{Dir: dir})
	c.create("v")
	u := c.initiate("v", 1<<20)
	b := pattern(1 << 20)
	c.must(204, c.part("v", u, 0, make([]byte, 1<<20)))
	v, _ := c.s.vault("v")
	// The record is written, and then the sync fails.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := v.log.f
	v.log.f = w
	v.log.reserved += 1 << 20
	c.refused(500, "ServiceUnavailableException", c.part("v", u, 0, b))
	w.Close()
	rec, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	v.log.f = log
	if err := log.Truncate(v.log.size - int64(len(rec))); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Write(rec); err != nil {
		t.Fatal(err)
	}
	c.s.Close()
	c = reopen(t, c.c, Options{Dir: dir})
	id := c.must(201, c.complete("v", u, 1<<20, naiveTree(b))).Header.Get("x-cas-archive-id")
	if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, b) {
		t.Error("differs")
	}
}
