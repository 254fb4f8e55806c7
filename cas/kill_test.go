package cas_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"go.uber.org/goleak"
)

// The test binary doubles as the process that gets killed.
func TestMain(m *testing.M) {
	if os.Getenv("CAS_TEST_CHILD") != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child does one transfer; arguments: what, endpoint, id, key, file, upload or job id.
func child() error {
	a := strings.Split(os.Getenv("CAS_TEST_CHILD"), "\n")
	c, err := cas.New(cas.Options{Endpoint: a[1], Credentials: cas.Credentials{SecretID: a[2], SecretKey: a[3]}})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if a[0] == "upload" {
		_, err = c.UploadFile(ctx, "v", a[4], cas.UploadOptions{PartSize: mib, Parallel: 2, UploadID: a[5]})
	} else {
		_, err = c.FetchJobFile(ctx, "v", a[5], a[4], cas.FetchOptions{PartSize: mib, Parallel: 2})
	}
	return err
}

// counter serves a store and counts the requests of one kind. When the left-th comes, it
// kills the child instead of answering.
type counter struct {
	http.Handler
	match func(*http.Request) bool
	left  int64
	seen  atomic.Int64
	child chan *os.Process // gets the child when it runs
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.match(r) && c.seen.Add(1) == c.left {
		(<-c.child).Kill()
		panic(http.ErrAbortHandler)
	}
	c.Handler.ServeHTTP(w, r)
}

// TestKill9 kills a process in the middle of a transfer, again and again: the next one
// finishes without sending or fetching again what was acknowledged.
func TestKill9(t *testing.T) {
	store, err := local.Open(local.Options{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	isPart := func(r *http.Request) bool {
		return r.Method == "PUT" && strings.Contains(r.URL.Path, "/multipart-uploads/")
	}
	isOutput := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/output") }
	parted := &counter{Handler: store, match: isPart}
	output := &counter{Handler: parted, match: isOutput}
	srv := httptest.NewServer(output)
	defer srv.Close()
	cr := store.Credentials()
	c, err := cas.New(cas.Options{Endpoint: srv.URL, Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	if _, err := c.CreateVault(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	// run starts a child that is killed at the n-th matching request. It has a server to
	// itself: what is still served when it is dead is not taken for another's.
	run := func(n int64, match func(*http.Request) bool, args ...string) {
		t.Helper()
		k := &counter{Handler: store, match: match, left: n, child: make(chan *os.Process, 1)}
		srv := httptest.NewServer(k)
		defer srv.Close()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CAS_TEST_CHILD="+strings.Join(append([]string{args[0], srv.URL, cr.SecretID, cr.SecretKey}, args[1:]...), "\n"))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		k.child <- cmd.Process
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child was not killed: %v\n%s", err, &out)
		}
	}

	const parts = 16
	data := random(parts*mib - 5)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, data, 0o600); err != nil {
		t.Fatal(err)
	}
	upload := ""
	have := 0
	for range 3 {
		run(4, isPart, "upload", src, upload)
		for u, err := range c.Uploads(ctx, "v") {
			if err != nil || upload != "" && u.UploadID != upload {
				t.Fatal(u, err)
			}
			upload = u.UploadID
		}
		was := have
		have = 0
		for _, err := range c.Parts(ctx, "v", upload) {
			if err != nil {
				t.Fatal(err)
			}
			have++
		}
		// Of four that came, the last was not answered and the one beside it may be lost.
		if have < was+2 || have > was+4 {
			t.Errorf("%d parts after %d", have, was)
		}
	}
	res, err := c.UploadFile(ctx, "v", src, cas.UploadOptions{UploadID: upload})
	if err != nil {
		t.Fatal(err)
	}
	if sent := int(parted.seen.Load()); sent != parts-have {
		t.Errorf("%d parts were sent to complete %d of %d", sent, have, parts)
	}

	job, err := c.InitiateJob(ctx, "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: res.ArchiveID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitJob(ctx, "v", job, 1); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "dst")
	for range 3 {
		run(5, isOutput, "fetch", dst, job)
		if _, err := os.Stat(dst); err == nil {
			t.Fatal("an incomplete file has its name")
		}
	}
	got, err := c.FetchJobFile(ctx, "v", job, dst, cas.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Each child got four ranges, of which the one beside the fifth may not have been noted.
	if noted := int(got.Skipped / mib); noted < 9 || noted+int(output.seen.Load()) != parts {
		t.Errorf("%d ranges were fetched to complete %d of %d", output.seen.Load(), noted, parts)
	}
	if b, err := os.ReadFile(dst); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
