package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/built"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// program is the real binary, built once.
var program string

func TestMain(m *testing.M) { os.Exit(built.Main(m, &program)) }

// slots lets two tests work at a time: each is several processes already.
var slots = make(chan struct{}, 2)

// world is a mount with a vault, and a home for whoever works in it.
type world struct {
	t       *testing.T
	home    string // $W
	mnt     string // $MNT
	env     []string
	store   *store
	cold    bool
	settle  string
	daemon  *exec.Cmd
	control *control.Client // to the daemon
	logFile string
}

// newWorld mounts a store of its own and makes the vault v in it.
func newWorld(t *testing.T, settle string) *world {
	t.Helper()
	w := &world{t: t, home: t.TempDir(), settle: settle}
	w.mnt = filepath.Join(w.home, "mnt")
	w.logFile = filepath.Join(w.home, "casfs.log")
	w.store = newStore(t, filepath.Join(w.home, "store"))
	w.env = built.Env(w.home, "W="+w.home, "TMPDIR="+w.home, "MNT="+w.mnt, "V="+w.path("v"), "LC_ALL=C.UTF-8", "TZ=UTC", "CASFS="+program,
		"TENCENTCLOUD_SECRET_ID="+w.store.keys.SecretID, "TENCENTCLOUD_SECRET_KEY="+w.store.keys.SecretKey)
	if err := os.Mkdir(w.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.clean)
	w.mount()
	w.sh(`mkdir "$V"`)
	// A mount takes an inventory of each vault once, by itself; not while a test counts requests.
	w.casfs("inventory", "--wait", w.path("v"))
	return w
}

// path is a path in the mount.
func (w *world) path(name string) string { return filepath.Join(w.mnt, name) }

func (w *world) mount() {
	w.t.Helper()
	log, err := os.OpenFile(w.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	w.daemon = exec.Command(program, "mount", "--endpoint", w.store.endpoint, "--settle", w.settle, w.mnt)
	w.daemon.Env, w.daemon.Dir, w.daemon.Stderr = w.env, w.home, log
	out, err := w.daemon.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.daemon.Start(); err != nil {
		w.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, "mounted ") {
		w.t.Fatalf("casfs mount printed %q, %v", line, err)
	}
	socks, _ := filepath.Glob(filepath.Join(w.home, "state", "*", "control"))
	if len(socks) != 1 {
		w.t.Fatalf("control sockets: %q", socks)
	}
	if w.control, _, err = control.Dial(context.Background(), socks[0]); err != nil {
		w.t.Fatal(err)
	}
}

// unmount ends the mount; everything must be in the vault then.
func (w *world) unmount() {
	w.t.Helper()
	w.control.Close()
	w.casfs("umount", w.mnt)
	if err := w.daemon.Wait(); err != nil {
		w.t.Fatalf("the daemon ended with %v", err)
	}
	w.daemon = nil
}

// clean ends daemon and mount whatever happened, so that TempDir's removal never walks into the mount.
func (w *world) clean() {
	if w.daemon != nil && !w.t.Failed() {
		w.inventory()
		w.unmount()
	}
	if w.daemon != nil && w.daemon.ProcessState == nil {
		w.daemon.Process.Kill()
		w.daemon.Wait()
	}
	for unix.Unmount(w.mnt, unix.MNT_DETACH) == nil {
	}
	if os.Geteuid() != 0 {
		exec.Command("fusermount3", "-uz", w.mnt).Run()
	}
	log, _ := os.ReadFile(w.logFile)
	for _, bad := range []string{"DATA RACE", "bug: ", "level=ERROR"} {
		if bytes.Contains(log, []byte(bad)) {
			w.t.Errorf("the log says %q", bad)
		}
	}
	if w.t.Failed() {
		w.t.Logf("log of the mount:\n%s", tail(log, 30000))
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// run runs a command in the home directory, never with its working
// directory in the mount. When it hangs, the daemon's stacks go to the log and everything ends.
func (w *world) run(name string, args ...string) (out, errOut string, code int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute) // also used while cleaning up
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Dir = w.env, w.home
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = 10 * time.Second
	c.Cancel = func() error {
		w.daemon.Process.Signal(syscall.SIGQUIT) // frees those who wait in the kernel, too
		return syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	}
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		w.t.Fatalf("%s %q: %v, %v\n%s\n%s", name, args, err, ctx.Err(), tail(o.Bytes(), 2000), tail(e.Bytes(), 4000))
	}
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

// sh runs a shell script, which must succeed, and returns its output. $V is
// the vault in the mount, $W the home outside of it.
func (w *world) sh(script string) string {
	w.t.Helper()
	out, errOut, code := w.run("sh", "-euxc", script)
	if code != 0 {
		w.t.Fatalf("exit %d of\n%s\nstdout: %s\nstderr: %s", code, script, tail([]byte(out), 4000), tail([]byte(errOut), 4000))
	}
	return out
}

// silent is a script that must succeed and print nothing: a comparison, a second transfer.
func (w *world) silent(what, script string) {
	w.t.Helper()
	if out := w.sh(script); out != "" {
		w.t.Errorf("%s:\n%s", what, tail([]byte(out), 4000))
	}
}

// casfs runs the program, which must succeed.
func (w *world) casfs(args ...string) string {
	w.t.Helper()
	out, errOut, code := w.run(program, args...)
	if code != 0 || strings.Contains(errOut, "DATA RACE") {
		w.t.Fatalf("casfs %s: exit %d\n%s\n%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// between stands between two steps of a program. In a cold world everything is archived and evicted there.
func (w *world) between() {
	w.t.Helper()
	if w.cold {
		w.evict()
	}
}

// evict archives everything and drops every local copy, as casfs sync and
// casfs evict -r do; over the socket, for two processes less. The last close of a
// program that has ended reaches the daemon a little later, so "open" is asked again.
func (w *world) evict() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	root := []uint64{catalog.RootIno}
	var r jobs.EvictResult
	for ctx.Err() == nil {
		_, err := w.control.Sync(ctx, root, nil)
		if err == nil {
			r, err = w.control.Evict(ctx, root, true)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if len(r.Skipped) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("not evicted after two minutes: %+v", r.Skipped)
}

// remount takes the kernel's and the daemon's memory away, too.
func (w *world) remount() {
	w.t.Helper()
	w.unmount()
	w.mount()
}

// inventory compares the vault with the catalog, which must know every archive: no name appears and none is damaged.
func (w *world) inventory() {
	w.t.Helper()
	w.casfs("sync", w.mnt)
	const list = `cd "$V"; find . -printf '%p %i %s %T@ %n\n' | LC_ALL=C sort`
	before := w.sh(list)
	w.casfs("inventory", "--wait", w.path("v"))
	if after := w.sh(list); after != before {
		w.t.Errorf("an inventory changed the tree from\n%s\nto\n%s", before, after)
	}
	w.casfs("check", w.mnt)
}

// state is a file's state as casfs stat tells it.
func (w *world) state(name string) string {
	w.t.Helper()
	var st []struct{ State string }
	if err := json.Unmarshal([]byte(w.casfs("stat", "--json", w.path(name))), &st); err != nil || len(st) != 1 {
		w.t.Fatalf("casfs stat %s: %v, %v", name, st, err)
	}
	return st[0].State
}

// quiet fails when do makes a request to the service.
func (w *world) quiet(what string, do func()) {
	w.t.Helper()
	w.casfs("sync", w.mnt) // what is being uploaded anyway
	before := len(w.store.asked())
	do()
	if new := w.store.asked()[before:]; len(new) != 0 {
		w.t.Errorf("%s made %d requests to the service:\n%s", what, len(new), strings.Join(new, "\n"))
	}
}

// warmAndCold runs a test in a world where files stay local and in one where they do not.
func warmAndCold(t *testing.T, programs []string, test func(t *testing.T, w *world)) {
	t.Parallel()
	built.Require(t, programs...)
	for _, cold := range []bool{false, true} {
		name, settle := "warm", "20ms" // uploads go on while the program works
		if cold {
			name, settle = "cold", "0"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			w := newWorld(t, settle)
			w.cold = cold
			test(t, w)
		})
	}
}

// store is the embedded store behind HTTP in the test's process, which counts requests.
type store struct {
	endpoint string
	keys     local.Credentials

	mu       sync.Mutex
	requests []string
}

// asked lists the requests that have arrived.
func (s *store) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func newStore(t *testing.T, dir string) *store {
	t.Helper()
	st, err := local.Open(local.Options{Dir: dir, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &store{endpoint: "http://" + l.Addr().String(), keys: st.Credentials()}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
		s.mu.Unlock()
		st.ServeHTTP(rw, r)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
		if err := st.Close(); err != nil {
			t.Errorf("store: %v", err)
		}
	})
	return s
}

// tree makes $W/src: what a user's home holds, in small.
func (w *world) tree() {
	w.t.Helper()
	w.sh(`
mkdir -p "$W/src/sub dir/deeper" "$W/src/empty dir"
cd "$W/src"
: > empty
printf x > one
head -c 4095 /dev/urandom > under-a-page
head -c 1048577 /dev/urandom > over-a-mib
head -c 3000000 /dev/urandom > "sub dir/中文 名字.bin"
for i in 1 2 3 4 5 6 7 8 9; do seq $i 500 > "sub dir/deeper/seq $i.txt"; done
printf 'newline in name\n' > 'with
newline'
printf 'a flag\n' > ./-rf
truncate -s 5M sparse; printf middle | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
ln -s one link; ln -s /nowhere/at/all dangling; ln -s "sub dir" dirlink
ln one hard1; ln one "sub dir/hard2"
mkfifo fifo
setfattr -n user.note -v 'kept' one
setfattr -n user.bin -v 0x00ff00 "sub dir"
chmod 0400 under-a-page; chmod 4755 "sub dir/deeper/seq 1.txt"; chmod 1777 "empty dir"; chmod 0 "sub dir/deeper/seq 2.txt"
if [ "$(id -u)" = 0 ]; then chown 1234:5678 "sub dir/deeper/seq 3.txt"; chmod 2755 "sub dir"; mknod null c 1 3; fi
# Long ago: rsync leaves a time alone that is in the same second.
find . -depth -exec touch -h -d '2020-02-03 04:05:06.120000007' {} +
touch -d '1999-12-31 23:59:59.123456789' over-a-mib "sub dir/deeper"
touch -h -d '2001-02-03 04:05:06.000000007' dangling
`)
}

// listing describes everything below a directory but atimes and blocks; equal listings are equal metadata.
const listing = `listing() { (cd "$1" && find . \( -type d -printf '%p %y %m %U:%G %T@\n' \) -o -printf '%p %y %m %U:%G %T@ %s %n %l\n' | LC_ALL=C sort; getfattr -Rhd -e hex -m '^user\.' . | awk 'BEGIN{RS="";FS="\n"}{for(i=1;i<=NF;i++)printf "%s|",$i;print ""}' | LC_ALL=C sort); }
`

// sameTree compares content and metadata of two trees.
func (w *world) sameTree(a, b string) {
	w.t.Helper()
	w.sh(listing + fmt.Sprintf(`
listing %[1]s > "$W/a.list"; listing %[2]s > "$W/b.list"
diff -u "$W/a.list" "$W/b.list"
rsync -aHXn --checksum --delete --itemize-changes %[1]s/ %[2]s/ > "$W/diff.list"
test ! -s "$W/diff.list" || { cat "$W/diff.list"; exit 1; }
diff -r --no-dereference --exclude=fifo --exclude=null %[1]s %[2]s
`, a, b))
}
