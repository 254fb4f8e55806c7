package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/internal/noise"
)

// mounted is a mount that a test made with --daemon.
type mounted struct {
	u     *user
	point string
	flags []string
}

// mount mounts the store in the user's home and cleans up whatever is left of it at the end.
func (u *user) mount(flags ...string) *mounted {
	u.t.Helper()
	built.Require(u.t)
	m := &mounted{u: u, point: u.path("mnt"), flags: append([]string{"--local", u.path("store"),
		"--standard", "50ms", "--bulk", "50ms", "--expedited", "50ms", "--inventory", "50ms"}, flags...)}
	if err := os.Mkdir(m.point, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		u.t.Fatal(err)
	}
	u.t.Cleanup(m.clean)
	m.start()
	return m
}

// mountServed mounts what s serves.
func (u *user) mountServed(s *server, flags ...string) *mounted {
	u.t.Helper()
	m := &mounted{u: u, point: u.path("mnt"), flags: append([]string{s.config()}, flags...)}
	if err := os.Mkdir(m.point, 0o700); err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(m.clean)
	m.start()
	return m
}

func (m *mounted) start(more ...string) {
	m.u.t.Helper()
	args := append(append([]string{"mount", "--daemon"}, m.flags...), more...)
	if out := m.u.ok(append(args, m.point)...); !strings.Contains(out, "mounted ") {
		m.u.t.Fatalf("casfs mount --daemon printed %q", out)
	}
}

// pid is the daemon's.
func (m *mounted) pid() int {
	m.u.t.Helper()
	var st []struct{ PID int }
	m.u.json(&st, "status", m.point)
	return st[0].PID
}

// kill is kill -9 of the daemon, and waits until it is gone.
func (m *mounted) kill() {
	m.u.t.Helper()
	pid := m.pid()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		m.u.t.Fatal(err)
	}
	defer unix.Close(fd)
	unix.Kill(pid, unix.SIGKILL)
	m.awaitExit(fd)
}

func (m *mounted) awaitExit(pidfd int) {
	m.u.t.Helper()
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 60_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			m.u.t.Fatalf("the daemon does not end: %v", err)
		}
		return
	}
}

// clean ends the daemon and its mount, so that TempDir's removal never walks into it.
func (m *mounted) clean() {
	if m.u.t.Failed() {
		logs, _ := filepath.Glob(m.u.path("state/*/log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			m.u.t.Logf("%s:\n%s", l, tail(b, 4000))
		}
	}
	for range 3 {
		if pidFile, _ := filepath.Glob(m.u.path("state/*/lock")); len(pidFile) > 0 {
			if b, err := os.ReadFile(pidFile[0]); err == nil {
				pid := 0
				fmt.Sscan(string(b), &pid)
				if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); pid > 1 && exe == program {
					unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
		if unix.Unmount(m.point, unix.MNT_DETACH) != nil {
			exec.Command("fusermount3", "-uz", m.point).Run()
		}
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// names that programs and people really use.
func storyFiles() map[string]int64 {
	return map[string]int64{
		"empty":                         0,
		"one byte":                      1,
		"中文 名字.txt":                     1<<20 - 1,
		"with\nnewline":                 1 << 20,
		strings.Repeat("long-", 51):     1<<20 + 1,
		"-looks-like-a-flag":            32<<20 + 5,
		"dir/sub dir/200 MiB of random": 200 << 20,
	}
}

// The user's story through the real program: copy in, sync, evict, unmount,
// mount again, read back, compare.
func TestStory(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	src := u.path("src")
	vault := filepath.Join(m.point, "vault")
	if err := os.Mkdir(vault, 0o755); err != nil {
		t.Fatal(err)
	}
	seed := uint64(0)
	for name, n := range storyFiles() {
		seed++
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(u.home, p)
		u.randomFile(rel, n, seed)
	}
	sh(t, "cp -a %s/. %s/", src, vault)
	u.ok("sync", vault)
	var st []struct {
		Staging jobsSpace
		Uploads []any
	}
	u.json(&st, "status", vault)
	if st[0].Staging.Used != 0 || len(st[0].Uploads) != 0 {
		t.Errorf("after sync: %+v", st)
	}
	u.evict("-r", vault)
	var file []struct {
		State      string
		LocalBytes int64 `json:"local_bytes"`
		Explain    string
	}
	u.json(&file, "stat", filepath.Join(vault, "-looks-like-a-flag"))
	if file[0].State != "cold" || file[0].LocalBytes != 0 || file[0].Explain == "" {
		t.Errorf("after evict: %+v", file)
	}
	if r := u.casfs("umount", m.point); r.code != 0 {
		t.Fatal(r)
	}
	if st, err := os.ReadDir(m.point); err != nil || len(st) != 0 {
		t.Errorf("after umount the mount point holds %v, %v", st, err)
	}
	m.start()
	sh(t, "diff -r %s %s", src, vault)
	// Ahead of use, of everything below a directory.
	u.evict("-r", vault)
	if r := u.casfs("recall", "-r", vault); r.code != exitPending && r.code != 0 {
		t.Errorf("recall without --wait: %v", r)
	}
	u.ok("recall", "-r", "--wait", vault)
	sh(t, "diff -r %s %s", src, vault)
	u.ok("umount", m.point)
}

type jobsSpace struct{ Files, Used, Limit int64 }

func sh(t *testing.T, format string, args ...any) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", fmt.Sprintf(format, args...)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", fmt.Sprintf(format, args...), err, tail(out, 2000))
	}
}

// kill -9 of the daemon at random moments loses nothing that fsync or casfs sync acknowledged.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "20ms")
	vault := filepath.Join(m.point, "v")
	if err := os.Mkdir(vault, 0o755); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	acked := map[string][]byte{}
	n := 0
	for round := range 10 {
		stop := make(chan map[string][]byte)
		end := make(chan struct{})
		quiet := rng.Uint64()
		go func() { // a writer that remembers what was acknowledged
			mine := map[string][]byte{}
			w := rand.New(rand.NewPCG(quiet, 2))
			for {
				select {
				case <-end:
					stop <- mine
					return
				default:
				}
				n++
				name := fmt.Sprintf("file-%d", n)
				data := noise.Bytes(w.IntN(2<<20), w.Uint64())
				if writeSynced(filepath.Join(vault, name), data) == nil {
					mine[name] = data
				}
				if w.IntN(4) == 0 {
					u.cmd("sync", filepath.Join(vault, name)).Run()
				}
				if w.IntN(6) == 0 {
					u.cmd("evict", filepath.Join(vault, name)).Run()
				}
			}
		}()
		// A random moment, while the writer works.
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		m.kill()
		close(end)
		for name, data := range <-stop {
			acked[name] = data
		}
		if r := u.casfs("status", m.point); !strings.Contains(r.out+r.err, "died") {
			t.Errorf("status of a dead mount: %v", r)
		}
		if r := u.casfs(append(append([]string{"mount", "--daemon"}, m.flags...), m.point)...); r.code != 1 || !strings.Contains(r.err, "--force") {
			t.Fatalf("a dead mount must only be cleared away with consent: %v", r)
		}
		if r := u.casfs("sync", vault); r.code != 1 || strings.Count(r.err, "died") != 1 || strings.Count(r.err, "--force") != 1 {
			t.Errorf("a dead mount and the way out are told once: %v", r)
		}
		m.start("--force")
		for name, data := range acked {
			got, err := os.ReadFile(filepath.Join(vault, name))
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("round %d: %s was acknowledged and is lost: %d of %d bytes, %v", round, name, len(got), len(data), err)
			}
		}
	}
	if len(acked) == 0 {
		t.Error("nothing was ever acknowledged")
	}
	t.Logf("%d files acknowledged in ten rounds", len(acked))
	u.ok("sync", vault)
	u.evict("-r", vault)
	for name, data := range acked {
		got, err := os.ReadFile(filepath.Join(vault, name))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s came back wrong from the vault: %d of %d bytes, %v", name, len(got), len(data), err)
		}
	}
	u.ok("umount", m.point)
}

func writeSynced(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func TestMountRefusals(t *testing.T) {
	u := newUser(t)
	m := u.mount()
	other := u.path("other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(m.pid())
	fails := func(want string, env []string, args ...string) {
		t.Helper()
		v := &user{t: t, home: u.home, env: append(append([]string{}, u.env...), env...), limit: u.limit}
		for _, how := range [][]string{nil, {"--daemon"}} {
			r := v.casfs(append(append([]string{"mount"}, how...), args...)...)
			first, _, _ := strings.Cut(r.err, "\n")
			if r.code != 1 || !strings.Contains(first, want) || strings.Count(r.err, "\n") != 2 {
				t.Errorf("want exit 1, %q in the first line, and in the second what to do; got %v", want, r)
			}
		}
	}
	store := u.path("store")
	fails("pid "+pid, nil, "--local", store, m.point)
	fails("pid "+pid, nil, "--local", store, other)
	u.ok("umount", m.point)

	fails("vault nope does not exist", nil, "--local", store, "nope", other)
	key := []string{"TENCENTCLOUD_SECRET_ID=AKIDwrong", "TENCENTCLOUD_SECRET_KEY=wrong"}
	s := u.serve(u.path("served"))
	fails("UnrecognizedClientException", key, "--endpoint", s.endpoint, other)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	fails("cannot be reached", key, "--endpoint", "http://"+nobody, other)

	// Not the service: a portal that answers everything, and a server whose certificate nobody knows.
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>Welcome</html>") }))
	defer portal.Close()
	fails("unexpected reply", key, "--endpoint", portal.URL, other)
	secure := httptest.NewUnstartedServer(portal.Config.Handler)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that fail
	secure.StartTLS()
	defer secure.Close()
	fails("failed to verify certificate", key, "--endpoint", secure.URL, other)

	// A service whose clock is a day ahead: for it, the wrong clock is this machine's.
	late, err := local.Open(local.Options{Dir: u.path("late"), Now: func() time.Time { return time.Now().Add(24 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- late.Serve(ctx, tcp) }()
	defer func() { cancel(); <-served }()
	key = []string{"TENCENTCLOUD_SECRET_ID=" + late.Credentials().SecretID, "TENCENTCLOUD_SECRET_KEY=" + late.Credentials().SecretKey}
	// The client learns the difference from the refusal and signs again: it gets as far as any other.
	fails("vault nope does not exist", key, "--endpoint", "http://"+tcp.Addr().String(), "nope", other)

	if left, _ := filepath.Glob(u.path("state/127*")); len(left) > 0 {
		t.Errorf("refused mounts left %q", left)
	}
}

// Without the service, umount gives up after --timeout, tells what is left, and the next mount goes on.
func TestUmountNotDrained(t *testing.T) {
	built.Require(t)
	u := newUser(t)
	s := u.serve(u.path("served"), "--standard", "50ms")
	u.ok("vault", "create", "v", s.config())
	m := u.mountServed(s, "--settle", "1h")
	if err := os.WriteFile(filepath.Join(m.point, "v", "precious"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kill(syscall.SIGKILL)
	r := u.casfs("umount", m.point, "--timeout", "1s")
	if r.code != exitPartial || !strings.Contains(r.err, "precious") || !strings.Contains(r.err, "1 file") {
		t.Fatalf("want exit 3 and a list: %v", r)
	}
	if err := exec.Command("mountpoint", "-q", m.point).Run(); err == nil {
		t.Error("still mounted")
	}
	s.restart()
	m.start()
	u.ok("sync", m.point)
	u.evict("-r", m.point)
	if b, err := os.ReadFile(filepath.Join(m.point, "v", "precious")); string(b) != "data" {
		t.Errorf("got %q, %v", b, err)
	}
	u.ok("umount", m.point)
}

func TestBusyMountStaysMounted(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(m.point, "v", "open"))
	if err != nil {
		t.Fatal(err)
	}
	if r := u.casfs("umount", m.point); r.code != 1 || !strings.Contains(r.err, "--lazy") {
		t.Errorf("want exit 1 and advice: %v", r)
	}
	if _, err := f.WriteString("still works"); err != nil {
		t.Errorf("writing after a umount that failed: %v", err)
	}
	// Lazily: gone from the tree at once, the open file works on, the verb waits for its end and says so. Interrupted, it
	// leaves the process to itself.
	daemon, err := unix.PidfdOpen(m.pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(daemon)
	lazy := u.cmd("umount", "--lazy", m.point)
	said, err := lazy.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lazy.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(said)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, m.point+" is unmounted; waiting until programs have closed") {
		t.Errorf("%q, %v", line, err)
	}
	if exec.Command("mountpoint", "-q", m.point).Run() == nil {
		t.Error("still mounted")
	}
	lazy.Process.Signal(os.Interrupt)
	rest, _ := io.ReadAll(in)
	if lazy.Wait(); lazy.ProcessState.ExitCode() != exitFailed || strings.Contains(string(rest), "stays mounted") || !strings.Contains(string(rest), "is unmounted; its process ends") {
		t.Errorf("interrupted: %v, %s", lazy.ProcessState, rest)
	}
	if _, err := f.WriteString(", still"); err != nil {
		t.Errorf("writing to a file of a detached mount: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	m.awaitExit(daemon)
	m.start()
	u.ok("sync", m.point)
	if b, err := os.ReadFile(filepath.Join(m.point, "v", "open")); string(b) != "still works, still" {
		t.Errorf("got %q, %v", b, err)
	}
	// Not interrupted, it waits to the end.
	if f, err = os.Create(filepath.Join(m.point, "v", "again")); err != nil {
		t.Fatal(err)
	}
	done := make(chan result, 1)
	go func() { done <- u.casfs("umount", "--lazy", m.point) }()
	until(t, "the mount to vanish", func() bool { return exec.Command("mountpoint", "-q", m.point).Run() != nil })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if r := <-done; r.code != 0 {
		t.Error(r)
	}
}

// A plain umount and SIGTERM drain; --drain=stop leaves the rest for the next mount.
func TestForegroundAndSignals(t *testing.T) {
	built.Require(t)
	u := newUser(t)
	m := &mounted{u: u, point: u.path("mnt")}
	if err := os.Mkdir(m.point, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clean)
	u.ok("vault", "create", "v", "--local", u.path("store"))
	for i, c := range []struct {
		name  string
		flags []string
		end   func(c *exec.Cmd)
		code  int
	}{
		{"SIGTERM", nil, func(c *exec.Cmd) { c.Process.Signal(syscall.SIGTERM) }, 0},
		{"SIGINT", nil, func(c *exec.Cmd) { c.Process.Signal(syscall.SIGINT) }, 0},
		{"plain umount", nil, func(*exec.Cmd) { sh(t, "umount %s || fusermount3 -u %s", m.point, m.point) }, 0},
		{"stop", []string{"--drain=stop"}, func(c *exec.Cmd) { c.Process.Signal(syscall.SIGTERM) }, exitPartial},
		{"the rest", nil, func(c *exec.Cmd) { c.Process.Signal(syscall.SIGTERM) }, 0},
	} {
		cmd := u.cmd(append([]string{"mount", "--local", u.path("store"), "--settle", "1h", "v", m.point}, c.flags...)...)
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 4096)
		n, _ := out.Read(line)
		if !strings.HasPrefix(string(line[:n]), "mounted vault v of local:") {
			t.Fatalf("%s: first line %q\n%s", c.name, line[:n], log.String())
		}
		if err := os.WriteFile(filepath.Join(m.point, fmt.Sprint("file", i)), []byte(c.name), 0o600); err != nil {
			t.Fatal(err)
		}
		c.end(cmd)
		err = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: exit %d (%v), want %d\n%s", c.name, code, err, c.code, log.String())
		}
	}
	// Everything is in the vault.
	var job struct {
		JobID string `json:"job_id"`
	}
	u.json(&job, "job", "start", "v", "--local", u.path("store"))
	list := u.ok("job", "archives", "v", job.JobID, "--wait", "--json", "--local", u.path("store"))
	if n := strings.Count(list, "\n"); n != 5 {
		t.Errorf("the vault holds %d archives, want 5:\n%s", n, list)
	}
}

func TestStatusJSONIsStable(t *testing.T) {
	u := newUser(t)
	m := u.mount()
	var got []map[string]json.RawMessage
	u.json(&got, "status", m.point)
	for _, key := range []string{"mountpoint", "state_dir", "pid", "endpoint", "files", "staging", "cache", "uploads", "retrievals", "waiters", "guard", "trash", "problems", "draining", "dead"} {
		if _, ok := got[0][key]; !ok {
			t.Errorf("%q is missing in %v", key, got[0])
		}
	}
	u.ok("umount", m.point)
}

// TestMountThroughSymlink: whichever name of the mount point is used, there is one mount.
func TestMountThroughSymlink(t *testing.T) {
	u := newUser(t)
	if err := errors.Join(os.Mkdir(u.path("mnt"), 0o700), os.Mkdir(u.path("dir"), 0o700),
		os.Symlink("../mnt", u.path("dir/link")), os.Symlink("dir/link", u.path("link"))); err != nil {
		t.Fatal(err)
	}
	m := u.mount()
	for _, names := range [][2]string{{"link", "mnt"}, {"mnt", "link"}, {"link", "dir/link"}, {"dir/../link", "mnt"}} {
		if names[0] != "mnt" {
			u.ok("umount", m.point)
			m.point = u.path(names[0])
			m.start()
		}
		var all []struct{ Mountpoint string }
		u.json(&all, "status")
		n := 0
		for _, st := range all {
			if strings.HasPrefix(st.Mountpoint, u.home) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("mounted by %s, status lists %d mounts: %+v", names[0], n, all)
		}
		u.ok("status", u.path(names[1]))
		u.ok("umount", u.path(names[1]))
		if b, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(b), u.home) {
			t.Fatalf("mounted by %s, umount %s left\n%s", names[0], names[1], b)
		}
		m.point = u.path("mnt")
		m.start()
	}
	u.ok("umount", m.point)
}

// TestWhichMount: with two mounts a verb names the argument that tells them apart, by the name it has there.
func TestWhichMount(t *testing.T) {
	u := newUser(t)
	first := u.mount()
	second := &mounted{u: u, point: u.path("mnt2"), flags: []string{"--local", u.path("store2")}}
	if err := os.Mkdir(second.point, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.clean)
	second.start()
	for args, want := range map[string]string{"check": "which mount? PATH is one of ", "allow": "which mount? --mount is one of "} {
		if r := u.casfs(args); r.code != exitUsage || !strings.Contains(r.err, want) || !strings.Contains(r.err, second.point) {
			t.Errorf("%s: want %q; got %v", args, want, r)
		}
	}
	u.ok("check", second.point)
	u.ok("umount", second.point)
	u.ok("umount", first.point)
}

func TestTrashVerbs(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	v := filepath.Join(m.point, "v")
	if err := os.MkdirAll(filepath.Join(v, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	mount := "--mount=" + m.point
	if out := u.ok("trash", "list", mount); !strings.Contains(out, "empty") {
		t.Errorf("an empty trash: %s", out)
	}
	for _, name := range []string{"d/one", "two"} {
		name = filepath.Join(v, name)
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		u.ok("sync", name)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	var list []trashView
	until(t, "both in the trash", func() bool { u.json(&list, "trash", "list", mount); return len(list) == 2 })
	var st []struct{ Path string }
	if u.json(&st, "stat", filepath.Join(v, "d"), m.point); st[0].Path != "v/d" || st[1].Path != "/" {
		t.Errorf("stat --json names %+v, trash list what was in the first v/d/one", st)
	}
	if list[0].Path != "v/d/one" && list[1].Path != "v/d/one" {
		t.Errorf("trash list: %+v", list)
	}
	if out := u.ok("trash", "list", mount); !strings.Contains(out, " v/d/one ") || !strings.Contains(out, " v/two ") || !strings.Contains(out, list[0].ArchiveID) {
		t.Errorf("trash list:\n%s", out)
	}
	if r := u.casfs("trash", "purge", mount, "nope"); r.code != exitFailed || !strings.Contains(r.err, "not in the trash: 1 archive of those named") {
		t.Errorf("purging what is not there:\n%v", r)
	}
	if r := u.casfs("trash", "purge", mount, list[0].ArchiveID, list[0].ArchiveID, "nope"); r.code != exitPartial || !strings.Contains(r.err, "deleted 1, then: not in the trash: 1 archive") {
		t.Errorf("purging what is there in part:\n%v", r)
	}
	if out := u.ok("trash", "purge", mount, "--all"); !strings.Contains(out, "deleted 1 archive") {
		t.Errorf("trash purge --all: %s", out)
	}
	u.ok("umount", m.point)
}
