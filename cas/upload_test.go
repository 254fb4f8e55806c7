package cas

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestResumeReadsAllPages: parts on later pages are not sent again, and a fault on a later page is seen.
func TestResumeReadsAllPages(t *testing.T) {
	data := pattern(7*mib + 1)
	want := HashPart(data).Tree
	part := func(i int64) string {
		r := Range{i * mib, min(mib, int64(len(data))-i*mib)}
		return fmt.Sprintf(`{"RangeInBytes":"%s","SHA256TreeHash":"%s"}`, r, TreeHash(data[r.Off:r.End()]))
	}
	list := func(marker string, parts ...string) string {
		return fmt.Sprintf(`{"MultipartUploadId":"u","PartSizeInBytes":1048576,"Marker":%s,"Parts":[%s]}`, marker, strings.Join(parts, ","))
	}
	run := func(pages map[string]string) (sent []string, err error) {
		f := newFake(t, nil)
		f.handler = func(w http.ResponseWriter, r *http.Request, n int) {
			switch r.Method {
			case "GET":
				io.WriteString(w, pages[r.FormValue("marker")])
			case "PUT":
				f.mu.Lock()
				sent = append(sent, r.Header.Get("Content-Range"))
				f.mu.Unlock()
			case "POST":
				if r.Header.Get("x-cas-sha256-tree-hash") != want.String() || r.Header.Get("x-cas-archive-size") != fmt.Sprint(len(data)) {
					t.Errorf("completed with %v", r.Header)
				}
				w.Header().Set("x-cas-archive-id", "A")
			}
		}
		_, err = f.client().Upload(t.Context(), "v", bytes.NewReader(data), int64(len(data)), UploadOptions{UploadID: "u"})
		return sent, err
	}
	sent, err := run(map[string]string{
		"":        list(`"2097152"`, part(0), part(1)),
		"2097152": list("5242880", part(2), part(4)),
		"5242880": list("null", part(5), part(7)),
	})
	if err != nil || len(sent) != 2 || !strings.Contains(strings.Join(sent, " "), "bytes 3145728-4194303/*") {
		t.Errorf("sent %v, %v", sent, err)
	}
	for name, bad := range map[string]string{
		"other bytes":   strings.Replace(part(5), `:"`, `:"`, 1)[:strings.LastIndex(part(5), ":")] + `:"` + strings.Repeat("00", 31) + `01"}`,
		"beyond":        `{"RangeInBytes":"8388608-9437183","SHA256TreeHash":""}`,
		"short":         `{"RangeInBytes":"3145728-3145730","SHA256TreeHash":""}`,
		"crossing":      `{"RangeInBytes":"3145729-4194304","SHA256TreeHash":""}`,
		"longer at end": `{"RangeInBytes":"7340032-8388607","SHA256TreeHash":""}`,
	} {
		sent, err := run(map[string]string{"": list(`"m"`, part(0)), "m": list("null", bad)})
		if !errors.Is(err, ErrMismatch) || len(sent) > 0 {
			t.Errorf("%s: %v, sent %v", name, err, sent)
		}
	}
	// A part without a hash proves nothing: it is sent again.
	sent, err = run(map[string]string{"": list("null", part(0), `{"RangeInBytes":"1048576-2097151","SHA256TreeHash":null}`)})
	if err != nil || len(sent) != 7 {
		t.Errorf("sent %v, %v", sent, err)
	}
	for _, doc := range []string{list(`"m"`), `{"Marker":null}`, `{"PartSizeInBytes":0,"Parts":[]}`, `{"PartSizeInBytes":5368709120,"Parts":[]}`} {
		if _, err := run(map[string]string{"": doc, "m": doc}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
