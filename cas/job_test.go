package cas

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func decodeJob(t *testing.T, doc string) Job {
	t.Helper()
	var w wireJob
	if err := json.Unmarshal([]byte(doc), &w); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	j, err := w.job()
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return j
}

func TestDecodeJobs(t *testing.T) {
	file := func(name string) string {
		b, err := os.ReadFile("../testdata/wire/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	h, _ := ParseHash("554e388c7758215f0aaf85bf927849e9cd5ead36cd07f83a2fda44e1e9a155d7")
	const qcs = "qcs:id/0:cas:ap-guangzhou:uid/1250000000:vaults/example"
	created := time.Date(2017, 8, 29, 8, 29, 41, 0, time.UTC)
	for _, x := range []struct {
		doc  string
		want Job
		size int64
	}{
		{file("job-archive.json"), Job{
			ID: "Kf8S-O16G", Type: ArchiveRetrieval, VaultQCS: qcs, CreationDate: created, StatusCode: "InProgress", StatusMessage: "InProgress",
			ArchiveID: "FW8V-45Fh", ArchiveSize: 41955385, ArchiveTreeHash: h, Range: Range{0, 41955385}, TreeHash: h, Tier: Standard, InventorySize: -1,
		}, 41955385},
		{file("job-inventory.json"), Job{
			ID: "E-nV-vo--8", Type: InventoryRetrieval, VaultQCS: qcs, CreationDate: created, CompletionDate: time.Date(2017, 8, 29, 12, 1, 7, 0, time.UTC),
			Completed: true, StatusCode: "Succeeded", StatusMessage: "Succeeded", ArchiveSize: -1, InventorySize: 5120, InventoryFormat: "JSON",
		}, 5120},
		// What the documents write elsewhere: the wrong action, numbers as strings, "" for null, the misspelt StartDate.
		{`{"JobId":"j","Action":"ArchiveRetrieval","Completed":"False","CompletionDate":"","InventorySizeInBytes":"0","ArchiveSizeInBytes":"",
		   "InventoryRetrievalParameters":{"Format":"CSV","StatDate":"2017-02-28T17:03:43Z","EndDate":"2017-03-01T00:00:00.5Z","Limit":"5","Marker":"m"},"JobCallBackUrl":"http://x"}`,
			Job{ID: "j", Type: InventoryRetrieval, CallBackURL: "http://x", ArchiveSize: -1, InventoryFormat: "CSV", InventoryMarker: "m", Limit: 5,
				StartDate: time.Date(2017, 2, 28, 17, 3, 43, 0, time.UTC), EndDate: time.Date(2017, 3, 1, 0, 0, 0, 5e8, time.UTC)}, -1},
		{`{"JobId":"j","Action":"PullFromCOS","CallBackUrl":"http://y","JobCallBackUrl":"http://x","ArchiveId":"A","ArchiveSizeInBytes":9,"Bucket":"b","Object":"o","Range":"bytes=0-","ArchiveDescription":"d","Condition":[{"If-Match":"e"}]}`,
			Job{ID: "j", Type: PullFromCOS, CallBackURL: "http://y", ArchiveID: "A", ArchiveSize: 9, InventorySize: -1, Bucket: "b", Object: "o", COSRange: "bytes=0-", ArchiveDescription: "d", Condition: map[string]string{"If-Match": "e"}}, -1},
		{`{"JobId":"j","Action":"PushToCOS","Condition":{"If-Match":"e"},"ArchiveSizeInBytes":10,"RetrievalByteRange":"0-"}`,
			Job{ID: "j", Type: PushToCOS, ArchiveSize: 10, InventorySize: -1, Range: Range{0, 10}, Condition: map[string]string{"If-Match": "e"}}, -1},
		{`{"JobId":"j","Action":"Unheard","Completed":null}`, Job{ID: "j", Type: "Unheard", ArchiveSize: -1, InventorySize: -1}, -1},
		{`{"JobId":"j","Action":"ArchiveRetrieval","ArchiveId":"A","ArchiveSizeInBytes":7}`, Job{ID: "j", Type: ArchiveRetrieval, ArchiveID: "A", ArchiveSize: 7, InventorySize: -1}, 7},
	} {
		got := decodeJob(t, x.doc)
		if !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s\n got %+v\nwant %+v", x.doc, got, x.want)
		}
		if got.OutputSize() != x.size {
			t.Errorf("%s: OutputSize = %d, want %d", x.doc, got.OutputSize(), x.size)
		}
	}
	for _, doc := range []string{
		`{}`, `[]`, `{"JobId":"j","CreationDate":"yesterday"}`, `{"JobId":"j","ArchiveSizeInBytes":"many"}`, `{"JobId":"j","ArchiveSizeInBytes":1.5}`,
		`{"JobId":"j","SHA256TreeHash":"xyz"}`, `{"JobId":"j","RetrievalByteRange":"5-1"}`, `{"JobId":{}}`, `{"JobId":"j","Completed":"perhaps"}`,
	} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { io.WriteString(w, doc) })
		if _, err := f.client().DescribeJob(t.Context(), "v", "j"); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want ErrProtocol", doc, err)
		}
	}
}

func TestListJobsLeavesOutNonsense(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		io.WriteString(w, `{"Marker":null,"JobList":[{"JobId":"a"},{"JobId":"b","CreationDate":"yesterday"},7,{"JobId":"c","RetrievalByteRange":"x"},{"JobId":"d"}]}`)
	})
	p, err := f.client().ListJobs(t.Context(), "v", JobFilter{})
	if err != nil || len(p.Jobs) != 2 || p.Jobs[0].ID != "a" || p.Jobs[1].ID != "d" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestJobRequestsAreChecked(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { t.Errorf("sent: %s", r.URL) })
	c := f.client()
	for _, r := range []JobRequest{
		{}, {Type: "x"}, {Type: ArchiveRetrieval}, {Type: ArchiveRetrieval, ArchiveID: "a/b"}, {Type: ArchiveRetrieval, ArchiveID: "A", Format: "JSON"},
		{Type: InventoryRetrieval, ArchiveID: "A"}, {Type: InventoryRetrieval, Bucket: "b"}, {Type: PushToCOS, ArchiveID: "A", Bucket: "b"},
		{Type: PullFromCOS, Bucket: "b", Object: "o", ArchiveID: "A"}, {Type: ArchiveRetrieval, ArchiveID: "A", ArchiveDescription: "d"},
		{Type: ArchiveRetrieval, ArchiveID: "A", Range: Range{-1, 5}}, {Type: ArchiveRetrieval, ArchiveID: "A", Range: Range{1 << 20, 0}},
	} {
		if _, err := c.InitiateJob(t.Context(), "v", r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", r, err)
		}
	}
	for _, v := range []string{"", ".", "..", "a/b", "a b", "夏", strings.Repeat("v", 256), "a?b", "a%2Fb"} {
		_, err := c.DescribeVault(t.Context(), v)
		if !errors.Is(err, ErrInvalid) || !errors.Is(ValidVaultName(v), ErrInvalid) {
			t.Errorf("vault %q: %v", v, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "a?b", "a%b", "a b", "a\n"} {
		if err := c.DeleteArchive(t.Context(), "v", id); !errors.Is(err, ErrInvalid) {
			t.Errorf("archive %q: %v", id, err)
		}
		if _, err := c.DescribeJob(t.Context(), "v", id); !errors.Is(err, ErrInvalid) {
			t.Errorf("job %q: %v", id, err)
		}
		if err := c.AbortUpload(t.Context(), "v", id); !errors.Is(err, ErrInvalid) {
			t.Errorf("upload %q: %v", id, err)
		}
	}
	if err := ValidVaultName(strings.Repeat("v", 255)); err != nil {
		t.Error(err)
	}
	x := strings.NewReader("x")
	for _, d := range []string{"a\nb", "a\x00", "\x7f", strings.Repeat("d", 1025)} {
		if _, err := c.UploadArchive(t.Context(), "v", d, x, PartHash{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("description %.20q: %v", d, err)
		}
	}
	if _, err := c.UploadArchive(t.Context(), "v", "", strings.NewReader(""), PartHash{}); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty archive: %v", err)
	}
	for _, p := range []string{"", "x", "[]", "{"} {
		if err := c.SetAccessPolicy(t.Context(), "v", p); !errors.Is(err, ErrInvalid) {
			t.Errorf("policy %q: %v", p, err)
		}
	}
}

func TestAccessPolicyForms(t *testing.T) {
	const policy = `{"version":"2.0","statement":[{"effect":"allow"}]}`
	quoted := fmt.Sprintf("%q", policy)
	for _, x := range []struct{ doc, want string }{
		{`{"policy":` + quoted + `}`, policy},
		{`{"Policy":` + quoted + `}`, policy},
		{`{ "policy": ` + policy + ` }`, policy},
		{policy + "\n", policy},
		{`{}`, ""}, {`[]`, ""}, {`<html>`, ""},
	} {
		got, err := decodePolicy([]byte(x.doc))
		if got != x.want || (x.want == "") != errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %q, %v", x.doc, got, err)
		}
	}
	// A numeric account is checked, once, to be ours.
	owner := "1250000000"
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if strings.HasSuffix(r.URL.Path, "/access-policy") {
			fmt.Fprintf(w, `{"policy":"{}"}`)
			return
		}
		fmt.Fprintf(w, `{"VaultQCS":"qcs:id/0:cas:r:uid/%s:vaults/v"}`, owner)
	})
	c := f.client(func(o *Options) { o.AppID = "1250000000" })
	for range 2 {
		if _, err := c.AccessPolicy(t.Context(), "v"); err != nil {
			t.Error(err)
		}
	}
	if f.count() != 3 {
		t.Errorf("%d requests, want 3", f.count())
	}
	owner = "7"
	err := f.client(func(o *Options) { o.AppID = "1250000000" }).SetAccessPolicy(t.Context(), "v", "{}")
	checkIs(t, err, ErrAccessDenied)
	if f.count() != 4 {
		t.Errorf("the policy of another vault was touched")
	}
}

func TestLists(t *testing.T) {
	pages := map[string]string{
		"":    `{"Marker":"A+b","VaultList":[{"VaultName":"1"},{"VaultName":"2"}]}`,
		"A+b": `{"Marker":"c","VaultList":[]}`,
		"c":   `{"Marker":null,"VaultList":[{"VaultName":"3"}]}`,
	}
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { io.WriteString(w, pages[r.FormValue("marker")]) })
	var got []string
	for v, err := range f.client().Vaults(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v.Name)
	}
	if strings.Join(got, "") != "123" {
		t.Errorf("vaults %v", got)
	}
	for range f.client().Vaults(t.Context()) {
		break
	}
	if f.count() != 4 {
		t.Errorf("%d requests, want 4", f.count())
	}
	f.handler = func(w http.ResponseWriter, r *http.Request, n int) {
		io.WriteString(w, `{"Marker":"m","JobList":[{"JobId":"j"}],"UploadsList":[],"Parts":[]}`)
	}
	var last error
	n := 0
	for _, last = range f.client().Jobs(t.Context(), "v", JobFilter{}) {
		n++
	}
	checkIs(t, last, ErrProtocol)
	if n != 3 {
		t.Errorf("an endless list gave %d items, want 2 and an error", n)
	}
	f.handler = func(w http.ResponseWriter, r *http.Request, n int) { refuse(w, 404, "ResourceNotFoundException", "") }
	for _, err := range f.client().Parts(t.Context(), "v", "u") {
		checkIs(t, err, ErrNotFound)
	}
	for _, err := range f.client().Uploads(t.Context(), "v") {
		checkIs(t, err, ErrNotFound)
	}
}

// TestOddJobs: what cannot be understood of a list is left out, whatever is odd about it.
func TestOddJobs(t *testing.T) {
	for name, odd := range map[string]string{
		"type":  `{"JobId":"odd","Completed":{}}`,
		"range": `{"JobId":"odd","Action":"ArchiveRetrieval","RetrievalByteRange":"9-1"}`,
		"id":    `{"JobId":null}`,
		"kind":  `"odd"`,
	} {
		f := newFake(t, nil)
		f.handler = func(w http.ResponseWriter, r *http.Request, n int) {
			io.WriteString(w, `{"Marker":"m","JobList":[{"JobId":"a","JobDescription":"x\u0041é"},`+odd+`,{"JobId":"b","ArchiveSizeInBytes":"7"}]}`)
		}
		p, err := f.client().ListJobs(t.Context(), "v", JobFilter{})
		if err != nil || len(p.Jobs) != 2 || p.Marker != "m" || p.Jobs[0].Description != "xAé" || p.Jobs[1].ID != "b" || p.Jobs[1].ArchiveSize != 7 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}
