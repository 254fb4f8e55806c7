package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The second signal ends the mount also when the first had to take it away from under a program's open file.
func TestSecondSignalEndsADetachedMount(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(m.point, "v", "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pid := m.pid()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	syscall.Kill(pid, syscall.SIGTERM)
	until(t, "the mount to vanish", func() bool { return exec.Command("mountpoint", "-q", m.point).Run() != nil })
	syscall.Kill(pid, syscall.SIGTERM)
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); n != 1 {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Error("it did not end")
	}
}
