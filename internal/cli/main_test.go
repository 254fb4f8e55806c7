package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/internal/noise"
)

// program is the real binary, built once.
var program string

func TestMain(m *testing.M) { os.Exit(built.Main(m, &program)) }

// user is somebody with a home of their own.
type user struct {
	t     *testing.T
	home  string
	env   []string
	limit time.Duration // for one run of the program
}

func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{t: t, home: t.TempDir(), limit: 3 * time.Minute}
	u.env = built.Env(u.home)
	return u
}

// path is a path in the user's home.
func (u *user) path(name string) string { return filepath.Join(u.home, name) }

// cmd is the program with arguments, to be killed when the test ends.
func (u *user) cmd(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(u.t.Context(), u.limit)
	u.t.Cleanup(cancel)
	c := exec.CommandContext(ctx, program, args...)
	c.Env = u.env
	c.Dir = u.home
	return c
}

// result is what a run of the program left.
type result struct {
	args     []string
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("casfs %s: exit %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.out, r.err)
}

func (u *user) casfs(args ...string) result {
	u.t.Helper()
	return u.casfsIn("", args...)
}

func (u *user) casfsIn(stdin string, args ...string) result {
	u.t.Helper()
	c := u.cmd(args...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr, c.Stdin = &out, &errOut, strings.NewReader(stdin)
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("casfs %q: %v", args, err)
	}
	r := result{args, out.String(), errOut.String(), c.ProcessState.ExitCode()}
	if strings.Contains(r.err, "goroutine ") || strings.Contains(r.err, "DATA RACE") {
		u.t.Fatalf("the program crashed:\n%v", r)
	}
	return r
}

// ok runs the program, which must succeed, and returns its standard output.
func (u *user) ok(args ...string) string {
	u.t.Helper()
	r := u.casfs(args...)
	if r.code != 0 {
		u.t.Fatalf("unexpected failure of\n%v", r)
	}
	return r.out
}

// closed runs the program, again as long as it says that something is open: the release of what was closed comes a moment
// after close(2).
func (u *user) closed(args ...string) (r result) {
	u.t.Helper()
	until(u.t, "nothing is open", func() bool {
		r = u.casfs(args...)
		return !strings.Contains(r.err, "a program has it open")
	})
	return r
}

// evict drops local copies, all of which must go.
func (u *user) evict(args ...string) {
	u.t.Helper()
	if r := u.closed(append([]string{"evict"}, args...)...); r.code != 0 {
		u.t.Fatalf("unexpected failure of\n%v", r)
	}
}

// json runs the program, which must succeed, and decodes its output.
func (u *user) json(into any, args ...string) {
	u.t.Helper()
	out := u.ok(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		u.t.Fatalf("casfs %q: %v in %s", args, err, out)
	}
}

// server is a casfs serve.
type server struct {
	u        *user
	dir      string
	flags    []string
	endpoint string
	cmd      *exec.Cmd
	log      bytes.Buffer
}

func (u *user) serve(dir string, flags ...string) *server {
	u.t.Helper()
	s := &server{u: u, dir: dir, flags: flags}
	s.start("127.0.0.1:0")
	u.t.Cleanup(func() { s.kill(syscall.SIGKILL) })
	return s
}

func (s *server) start(listen string) {
	s.u.t.Helper()
	s.cmd = s.u.cmd(append([]string{"serve", "--dir", s.dir, "--listen", listen}, s.flags...)...)
	s.cmd.Stderr = &s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.u.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.u.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var ok bool
	if s.endpoint, ok = strings.CutPrefix(strings.TrimSpace(line), "listening on "); !ok {
		s.cmd.Wait()
		s.u.t.Fatalf("first line of casfs serve: %q, %v\n%s", line, err, s.log.String())
	}
}

// kill ends the server and returns its exit code.
func (s *server) kill(sig syscall.Signal) int {
	if s.cmd.ProcessState == nil {
		s.cmd.Process.Signal(sig)
		s.cmd.Wait()
	}
	return s.cmd.ProcessState.ExitCode()
}

// restart starts it again at the same address.
func (s *server) restart() {
	s.u.t.Helper()
	_, hostPort, _ := strings.Cut(s.endpoint, "://")
	s.start(hostPort)
}

// config is the flag that points a verb at the server.
func (s *server) config() string { return "--config-file=" + filepath.Join(s.dir, "credentials") }

// randomFile makes a file of n bytes that depend on seed alone.
func (u *user) randomFile(name string, n int64, seed uint64) string {
	u.t.Helper()
	p := u.path(name)
	f, err := os.Create(p)
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	for left, i := n, uint64(0); left > 0; i++ {
		b := noise.Bytes(int(min(left, 8<<20)), seed<<32+i)
		if _, err := f.Write(b); err != nil {
			u.t.Fatal(err)
		}
		left -= int64(len(b))
	}
	return p
}

// same fails when two files differ.
func same(t *testing.T, got, want string) {
	t.Helper()
	g, err := os.Open(got)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	w, err := os.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err1 := io.ReadFull(g, a)
		m, err2 := io.ReadFull(w, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			t.Fatalf("%s and %s differ at or after byte %d", got, want, off)
		}
		if err1 != nil || err2 != nil {
			if !eof(err1) || !eof(err2) {
				t.Fatalf("%v, %v", err1, err2)
			}
			return
		}
		off += int64(n)
	}
}

func eof(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}
