package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/jobs"
)

// recalled is what recall --json prints.
type recalled struct {
	Local, Pending, Failed, Bytes int64
	Failures                      []struct{ Path, Reason string }
}

// recallMount has cold files in vault v: names to sizes.
func recallMount(u *user, files map[string]int, flags ...string) (m *mounted, v string) {
	u.t.Helper()
	m = u.mount(append([]string{"--settle", "0"}, flags...)...)
	return m, m.coldFiles(files)
}

// coldFiles makes them, in vault v.
func (m *mounted) coldFiles(files map[string]int) (v string) {
	u := m.u
	u.t.Helper()
	v = filepath.Join(m.point, "v")
	for name, n := range files {
		p := filepath.Join(v, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			u.t.Fatal(err)
		}
		if err := os.WriteFile(p, bytes.Repeat([]byte(name[:1]), n), 0o644); err != nil {
			u.t.Fatal(err)
		}
	}
	u.ok("sync", v)
	u.evict("-r", v)
	return v
}

// fileState is what casfs stat says of a file.
func (u *user) fileState(path string) string {
	u.t.Helper()
	var st []struct{ State string }
	u.json(&st, "stat", path)
	return st[0].State
}

// TestRecall goes through the verb as its users do: what each run prints, and its exit code.
func TestRecall(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{
		"slow": 100, "soon": 100, "range": 3 << 20, "dir/c": 10, "dir/sub/d": 20, "with space": 5, "new\nline": 6, "listed": 7, "big": 9 << 20,
	}, "--cache-size", "8M", "--standard", "1h", "--expedited", "50ms", "--bulk", "50ms")
	at := func(name string) string { return filepath.Join(v, name) }
	list := func(name, text string) string {
		p := u.path(name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		out   string // of standard output, all of it
		err   string // of standard error, a part; "" for nothing at all
	}{
		{"not there yet", []string{at("slow")}, "", exitPending, "0 files local, 1 file on the way (100 B asked for); casfs status shows when\n", ""},
		{"the same again", []string{at("slow")}, "", exitPending, "0 files local, 1 file on the way (100 B asked for); casfs status shows when\n", ""},
		{"a tier, waited for", []string{"--tier", "expedited", "--wait", at("soon")}, "", exitOK, "1 file local\n", ""},
		{"what is local", []string{at("soon")}, "", exitOK, "1 file local\n", ""},
		{"some of it local", []string{at("soon"), at("slow")}, "", exitPending, "1 file local, 1 file on the way (100 B asked for); casfs status shows when\n", ""},
		{"a directory without -r", []string{at("dir")}, "", exitUsage, "", "add -r"},
		{"a directory", []string{"-r", "--tier", "bulk", "-w", at("dir")}, "", exitOK, "2 files local\n", ""},
		{"a list", []string{"-w", "--tier=bulk", "--from-file", list("lines", at("with space")+"\n\n"+at("listed"))}, "", exitOK, "2 files local\n", ""},
		{"names ended by NUL", []string{"-w", "--tier=bulk", "-0", "--from-file", "-"}, at("new\nline") + "\x00" + at("listed") + "\x00", exitOK, "2 files local\n", ""},
		{"an empty list", []string{"--from-file", "-"}, "", exitOK, "0 files local\n", ""},
		{"a list and a path", []string{"--from-file", "-", at("soon")}, at("listed") + "\n", exitOK, "2 files local\n", ""},
		{"a list that is not there", []string{"--from-file", u.path("nowhere")}, "", exitFailed, "", "no such file"},
		{"a range", []string{"-w", "--tier=expedited", "--range", "1M-2M", at("range")}, "", exitOK, "1 file local\n", ""},
		{"a range that is none", []string{"--range", "2-1", at("range")}, "", exitUsage, "", "ends before it begins"},
		{"no such tier", []string{"--tier", "warp", at("soon")}, "", exitUsage, "", "not one of"},
		{"-0 alone", []string{"-0", at("soon")}, "", exitUsage, "", "--from-file"},
		{"nothing", nil, "", exitUsage, "", "missing PATH"},
		{"cancel and wait", []string{"--cancel", "--wait", at("slow")}, "", exitUsage, "", "--cancel excludes"},
		{"one that does not exist", []string{at("nope")}, "", exitFailed, "", "nope: no such file or directory"},
		{"some that do not exist", []string{at("nope"), at("soon"), at("nor this")}, "", exitPartial, "1 file local\n", "failed: " + at("nope") + ": no such file or directory"},
		{"none that exists", []string{at("nope"), at("nor this")}, "", exitFailed, "0 files local\n", "failed: " + at("nor this") + ": no such file or directory"},
		{"outside of any mount", []string{u.home}, "", exitFailed, "", "not inside a casfs mount"},
		{"what cannot be had", []string{"-w", at("big")}, "", exitFailed, "0 files local\n", "do not fit in the cache"},
		{"some that cannot be had", []string{"-w", at("big"), at("soon")}, "", exitPartial, "1 file local\n", "do not fit in the cache"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := u.casfsIn(c.stdin, append([]string{"recall"}, c.args...)...)
			if r.code != c.code || r.out != c.out || (c.err == "") != (r.err == "") || !strings.Contains(r.err, c.err) {
				t.Errorf("want exit %d, %q and %q; got %v", c.code, c.out, c.err, r)
			}
		})
	}
	if got := u.fileState(at("range")); got != "partial" {
		t.Errorf("the file a range of which was recalled is %s", got)
	}
	if got := u.fileState(at("slow")); got != "recalling" {
		t.Errorf("the slow file is %s", got)
	}
	if r := u.casfs("evict", at("slow")); r.code != exitPartial || !strings.Contains(r.err, "slow: it is being recalled") {
		t.Errorf("evicting what is on its way: %v", r)
	}
	if err := syscall.Setxattr(at("slow"), "user.cas.evict", []byte("1"), 0); err != syscall.EBUSY {
		t.Errorf("user.cas.evict of what is on its way: %v, want EBUSY", err)
	}

	t.Run("JSON", func(t *testing.T) {
		r := u.casfs("recall", "--json", at("soon"), at("slow"), at("nope"))
		var got recalled
		if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != exitPartial || r.err != "" {
			t.Fatalf("%v: %v", err, r)
		}
		if got.Local != 1 || got.Pending != 1 || got.Failed != 1 || got.Bytes != 100 || len(got.Failures) != 1 || got.Failures[0].Path != at("nope") {
			t.Errorf("%+v", got)
		}
		r = u.casfs("recall", "--json", at("soon"))
		if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 0 || !strings.Contains(r.out, `"failures": []`) {
			t.Errorf("%v: %v", err, r)
		}
	})
	u.ok("umount", m.point)
}

// TestRecallInterrupted: Ctrl-C ends the command, with the code of what is not finished, and not the recall.
func TestRecallInterrupted(t *testing.T) {
	u := newUser(t)
	built.Require(t)
	s := u.serve(u.path("served"), "--standard", "50ms")
	m := u.mountServed(s, "--settle", "0")
	v := m.coldFiles(map[string]int{"one": 1000, "two": 2000})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		name := filepath.Join(v, map[syscall.Signal]string{syscall.SIGINT: "one", syscall.SIGTERM: "two"}[sig])
		s.cmd.Process.Signal(syscall.SIGSTOP) // nothing comes before the command is interrupted
		c := u.cmd("recall", "--wait", name)
		var out, errOut bytes.Buffer
		c.Stdout, c.Stderr = &out, &errOut
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the recall is asked for", func() bool { return u.fileState(name) == "recalling" })
		c.Process.Signal(sig)
		c.Wait()
		if code := c.ProcessState.ExitCode(); code != exitPending || out.String() != "" || !strings.Contains(errOut.String(), "goes on") {
			t.Errorf("%v: exit %d\nstdout: %s\nstderr: %s", sig, code, out.Bytes(), errOut.Bytes())
		}
		s.cmd.Process.Signal(syscall.SIGCONT)
		until(t, "the file is there although the command was interrupted", func() bool { return u.fileState(name) == "resident" })
	}
	u.ok("umount", m.point)
}

// TestRecallCancelled: --cancel takes what was not asked of the service yet out of the queue, however it was put there.
func TestRecallCancelled(t *testing.T) {
	u := newUser(t)
	files := map[string]int{}
	for i := range 12 {
		files[fmt.Sprintf("many/%d", i)] = 1 << 20
	}
	m, v := recallMount(u, files, "--standard", "1h", "--cache-size", "6M")
	many := filepath.Join(v, "many")
	status := func() (queued int64, asked int) {
		var st []struct {
			RecallsQueued int64 `json:"recalls_queued"`
			Retrievals    []struct{ State string }
		}
		u.json(&st, "status", v)
		for _, r := range st[0].Retrievals {
			if r.State == "asked" {
				asked++
			}
		}
		return st[0].RecallsQueued, asked
	}
	if r := u.casfs("recall", "-r", many); r.code != exitPending || !strings.Contains(r.out, "12 files on the way") {
		t.Fatal(r)
	}
	until(t, "the first wave is asked for", func() bool {
		queued, asked := status()
		return asked > 0 && queued > 0 && queued+int64(asked) == 12
	})
	r := u.casfs("recall", "--cancel", "-r", v)
	queued, asked := status()
	if r.code != 0 || queued != 0 || asked == 0 || r.out != fmt.Sprintf("cancelled; asked of the service already: %d files\n", asked) {
		t.Errorf("%d queued, %d asked; %v", queued, asked, r)
	}
	if r := u.casfs("recall", "--cancel", "-r", v, filepath.Join(v, "nope")); r.code != exitPartial {
		t.Error(r)
	}
	u.ok("umount", m.point)
}

// TestSomePathsAreWrong: a path that cannot be found is told, and keeps no verb from seeing to the others.
func TestSomePathsAreWrong(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	v := filepath.Join(m.point, "v")
	if err := os.Mkdir(v, 0o755); err != nil {
		t.Fatal(err)
	}
	good, nope, outside := filepath.Join(v, "good"), filepath.Join(v, "nope"), u.path("outside")
	for _, name := range []string{good, outside} {
		if err := os.WriteFile(name, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ verb, state string }{{"sync", "resident"}, {"evict", "cold"}, {"stat", "cold"}} {
		r := u.closed(c.verb, nope, good, outside)
		if r.code != exitPartial || !strings.Contains(r.err, nope+": no such file") || !strings.Contains(r.err, outside+": is not inside a casfs mount") {
			t.Errorf("want exit 3 and both named: %v", r)
		}
		if got := u.fileState(good); got != c.state {
			t.Errorf("after %s of a good file and a bad one the good one is %s", c.verb, got)
		}
		if c.verb == "stat" && !strings.HasPrefix(r.out, good+"\n") {
			t.Errorf("%v", r)
		}
		r = u.casfs(c.verb, "--json", good, nope)
		if r.code != exitPartial || !json.Valid([]byte(r.out)) || !strings.Contains(r.out+r.err, nope) {
			t.Errorf("want exit 3 and JSON: %v", r)
		}
		if r := u.casfs(c.verb, nope, outside); r.code != exitFailed || strings.Count(r.err, "\n") != 2 {
			t.Errorf("want exit 1 and both named: %v", r)
		}
		if r := u.casfs(c.verb, nope); r.code != exitFailed || !strings.HasSuffix(r.err, "casfs "+c.verb+": "+nope+": no such file or directory\n") {
			t.Errorf("%v", r)
		}
	}
	u.ok("umount", m.point)
}

// TestRecallWithoutRoom: a recall that others leave no room for is queued, and says what it waits for.
func TestRecallWithoutRoom(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{"f": 1000})
	f := filepath.Join(v, "f")
	u.ok("umount", m.point)
	// Others have filled the disk: as much is to be kept free as is, and half of what they have.
	var fs syscall.Statfs_t
	if err := syscall.Statfs(u.path("state"), &fs); err != nil {
		t.Fatal(err)
	}
	m.start("--min-free", fmt.Sprint((fs.Bavail+(fs.Blocks-fs.Bavail)/2)*uint64(fs.Bsize)))
	if r := u.casfs("recall", f); r.code != exitPending || !strings.Contains(r.err, "not asked of the service yet, for it waits for room for 1000 bytes") {
		t.Errorf("%v", r)
	}
	var got struct {
		Pending int64
		Waits   string
	}
	r := u.casfs("recall", "--json", f)
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != exitPending || got.Pending != 1 || !strings.HasPrefix(got.Waits, "room for ") || r.err != "" {
		t.Errorf("%v: %v", err, r)
	}
	if out := u.ok("status", v); !strings.Contains(out, "recalls wait for room for 1000 bytes") {
		t.Errorf("status says\n%s", out)
	}
	c := u.cmd("recall", "--wait", f)
	said, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(said)
	if line, _ := in.ReadString('\n'); !strings.HasPrefix(line, "casfs: waiting for room for 1000 bytes") {
		t.Errorf("it says %q", line)
	}
	c.Process.Signal(os.Interrupt)
	if line, _ := in.ReadString('\n'); !strings.Contains(line, "interrupted") {
		t.Errorf("it says %q", line)
	}
	if c.Wait(); c.ProcessState.ExitCode() != exitPending {
		t.Errorf("%v", c.ProcessState)
	}
	u.ok("recall", "--cancel", f)
	u.ok("umount", m.point)
	m.start()
	u.ok("recall", "--wait", f)
	u.ok("umount", m.point)
}

// TestRecallCancelInterrupted: what was interrupted has not cancelled anything for certain.
func TestRecallCancelInterrupted(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{"f": 1000})
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut}
	groups, err := a.resolve(t.Context(), []string{v})
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := a.recall(ctx, groups, nil, jobs.RecallRequest{Cancel: true, Recursive: true}); !errors.Is(err, context.Canceled) || out.Len() > 0 {
		t.Errorf("%v\n%s%s", err, out.Bytes(), errOut.Bytes())
	}
	groups[0].client.Close()
	u.ok("umount", m.point)
}
