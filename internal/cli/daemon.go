package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// daemonEnv marks the process that --daemon starts: the same program with the
// same arguments, in a session of its own. Go programs cannot fork.
const daemonEnv = "CASFS_DAEMON_CHILD"

func isDaemon() bool { return os.Getenv(daemonEnv) != "" }

// readyMark begins the line by which the daemon says that the mount answers.
const readyMark = "casfs-ready "

// spawn starts the daemon and returns when it is ready. Until then what it says
// on standard error is shown here, and its exit code becomes this process's.
func (a *app) spawn(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), daemonEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Pipes of our own: Wait must not wait for the daemon's copies to be closed.
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		return err
	}
	defer errR.Close()
	cmd.Stdout, cmd.Stderr = outW, errW
	err = cmd.Start()
	outW.Close()
	errW.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		io.Copy(a.errOut, errR)
	}()
	in := bufio.NewScanner(outR)
	for in.Scan() {
		if line, ok := strings.CutPrefix(in.Text(), readyMark); ok {
			<-shown // it has turned to its log by now
			a.printf("%s\n", line)
			return cmd.Process.Release()
		}
	}
	err = cmd.Wait()
	<-shown
	if code := cmd.ProcessState.ExitCode(); code > 0 {
		return quietly(code)
	}
	return fmt.Errorf("the daemon ended before it was ready (%v)", err)
}

// ready says that the mount answers. A daemon turns standard output and error to its
// log first, so that a crash of the program is found there.
func (a *app) ready(line, logFile string) {
	if !isDaemon() {
		a.printf("%s\n", line)
		return
	}
	out, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	tell := os.NewFile(uintptr(out), "ready")
	defer tell.Close()
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err == nil {
		unix.Dup3(int(log.Fd()), 1, 0)
		unix.Dup3(int(log.Fd()), 2, 0)
		log.Close()
	}
	fmt.Fprintf(tell, "%s%s\n", readyMark, line)
}
