package crash

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/internal/control"
)

// program is the real binary with crash points, built once.
var program string

func TestMain(m *testing.M) { os.Exit(built.Main(m, &program, "-tags", "crashpoints")) }

// points are the names of the crash points, from the package comment that explains them.
func points(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../../jobs/doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "# Crash points")
	if !ok {
		t.Fatal("jobs/doc.go has no crash points")
	}
	var list []string
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z]+(?:\.[a-z]+)?) `).FindAllStringSubmatch(section, -1) {
		list = append(list, m[1])
	}
	if len(list) < 25 {
		t.Fatalf("points: %q", list)
	}
	return list
}

// machine is a home with a store, a state directory and a mount point, where casfs lives and dies.
type machine struct {
	t     *testing.T
	home  string
	mnt   string
	env   []string
	log   *os.File
	flags []string
	serve *exec.Cmd // the store in a process of its own, which is not killed; nil: in the mount's
	last  *daemon
}

// daemon is one life of casfs mount.
type daemon struct {
	cmd     *exec.Cmd
	dead    chan struct{} // closed when the process has ended
	control *control.Client
}

// newMachine prepares everything but the mount. With served the store outlives
// the mount's deaths: answers get lost that the service has given.
func newMachine(t *testing.T, served bool, flags ...string) *machine {
	t.Helper()
	m := &machine{t: t, home: t.TempDir(), flags: flags}
	m.mnt = m.path("mnt")
	m.env = built.Env(m.home, "LC_ALL=C.UTF-8")
	if err := os.Mkdir(m.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.log, err = os.OpenFile(m.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clean)
	if served {
		m.serve = m.command("serve", "--dir", m.path("store"), "--standard", "20ms", "--inventory", "20ms")
		if _, err := m.begin(m.serve, "listening on "); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.home, name) }

func (m *machine) command(args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env, c.Dir, c.Stderr = m.env, m.home, m.log
	return c
}

// begin starts a process and waits for its first line of output. The line is "" when it ended before.
func (m *machine) begin(c *exec.Cmd, want string) (line string, err error) {
	out, err := c.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := c.Start(); err != nil {
		return "", err
	}
	r := bufio.NewReader(out)
	line, err = r.ReadString('\n')
	if err == nil && !strings.HasPrefix(line, want) {
		return line, fmt.Errorf("%s printed %q", c.Args[1], line)
	}
	if err == nil {
		go io.Copy(io.Discard, r)
	}
	return line, err
}

// launch starts casfs mount; nil when it died before it was ready. early, if not nil, is called with the
// process as soon as there is one.
func (m *machine) launch(point string, early func(*os.Process), flags ...string) *daemon {
	m.t.Helper()
	args := append(append([]string{"mount", "--force", "--local", m.path("store")}, m.flags...), flags...)
	c := m.command(append(args, m.mnt)...)
	if point != "" {
		c.Env = append(c.Env[:len(c.Env):len(c.Env)], "CASFS_CRASH_AT="+point)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	if early != nil {
		early(c.Process)
	}
	d := &daemon{cmd: c, dead: make(chan struct{})}
	m.last = d
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	go func() {
		io.Copy(io.Discard, r)
		c.Wait()
		close(d.dead)
	}()
	if err != nil {
		<-d.dead
		if !d.killed() {
			m.t.Fatalf("casfs mount ended with %v", c.ProcessState)
		}
		return nil
	}
	if !strings.HasPrefix(line, "mounted ") {
		m.t.Fatalf("casfs mount printed %q", line)
	}
	socks, _ := filepath.Glob(m.path("state/*/control"))
	if len(socks) != 1 {
		m.t.Fatalf("control sockets: %q", socks)
	}
	if d.control, _, err = control.Dial(context.Background(), socks[0]); err != nil {
		if d.awaitDeath(5 * time.Second) {
			return nil
		}
		m.t.Fatal(err)
	}
	return d
}

// killed reports how a dead daemon died.
func (d *daemon) killed() bool {
	ws, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// awaitDeath reports whether the daemon is dead, or dies within d.
func (d *daemon) awaitDeath(within time.Duration) bool {
	select {
	case <-d.dead:
		return true
	case <-time.After(within):
		return false
	}
}

func (d *daemon) kill() {
	d.cmd.Process.Kill()
	<-d.dead
}

// casfs runs a verb, which must succeed.
func (m *machine) casfs(args ...string) string {
	m.t.Helper()
	out, err := m.verb(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// evict drops every local copy below dir. The release of what was closed comes a moment after close(2).
func (m *machine) evict(dir string) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, err := m.verb("evict", "-r", dir)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "a program has it open") || time.Now().After(end) {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) verb(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, program, args...)
	var out, errOut bytes.Buffer
	c.Env, c.Dir, c.Stdout, c.Stderr = m.env, m.home, &out, &errOut
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("casfs %s: %w\n%s\n%s", strings.Join(args, " "), err, out.Bytes(), errOut.Bytes())
	}
	return out.String(), nil
}

// clean ends whatever is left, so that TempDir's removal never walks into the mount.
func (m *machine) clean() {
	if m.last != nil {
		m.last.kill()
	}
	if m.serve != nil && m.serve.Process != nil {
		m.serve.Process.Kill()
		m.serve.Wait()
	}
	for unix.Unmount(m.mnt, unix.MNT_DETACH) == nil {
	}
	if os.Geteuid() != 0 {
		exec.Command("fusermount3", "-uz", m.mnt).Run()
	}
	m.log.Close()
	log, err := os.ReadFile(m.path("log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Error(err)
	}
	for _, bad := range []string{"DATA RACE", "bug: ", "panic: ", "fatal error: "} {
		if i := bytes.Index(log, []byte(bad)); i >= 0 {
			m.t.Errorf("the log says:\n%s", log[i:min(len(log), i+4000)])
		}
	}
	if m.t.Failed() {
		m.t.Logf("log of the mount:\n%s", log[max(0, len(log)-20000):])
	}
}
