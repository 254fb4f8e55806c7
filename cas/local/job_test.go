package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var slowDelays = Delays{Expedited: 3 * time.Minute, Standard: 4 * time.Hour, Bulk: 8 * time.Hour, Inventory: 3 * time.Hour}

func TestJobLifecycle(t *testing.T) {
	c := open(t, Options{Delays: slowDelays})
	c.create("v")
	b := pattern(5<<20 + 7)
	id := c.upload("v", b, "d")
	for tier, d := range map[string]time.Duration{"Expedited": 3 * time.Minute, "Standard": 4 * time.Hour, "": 4 * time.Hour, "Bulk": 8 * time.Hour} {
		job := c.job("v", fmt.Sprintf(`{"Type":"archive-retrieval","ArchiveId":%q,"Tier":%q,"Description":"note"}`, id, tier))
		m := c.describe("v", job)
		if m["Completed"] != false || m["StatusCode"] != "InProgress" || m["CompletionDate"] != nil || m["RetrievalByteRange"] != "0-5242886" ||
			m["SHA256TreeHash"] != naiveTree(b) || m["JobDescription"] != "note" || m["ArchiveSizeInBytes"] != float64(len(b)) {
			t.Errorf("%v", m)
		}
		c.refused(400, "InvalidParameterValueException", c.output("v", job, ""))
		c.c.advance(d - time.Millisecond)
		if m := c.describe("v", job); m["Completed"] != false {
			t.Errorf("%s too early", tier)
		}
		c.c.advance(time.Millisecond)
		done := formatTime(c.s.nowMillis())
		if m := c.describe("v", job); m["Completed"] != true || m["CompletionDate"] != done || m["StatusCode"] != "Succeeded" {
			t.Errorf("%v", m)
		}
		c.c.advance(24*time.Hour - time.Millisecond)
		c.must(200, c.output("v", job, ""))
		c.c.advance(time.Millisecond)
		c.refused(404, "ResourceNotFoundException", c.output("v", job, ""))
		c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v/jobs/"+job, nil, nil))
	}
	// Every documented key is there, for every action.
	inv := c.job("v", `{"Type":"inventory-retrieval"}`)
	keys := "Action ArchiveId ArchiveSHA256TreeHash ArchiveSizeInBytes Bucket CallBackUrl Completed CompletionDate CreationDate InventoryRetrievalParameters " +
		"InventorySizeInBytes JobCallBackUrl JobDescription JobId Object RetrievalByteRange SHA256TreeHash StatusCode StatusMessage Tier VaultQCS"
	for _, job := range []string{inv, c.retrieve("v", id), c.job("v", `{"Type":"push-to-cos","ArchiveId":"`+id+`","Bucket":"b-1.cos.local","Object":"o"}`)} {
		m := c.describe("v", job)
		for k := range strings.FieldsSeq(keys) {
			if _, ok := m[k]; !ok {
				t.Errorf("%s: no %s", m["Action"], k)
			}
		}
	}
}

func TestJobRefusals(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(3<<20 + 5)
	id := c.upload("v", b, "")
	for body, code := range map[string]string{
		`{`:                            "SerializationException",
		``:                             "SerializationException",
		`{"Type":5}`:                   "SerializationException",
		`{}`:                           "MissingParameterValueException",
		`{"Type":"nonsense"}`:          "InvalidParameterValueException",
		`{"Type":"archive-retrieval"}`: "MissingParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","Tier":"fast"}`:                                                                         "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","CallBackUrl":"ftp://x"}`:                                                               "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"x"}`:                                                              "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"1-3145732"}`:                                                      "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"0-1048576"}`:                                                      "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"0-4194303"}`:                                                      "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"4194304-"}`:                                                       "InvalidParameterValueException",
		`{"Type":"archive-retrieval","ArchiveId":"ID","RetrievalByteRange":"1048576-5"}`:                                                      "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","Format":"XML"}`:                                                                                       "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":{"Limit":"0"}}`:                                                         "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":{"Limit":10001}}`:                                                       "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":{"Marker":"x"}}`:                                                        "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":{"StartDate":"now"}}`:                                                   "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":{"StartDate":"2024-01-02T00:00:00Z","EndDate":"2024-01-01T00:00:00Z"}}`: "InvalidParameterValueException",
		`{"Type":"inventory-retrieval","InventoryRetrievalParameters":5}`:                                                                     "SerializationException",
		`{"Type":"push-to-cos","ArchiveId":"ID"}`:                                                                                             "MissingParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"b"}`:                                                                                "MissingParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"../b","Object":"o"}`:                                                                "InvalidParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"..","Object":"o"}`:                                                                  "InvalidParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"b","Object":"../../etc/passwd"}`:                                                    "InvalidParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"b","Object":"/abs"}`:                                                                "InvalidParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"b","Object":"a//b"}`:                                                                "InvalidParameterValueException",
		`{"Type":"push-to-cos","ArchiveId":"ID","Bucket":"b","Object":"a\u0000b"}`:                                                            "InvalidParameterValueException",
		`{"Type":"pull-from-cos","Bucket":"b","Object":"o","Range":"bytes=x"}`:                                                                "InvalidParameterValueException",
		`{"Type":"pull-from-cos","Bucket":"b","Object":"o","Condition":{"If-Odd":"x"}}`:                                                       "InvalidParameterValueException",
		`{"Type":"pull-from-cos","Bucket":"b","Object":"o","ArchiveDescription":"a\u0001"}`:                                                   "InvalidParameterValueException",
		`{"Type":"pull-from-cos","Bucket":"b","Object":"o","Condition":5}`:                                                                    "SerializationException",
	} {
		t.Run(body, func(t *testing.T) {
			c.refused(400, code, c.do("POST", "/-/vaults/v/jobs", []byte(strings.ReplaceAll(body, `"ID"`, `"`+id+`"`)), nil))
		})
	}
	c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"unknown"}`), nil))
	c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/w/jobs", []byte(`{"Type":"inventory-retrieval"}`), nil))
}

func TestExpeditedLimit(t *testing.T) {
	c := open(t, Options{NoSync: true})
	c.create("v")
	// 256 MiB and one byte of zeros, which take no space.
	u := c.initiate("v", 256<<20)
	part := func(off, n int) string {
		b := make([]byte, n)
		c.must(204, c.part("v", u, off, b))
		return naiveTree(b)
	}
	a := part(0, 256<<20)
	tail := part(256<<20, 1)
	x, _ := parseDigest(a)
	y, _ := parseDigest(tail)
	id := c.must(201, c.complete("v", u, 256<<20+1, pair(x, y).String())).Header.Get("x-cas-archive-id")
	start := func(rng string) response {
		return c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+id+`","Tier":"Expedited"`+rng+`}`), nil)
	}
	c.refused(400, "InvalidParameterValueException", start(""))
	c.must(202, start(`,"RetrievalByteRange":"0-268435455"`))
}

func TestRetrievalRanges(t *testing.T) {
	c := open(t, Options{Delays: Delays{Standard: time.Hour}})
	c.create("v")
	b := pattern(6<<20 + 1<<19)
	id := c.upload("v", b, "")
	for _, x := range []struct {
		ask, shown string
		first, end int
		aligned    bool
	}{
		{"0-", "0-6815743", 0, len(b), true},
		{"2097152-4194303", "2097152-4194303", 2 << 20, 4 << 20, true},
		{"4194304-", "4194304-6815743", 4 << 20, len(b), true},
		{"6291456-6815743", "6291456-6815743", 6 << 20, len(b), true},
		{"1048576-3145727", "1048576-3145727", 1 << 20, 3 << 20, false},
	} {
		job := c.job("v", `{"Type":"archive-retrieval","ArchiveId":"`+id+`","RetrievalByteRange":"`+x.ask+`"}`)
		whole := x.first == 0 && x.end == len(b)
		want := any(nil)
		if whole {
			want = naiveTree(b)
		}
		if m := c.describe("v", job); m["RetrievalByteRange"] != x.shown || m["SHA256TreeHash"] != want || m["ArchiveSHA256TreeHash"] != naiveTree(b) {
			t.Errorf("%s in progress: %v", x.ask, m)
		}
		c.c.advance(time.Hour)
		if want = nil; x.aligned {
			want = naiveTree(b[x.first:x.end])
		}
		if m := c.describe("v", job); m["SHA256TreeHash"] != want {
			t.Errorf("%s: %v, want %v", x.ask, m["SHA256TreeHash"], want)
		}
		r := c.must(200, c.output("v", job, ""))
		tree := r.Header.Get("x-cas-sha256-tree-hash")
		if !bytes.Equal(r.body, b[x.first:x.end]) || x.aligned && tree != want || !x.aligned && tree != "" {
			t.Errorf("%s: output differs, or its hash: %q", x.ask, tree)
		}
		// Ranges are relative to the output.
		r = c.must(206, c.output("v", job, "bytes=5-9"))
		if !bytes.Equal(r.body, b[x.first+5:x.first+10]) || r.Header.Get("x-cas-sha256-tree-hash") != "" {
			t.Errorf("%s: bytes 5-9 differ", x.ask)
		}
		r = c.must(206, c.output("v", job, fmt.Sprintf("bytes=0-%d", x.end-x.first-1)))
		if !bytes.Equal(r.body, b[x.first:x.end]) || r.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: everything as a range differs", x.ask)
		}
		if r := c.output("v", job, "bytes=99999999-"); r.StatusCode != 416 {
			t.Errorf("status %d", r.StatusCode)
		}
		c.refused(400, "InvalidParameterValueException", c.output("v", job, "bytes=0-1,5-6"))
		// The Node SDK puts "bytes=" before what it is given, and signs no header.
		out := "/-/vaults/v/jobs/" + job + "/output"
		r = c.must(206, c.do("GET", out, nil, header{"!Range": "bytes=0-100"}))
		if !bytes.Equal(r.body, b[x.first:x.first+101]) {
			t.Errorf("%s: bytes 0-100 differ", x.ask)
		}
		r = c.do("GET", out, nil, header{"!Range": "bytes=bytes=0-100"})
		if c.refused(400, "InvalidParameterValueException", r); !strings.Contains(string(r.body), "bytes=bytes=0-100") {
			t.Errorf("the refusal does not tell what came: %s", r.body)
		}
	}
}

func TestDeletedArchives(t *testing.T) {
	c := open(t, Options{Delays: Delays{Standard: time.Hour}})
	c.create("v")
	b := pattern(2<<20 + 1)
	id := c.upload("v", b, "")
	done := c.retrieve("v", id)
	c.c.advance(time.Hour)
	running := c.retrieve("v", id)
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	late := c.retrieve("v", id)
	check := func() {
		t.Helper()
		if r := c.output("v", done, ""); r.StatusCode != 200 || !bytes.Equal(r.body, b) {
			t.Errorf("a finished job: %d", r.StatusCode)
		}
		r := c.output("v", done, "bytes=0-1048575")
		if r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b[:1<<20]) {
			t.Error("no hash any more")
		}
	}
	check()
	if m := c.describe("v", running); m["StatusCode"] != "InProgress" {
		t.Errorf("%v", m)
	}
	c.c.advance(time.Hour)
	for _, j := range []string{running, late} {
		if m := c.describe("v", j); m["StatusCode"] != "Failed" || m["Completed"] != true || m["CompletionDate"] == nil || m["StatusMessage"] == "" {
			t.Errorf("%v", m)
		}
		c.refused(400, "InvalidParameterValueException", c.output("v", j, ""))
	}
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now, Delays: Delays{Standard: time.Hour}})
	check()
	if m := c.describe("v", running); m["StatusCode"] != "Failed" {
		t.Errorf("after a restart: %v", m)
	}
	c.c.advance(24 * time.Hour)
	c.refused(404, "ResourceNotFoundException", c.output("v", done, ""))
	c.refused(404, "ResourceNotFoundException", c.do("POST", "/-/vaults/v/jobs", []byte(`{"Type":"archive-retrieval","ArchiveId":"`+id+`"}`), nil))
	if left := files(t, c); len(left) != 0 {
		t.Errorf("the bytes stayed: %v", left)
	}
}

func TestListJobs(t *testing.T) {
	c := open(t, Options{Delays: Delays{Standard: time.Hour}})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	var old, young []string
	for range 5 {
		old = append(old, c.retrieve("v", id))
	}
	c.c.advance(time.Hour)
	for range 4 {
		young = append(young, c.retrieve("v", id))
	}
	inv := c.job("v", `{"Type":"inventory-retrieval"}`)
	list := func(query string) (ids []string) {
		t.Helper()
		marker := ""
		for {
			var p struct {
				Marker  *string
				JobList []struct{ JobId string }
			}
			c.json(c.do("GET", "/-/vaults/v/jobs?limit=2"+query+marker, nil, nil), &p)
			for _, j := range p.JobList {
				ids = append(ids, j.JobId)
			}
			if p.Marker == nil {
				return ids
			}
			if len(p.JobList) != 2 {
				t.Errorf("a page of %d", len(p.JobList))
			}
			marker = "&marker=" + enc(*p.Marker)
		}
	}
	sorted := func(ids ...string) []string { slices.Sort(ids); return ids }
	all := sorted(slices.Concat(old, young, []string{inv})...)
	for query, want := range map[string][]string{
		"": all, "&completed=True": sorted(append(slices.Clone(old), inv)...), "&completed=false": sorted(slices.Clone(young)...),
		"&statuscode=Succeeded&completed=true": sorted(append(slices.Clone(old), inv)...), "&statuscode=InProgress": sorted(slices.Clone(young)...),
		"&statuscode=Failed": nil, "&statuscode=Failed&completed=false": nil, "&completed=": all,
	} {
		if got := list(query); !slices.Equal(got, want) {
			t.Errorf("%q: %d jobs, want %d", query, len(got), len(want))
		}
	}
	c.refused(400, "InvalidParameterValueException", c.do("GET", "/-/vaults/v/jobs?completed=maybe", nil, nil))
	c.refused(400, "InvalidParameterValueException", c.do("GET", "/-/vaults/v/jobs?statuscode=done", nil, nil))
	c.c.advance(24 * time.Hour)
	if got := list(""); !slices.Equal(got, sorted(slices.Clone(young)...)) {
		t.Errorf("after a day: %d jobs", len(got))
	}
}

func TestInventoryPages(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	var ids []string
	for i := range 5 {
		ids = append(ids, c.upload("v", pattern(i+1), fmt.Sprintf(`a,"%d\`, i)))
		c.c.advance(time.Second)
	}
	type doc struct {
		VaultQCS, InventoryDate string
		ArchiveList             []struct {
			ArchiveId, ArchiveDescription, CreationDate, SHA256TreeHash string
			Size                                                        int
		}
	}
	fetch := func(params string) (d doc, marker any) {
		t.Helper()
		job := c.job("v", `{"Type":"inventory-retrieval","InventoryRetrievalParameters":`+params+`}`)
		m := c.describe("v", job)
		r := c.must(200, c.output("v", job, ""))
		if err := json.Unmarshal(r.body, &d); err != nil {
			t.Fatal(err)
		}
		if r.Header.Get("x-cas-sha256-tree-hash") != "" || r.Header.Get("Content-Type") != "application/json" || int(m["InventorySizeInBytes"].(float64)) != len(r.body) {
			t.Errorf("%v", r.Header)
		}
		// The output does not change, and can be read in pieces.
		if got := c.must(206, c.output("v", job, "bytes=5-20")).body; !bytes.Equal(got, r.body[5:21]) {
			t.Error("range differs")
		}
		return d, m["InventoryRetrievalParameters"].(map[string]any)["Marker"]
	}
	var got []string
	params := `{"Limit":"2"}`
	for {
		d, marker := fetch(params)
		for _, a := range d.ArchiveList {
			got = append(got, a.ArchiveId)
			if a.Size != len(got) || a.SHA256TreeHash != linearHex(pattern(a.Size)) || a.ArchiveDescription != fmt.Sprintf(`a,"%d\`, len(got)-1) {
				t.Errorf("%+v", a)
			}
		}
		if marker == nil {
			break
		}
		// What happens meanwhile does not disturb the pages to come.
		if len(got) == 2 {
			c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+ids[2], nil, nil))
			got = append(got, ids[2])
		}
		params = fmt.Sprintf(`{"Limit":2,"Marker":%q}`, marker)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("%d archives, want %d", len(got), len(ids))
	}
	for params, want := range map[string]int{
		`{"StartDate":"2024-01-02T03:04:06Z"}`: 3, `{"EndDate":"2024-01-02T03:04:06Z"}`: 2, `{"StartDate":"2024-01-02T03:04:08Z","EndDate":"2024-01-02T03:04:08Z"}`: 1,
		`{"StartDate":"2025-01-02T03:04:06Z"}`: 0, `{"StartDate":null,"Limit":null}`: 4, `null`: 4, `{"Limit":""}`: 4,
	} {
		if d, _ := fetch(params); len(d.ArchiveList) != want || d.VaultQCS == "" || d.InventoryDate != "2024-01-02T03:04:10.000Z" {
			t.Errorf("%s: %d archives, want %d", params, len(d.ArchiveList), want)
		}
	}
	job := c.job("v", `{"Type":"inventory-retrieval","Format":"CSV"}`)
	r := c.must(200, c.output("v", job, ""))
	lines := strings.Split(string(r.body), "\n")
	want := ids[0] + `,"a,\"0\",2024-01-02T03:04:05.000Z,1,` + linearHex(pattern(1))
	if r.Header.Get("Content-Type") != "text/csv" || lines[0] != "ArchiveId,ArchiveDescription,CreationDate,Size,SHA256TreeHash" || lines[1] != want || len(lines) != 6 {
		t.Errorf("%s", r.body)
	}
}

// An inventory shows the vault as it was when the job finished, although the
// output is only made when somebody looks.
func TestInventoryMoment(t *testing.T) {
	c := open(t, Options{Delays: Delays{Inventory: time.Hour}})
	c.create("v")
	a := c.upload("v", []byte("a"), "")
	job := c.job("v", `{"Type":"inventory-retrieval"}`)
	if m := c.describe("v", job); m["InventorySizeInBytes"] != 0.0 {
		t.Errorf("%v", m)
	}
	c.c.advance(30 * time.Minute)
	b := c.upload("v", []byte("b"), "")
	c.c.advance(31 * time.Minute)
	late := c.upload("v", []byte("c"), "")
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+a, nil, nil))
	s := string(c.must(200, c.output("v", job, "")).body)
	if !strings.Contains(s, a) || !strings.Contains(s, b) || strings.Contains(s, late) {
		t.Error(s)
	}
	c.upload("v", []byte("d"), "")
	if again := string(c.must(200, c.output("v", job, "")).body); again != s {
		t.Error("the output changed")
	}
}

func TestPushPull(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	b := pattern(3<<20 + 11)
	id := c.upload("v", b, "")
	cos := filepath.Join(c.s.dir, "cos")
	wait := func(job string) map[string]any {
		t.Helper()
		m := c.describe("v", job)
		if m["Completed"] != true {
			t.Errorf("not done: %v", m)
		}
		return m
	}
	m := wait(c.job("v", `{"Type":"push-to-cos","ArchiveId":"`+id+`","Bucket":"b-1.cos.local","Object":"dir/照片.jpg","RetrievalByteRange":"1048576-"}`))
	if m["StatusCode"] != "Succeeded" || m["Action"] != "PushToCOS" || m["RetrievalByteRange"] != "1048576-3145738" || m["Bucket"] != "b-1.cos.local" || m["Object"] != "dir/照片.jpg" {
		t.Errorf("%v", m)
	}
	c.refused(400, "InvalidParameterValueException", c.output("v", m["JobId"].(string), ""))
	object := filepath.Join(cos, "b-1.cos.local", "dir", "照片.jpg")
	if got, err := os.ReadFile(object); err != nil || !bytes.Equal(got, b[1<<20:]) {
		t.Errorf("%v", err)
	}
	// A key below an object cannot be a file: the job fails, nothing else.
	m = wait(c.job("v", `{"Type":"push-to-cos","ArchiveId":"`+id+`","Bucket":"b-1.cos.local","Object":"dir/照片.jpg/x"}`))
	if m["StatusCode"] != "Failed" {
		t.Errorf("%v", m)
	}
	// A symbolic link does not lead out.
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(cos, "b-1.cos.local", "link")); err != nil {
		t.Fatal(err)
	}
	m = wait(c.job("v", `{"Type":"push-to-cos","ArchiveId":"`+id+`","Bucket":"b-1.cos.local","Object":"link/x"}`))
	if left, _ := dirNames(outside); m["StatusCode"] != "Failed" || len(left) > 0 {
		t.Errorf("%v %v", m, left)
	}

	pull := func(extra string) map[string]any {
		t.Helper()
		return wait(c.job("v", `{"Type":"pull-from-cos","Bucket":"b-1.cos.local","Object":"dir/照片.jpg","ArchiveDescription":"pulled"`+extra+`}`))
	}
	etag := "\"x\""
	for extra, ok := range map[string]bool{
		"": true, `,"Range":"bytes=0-"`: true, `,"Range":"bytes=99999999-"`: false,
		`,"Condition":{"If-Match":` + jsonString(etag) + `}`: false, `,"Condition":[{"If-None-Match":` + jsonString(etag) + `}]`: true,
		`,"Condition":{"If-Modified-Since":"2001-01-01T00:00:00Z"}`: true, `,"Condition":{"If-Umodified-Since":"Mon, 01 Jan 2001 00:00:00 GMT"}`: false,
	} {
		m := pull(extra)
		if (m["StatusCode"] == "Succeeded") != ok {
			t.Errorf("%s: %v", extra, m)
		}
		if ok && (m["ArchiveSizeInBytes"] != float64(len(b)-1<<20) || m["ArchiveDescription"] != "pulled") {
			t.Errorf("%s: %v", extra, m)
		}
	}
	m = pull(`,"Range":"bytes=10-19"`)
	if r := c.output("v", c.retrieve("v", m["ArchiveId"].(string)), ""); !bytes.Equal(r.body, b[1<<20+10:1<<20+20]) {
		t.Error("pulled bytes differ")
	}
	if m := wait(c.job("v", `{"Type":"pull-from-cos","Bucket":"b","Object":"absent"}`)); m["StatusCode"] != "Failed" || m["ArchiveId"] != nil {
		t.Errorf("%v", m)
	}
	// The outcome survives a restart, and is not done twice.
	var before vaultReply
	c.json(c.do("GET", "/-/vaults/v", nil, nil), &before)
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now})
	if got := wait(m["JobId"].(string)); got["ArchiveId"] != m["ArchiveId"] {
		t.Errorf("%v", got)
	}
	var after vaultReply
	c.json(c.do("GET", "/-/vaults/v", nil, nil), &after)
	if *before.NumberOfArchives != *after.NumberOfArchives {
		t.Errorf("%d archives, then %d", *before.NumberOfArchives, *after.NumberOfArchives)
	}
}

// roundTripper is a callback receiver without sockets.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		got := map[string][]string{} // by URL: when, and job id
		fail := 2
		start := time.Now()
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			status := 204
			if r.URL.Path == "/flaky" && fail > 0 {
				fail--
				status = 500
			}
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || m["Completed"] != true {
				t.Errorf("%s %v: %s", r.Method, r.Header, b)
			}
			if status == 204 {
				got[r.URL.Path] = append(got[r.URL.Path], time.Since(start).String()+" "+m["JobId"].(string))
			}
			return &http.Response{StatusCode: status, Body: http.NoBody, Request: r}, nil
		})
		c := open(t, Options{Delays: Delays{Standard: time.Hour}, Now: time.Now, Callbacks: rt, NoSync: true})
		c.create("v")
		id := c.upload("v", []byte("x"), "")
		c.must(204, c.do("PUT", "/-/vaults/v/notification-configuration", []byte(`{"CallBackUrl":"http://cb/vault","Events":["ArchiveRetrievalCompleted"]}`), nil))
		a := c.job("v", `{"Type":"archive-retrieval","ArchiveId":"`+id+`","CallBackUrl":"http://cb/flaky"}`)
		b := c.job("v", `{"Type":"inventory-retrieval","CallBackUrl":"http://cb/inventory"}`)
		c.job("v", `{"Type":"inventory-retrieval"}`)
		time.Sleep(2 * time.Hour) // nobody polls
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(got["/flaky"]) != 1 || got["/flaky"][0] != "1h0m6s "+a {
			t.Errorf("flaky: %v", got["/flaky"])
		}
		if len(got["/vault"]) != 1 || !strings.HasSuffix(got["/vault"][0], a) {
			t.Errorf("vault: %v", got["/vault"])
		}
		if len(got["/inventory"]) != 1 || got["/inventory"][0] != "0s "+b {
			t.Errorf("inventory: %v", got["/inventory"])
		}
	})
}

// A callback that could not be made before Close is made after the next Open.
func TestCallbackAfterRestart(t *testing.T) {
	called := make(chan string, 10)
	rt := roundTripper(func(r *http.Request) (*http.Response, error) {
		called <- r.URL.Path
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
	})
	stuck := make(chan struct{})
	c := open(t, Options{Callbacks: roundTripper(func(r *http.Request) (*http.Response, error) {
		close(stuck)
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	c.job("v", `{"Type":"archive-retrieval","ArchiveId":"`+id+`","CallBackUrl":"http://cb/x"}`)
	<-stuck
	dir := c.s.dir
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now, Callbacks: rt})
	if p := <-called; p != "/x" {
		t.Error(p)
	}
	if err := c.s.Close(); err != nil { // waits for the record
		t.Fatal(err)
	}
	c.s = mustOpen(t, Options{Dir: dir, Now: c.c.now, Callbacks: rt})
	c.do("GET", "/-/vaults/v/jobs", nil, nil)
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(called) > 0 {
		t.Error("called again")
	}
}

// TestListWaitsOnce: jobs whose work takes long do not add up to a list that never comes.
func TestListWaitsOnce(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{Dir: dir, Delays: Delays{Inventory: time.Hour}})
		c.create("v")
		v, err := c.s.vault("v")
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			id := c.job("v", `{"Type":"inventory-retrieval"}`)
			v.mu.Lock()
			v.jobs[id].settled = make(chan struct{}) // its work is being done, and goes on
			v.mu.Unlock()
		}
		c.c.advance(time.Hour)
		start := time.Now()
		var list struct{ JobList []struct{ StatusCode string } }
		c.json(c.must(200, c.do("GET", "/-/vaults/v/jobs", nil, nil)), &list)
		if took := time.Since(start); len(list.JobList) != 10 || list.JobList[9].StatusCode != "InProgress" || took > settleWait {
			t.Errorf("%d jobs after %v, want 10 within %v", len(list.JobList), took, settleWait)
		}
	})
}
