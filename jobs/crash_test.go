package jobs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// crashPoints are the places between two durable steps. A crash at any of them
// must leave a state that the next start continues without losing anything.
var crashPoints = []string{
	"create.staging", "truncate.staging", "truncate.recorded", "supersede.recorded",
	"sealed", "sealed.syncing", "sealed.durable", "single.read", "single.answered",
	"multipart.initiated", "multipart.recorded", "multipart.part", "multipart.completing", "multipart.completed",
	"segment.recorded", "sent", "committed", "committed.durable", "promoted",
	"reclaim.durable", "reclaim.removed", "reclaim.recorded", "trash.claimed", "trash.deleted",
	"vault.created", "vault.deleted",
	"stream.part", "stream.completing", "stream.recorded", "stream.droppable", "stream.dropped", "stream.removed",
	"untouched.recorded",
	"inventory.recorded", "inventory.asked", "inventory.merged",
}

// TestCrashPoints holds the points that are killed at against those in the code and in both descriptions.
func TestCrashPoints(t *testing.T) {
	want := slices.Sorted(slices.Values(slices.Concat(crashPoints, readPoints)))
	same := func(where string, list []string) {
		t.Helper()
		slices.Sort(list)
		if list = slices.Compact(list); !slices.Equal(list, want) {
			t.Errorf("%s has %q, the test %q", where, list, want)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	all := func(pattern, text string) (list []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			list = append(list, m[1])
		}
		return list
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var code []string
	for _, name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			code = append(code, all(`\bhit\("([^"]*)"\)`, read(name))...)
		}
	}
	same("the code", code)
	_, points, _ := strings.Cut(read("doc.go"), "# Crash points")
	same("doc.go", all(`(?m)^//\t(\S+) `, points))
	_, points, _ = strings.Cut(read("../docs/DESIGN.md"), "The points between these steps have names")
	points, _, _ = strings.Cut(points, "\n\n")
	same("docs/DESIGN.md", all("`([a-z]+(?:\\.[a-z]+)?)`", points))
}

// A crash is a child process that kills itself at a point. What it tells before
// and after each step of the story says what it has acknowledged.
const (
	envState    = "CASFS_CRASH_STATE"
	envEndpoint = "CASFS_CRASH_ENDPOINT"
	envKeys     = "CASFS_CRASH_KEYS" // id key appid
	envPoint    = "CASFS_CRASH_POINT"
	envNth      = "CASFS_CRASH_NTH"
	envStory    = "CASFS_CRASH_STORY" // "read": what is read
)

func TestMain(m *testing.M) {
	if os.Getenv(envState) != "" {
		crashChild()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// storyStep changes one file (name "" none); after is its content then, nil when it is gone.
type storyStep struct {
	name  string
	after []byte
	also  func([]byte) bool // what it may be while the step runs, besides before and after
	run   func(*teller) error
}

// teller runs the story in the child.
type teller struct {
	e     *Engine
	vault uint64
}

var bg = context.Background()

// prefixOf allows a write in progress.
func prefixOf(data []byte) func([]byte) bool {
	return func(b []byte) bool { return b != nil && len(b) <= len(data) && bytes.Equal(b, data[:len(b)]) }
}

func (c *teller) ino(name string) (uint64, error) {
	a, err := c.e.Lookup(bg, c.vault, name)
	return a.Ino, err
}

func (c *teller) put(name string, data []byte, trunc bool) error {
	var h *Handle
	var err error
	if trunc {
		ino, lerr := c.ino(name)
		if lerr != nil {
			return lerr
		}
		h, err = c.e.Open(bg, someone, ino, OpenFlags{Write: true, Truncate: true})
	} else {
		_, h, err = c.e.Create(bg, someone, c.vault, name, 0o644, OpenFlags{Write: true})
	}
	if err != nil {
		return err
	}
	defer h.Release()
	for off := 0; off < len(data); off += 512 << 10 {
		if _, err := h.WriteAt(bg, someone, data[off:min(off+512<<10, len(data))], int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// story is every way a file can go, made once: its bytes are many.
var story = sync.OnceValue(func() []storyStep {
	create := func(name string, data []byte) storyStep {
		return storyStep{name, data, prefixOf(data), func(c *teller) error { return c.put(name, data, false) }}
	}
	remove := func(name string) storyStep {
		return storyStep{name, nil, nil, func(c *teller) error { return c.e.Unlink(bg, c.vault, name) }}
	}
	syncAll := storyStep{run: func(c *teller) error {
		ctx, cancel := context.WithTimeout(bg, 20*time.Second)
		defer cancel()
		return c.e.Sync(ctx, nil, nil)
	}}
	small, big, segs := pattern(1000, 1), pattern(3<<20+3, 2), pattern(7<<20, 3)
	patched := append([]byte(nil), big...)
	copy(patched[70:], "patched")
	again := pattern(300<<10, 4)
	stream := pattern(14<<20, 5)
	return []storyStep{
		create("small", small),
		{"empty", []byte{}, nil, func(c *teller) error { return c.put("empty", nil, false) }},
		syncAll,
		create("big", big),
		create("segs", segs),
		syncAll,
		{"big", patched, nil, func(c *teller) error { // over a resident file, in place
			ino, err := c.ino("big")
			if err != nil {
				return err
			}
			h, err := c.e.Open(bg, someone, ino, OpenFlags{Write: true})
			if err != nil {
				return err
			}
			defer h.Release()
			_, err = h.WriteAt(bg, someone, []byte("patched"), 70)
			return err
		}},
		syncAll,
		{run: func(c *teller) error { // opened for stores that do not come
			ino, err := c.ino("big")
			if err != nil {
				return err
			}
			reader, err := c.e.Open(bg, someone, ino, OpenFlags{Read: true})
			if err != nil {
				return err
			}
			defer reader.Release()
			writer, err := c.e.Open(bg, someone, ino, OpenFlags{Read: true, Write: true})
			if err == nil {
				writer.Release()
			}
			return err
		}},
		{run: func(c *teller) error { return c.e.Inventory(bg, "v", true, nil) }},
		{run: func(c *teller) error {
			ino, err := c.ino("segs")
			if err == nil {
				_, err = c.e.Evict(bg, []uint64{ino}, false)
			}
			return err
		}},
		{"segs", again, prefixOf(again), func(c *teller) error { return c.put("segs", again, true) }}, // over one that is cold
		syncAll,
		{"stream", stream, prefixOf(stream), func(c *teller) error { // longer than may stay in staging
			_, h, err := c.e.Create(bg, someone, c.vault, "stream", 0o644, OpenFlags{Write: true})
			if err != nil {
				return err
			}
			defer h.Release()
			for off := 0; off < len(stream); off += 512 << 10 {
				if _, err := h.WriteAt(bg, someone, stream[off:off+512<<10], int64(off)); err != nil {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		}},
		syncAll,
		{"again", again, nil, func(c *teller) error {
			return c.e.Rename(bg, c.vault, "segs", c.vault, "again", 0)
		}},
		remove("small"),
		create("gone", pattern(100, 9)),
		remove("gone"),
		{run: func(c *teller) error {
			if _, err := c.e.Mkdir(bg, someone, catalog.RootIno, "second", 0o755); err != nil {
				return err
			}
			return c.e.Rmdir(bg, catalog.RootIno, "second")
		}},
		syncAll,
		{run: func(c *teller) error { // the trash is emptied at once here
			for range 400 {
				list, err := c.e.Trash(bg)
				if err != nil || len(list) == 0 {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
			return errors.New("the trash does not get empty")
		}},
	}
})

func crashOptions(dir string, c *cas.Client) Options {
	return Options{
		StateDir: dir, Client: c, Settle: -1, PartSize: 1 << 20, SingleBelow: 2 << 20, SegmentSize: 3 << 20, MinFree: -1,
		StagingSize: 12 << 20, CacheSize: 1 << 30, StreamAbove: 4 << 20, TrashAge: -1, PollMin: time.Millisecond, PollMax: 10 * time.Millisecond,
	}
}

func crashChild() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	keys := strings.Fields(os.Getenv(envKeys))
	client, err := cas.New(cas.Options{Endpoint: os.Getenv(envEndpoint), AppID: keys[2], Credentials: cas.Credentials{SecretID: keys[0], SecretKey: keys[1]}})
	fail(err)
	o := crashOptions(os.Getenv(envState), client)
	if os.Getenv(envStory) == "read" {
		o = readOptions(os.Getenv(envState), client)
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	e, err := Open(o)
	fail(err)
	fail(e.Probe(bg))
	a, err := e.Lookup(bg, catalog.RootIno, "v")
	fail(err)
	point := os.Getenv(envPoint)
	nth, _ := strconv.Atoi(os.Getenv(envNth))
	if after, ok := strings.CutPrefix(point, "after "); ok {
		d, err := time.ParseDuration(after)
		fail(err)
		time.AfterFunc(d, func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	}
	var mu sync.Mutex
	e.atPoints(func(name string) {
		if name != point {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if nth--; nth == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	tell := story
	if os.Getenv(envStory) == "read" {
		tell = readStory
	}
	steps := tell()
	for i, s := range steps {
		fmt.Println("begin", i)
		fail(s.run(&teller{e, a.Ino}))
		fmt.Println("end", i)
	}
	cancel()
	fail(<-done)
	fail(e.Close())
}

// crashServer is a service that outlives the child.
func crashServer(t *testing.T) (srv *castest.Server, endpoint string) {
	t.Helper()
	srv = castest.New(t, local.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: srv.Store}
	go hs.Serve(l)
	t.Cleanup(func() { hs.Close() })
	return srv, "http://" + l.Addr().String()
}

// crashCmd is the child.
func crashCmd(srv *castest.Server, endpoint, state, point string, nth int) *exec.Cmd {
	cr := srv.Store.Credentials()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envState+"="+state, envEndpoint+"="+endpoint, envPoint+"="+point, envNth+"="+strconv.Itoa(nth),
		envKeys+"="+cr.SecretID+" "+cr.SecretKey+" "+cr.AppID)
	return cmd
}

// crash tells the story in a child that dies at the nth visit to a point, and
// goes on from there. It reports whether the child died.
func crash(t *testing.T, point string, nth int) bool {
	srv, endpoint := crashServer(t)
	client := srv.Client(t)
	if _, err := client.CreateVault(bg, "v"); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	cmd := crashCmd(srv, endpoint, state, point, nth)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	steps := story()
	now := map[string][]byte{}
	running := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, n, _ := strings.Cut(lines.Text(), " ")
		i, _ := strconv.Atoi(n)
		switch word {
		case "begin":
			running = i
		case "end":
			running = -1
			s := steps[i]
			if s.name == "again" {
				delete(now, "segs")
			}
			if s.after == nil {
				delete(now, s.name)
			} else {
				now[s.name] = s.after
			}
		}
	}
	io.Copy(io.Discard, out)
	if !crashed(t, cmd.Wait(), &stderr) {
		return false
	}
	defer func() {
		if t.Failed() {
			t.Logf("step under way %d; the child's log:\n%s", running, stderr.Bytes())
		}
	}()

	// The next mount.
	o := crashOptions(state, client)
	o.Logger = testLogger(t)
	r := &rig{t: t, srv: srv, client: client, o: o}
	r.open()
	defer r.close()
	names := map[string]bool{}
	for n := range now {
		names[n] = true
	}
	if running >= 0 && steps[running].name != "" {
		names[steps[running].name] = true
	}
	found := map[string][]byte{}
	for n := range names {
		a, err := r.e.Lookup(bg, r.vault, n)
		if errors.Is(err, catalog.ErrNotExist) {
			continue
		}
		r.must(err)
		if n == "stream" || n == "segs" || n == "again" { // long enough to be streamed
			r.sync() // parts of it may be in the vault only, and readable when all of it is there
		}
		found[n] = r.read(a.Ino)
	}
	if running >= 0 && steps[running].name == "again" && (found["again"] == nil) == (found["segs"] == nil) {
		t.Errorf("a rename was not atomic")
	}
	for n := range names {
		b, there := found[n]
		want, acked := now[n]
		ok := acked == there && bytes.Equal(b, want)
		if !ok && running >= 0 && (steps[running].name == n || steps[running].name == "again" && n == "segs") {
			s := steps[running]
			if !there {
				b = nil
			}
			ok = (b == nil) == (s.after == nil) && bytes.Equal(b, s.after) || s.also != nil && s.also(b) || n == "segs" && b == nil
		}
		if !ok {
			t.Errorf("%s after the crash: there %v, %d bytes; acknowledged %v, %d bytes", n, there, len(b), acked, len(want))
		}
	}
	r.sync()
	// Everything is in the vault: drop the copies, and read it back.
	for n, want := range found {
		a, err := r.e.Lookup(bg, r.vault, n)
		r.must(err)
		if n != "stream" {
			r.wantState(a.Ino, "resident")
		}
		if len(want) > 0 {
			r.evict(a.Ino)
		}
		r.expect(a.Ino, want)
	}
	st, err := r.e.Status(bg)
	r.must(err)
	for _, p := range st.Problems {
		t.Errorf("problem: %s", p)
	}
	r.wantClean(true) // whatever point it died at, another file's request may have been on its way
	return true
}

// crashed reports whether the child killed itself; it may only do that, or end well.
func crashed(t *testing.T, err error, stderr *bytes.Buffer) bool {
	t.Helper()
	if err == nil {
		return false
	}
	var x *exec.ExitError
	if errors.As(err, &x) {
		if ws, _ := x.Sys().(syscall.WaitStatus); ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			return true
		}
	}
	t.Fatalf("child: %v\n%s", err, stderr.Bytes())
	return false
}

// wantClean waits until trash and abandoned uploads are gone and holds the
// service's archives against the catalog's: each once, but with twice for what went in one request whose answer may have been lost.
func (r *rig) wantClean(twice bool) {
	t := r.t
	t.Helper()
	uncertain := map[string]bool{}
	known := map[string]int64{} // sizes
	eventually(t, func() bool {
		clear(uncertain)
		clear(known)
		busy := false
		r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
			for a, err := range tx.Archives(r.vault) {
				if err != nil {
					return err
				}
				switch a.State {
				case catalog.Live:
					known[a.Intent] = a.Size
				case catalog.Trash:
					busy = true
				}
			}
			for u, err := range tx.Uploads() {
				if err != nil {
					return err
				}
				busy = busy || !u.Uncertain || u.State != catalog.Abandoned
				uncertain[u.Intent] = true
			}
			orphans, err := tx.Orphans()
			busy = busy || len(orphans) > 0
			return err
		}))
		return !busy
	})
	held := r.archives()
	for intent, n := range held {
		size, ok := known[intent]
		switch {
		case !ok && !uncertain[intent]:
			t.Errorf("archive of unknown intent %s", intent)
		case n > 1 && (!twice || n > 2 || size > r.o.SingleBelow):
			t.Errorf("%d archives of intent %s, %d bytes", n, intent, size)
		}
	}
	for intent := range known {
		if held[intent] == 0 {
			t.Errorf("no archive of intent %s", intent)
		}
	}
	var bad []string
	r.must(r.e.checkLocal(bg, false, func(p string) { bad = append(bad, p) }))
	sort.Strings(bad)
	for _, b := range bad {
		t.Errorf("check: %s", b)
	}
	if left, _ := filepath.Glob(filepath.Join(r.o.StateDir, "lost+found", "*")); len(left) > 0 {
		t.Errorf("lost+found: %v", left)
	}
}

// crashes is how many to make: CASFS_CRASHES asks for a long run.
func crashes(n int) int {
	if s := os.Getenv("CASFS_CRASHES"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	return n
}

// visits are those of a point at which the child dies. The sixth commit is that of the stream, whose
// staging file has holes: it does not become a copy.
func visits(point string) []int {
	var list []int
	for nth := 1; nth <= min(crashes(1), 3); nth++ {
		list = append(list, nth)
	}
	switch point {
	case "sent", "committed", "committed.durable", "promoted":
		list = append(list, 6)
	}
	return list
}

func TestCrashAtEveryPoint(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills a child at each of many points")
	}
	for _, point := range crashPoints {
		for _, nth := range visits(point) {
			ok := true
			t.Run(fmt.Sprintf("%s/%d", point, nth), func(t *testing.T) {
				ok = crash(t, point, nth)
				if !ok && (nth == 1 || nth == 6) {
					t.Error("never reached")
				}
			})
			if !ok {
				break
			}
		}
	}
}

func TestCrashAtAnyTime(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills a child many times")
	}
	n := crashes(3)
	for i := range n {
		d := time.Duration(50+i*1500/n) * time.Millisecond
		t.Run(d.String(), func(t *testing.T) { crash(t, "after "+d.String(), 1) })
	}
}
