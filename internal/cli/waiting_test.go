package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cat reads a file with a program of that name, found where it can be run, and returns its exit code and what it said. The program is
// started from a shell that is outside of the mount.
func (u *user) cat(program, file string) (code int, out, errOut string) {
	u.t.Helper()
	c := exec.CommandContext(u.t.Context(), program, file)
	c.Env, c.Dir = append(u.env, "LC_ALL=C"), u.home
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	if err := c.Run(); c.ProcessState == nil {
		u.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), o.String(), e.String()
}

// TestReadsThatMayNotRecall: what a program gets that waited too long, met the guard, or is on the list of those that may not; where it
// says why; and what lifts it.
func TestReadsThatMayNotRecall(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{"one": 100, "two": 200, "three": 300},
		"--standard", "1h", "--recall-wait", "1s", "--recall-guard-files", "1", "--recall-deny-comm", "indexer*")
	at := func(name string) string { return filepath.Join(v, name) }
	type status struct {
		Retrievals []struct{ Path, State string }
		Waiters    []any
		Guard      struct {
			Files      int64
			FilesLimit int64 `json:"files_limit"`
		}
	}
	now := func() status {
		var st []status
		u.json(&st, "status", v)
		return st[0]
	}

	// It waited for as long as it may: the recall goes on.
	began := time.Now()
	if code, _, errOut := u.cat("cat", at("one")); code == 0 || !strings.Contains(errOut, "Connection timed out") || time.Since(began) < time.Second {
		t.Errorf("after %v: exit %d, %s", time.Since(began), code, errOut)
	}
	until(t, "the recall is asked for", func() bool {
		st := now()
		return len(st.Retrievals) == 1 && st.Retrievals[0].State == "asked"
	})
	if st := now(); len(st.Retrievals) != 1 || len(st.Waiters) != 0 || st.Guard.Files != 1 || st.Guard.FilesLimit != 1 {
		t.Errorf("after a wait that was too long: %+v", st)
	}
	// Another file meets the guard.
	if code, _, errOut := u.cat("cat", at("two")); code == 0 || !strings.Contains(errOut, "Object is remote") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if out := u.ok("stat", at("two")); !strings.Contains(out, "1 recalls outstanding, the limit is 1") || !strings.Contains(out, "casfs allow") {
		t.Errorf("stat does not say why:\n%s", out)
	}
	// A program that may not recall at all, with an allowance or without.
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	indexer := u.path("indexer-7")
	if err := os.WriteFile(indexer, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if out := u.ok("allow", "--files", "1", "--mount", m.point); !strings.Contains(out, "may recall more: now 1 of 2 files, ") {
		t.Error(out)
	}
	if code, _, errOut := u.cat(indexer, at("three")); code == 0 || !strings.Contains(errOut, "Object is remote") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if out := u.ok("stat", at("three")); !strings.Contains(out, "programs named indexer-7 may not recall") {
		t.Errorf("stat does not say why:\n%s", out)
	}
	// With the allowance one more.
	if code, _, errOut := u.cat("cat", at("two")); code == 0 || !strings.Contains(errOut, "Connection timed out") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if code, _, errOut := u.cat("cat", at("three")); code == 0 || !strings.Contains(errOut, "Object is remote") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if st := now(); len(st.Retrievals) != 2 || st.Guard.Files != 2 || st.Guard.FilesLimit != 2 {
		t.Errorf("with an allowance: %+v", st)
	}
	logs, _ := filepath.Glob(u.path("state/*/log"))
	text, err := os.ReadFile(logs[0])
	if err != nil || !bytes.Contains(text, []byte("a read was refused to recall")) {
		t.Errorf("the log does not tell: %v\n%s", err, tail(text, 2000))
	}
	u.ok("umount", m.point)
}

// TestWaitingProgramIsShownAndEnds: status names who waits, for what and since when; the mount can be ended all the same, and then nobody is stuck.
func TestWaitingProgramIsShownAndEnds(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{"cold": 5000}, "--standard", "1h")
	c := exec.Command("cat", filepath.Join(v, "cold"))
	c.Env, c.Dir = append(u.env, "LC_ALL=C"), u.home
	var errOut bytes.Buffer
	c.Stderr = &errOut
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	var text string
	until(t, "status shows the program", func() bool {
		text = u.ok("status", v)
		return strings.Contains(text, "waiting programs")
	})
	if !strings.Contains(text, fmt.Sprintf("cat (%d)", c.Process.Pid)) || !strings.Contains(text, "v/cold  for ") || !strings.Contains(text, "1 program waiting") {
		t.Errorf("status says\n%s", text)
	}
	_, waits, _ := strings.Cut(text, "waiting programs")
	if !strings.Contains(waits, "expected in 59m") && !strings.Contains(waits, "expected in 1h00m") {
		t.Errorf("status does not say when it comes:\n%s", waits)
	}
	// SIGTERM of the daemon, as at shutdown.
	pid := m.pid()
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil || !strings.Contains(errOut.String(), "Input/output error") {
		t.Errorf("the program ended with %v, %s", err, errOut.Bytes())
	}
	until(t, "the mount has gone", func() bool { return exec.Command("mountpoint", "-q", m.point).Run() != nil })
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	until(t, "the daemon has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	// The recall was recorded and goes on: no second job.
	m.start()
	var st []struct{ Retrievals []struct{ State string } }
	u.json(&st, "status", v)
	if len(st[0].Retrievals) != 1 {
		t.Errorf("after the restart: %+v", st)
	}
	u.ok("umount", m.point)
}
