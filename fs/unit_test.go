package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/jobs"
)

func TestPendingSignals(t *testing.T) {
	const status = "Name:\tx\nSigQ:\t1/2\nSigPnd:\t%016x\nShdPnd:\t%016x\nSigBlk:\t%016x\nSigIgn:\t0000000000000000\n"
	for _, tt := range []struct{ thread, shared, blocked, want uint64 }{
		{0, 0, 0, 0},
		{1 << 22, 0, 0, 1 << 22},
		{0, 1 << 22, 0, 1 << 22},
		{1 << 22, 1 << 1, 0, 1<<22 | 1<<1},
		{1 << 22, 1 << 1, 1 << 1, 1 << 22},
		{1 << 8, 0, 0, 1 << 8},
	} {
		got := pendingSignals(fmt.Appendf(nil, status, tt.thread, tt.shared, tt.blocked))
		if got != tt.want {
			t.Errorf("pendingSignals(%x, %x, %x) = %x, want %x", tt.thread, tt.shared, tt.blocked, got, tt.want)
		}
	}
	if got := pendingSignals([]byte("SigPnd:\tnonsense\n")); got == 1<<22 {
		t.Error("an unreadable status must not look like SIGURG alone")
	}
}

// TestOnlySIGURG looks at a real process: stopped, so that what it is sent stays pending.
func TestOnlySIGURG(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap : URG; trap : TERM; kill -STOP $$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		syscall.Kill(pid, syscall.SIGKILL)
		cmd.Wait()
	})
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("wait: %v, status %v", err, ws)
	}
	if onlySIGURG(uint32(pid)) {
		t.Error("nothing is pending, got true")
	}
	syscall.Kill(pid, syscall.SIGURG)
	if !onlySIGURG(uint32(pid)) {
		t.Error("SIGURG is pending, got false")
	}
	syscall.Kill(pid, syscall.SIGTERM)
	if onlySIGURG(uint32(pid)) {
		t.Error("SIGTERM is pending too, got true")
	}
	if onlySIGURG(0) || onlySIGURG(1<<30) {
		t.Error("a process that cannot be seen: got true")
	}
}

// TestCall shows that SIGURG alone does not end a call and that another signal does.
func TestCall(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap : URG; trap : TERM; kill -STOP $$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		syscall.Kill(pid, syscall.SIGKILL)
		cmd.Wait()
	})
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("wait: %v, status %v", err, ws)
	}
	syscall.Kill(pid, syscall.SIGURG)

	cancel := make(chan struct{})
	c := begin(&fuse.InHeader{Caller: fuse.Caller{Pid: uint32(pid)}}, cancel)
	defer c.finish()
	if c.Err() != nil {
		t.Error("Err before the interrupt")
	}
	done := c.Done()
	close(cancel)
	select {
	case <-done:
		t.Fatal("SIGURG ended the call")
	case <-time.After(5 * signalPoll): // long enough for it to go wrong
	}
	if c.Err() != nil {
		t.Error("Err says the call has ended")
	}
	syscall.Kill(pid, syscall.SIGTERM)
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("SIGTERM did not end the call")
	}
	if !errors.Is(c.Err(), context.Canceled) {
		t.Errorf("Err = %v, want Canceled", c.Err())
	}
}

func TestErrno(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want syscall.Errno
	}{
		{nil, catalog.ErrNotExist, syscall.ENOENT},
		{nil, fmt.Errorf("rename: %w", catalog.ErrNotEmpty), syscall.ENOTEMPTY},
		{nil, catalog.ErrXDev, syscall.EXDEV},
		{nil, content.ErrNoSpace, syscall.ENOSPC},
		{nil, content.ErrPunched, syscall.EOPNOTSUPP},
		{nil, jobs.ErrDenied, syscall.EREMOTE},
		{nil, jobs.ErrGuard, syscall.EREMOTE},
		{nil, jobs.ErrAgain, syscall.EAGAIN},
		{nil, jobs.ErrTimedOut, syscall.ETIMEDOUT},
		{nil, jobs.ErrDamaged, syscall.EIO},
		{nil, jobs.ErrStale, syscall.ESTALE},
		{nil, jobs.ErrReadOnly, syscall.EROFS},
		{nil, errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{nil, errors.New("something new"), syscall.EIO},
		{nil, content.ErrWrongKind, syscall.EIO},
		{nil, fmt.Errorf("%w: %w", catalog.ErrDamaged, &fs.PathError{Op: "fsync", Path: "journal/1", Err: syscall.ENOSPC}), syscall.ENOSPC},
		{nil, fmt.Errorf("%w: %w", cas.ErrUnavailable, syscall.ECONNREFUSED), syscall.EIO},
		// The local disk's own errors: the program must not take a lost staging file for its own ENOENT.
		{nil, &fs.PathError{Op: "open", Path: "staging/1", Err: syscall.ENOENT}, syscall.EIO},
		{nil, &fs.PathError{Op: "write", Path: "staging/1", Err: syscall.ENOSPC}, syscall.ENOSPC},
		{nil, syscall.EDQUOT, syscall.ENOSPC},
		{nil, syscall.EFBIG, syscall.EFBIG},
		{cancelled, fmt.Errorf("wait: %w", context.Canceled), syscall.EINTR},
		{nil, context.Canceled, syscall.EIO}, // not the caller's doing
	} {
		ctx := tt.ctx
		if ctx == nil {
			ctx = context.Background()
		}
		if got := errno(ctx, tt.err); got != tt.want {
			t.Errorf("errno(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

// TestErrnoTable: every error that a layer below exports is in the table, so that who adds one decides what programs see.
func TestErrnoTable(t *testing.T) {
	src, err := os.ReadFile("errno.go")
	if err != nil {
		t.Fatal(err)
	}
	for pkg, dir := range map[string]string{"catalog": "../cache/catalog", "content": "../cache/content", "cas": "../cas", "jobs": "../jobs"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, s := range g.Specs {
					for _, id := range s.(*ast.ValueSpec).Names {
						if !strings.HasPrefix(id.Name, "Err") {
							continue
						}
						n++
						if !bytes.Contains(src, []byte("\t{"+pkg+"."+id.Name+", syscall.")) {
							t.Errorf("%s.%s has no errno", pkg, id.Name)
						}
					}
				}
			}
		}
		if n == 0 {
			t.Errorf("no errors found in %s", dir)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const table = `22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:36 / /mnt/with\040blank rw,nosuid - fuse.casfs a,b rw,user_id=0
41 22 0:37 / /mnt/new\012line\134 rw shared:7 master:2 - fuse.casfs casfs rw
42 41 0:38 / /mnt/new\012line\134/inner rw - tmpfs tmpfs rw
43 22 0:39 / /mnt/with\040blank rw - tmpfs tmpfs rw
broken line
`
	list, err := parseMounts(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 5 {
		t.Fatalf("got %d entries, want 5: %+v", len(list), list)
	}
	if got, want := list[2], (mountEntry{0, 37, "/mnt/new\nline\\", "fuse.casfs"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for path, want := range map[string]int{
		"/":                        1,
		"/mnt":                     1,
		"/mnt/with blank":          39, // the one mounted last is on top
		"/mnt/with blanks":         1,
		"/mnt/new\nline\\/a/b":     37,
		"/mnt/new\nline\\/inner/x": 38,
	} {
		if e, ok := mountOf(list, path); !ok || e.minor != want {
			t.Errorf("mountOf(%q) = %+v %v, want minor %d", path, e, ok, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		ns   int64
		sec  int64
		nsec uint32
	}{{0, 0, 0}, {1, 0, 1}, {-1, -1, 999999999}, {1500000000123456789, 1500000000, 123456789}, {-1000000000, -1, 0}} {
		sec, nsec := split(tt.ns)
		if int64(sec) != tt.sec || nsec != tt.nsec {
			t.Errorf("split(%d) = %d, %d, want %d, %d", tt.ns, int64(sec), nsec, tt.sec, tt.nsec)
		}
	}
}

func TestSetAttr(t *testing.T) {
	in := &fuse.SetAttrIn{}
	in.Valid = fuse.FATTR_SIZE | fuse.FATTR_MTIME | fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_KILL_SUIDGID
	in.Size, in.Mtime, in.Mtimensec = 7, 3, 5
	before := time.Now()
	s := setAttr(in)
	if s.Mode != nil || s.UID != nil || s.GID != nil {
		t.Error("fields nobody asked for are set")
	}
	if s.Size == nil || *s.Size != 7 || s.Mtime == nil || s.Mtime.UnixNano() != 3000000005 || !s.KillPriv {
		t.Errorf("got %+v", s)
	}
	if s.Atime == nil || s.Atime.Before(before) {
		t.Errorf("UTIME_NOW gave %v", s.Atime)
	}

	in = &fuse.SetAttrIn{}
	in.Valid, in.Uid = fuse.FATTR_UID, 1
	if s := setAttr(in); !s.KillPriv {
		t.Error("a new owner of a file must clear setuid and setgid")
	}
}

func TestOpenFlags(t *testing.T) {
	for flags, want := range map[uint32]jobs.OpenFlags{
		unix.O_RDONLY:                 {Read: true},
		unix.O_WRONLY:                 {Write: true, Whole: true},
		unix.O_RDWR:                   {Read: true, Write: true, Whole: true},
		unix.O_RDWR | unix.O_NONBLOCK: {Read: true, Write: true},
		unix.O_WRONLY | unix.O_APPEND | unix.O_TRUNC: {Write: true, Append: true, Truncate: true},
		unix.O_RDONLY | unix.O_NONBLOCK:              {Read: true},
		unix.O_WRONLY | unix.O_NONBLOCK:              {Write: true},
		unix.O_WRONLY | unix.O_APPEND:                {Write: true, Append: true, Whole: true},
		unix.O_WRONLY | unix.O_SYNC:                  {Write: true, Sync: true, Whole: true},
		unix.O_WRONLY | unix.O_DSYNC:                 {Write: true, Sync: true, Whole: true},
	} {
		if got := openFlags(flags); got != want {
			t.Errorf("openFlags(%#o) = %+v, want %+v", flags, got, want)
		}
	}
}
