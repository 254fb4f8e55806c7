package cli

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// big is the size of the file that service tests send and fetch: small
// enough for every run, or 1 GiB with CASFS_TEST_BIG (make test-big).
func big() int64 {
	if os.Getenv("CASFS_TEST_BIG") != "" {
		return 1 << 30
	}
	return 130 << 20
}

func TestServiceVerbs(t *testing.T) {
	u := newUser(t)
	s := u.serve(u.path("store"), "--standard", "10ms", "--inventory", "10ms")
	cfg := s.config()
	for _, want := range []string{"created photos\n", "photos exists already\n"} {
		if out := u.ok("vault", "create", "cas://photos", cfg); out != want {
			t.Errorf("vault create: %q, want %q", out, want)
		}
	}
	var vaults struct{ Vaults []vaultView }
	u.json(&vaults, "vault", "list", cfg)
	if len(vaults.Vaults) != 1 || vaults.Vaults[0].Name != "photos" {
		t.Fatalf("vault list: %+v", vaults)
	}
	file := u.randomFile("照片 1.tar", big(), 1)
	var up struct {
		ArchiveID string `json:"archive_id"`
		UploadID  string `json:"upload_id"`
		TreeHash  string `json:"tree_hash"`
		Size      int64
	}
	u.json(&up, "archive", "upload", "cas://photos", file, "--desc", "Fotos, 照片", cfg)
	if up.Size != big() || up.UploadID == "" || len(up.ArchiveID) < 20 {
		t.Errorf("archive upload: %+v", up)
	}
	var hash struct {
		TreeHash string `json:"tree_hash"`
	}
	u.json(&hash, "treehash", file)
	if hash.TreeHash != up.TreeHash {
		t.Errorf("treehash: got %s, the archive has %s", hash.TreeHash, up.TreeHash)
	}

	var job struct {
		JobID string `json:"job_id"`
	}
	u.json(&job, "job", "start", "photos", up.ArchiveID, "--desc", "for tests", cfg)
	out := u.path("back")
	u.ok("job", "fetch", "photos", job.JobID, out, "--wait", cfg)
	same(t, out, file)
	if r := u.casfs("job", "fetch", "photos", job.JobID, out, cfg); r.code != 1 || !strings.Contains(r.err, "-f") {
		t.Errorf("an existing file must be kept without -f:\n%v", r)
	}
	// A download of the whole that is going on, or waits to be resumed, is not touched by one of a part.
	whole := []byte("of the whole")
	if err := os.WriteFile(out+".casfs-part", whole, 0o600); err != nil {
		t.Fatal(err)
	}
	u.ok("job", "fetch", "photos", job.JobID, out, "-f", "--range", "3M-5M", cfg)
	if got, err := os.ReadFile(out + ".casfs-part"); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("a download of the whole was disturbed: %q, %v", got, err)
	}
	if left, _ := filepath.Glob(out + ".*"); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if st, err := os.Stat(out); err != nil || st.Size() != 2<<20 {
		t.Errorf("a range of 2 MiB: %v, %v", st, err)
	}
	if got, want := u.ok("job", "fetch", "photos", job.JobID, "-", "--start", "1000", "--size", "10", cfg), readAt(t, file, 1000, 10); got != want {
		t.Errorf("10 bytes to standard output: got %q, want %q", got, want)
	}
	var shown jobView
	u.json(&shown, "job", "show", "photos", job.JobID, cfg)
	if shown.Status != "Succeeded" || shown.ArchiveID != up.ArchiveID || *shown.ArchiveSize != big() || shown.Description != "for tests" || shown.Expires == nil {
		t.Errorf("job show: %+v", shown)
	}

	u.json(&job, "job", "start", "photos", cfg)
	list := u.ok("job", "archives", "photos", job.JobID, "--wait", cfg)
	if !strings.Contains(list, up.ArchiveID) || !strings.Contains(list, "Fotos, 照片") {
		t.Errorf("job archives: %s", list)
	}
	var jobs struct{ Jobs []jobView }
	u.json(&jobs, "job", "list", "photos", "--completed", cfg)
	if len(jobs.Jobs) != 2 {
		t.Errorf("job list: %+v", jobs)
	}

	if r := u.casfs("vault", "delete", "photos", cfg); r.code != 1 || !strings.Contains(r.err, "BadRequest") || !strings.Contains(r.err, "request ") || !strings.Contains(r.err, "casfs archive delete") {
		t.Errorf("deleting a vault with archives must say code, request and what to do:\n%v", r)
	}
	u.ok("archive", "delete", "photos", up.ArchiveID, cfg)
	u.ok("vault", "delete", "photos", cfg)
	if code := s.kill(syscall.SIGTERM); code != 0 {
		t.Errorf("casfs serve after SIGTERM: exit %d\n%s", code, s.log.String())
	}
}

func readAt(t *testing.T, name string, off int64, n int) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Multipart uploads by hand, as cascmd's scripts do them.
func TestUploadByHand(t *testing.T) {
	u := newUser(t)
	cfg := u.serve(u.path("store")).config()
	u.ok("vault", "create", "v", cfg)
	file := u.randomFile("f", 5<<20+17, 2)
	id := strings.TrimSpace(u.ok("upload", "start", "v", "4M", "--desc", "by hand", cfg))
	u.ok("upload", "part", "v", id, file, "0", "4M", cfg)
	u.ok("upload", "part", "v", id, file, "4M", strconv.Itoa(5<<20+16), cfg)
	var up struct{ Upload uploadView }
	u.json(&up, "upload", "show", "v", id, cfg)
	if len(up.Upload.Parts) != 2 || up.Upload.Parts[1].First != 4<<20 || *up.Upload.Bytes != 5<<20+17 || up.Upload.Description != "by hand" {
		t.Errorf("upload show: %+v", up)
	}
	if out := u.ok("upload", "list", "v", cfg); !strings.Contains(out, id) || !strings.Contains(out, "by hand") {
		t.Errorf("upload list: %s", out)
	}
	var hash struct {
		TreeHash string `json:"tree_hash"`
	}
	u.json(&hash, "treehash", file)
	if out := u.ok("upload", "complete", "v", id, strconv.Itoa(5<<20+17), strings.ToUpper(hash.TreeHash), cfg); len(strings.TrimSpace(out)) < 20 {
		t.Errorf("upload complete: %q", out)
	}
	id = strings.TrimSpace(u.ok("upload", "start", "v", "4M", cfg))
	if out := u.ok("upload", "abort", "v", id, cfg); out != "aborted "+id+"\n" {
		t.Errorf("upload abort: %q", out)
	}
	if r := u.casfs("upload", "abort", "v", id, cfg); r.code != 0 || r.out != "" || !strings.Contains(r.err, "there is no upload "+id) {
		t.Errorf("upload abort of what is gone: %v", r)
	}
	var aborted struct{ Aborted, Absent []string }
	if u.json(&aborted, "upload", "abort", "v", id, cfg); aborted.Aborted == nil || len(aborted.Aborted) != 0 || len(aborted.Absent) != 1 {
		t.Errorf("upload abort of what is gone: %+v", aborted)
	}
	if out := u.ok("upload", "list", "v", cfg); !strings.Contains(out, "no uploads") {
		t.Errorf("upload list after abort: %s", out)
	}
}

func TestPolicyAndNotification(t *testing.T) {
	u := newUser(t)
	cfg := u.serve(u.path("store")).config()
	u.ok("vault", "create", "v", cfg)
	policy := "{\n \"version\": \"2.0\",\n \"statement\": []\n}\n"
	if r := u.casfsIn(policy, "vault", "policy", "set", "v", "-", cfg); r.code != 0 {
		t.Fatal(r)
	}
	if got := u.ok("vault", "policy", "get", "v", cfg); strings.TrimSpace(got) != `{"version":"2.0","statement":[]}` {
		t.Errorf("policy get: %q", got)
	}
	u.ok("vault", "policy", "delete", "v", cfg)
	if r := u.casfsIn("not JSON", "vault", "policy", "set", "v", "-", cfg); r.code != 2 {
		t.Errorf("a policy that is no JSON:\n%v", r)
	}
	u.ok("vault", "notification", "set", "v", "http://127.0.0.1:9/x", cfg)
	if got := u.ok("vault", "notification", "get", "v", cfg); !strings.Contains(got, "http://127.0.0.1:9/x") || !strings.Contains(got, "ArchiveRetrievalCompleted") {
		t.Errorf("notification get: %q", got)
	}
	u.ok("vault", "notification", "delete", "v", cfg)
}

// Either side is killed in the middle of an upload and of a fetch; what was
// acknowledged is not sent again.
func TestResumeAfterKill(t *testing.T) {
	for _, victim := range []string{"client", "server"} {
		t.Run(victim, func(t *testing.T) {
			u := newUser(t)
			s := u.serve(u.path("store"), "--standard", "0s")
			cfg := s.config()
			u.ok("vault", "create", "v", cfg)
			const n = 112 << 20
			file := u.randomFile("f", n, 3)

			c := u.cmd("archive", "upload", "v", file, "-p", "1M", "--bwlimit", "16M", cfg)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			var id string
			until(t, "some parts", func() bool {
				var ups struct{ Uploads []uploadView }
				u.json(&ups, "upload", "list", "v", cfg)
				if len(ups.Uploads) == 0 {
					return false
				}
				id = ups.Uploads[0].ID
				var up struct{ Upload uploadView }
				u.json(&up, "upload", "show", "v", id, cfg)
				return *up.Upload.Bytes >= 8<<20
			})
			killSide(t, victim, c, s)
			var up struct {
				ArchiveID string `json:"archive_id"`
				Skipped   int64
			}
			u.json(&up, "upload", "resume", "v", id, file, cfg)
			if up.Skipped < 8<<20 {
				t.Errorf("resume sent all but %d bytes again; at least 8 MiB had been acknowledged", up.Skipped)
			}

			var job struct {
				JobID string `json:"job_id"`
			}
			u.json(&job, "job", "start", "v", up.ArchiveID, cfg)
			u.ok("job", "show", "v", job.JobID, "--wait", cfg)
			out := u.path("out")
			c = u.cmd("job", "fetch", "v", job.JobID, out, "--bwlimit", "32M", "--parallel", "1", cfg)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "a verified range on disk", func() bool {
				st, err := os.Stat(out + ".casfs-part.state")
				if err != nil {
					return false
				}
				b, _ := os.ReadFile(out + ".casfs-part.state")
				return st.Size() > 0 && strings.Count(string(b), "\n") >= 2
			})
			killSide(t, victim, c, s)
			if _, err := os.Stat(out); err == nil {
				t.Error("an incomplete file got its name")
			}
			var got struct {
				Skipped  int64
				Verified bool
			}
			u.json(&got, "job", "fetch", "v", job.JobID, out, cfg)
			if got.Skipped < 32<<20 || !got.Verified {
				t.Errorf("job fetch after the kill: %+v; at least one range of 32 MiB was there", got)
			}
			same(t, out, file)
		})
	}
}

// killSide kills the client, or the server, which is then started again; a client whose server died must fail or finish, not hang.
func killSide(t *testing.T, victim string, client *exec.Cmd, s *server) {
	t.Helper()
	if victim == "client" {
		client.Process.Kill()
		client.Wait()
		return
	}
	s.kill(syscall.SIGKILL)
	client.Process.Signal(syscall.SIGINT) // the user sees the errors and gives up
	client.Wait()
	s.restart()
}

// The embedded store without a server: processes hand it to one another.
func TestLocalShared(t *testing.T) {
	u := newUser(t)
	dir := u.path("store")
	if r := u.casfs("vault", "list", "--local", dir); r.code != 1 || !strings.Contains(r.err, "there is no store") {
		t.Errorf("a store must not come into being by listing it:\n%v", r)
	}
	u.ok("vault", "create", "v0", "--local", dir)
	done := make(chan result)
	for i := range 5 {
		go func() { done <- u.casfs("vault", "create", "v"+strconv.Itoa(i+1), "--local", dir) }()
	}
	for range 5 {
		if r := <-done; r.code != 0 {
			t.Error(r)
		}
	}
	var vaults struct{ Vaults []vaultView }
	u.json(&vaults, "vault", "list", "--local", dir)
	if len(vaults.Vaults) != 6 {
		t.Errorf("vaults: %+v", vaults)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ownSocket+"*")); len(left) > 0 {
		t.Errorf("sockets left behind: %q", left)
	}

	// A server holds it: verbs go through its socket; and a second server is refused.
	s := u.serve(dir)
	u.ok("vault", "create", "v6", "--local", dir)
	if r := u.casfs("serve", "--dir", dir); r.code != 1 || !strings.Contains(r.err, strconv.Itoa(s.cmd.Process.Pid)) {
		t.Errorf("a second server must name the first one's pid:\n%v", r)
	}
	// Killed without warning, it leaves a socket that nobody answers.
	s.kill(syscall.SIGKILL)
	u.ok("vault", "delete", "v6", "--local", dir)
}

// TestJobsWithoutOutput: what goes to COS or comes from there leaves nothing to fetch.
func TestJobsWithoutOutput(t *testing.T) {
	u := newUser(t)
	store := []string{"--local", u.path("store"), "--standard", "0", "--inventory", "0"}
	run := func(args ...string) string { t.Helper(); return u.ok(append(args, store...)...) }
	run("vault", "create", "v")
	var up struct {
		ArchiveID string `json:"archive_id"`
	}
	u.json(&up, append([]string{"archive", "upload", "v", u.randomFile("f", 1000, 1)}, store...)...)
	for _, out := range []string{
		run("job", "start", "v", up.ArchiveID, "--to-cos", "b.cos.x/dir/o", "--wait"),
		run("job", "start", "v", "--from-cos", "b.cos.x/dir/o", "--wait"),
	} {
		if !strings.Contains(out, "Succeeded") || !strings.Contains(out, "b.cos.x/dir/o") || strings.Contains(out, "output") {
			t.Errorf("job show:\n%s", out)
		}
	}
	if list := run("job", "list", "v"); strings.Contains(list, "unknown") || strings.Count(list, "\n") != 3 {
		t.Errorf("job list:\n%s", list)
	}
	id := strings.TrimSpace(run("job", "start", "v", "--format", "CSV"))
	if out := run("job", "archives", "v", id, "--wait"); !strings.HasSuffix(out, "\n2 archives\n") {
		t.Errorf("job archives of CSV:\n%s", out)
	}
}

// TestInterrupted: Ctrl-C ends an upload in order and tells how it goes on.
func TestInterrupted(t *testing.T) {
	u := newUser(t)
	cfg := u.serve(u.path("store")).config()
	u.ok("vault", "create", "v", cfg)
	file := u.randomFile("f", 3<<20, 4)
	c := u.cmd("archive", "upload", "v", file, "-p", "1M", "--bwlimit", "64K", cfg)
	out, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	line, err := in.ReadString('\n')
	id, ok := strings.CutPrefix(strings.TrimSpace(line), "upload ")
	if err != nil || !ok {
		t.Fatalf("%q, %v; want the upload's ID", line, err)
	}
	c.Process.Signal(os.Interrupt)
	rest, _ := io.ReadAll(in)
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitFailed || !strings.HasPrefix(string(rest), "casfs: interrupted\n") || !strings.Contains(string(rest), "casfs upload resume v "+id) {
		t.Errorf("exit %d: %s", code, rest)
	}
	r := u.casfs("upload", "resume", "v", id, file, cfg)
	if archive, ok := strings.CutSuffix(r.out, "\n"); !ok || r.code != 0 || len(archive) < 20 || !isID(archive) || !strings.Contains(r.err, "tree hash ") {
		t.Errorf("want the archive's ID alone on standard output: %v", r)
	}
}
