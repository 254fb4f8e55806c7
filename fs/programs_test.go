package fs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// program is one of the small programs tests run as processes of their own.
// They use bare system calls: package os would repeat what was interrupted.
func program(name string, args []string) error {
	switch name {
	case "read":
		return readProgram(args)
	case "fault":
		return faultProgram(args)
	case "lock":
		return lockProgram(args)
	case "compare":
		return compareProgram(args)
	case "mmap":
		return mmapProgram(args)
	case "stores":
		return storesProgram(args)
	case "urgent":
		return urgentProgram(args)
	}
	return fmt.Errorf("no program %q", name)
}

// readProgram opens args[0] and reads from it once, with the signals in args[1:] caught. It prints
// "opened", and then what read(2) returned. Go's handlers are installed with SA_RESTART.
func readProgram(args []string) error {
	catch(args[1:])
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	fmt.Println("opened")
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	fmt.Println("read", n, err)
	os.Exit(0)
	return nil
}

// urgentProgram reads the files args with read(2) in a thread that gets SIGURG all the time, as the Go runtime sends it to
// preempt goroutines. It prints how many bytes came, or the first error, and how often it was interrupted.
func urgentProgram(args []string) error {
	runtime.LockOSThread()
	tid := unix.Gettid()
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
				runtime.Gosched()
			}
		}
	}()
	total := 0
	for _, name := range args {
		fd, err := unix.Open(name, unix.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			if n == 0 {
				break
			}
			total += n
		}
		unix.Close(fd)
	}
	close(stop)
	fmt.Println("read", total)
	os.Exit(0)
	return nil
}

// faultProgram maps args[0] and touches the first byte.
func faultProgram(args []string) error {
	catch(args[1:])
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	fmt.Println("opened")
	fmt.Println("touched", b[0])
	os.Exit(0)
	return nil
}

// storesProgram maps the file args[0] shared and stores what it is told on its standard input, an offset and a quoted string a line.
// With a second argument the descriptor is closed before that.
func storesProgram(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if len(args) > 1 {
		f.Close()
	}
	fmt.Println("mapped")
	for {
		var off int
		var text string
		if _, err := fmt.Scanf("%d %q\n", &off, &text); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		copy(m[off:], text)
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return err
		}
		fmt.Println("stored")
	}
	if err := unix.Munmap(m); err != nil {
		return err
	}
	f.Close()
	os.Exit(0)
	return nil
}

// storesIn starts storesProgram and returns what has it store; an empty text ends it.
func storesIn(t *testing.T, path string, args ...string) func(off int, text string) {
	t.Helper()
	cmd := programCmd("stores", append([]string{path}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	says := func(what string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != what {
			t.Fatalf("%q instead of %q", lines.Text(), what)
		}
	}
	says("mapped")
	return func(off int, text string) {
		t.Helper()
		if text == "" {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if _, err := fmt.Fprintf(in, "%d %q\n", off, text); err != nil {
			t.Fatal(err)
		}
		says("stored")
	}
}

// compareProgram maps args[0], privately and to read, and compares it with the file args[1].
func compareProgram(args []string) error {
	want, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, len(want), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if !bytes.Equal(b, want) {
		return errors.New("another content")
	}
	fmt.Println("same")
	os.Exit(0)
	return nil
}

// lockProgram tries to lock args[0], and prints what came of it.
func lockProgram(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("locked")
	}
	os.Exit(0)
	return nil
}

func catch(names []string) {
	signal.Reset()
	c := make(chan os.Signal, 16)
	for _, s := range names {
		n, err := strconv.Atoi(s)
		if err != nil {
			panic(err)
		}
		signal.Notify(c, syscall.Signal(n))
	}
}

// mmapProgram maps the file args[0] shared, compares it with the file args[1], stores
// through the mapping in many places, and writes what must be there now to args[1]. With args[2]
// "create" it makes the file first. It is a program because a page fault holds
// a thread, which the Go runtime of the process that serves it may be waiting for.
func mmapProgram(args []string) error {
	path, model := args[0], args[1]
	want, err := os.ReadFile(model)
	if err != nil {
		return err
	}
	flags := os.O_RDWR
	if args[2] == "create" {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if args[2] == "create" {
		if err := f.Truncate(int64(len(want))); err != nil {
			return err
		}
	}
	m, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if !bytes.Equal(m, want) {
		return fmt.Errorf("the mapping differs at %d", firstDiff(m, want))
	}
	chunk := fill(5000, uint64(os.Getpid()))
	for _, off := range []int{0, 4090, 1 << 20, len(want) - len(chunk)} {
		copy(m[off:], chunk)
		copy(want[off:], chunk)
	}
	// read(2) sees stores, and the mapping sees write(2).
	b := make([]byte, 100)
	if _, err := f.ReadAt(b, 1<<20); err != nil || !bytes.Equal(b, chunk[:100]) {
		return fmt.Errorf("read after a store: %v", err)
	}
	if _, err := f.WriteAt([]byte("written"), 2<<20); err != nil {
		return err
	}
	copy(want[2<<20:], "written")
	if !bytes.Equal(m[2<<20:2<<20+7], []byte("written")) {
		return errors.New("the mapping does not show a write")
	}
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	// After close(2) of the descriptor, before munmap.
	f.Close()
	m[7], want[7] = 'X', 'X'
	if err := unix.Munmap(m); err != nil {
		return err
	}
	if err := os.WriteFile(model, want, 0o644); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}
