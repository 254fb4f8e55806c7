package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/noise"
	"github.com/casfs/casfs/jobs"
)

// mounted is a store, an engine and a mount for one test.
type mounted struct {
	t      *testing.T
	dir    string // the mount point
	store  *castest.Server
	client *cas.Client
	jobs   jobs.Options
	opts   Options
	logs   *logs

	e    *jobs.Engine
	m    *Mount
	stop func() // unmounts and closes; the same state can be mounted again with start
}

// recalls returns how many jobs of archives the service knows; the inventory
// that follows the first mount of a vault is none of them.
func (x *mounted) recalls() (n int) {
	x.t.Helper()
	for j, err := range x.client.Jobs(x.t.Context(), vault, cas.JobFilter{}) {
		if err != nil {
			x.t.Fatal(err)
		}
		if j.Type == cas.ArchiveRetrieval {
			n++
		}
	}
	return n
}

// wantRecalls waits until the service knows n of them, and wants no more: who waited may have gone before one was asked for.
func (x *mounted) wantRecalls(n int) {
	x.t.Helper()
	got := 0
	eventually(x.t, fmt.Sprintf("the service knows %d recalls", n), func() bool { got = x.recalls(); return got >= n })
	if got > n {
		x.t.Errorf("%d recalls, want %d", got, n)
	}
}

// vault is where tests put files, in the account's tree.
const vault = "vault"

// mountForTest mounts the account's tree, or with jobs.Options.Vault that vault's. change may be nil.
func mountForTest(t *testing.T, delays local.Delays, change func(*jobs.Options, *Options)) *mounted {
	t.Helper()
	return mountStore(t, local.Options{Delays: delays}, change)
}

// mountStore is mountForTest of a store with options.
func mountStore(t *testing.T, store local.Options, change func(*jobs.Options, *Options)) *mounted {
	t.Helper()
	requireFuse(t)
	dir := t.TempDir() // first, so that its removal runs after the unmount below
	x := &mounted{t: t, dir: dir, logs: &logs{}}
	x.store = castest.New(t, store)
	x.client = x.store.Client(t)
	if _, err := x.client.CreateVault(t.Context(), vault); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(x.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	x.jobs = jobs.Options{
		StateDir: t.TempDir(),
		Client:   x.client,
		Logger:   logger,
		Settle:   -1,
		PollMin:  time.Millisecond,
		PollMax:  20 * time.Millisecond,
	}
	x.opts = Options{Mountpoint: dir, FSName: "casfs-test", Passthrough: true, Logger: logger, Control: "/run/casfs test/control", maxWrite: 128 << 10}
	if change != nil {
		change(&x.jobs, &x.opts)
	}
	x.start()
	t.Cleanup(func() {
		x.stop()
		if t.Failed() {
			t.Logf("log:\n%s", x.logs.tail(60))
		}
	})
	return x
}

// requireFuse skips where FUSE is missing, and fails there when CASFS_REQUIRE_FUSE is set, as it is in CI.
func requireFuse(t *testing.T) {
	t.Helper()
	if err := checkFuse(false); err != nil {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func (x *mounted) start() {
	x.t.Helper()
	t := x.t
	e, err := jobs.Open(x.jobs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := e.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := New(e, x.opts)
	if err != nil {
		cancel()
		e.Close()
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	x.e, x.m = e, m
	x.stop = sync.OnceFunc(func() {
		if err := m.Unmount(false); err != nil {
			// Usually a descriptor the test forgot. Detach, or the removal of
			// the directory would walk into the mount and delete through it.
			t.Errorf("unmount: %v", err)
			e.StopAdmitting()
			if err := m.Unmount(true); err != nil {
				t.Errorf("detach: %v", err)
			}
			m.Abort()
		}
		cancel()
		if err := <-ran; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func (x *mounted) remount() {
	x.t.Helper()
	x.stop()
	x.start()
}

// path is a path inside the vault.
func (x *mounted) path(elem ...string) string {
	if x.jobs.Vault != "" {
		return filepath.Join(append([]string{x.dir}, elem...)...)
	}
	return filepath.Join(append([]string{x.dir, vault}, elem...)...)
}

func inoOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %q: %v", path, err)
	}
	return st.Ino
}

// archive waits until everything is in the vault.
func (x *mounted) archive() {
	x.t.Helper()
	root, err := x.e.RootIno()
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(x.t.Context(), 2*time.Minute)
	defer cancel()
	if err := x.e.Sync(ctx, []uint64{root}, nil); err != nil {
		x.t.Fatalf("sync: %v", err)
	}
}

// evict makes everything cold that nobody has open.
func (x *mounted) evict() jobs.EvictResult {
	x.t.Helper()
	x.archive()
	root, err := x.e.RootIno()
	if err != nil {
		x.t.Fatal(err)
	}
	r, err := x.e.Evict(x.t.Context(), []uint64{root}, true)
	if err != nil {
		x.t.Fatalf("evict: %v", err)
	}
	return r
}

// evictAll evicts everything. The release of a file that a program has just closed comes a moment after close(2).
func (x *mounted) evictAll() {
	x.t.Helper()
	var r jobs.EvictResult
	eventually(x.t, "everything is evicted", func() bool {
		r = x.evict()
		return len(r.Skipped) == 0
	})
}

// cold evicts and insists that the files are cold afterwards.
func (x *mounted) cold(paths ...string) {
	x.t.Helper()
	x.evictAll()
	for _, p := range paths {
		if got := x.attr(p, "user.cas.state"); got != "cold" {
			x.t.Fatalf("%q is %s after eviction, want cold", p, got)
		}
	}
}

func (x *mounted) attr(path, name string) string {
	x.t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		x.t.Fatalf("getxattr %q %s: %v", path, name, err)
	}
	return string(buf[:n])
}

// sh runs a script in a directory of the mount. The shell enters it: a
// directory of ours as the child's working directory would make this process wait for itself.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", `cd "$1"; shift; eval "$1"`, "sh", dir, script)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, errs.String())
	}
	return out.String()
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%q: read %d bytes, want %d; first difference at %d", path, len(got), len(want), firstDiff(got, want))
	}
}

func firstDiff(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func wantErrno(t *testing.T, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// fill makes n bytes that differ everywhere and from one seed to the next.
func fill(n int, seed uint64) []byte {
	return noise.Bytes(n, seed)
}

// eventually waits for something another process or the engine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not so after 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// logs keeps what was logged.
type logs struct {
	mu  sync.Mutex
	buf []byte
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	return len(p), nil
}

func (l *logs) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimRight(string(l.buf), "\n"), "\n")
}

// tail returns the last n lines, after the last warnings and failed calls before them.
func (l *logs) tail(n int) string {
	all := l.lines()
	from := max(0, len(all)-n)
	var told []string
	for _, s := range all[:from] {
		if strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") || strings.Contains(s, `msg="call failed"`) {
			told = append(told, s)
		}
	}
	return strings.Join(append(told[max(0, len(told)-n):], all[from:]...), "\n")
}

// grep returns the lines that contain all of what.
func (l *logs) grep(what ...string) []string {
	var found []string
line:
	for _, s := range l.lines() {
		for _, w := range what {
			if !strings.Contains(s, w) {
				continue line
			}
		}
		found = append(found, s)
	}
	return found
}

// TestMain also is the programs that tests run against a mount: with
// CASFS_TEST_PROGRAM set, the binary is that program.
func TestMain(m *testing.M) {
	if p := os.Getenv("CASFS_TEST_PROGRAM"); p != "" {
		fmt.Fprintln(os.Stderr, program(p, os.Args[1:]))
		os.Exit(3)
	}
	os.Exit(m.Run())
}
