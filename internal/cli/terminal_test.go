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
	"unsafe"

	"golang.org/x/sys/unix"
)

// onTerminal runs the program with a terminal for its standard error; whatever is shown there so far
// goes to watch. It returns standard output, what the terminal was sent, and the exit code.
func (u *user) onTerminal(watch func(shown string, p *os.Process), args ...string) (out, shown string, code int) {
	t := u.t
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	var unlock int32
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); e != 0 {
		t.Fatal(e)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := u.cmd(args...)
	var stdout bytes.Buffer
	c.Stdout, c.Stderr = &stdout, tty
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	all := make(chan []byte)
	go func() {
		var got []byte
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b) // EIO when the last one has closed the terminal
			got = append(got, b[:n]...)
			if err != nil {
				all <- got
				return
			}
			if watch != nil {
				watch(string(got), c.Process)
			}
		}
	}()
	c.Wait()
	return stdout.String(), string(<-all), c.ProcessState.ExitCode()
}

// TestRecallShowsProgress: on a terminal a waiting recall shows how far it is, and leaves nothing of that behind.
func TestRecallShowsProgress(t *testing.T) {
	u := newUser(t)
	m, v := recallMount(u, map[string]int{"a": 1 << 20, "b": 1 << 20}, "--standard", "2500ms")
	out, got, code := u.onTerminal(nil, "recall", "-r", "--wait", v)
	if code != 0 || out != "2 files local\n" || !strings.Contains(got, "recalling 0/2 files") || strings.Contains(got, "( 0 B)") {
		t.Errorf("exit %d, printed %q, and on the terminal %q", code, out, got)
	}
	last := got[strings.LastIndexByte(got, '\r')+1:]
	if strings.TrimSpace(strings.NewReplacer("\x1b[2K", "", "\x1b[K", "").Replace(last)) != "" {
		t.Errorf("%q stays on the terminal", last)
	}
	u.ok("umount", m.point)
}

// TestUmountShowsProgress: a umount that has to archive first shows how far it is. Interrupted, it leaves the mount as it is;
// when its time is up while an upload is under way it lists what is left, which the next mount brings into the vault.
func TestUmountShowsProgress(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h", "--bwlimit-up", "256K")
	v := filepath.Join(m.point, "v")
	if err := os.Mkdir(v, 0o755); err != nil {
		t.Fatal(err)
	}
	big := u.randomFile("big", 12<<20, 1) // 48 seconds
	sh(t, "cp %s %s", big, v)
	for _, name := range []string{"small1", "small2", "small3"} {
		sh(t, "cp %s %s", u.randomFile(name, 1000, 2), v)
	}
	var once bool
	_, shown, code := u.onTerminal(func(shown string, p *os.Process) {
		if !once && strings.Contains(shown, "archiving 3/4 files") {
			once = true
			p.Signal(os.Interrupt)
		}
	}, "umount", m.point)
	if !once || code == 0 || !strings.Contains(shown, "MiB") || !strings.Contains(shown, m.point+" stays mounted") {
		t.Errorf("exit %d, and on the terminal %q", code, shown)
	}
	once = false
	_, shown, code = u.onTerminal(func(shown string, p *os.Process) {
		if !once && strings.Contains(shown, "archiving 0/1 files") {
			once = true
			p.Signal(os.Interrupt)
		}
	}, "sync", filepath.Join(v, "big"))
	if !once || code != exitFailed || !strings.Contains(shown, "casfs: interrupted") || !strings.Contains(shown, "casfs status shows it") {
		t.Errorf("exit %d, and on the terminal %q", code, shown)
	}
	if err := exec.Command("mountpoint", "-q", m.point).Run(); err != nil {
		t.Fatalf("an interrupted umount has unmounted: %v", err)
	}
	same(t, filepath.Join(v, "big"), big)

	began := time.Now()
	_, shown, code = u.onTerminal(nil, "umount", "--timeout", "1s", m.point)
	if code != exitPartial || !strings.Contains(shown, "archiving 0/1 files") || !strings.Contains(shown, "1 file not in the vault yet") ||
		!strings.Contains(shown, "  v/big  ") || strings.Contains(shown, "small") || !strings.Contains(shown, "the next mount goes on") {
		t.Errorf("exit %d after %v, and on the terminal %q", code, time.Since(began), shown)
	}
	m.flags = append(m.flags, "--bwlimit-up", "0")
	m.start()
	u.ok("umount", m.point)
	m.start()
	u.evict("-r", m.point)
	same(t, filepath.Join(v, "big"), big)
	for _, name := range []string{"small1", "small2", "small3"} {
		same(t, filepath.Join(v, name), u.path(name))
	}
	u.ok("umount", m.point)
}
