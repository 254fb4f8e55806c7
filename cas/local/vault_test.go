package local

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type vaultReply struct {
	CreationDate      string
	LastInventoryDate *string
	NumberOfArchives  *int64
	SizeInBytes       *int64
	VaultQCS          string
	VaultName         string
}

func TestVaultNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outer", "store")
	c := open(t, Options{Dir: dir, Region: "ap-guangzhou", AppID: "1250000000"})
	names := []string{".", "..", "...", "a", "A", "-", "--", strings.Repeat("n", 255)}
	for _, n := range names {
		r := c.must(201, c.do("PUT", "/-/vaults/"+n, nil, nil))
		if got := r.Header.Get("Location"); got != "/-/vaults/"+n {
			t.Errorf("Location %q", got)
		}
		c.upload(n, []byte(n), n)
	}
	for _, n := range names {
		var v vaultReply
		c.json(c.do("GET", "/1250000000/vaults/"+n, nil, nil), &v)
		if v.VaultName != n || v.VaultQCS != "qcs:id/0:cas:ap-guangzhou:uid/1250000000:vaults/"+n || *v.NumberOfArchives != 1 || *v.SizeInBytes != int64(len(n)) {
			t.Errorf("%+v", v)
		}
	}
	for _, n := range []string{"a b", "%2e%2e%2f", "a%2Fb", "%00", "é", strings.Repeat("n", 256), "a~b"} {
		path := "/-/vaults/" + strings.ReplaceAll(n, " ", "%20")
		for _, m := range []string{"PUT", "GET", "DELETE"} {
			c.refused(400, "InvalidParameterValueException", c.do(m, path, nil, nil))
		}
	}
	// Nothing was made outside of the store.
	for _, d := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if got, err := dirNames(d); err != nil || len(got) != 1 {
			t.Errorf("%s holds %v %v", d, got, err)
		}
	}
	got, err := dirNames(filepath.Join(dir, "vaults"))
	if err != nil || len(got) != len(names) {
		t.Errorf("%v %v", got, err)
	}
}

func TestVaultLifecycle(t *testing.T) {
	c := open(t, Options{})
	c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v", nil, nil))
	c.refused(404, "ResourceNotFoundException", c.do("DELETE", "/-/vaults/v", nil, nil))
	c.create("v")
	c.create("v") // idempotent
	var v vaultReply
	c.json(c.do("GET", "/-/vaults/v", nil, nil), &v)
	if v.CreationDate != "2024-01-02T03:04:05.000Z" || v.LastInventoryDate == nil || *v.NumberOfArchives != 0 {
		t.Errorf("%+v", v)
	}
	id := c.upload("v", []byte("x"), "")
	c.refused(400, "BadRequest", c.do("DELETE", "/-/vaults/v", nil, nil))
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
	u := c.initiate("v", 1<<20)
	c.refused(400, "BadRequest", c.do("DELETE", "/-/vaults/v", nil, nil))
	c.must(204, c.do("DELETE", "/-/vaults/v/multipart-uploads/"+u, nil, nil))
	c.must(204, c.do("DELETE", "/-/vaults/v", nil, nil))
	c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v/jobs", nil, nil))
	c.create("v") // anew, without its past
	c.json(c.do("GET", "/-/vaults/v", nil, nil), &v)
	if *v.NumberOfArchives != 0 {
		t.Errorf("%+v", v)
	}
	if left, _ := dirNames(filepath.Join(c.s.dir, "tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVaultLimitAndPages(t *testing.T) {
	c := open(t, Options{NoSync: true})
	for i := range maxVaults {
		c.create(fmt.Sprintf("v%04d", i))
	}
	c.create("v0000") // exists: no limit applies
	c.refused(400, "LimitExceededException", c.do("PUT", "/-/vaults/one-more", nil, nil))
	var page struct {
		Marker    *string
		VaultList []vaultReply
	}
	c.json(c.do("GET", "/-/vaults", nil, nil), &page)
	if len(page.VaultList) != 1000 || page.Marker != nil {
		t.Errorf("%d vaults, marker %v", len(page.VaultList), page.Marker)
	}
	n, target := 0, "/-/vaults?limit=300"
	for pages := 1; ; pages++ {
		page.Marker = nil
		page.VaultList = nil
		c.json(c.do("GET", target, nil, nil), &page)
		for _, v := range page.VaultList {
			if v.VaultName != fmt.Sprintf("v%04d", n) {
				t.Fatalf("%d: %s", n, v.VaultName)
			}
			n++
		}
		if page.Marker == nil {
			if pages != 4 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		target = "/-/vaults?limit=300&marker=" + enc(*page.Marker)
	}
	if n != 1000 {
		t.Errorf("%d vaults", n)
	}
	for _, l := range []string{"0", "1001", "-1", "x", "1.5"} {
		c.refused(400, "InvalidParameterValueException", c.do("GET", "/-/vaults?limit="+l, nil, nil))
	}
	c.must(200, c.do("GET", "/-/vaults?limit=", nil, nil))
}

func TestRoutes(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	for _, x := range []string{"GET /", "GET /-", "GET /-/vaults/", "PUT /-/vaults", "GET /-/vaults/v/archives", "POST /-/vaults/v", "GET /-/vaults/v/tags",
		"POST /-/vaults/v/lock-policy", "GET /-/vaults/v/jobs/a/b", "GET /-/vaults/v/jobs/a/output/b", "HEAD /-/vaults/v", "PATCH /-/vaults/v",
		"GET /../../etc/passwd", "GET /-/vaults/v/jobs//output", "GET /-/vaults//jobs", "DELETE /-/vaults/v/archives/"} {
		m, p, _ := strings.Cut(x, " ")
		if r := c.do(m, p, nil, nil); r.StatusCode != 404 {
			t.Errorf("%s: %d %s", x, r.StatusCode, r.body)
		}
	}
	// IDs with path tricks name nothing.
	for _, id := range []string{"..", "%2e%2e%2f%2e%2e", "a%2Fb", "%00", "-", strings.Repeat("x", 4000)} {
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil))
		c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v/jobs/"+id, nil, nil))
		c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v/jobs/"+id+"/output", nil, nil))
		c.refused(404, "ResourceNotFoundException", c.do("GET", "/-/vaults/v/multipart-uploads/"+id, nil, nil))
		c.refused(404, "ResourceNotFoundException", c.do("DELETE", "/-/vaults/v/multipart-uploads/"+id, nil, nil))
	}
}

// With InventoryAge counts are those of the last stock-taking.
func TestInventoryAge(t *testing.T) {
	c := open(t, Options{InventoryAge: 24 * time.Hour})
	c.create("v")
	first := c.upload("v", pattern(100), "first")
	get := func() (v vaultReply) {
		t.Helper()
		c.json(c.do("GET", "/-/vaults/v", nil, nil), &v)
		return v
	}
	if v := get(); v.LastInventoryDate != nil || v.NumberOfArchives != nil || v.SizeInBytes != nil {
		t.Errorf("before the first stock-taking: %+v", v)
	}
	list := func() string {
		t.Helper()
		job := c.job("v", `{"Type":"inventory-retrieval"}`)
		return string(c.must(200, c.output("v", job, "")).body)
	}
	if s := list(); strings.Contains(s, first) || !strings.Contains(s, `"ArchiveList":[]`) {
		t.Error(s)
	}
	c.c.advance(25 * time.Hour)
	second := c.upload("v", pattern(50), "second")
	c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+first, nil, nil))
	v := get()
	if *v.LastInventoryDate != "2024-01-03T03:04:05.000Z" || *v.NumberOfArchives != 1 || *v.SizeInBytes != 100 {
		t.Errorf("%+v", v)
	}
	if s := list(); !strings.Contains(s, first) || strings.Contains(s, second) || !strings.Contains(s, `"InventoryDate":"2024-01-03T03:04:05.000Z"`) {
		t.Error(s)
	}
	c.c.advance(24 * time.Hour)
	if v := get(); *v.NumberOfArchives != 1 || *v.SizeInBytes != 50 {
		t.Errorf("%+v", v)
	}
	if s := list(); strings.Contains(s, first) || !strings.Contains(s, second) {
		t.Error(s)
	}
}

func TestPolicy(t *testing.T) {
	c := open(t, Options{})
	c.create("v")
	path := "/-/vaults/v/access-policy"
	c.refused(404, "ResourceNotFoundException", c.do("GET", path, nil, nil))
	policy := `{"version":"2.0","statement":[{"effect":"allow","principal":{"qcs":["qcs::cam::uin/1:uin/2"]}}]} <&> 归档`
	c.must(204, c.do("PUT", path, []byte(`{"policy":`+jsonString(policy)+`}`), nil))
	var got struct{ Policy string }
	r := c.do("GET", path, nil, nil)
	c.json(r, &got)
	if got.Policy != policy || !strings.HasPrefix(string(r.body), `{"policy":`) {
		t.Errorf("%s", r.body)
	}
	c.must(204, c.do("PUT", path, []byte(`{"Policy":"old"}`), nil))
	for body, code := range map[string]string{
		`{`: "SerializationException", ``: "SerializationException", `[]`: "SerializationException", `{"policy":{}}`: "SerializationException",
		`{}`: "MissingParameterValueException", `{"policy":""}`: "InvalidParameterValueException",
		`{"policy":"` + strings.Repeat("x", maxPolicy+1) + `"}`: "InvalidParameterValueException",
		`{"policy":"` + strings.Repeat("x", maxJSON) + `"}`:     "SerializationException",
	} {
		c.refused(400, code, c.do("PUT", path, []byte(body), nil))
	}
	c.must(204, c.do("DELETE", path, nil, nil))
	c.must(204, c.do("DELETE", path, nil, nil))
	c.refused(404, "ResourceNotFoundException", c.do("GET", path, nil, nil))

	path = "/-/vaults/v/notification-configuration"
	c.refused(404, "ResourceNotFoundException", c.do("GET", path, nil, nil))
	for body, code := range map[string]string{
		`{"CallBackUrl":"ftp://x","Events":["PushToCOSCompleted"]}`: "InvalidParameterValueException",
		`{"CallBackUrl":"http://x","Events":["Nonsense"]}`:          "InvalidParameterValueException",
		`{"CallBackUrl":"http://x","Events":[]}`:                    "MissingParameterValueException",
		`{"Events":["PushToCOSCompleted"]}`:                         "MissingParameterValueException",
		`{"CallBackUrl":5}`:                                         "SerializationException",
	} {
		c.refused(400, code, c.do("PUT", path, []byte(body), nil))
	}
	conf := `{"CallBackUrl":"http://127.0.0.1:9/x","Events":["ArchiveRetrievalCompleted","PullFromCOSCompleted"]}`
	c.must(204, c.do("PUT", path, []byte(conf), nil))
	if r := c.must(200, c.do("GET", path, nil, nil)); strings.TrimSpace(string(r.body)) != conf {
		t.Errorf("%s", r.body)
	}
	c.must(204, c.do("DELETE", path, nil, nil))
	c.refused(404, "ResourceNotFoundException", c.do("GET", path, nil, nil))
}

func TestThrottling(t *testing.T) {
	c := open(t, Options{MaxRate: 2})
	c.must(200, c.do("GET", "/-/vaults", nil, nil))
	c.must(200, c.do("GET", "/-/vaults", nil, nil))
	c.refused(400, "ThrottlingException", c.do("GET", "/-/vaults", nil, nil))
	c.c.advance(time.Second)
	c.must(200, c.do("GET", "/-/vaults", nil, nil))
}
