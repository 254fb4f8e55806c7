package fs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// promptly is how soon a signal must have ended a wait; far less is normal, but this machine may be busy.
const promptly = 5 * time.Second

// waiter is a process waiting for a recall that never ends.
type waiter struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
}

// waitingMount has a cold file and a warm one, and a service that takes an hour.
func waitingMount(t *testing.T, change func(*jobs.Options, *Options)) (x *mounted, cold, warm string) {
	x = mountForTest(t, local.Delays{Standard: time.Hour, Expedited: time.Hour, Bulk: time.Hour}, change)
	cold, warm = x.path("cold"), x.path("warm")
	write(t, cold, fill(1<<20, 1))
	x.cold(cold)
	write(t, warm, fill(1<<20, 2))
	return x, cold, warm
}

// startWaiter runs one of this binary's programs and returns when the engine has it waiting.
func (x *mounted) startWaiter(cmd *exec.Cmd) *waiter {
	x.t.Helper()
	w := &waiter{t: x.t, cmd: cmd}
	out, err := cmd.StdoutPipe()
	if err != nil {
		x.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	w.out = bufio.NewReader(out)
	if line := w.line(); line != "opened" {
		x.t.Fatalf("got %q, want opened", line)
	}
	eventually(x.t, "the process waits", func() bool { return x.waits(cmd.Process.Pid) })
	return w
}

// waits reports whether a thread of the process waits for a recall.
func (x *mounted) waits(pid int) bool { return x.waitingThread(pid) != 0 }

// waitingThread returns the thread of the process that waits, 0 for none: callers are threads.
func (x *mounted) waitingThread(pid int) int {
	x.t.Helper()
	s, err := x.e.Status(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	for _, w := range s.Waiters {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, w.PID)); err == nil {
			return int(w.PID)
		}
	}
	return 0
}

// signal sends to the thread that waits: a Go program would let another thread handle what is sent to the process.
func (x *mounted) signal(w *waiter, s syscall.Signal) {
	x.t.Helper()
	pid := w.cmd.Process.Pid
	if err := unix.Tgkill(pid, x.waitingThread(pid), s); err != nil {
		x.t.Errorf("tgkill: %v", err)
	}
}

func (w *waiter) line() string {
	w.t.Helper()
	s, err := w.out.ReadString('\n')
	if err != nil && err != io.EOF {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// ends waits for the process, at most promptly.
func (w *waiter) ends() (status syscall.WaitStatus, output string) {
	w.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, _ := io.ReadAll(w.out)
		output = strings.TrimSpace(string(b))
		w.cmd.Wait()
	}()
	select {
	case <-done:
	case <-time.After(promptly):
		w.t.Fatalf("process %d is still waiting; state %s", w.cmd.Process.Pid, procState(w.cmd.Process.Pid))
	}
	return w.cmd.ProcessState.Sys().(syscall.WaitStatus), output
}

func procState(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return string(b) + " " + string(s)
}

// programCmd runs one of the programs of this binary.
func programCmd(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "CASFS_TEST_PROGRAM="+name)
	return cmd
}

func sig(s syscall.Signal) string { return fmt.Sprint(int(s)) }

// warmStaysFast reads and stats while others wait.
func (x *mounted) warmStaysFast(warm string) {
	x.t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(warm)
		if err == nil {
			err = os.WriteFile(x.path("other"), []byte("x"), 0o644)
		}
		if err == nil {
			_, err = os.ReadDir(x.path())
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			x.t.Error(err)
		}
	case <-time.After(promptly):
		x.t.Fatal("a warm file on the same mount is held up")
	}
}

// TestInterrupt ends waiting reads by signals.
func TestInterrupt(t *testing.T) {
	t.Run("handler with SA_RESTART", func(t *testing.T) {
		x, cold, _ := waitingMount(t, nil)
		w := x.startWaiter(programCmd("read", cold, sig(syscall.SIGTERM)))
		x.signal(w, syscall.SIGTERM)
		if _, out := w.ends(); out != "read -1 interrupted system call" {
			t.Errorf("got %q, want EINTR", out)
		}
		eventually(t, "nobody waits", func() bool { return !x.waits(w.cmd.Process.Pid) })
	})

	t.Run("handler without SA_RESTART", func(t *testing.T) {
		if _, err := exec.LookPath("perl"); err != nil {
			t.Fatal("perl is needed; apt-get install perl-base")
		}
		x, cold, _ := waitingMount(t, nil)
		const script = `$| = 1; $SIG{TERM} = sub {}; open(F, "<", $ARGV[0]) or die "$!\n"; print "opened\n";
			$n = sysread(F, $b, 100); print defined $n ? "read $n\n" : "error ".($!+0)."\n";`
		w := x.startWaiter(exec.Command("perl", "-e", script, cold))
		w.cmd.Process.Signal(syscall.SIGTERM)
		if _, out := w.ends(); out != fmt.Sprintf("error %d", int(syscall.EINTR)) {
			t.Errorf("got %q, want EINTR", out)
		}
	})

	t.Run("default action", func(t *testing.T) {
		x, cold, _ := waitingMount(t, nil)
		w := x.startWaiter(exec.Command("sh", "-c", `exec 3<"$1"; echo opened; exec head -c 10 <&3`, "sh", cold))
		w.cmd.Process.Signal(syscall.SIGTERM)
		if ws, _ := w.ends(); !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
			t.Errorf("status %v, want death by SIGTERM", ws)
		}
	})

	t.Run("SIGURG first", func(t *testing.T) {
		x, cold, _ := waitingMount(t, nil)
		// SIGURG with a handler is what Go programs send themselves.
		w := x.startWaiter(programCmd("read", cold, sig(syscall.SIGURG), sig(syscall.SIGTERM)))
		tid := x.waitingThread(w.cmd.Process.Pid)
		for range 3 {
			x.signal(w, syscall.SIGURG)
		}
		eventually(t, "SIGURG is pending", func() bool { return onlySIGURG(uint32(tid)) })
		time.Sleep(10 * signalPoll) // long enough for a wrong EINTR
		if !x.waits(w.cmd.Process.Pid) {
			t.Fatal("SIGURG ended the read")
		}
		x.signal(w, syscall.SIGTERM)
		if _, out := w.ends(); out != "read -1 interrupted system call" {
			t.Errorf("got %q, want EINTR", out)
		}
	})

	t.Run("SIGKILL", func(t *testing.T) {
		x, cold, _ := waitingMount(t, nil)
		w := x.startWaiter(programCmd("read", cold))
		w.cmd.Process.Kill()
		if ws, _ := w.ends(); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
			t.Errorf("status %v, want death by SIGKILL", ws)
		}
	})

	t.Run("second opener", func(t *testing.T) {
		x, cold, _ := waitingMount(t, nil)
		w1 := x.startWaiter(programCmd("read", cold, sig(syscall.SIGTERM)))
		w2 := x.startWaiter(programCmd("read", cold, sig(syscall.SIGTERM)))
		x.signal(w2, syscall.SIGTERM)
		if _, out := w2.ends(); out != "read -1 interrupted system call" {
			t.Errorf("got %q, want EINTR", out)
		}
		if !x.waits(w1.cmd.Process.Pid) {
			t.Error("the first reader was disturbed")
		}
		x.signal(w1, syscall.SIGTERM)
		w1.ends()
	})

	t.Run("page fault", func(t *testing.T) {
		x, cold, warm := waitingMount(t, nil)
		w := x.startWaiter(programCmd("fault", cold))
		x.warmStaysFast(warm)
		f, err := os.Open(cold) // must not wait for the page
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		w.cmd.Process.Kill()
		if ws, _ := w.ends(); !ws.Signaled() {
			t.Errorf("status %v, want death by SIGKILL", ws)
		}
	})

	t.Run("many waiters and a warm file", func(t *testing.T) {
		x, cold, warm := waitingMount(t, nil)
		var all []*waiter
		for range 20 {
			all = append(all, x.startWaiter(programCmd("read", cold, sig(syscall.SIGTERM))))
		}
		x.warmStaysFast(warm)
		var wg sync.WaitGroup
		for _, w := range all {
			wg.Go(func() {
				x.signal(w, syscall.SIGTERM)
				w.ends()
			})
		}
		wg.Wait()
		// One job, whoever waited.
		x.wantRecalls(1)
	})
}

// TestUnmountEndsWaits shows the way out for SIGTERM of the daemon: no more
// waits, then an ordinary unmount.
func TestUnmountEndsWaits(t *testing.T) {
	x, cold, _ := waitingMount(t, nil)
	w := x.startWaiter(programCmd("read", cold))
	x.e.StopAdmitting()
	if _, out := w.ends(); !strings.HasPrefix(out, "read -1") {
		t.Errorf("got %q, want an error", out)
	}
	if err := x.m.Unmount(false); err != nil {
		t.Error(err)
	}
}

// TestAbort ends everything although programs wait.
func TestAbort(t *testing.T) {
	x, cold, _ := waitingMount(t, nil)
	w := x.startWaiter(programCmd("read", cold))
	err := x.m.Unmount(false)
	if err == nil {
		t.Fatal("unmounted although a file is open")
	}
	if !strings.Contains(err.Error(), ErrBusyMount.Error()) {
		t.Errorf("got %v, want ErrBusyMount", err)
	}
	if err := x.m.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, out := w.ends(); !strings.HasPrefix(out, "read -1") {
		t.Errorf("got %q, want an error", out)
	}
	done := make(chan struct{})
	go func() { x.m.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(promptly):
		t.Fatal("the server still runs")
	}
	if _, mounted, _ := mountAt(x.m.dir); mounted {
		t.Error("still mounted")
	}
}

// TestAbortIsForOneConnection aborts a mount that has ended when another has its number.
func TestAbortIsForOneConnection(t *testing.T) {
	requireFuse(t)
	if names, _ := filepath.Glob(connections + "/*"); len(names) == 0 {
		was, dir := connections, t.TempDir()
		if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
			if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
				t.Fatal(err)
			}
			t.Skip("fusectl cannot be mounted: ", err)
		}
		connections = dir
		defer func() {
			connections = was
			unix.Unmount(dir, unix.MNT_DETACH)
		}()
	}
	x := mountForTest(t, local.Delays{}, nil)
	defer x.stop()
	old := x.m
	// Abort may be about to write when the connection ends otherwise.
	raw, err := old.abort.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	raw.Control(func(of uintptr) { fd, err = unix.Dup(int(of)) })
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), old.abort.Name())
	defer f.Close()
	x.remount()
	if x.m.minor != old.minor {
		t.Logf("the device was %d and is %d", old.minor, x.m.minor)
	}
	old.abort = f
	if err := old.abortConnection(); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadDir(x.path()); err != nil {
		t.Errorf("the other mount: %v", err)
	}
}

// TestRecallModes are the answers of open.
func TestRecallModes(t *testing.T) {
	for _, tt := range []struct {
		mode  jobs.RecallMode
		flags int
		want  error
	}{
		{jobs.RecallQueue, unix.O_RDONLY, unix.EAGAIN},
		{jobs.RecallDeny, unix.O_RDONLY, unix.EREMOTE},
		{jobs.RecallAuto, unix.O_RDONLY | unix.O_NONBLOCK, nil},
		{jobs.RecallAuto, unix.O_RDONLY, nil},
		{jobs.RecallDeny, unix.O_WRONLY | unix.O_TRUNC, nil},
	} {
		t.Run(fmt.Sprintf("%s %#o", tt.mode, tt.flags), func(t *testing.T) {
			x, cold, _ := waitingMount(t, func(j *jobs.Options, _ *Options) { j.Recall = tt.mode })
			fd, err := unix.Open(cold, tt.flags, 0)
			if err == nil {
				unix.Close(fd)
			}
			if err != tt.want {
				t.Errorf("open: got %v, want %v", err, tt.want)
			}
			if tt.want != nil && len(x.logs.grep("call failed", "op=open", cold)) != 1 {
				t.Errorf("want one log line for it, got %v", x.logs.grep("call failed"))
			}
		})
	}
}

// TestOthersWhileAWriterWaits: the kernel holds the inode's lock during a write, which
// rm and chmod want (rm with the directory's lock in hand), and nothing interrupts those. So who writes waits in open.
func TestOthersWhileAWriterWaits(t *testing.T) {
	for _, how := range []string{`exec 3>>"$1"; echo more >&3`, `exec 3<>"$1"; echo more >&3`, `exec dd if=/dev/zero of="$1" bs=1 seek=5 count=1 conv=notrunc status=none`} {
		t.Run(how, func(t *testing.T) {
			x, cold, warm := waitingMount(t, nil)
			w := x.startWaiter(exec.Command("sh", "-c", "echo opened; "+how, "sh", cold))
			// touch opens for writing too, but writes nothing.
			for _, script := range []string{
				"touch cold", "chmod 600 cold", "setfattr -n user.a -v 1 cold", "ln cold link", "mv cold cold2", "ls -l . cold2", "ls -la", "touch new", "head -c 1 warm >/dev/null",
				"rm cold2", "rm link", "ls -l", "rm new",
			} {
				done := make(chan string, 1)
				go func() {
					out, err := exec.Command("sh", "-ec", `cd "$1"; eval "$2"`, "sh", x.path(), script).CombinedOutput()
					if err != nil {
						done <- fmt.Sprintf("%v: %s", err, out)
					}
					close(done)
				}()
				select {
				case msg := <-done:
					if msg != "" {
						t.Errorf("%s: %s", script, msg)
					}
				case <-time.After(promptly):
					t.Errorf("%s waits for the other program's recall", script)
				}
			}
			x.warmStaysFast(warm)
			w.cmd.Process.Kill()
			w.ends()
		})
	}
}
