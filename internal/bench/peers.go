package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	o        options
	dir      string // everything is below
	ownDir   bool
	casfs    string // the program measured
	loop     string // the loopback program
	rclone   string // "": not installed
	began    time.Time
	results  []*result
	bases    map[int]string     // of filled catalogs, by number of entries
	values   map[string]float64 // for targets that are not ratios of a result's cells
	notes    []string
	unsynced bool // rounds begin without writing everything back

	mu     sync.Mutex
	up     []*peer
	closed bool   // nobody is started any more
	order  []byte // what reportingOrder was before; nil: not changed
	clean  sync.Once
	next   int
}

func newBench(o options) (*bench, error) {
	b := &bench{o: o, dir: o.dir, began: time.Now(), bases: map[int]string{}, values: map[string]float64{}}
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: passthrough, and dropping the kernel's caches")
	}
	var err error
	if b.dir == "" {
		b.ownDir = true
		if b.dir, err = os.MkdirTemp(".", "bench-work-"); err != nil {
			return nil, err
		}
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	b.casfs, b.loop = b.path("casfs"), b.path("loopback")
	for bin, pkg := range map[string]string{b.casfs: ".", b.loop: "./fs/internal/loopback"} {
		if out, err := exec.Command("go", "build", "-o", bin, pkg).CombinedOutput(); err != nil {
			b.cleanUp()
			return nil, fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	}
	if b.rclone, err = exec.LookPath("rclone"); err != nil {
		b.rclone = ""
		b.note("rclone is not installed, so it is not compared (Debian: apt-get install rclone).")
	}
	return b, nil
}

func (b *bench) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
	fmt.Println("   " + b.notes[len(b.notes)-1])
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// fresh makes an empty directory that no other has been.
func (b *bench) fresh(name string) (string, error) {
	b.next++
	dir := b.path(fmt.Sprintf("%s-%d", name, b.next))
	return dir, os.MkdirAll(dir, 0o755)
}

func (b *bench) cleanUp() {
	b.clean.Do(func() {
		b.mu.Lock()
		b.closed = true
		up, order := append([]*peer(nil), b.up...), b.order
		b.mu.Unlock()
		for _, p := range up {
			p.kill()
		}
		if order != nil {
			os.WriteFile(reportingOrder, order, 0)
		}
		// When it was interrupted, somebody may still be writing.
		for try := 0; b.ownDir && try < 10 && os.RemoveAll(b.dir) != nil; try++ {
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// interrupted says whether everything is being taken down.
func (b *bench) interrupted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// peer is one of those compared: a directory that a process serves, or nobody.
type peer struct {
	b     *bench
	name  string
	dir   string // where the work is done
	point string // where it is mounted; "": it is not a mount
	argv  []string
	ready string // what standard output begins with when the mount answers; "": look at the mount table

	cmd  *exec.Cmd
	log  bytes.Buffer
	took time.Duration // from start to ready
	done chan error
}

// start runs the process and waits until the mount answers.
func (p *peer) start() error {
	if p.point == "" {
		return nil
	}
	if err := os.MkdirAll(p.point, 0o755); err != nil {
		return err
	}
	p.log.Reset()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = append(os.Environ(), "RCLONE_CONFIG=/dev/null")
	cmd.Stderr = &p.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	began := time.Now()
	p.b.mu.Lock()
	if p.b.closed {
		err = errors.New("interrupted")
	} else if err = cmd.Start(); err == nil {
		p.cmd = cmd
		p.b.up = append(p.b.up, p)
	}
	p.b.mu.Unlock()
	if err != nil {
		return err
	}
	lines := make(chan string, 16)
	done := make(chan error, 1)
	p.done = done
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			select {
			case lines <- s.Text():
			default:
			}
		}
		done <- cmd.Wait()
	}()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case line := <-lines:
			if p.ready != "" && strings.HasPrefix(line, p.ready) {
				p.took = time.Since(began)
				return nil
			}
		case err := <-done:
			done <- err
			return fmt.Errorf("%s ended before it was ready: %v\n%s", p.name, err, p.log.String())
		case <-deadline:
			p.kill()
			return fmt.Errorf("%s is not ready\n%s", p.name, p.log.String())
		case <-time.After(2 * time.Millisecond):
			if p.ready == "" && mounted(p.point) {
				p.took = time.Since(began)
				return nil
			}
		}
	}
}

// stop unmounts and waits for the process.
func (p *peer) stop() error {
	if p.cmd == nil {
		return nil
	}
	var err error
	for try := 0; try < 50; try++ {
		if err = syscall.Unmount(p.point, 0); err == nil || !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil && mounted(p.point) {
		return fmt.Errorf("unmount %s: %w", p.name, err)
	}
	return p.ended()
}

// ended waits for the process after it was told to go.
func (p *peer) ended() error {
	defer p.forget()
	select {
	case err := <-p.done:
		// What is left to archive is nobody's fault here.
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 3 {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.name, err, p.log.String())
		}
		return nil
	case <-time.After(2 * time.Minute):
		p.kill()
		return fmt.Errorf("%s does not end\n%s", p.name, p.log.String())
	}
}

// kill ends the process and takes its mount away.
func (p *peer) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill()
	syscall.Unmount(p.point, syscall.MNT_DETACH)
	p.forget()
}

func (p *peer) forget() {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	for i, q := range p.b.up {
		if q == p {
			p.b.up = append(p.b.up[:i:i], p.b.up[i+1:]...)
			break
		}
	}
	p.cmd = nil
}

// stopAll stops what a section left running.
func (b *bench) stopAll() error {
	b.mu.Lock()
	up := append([]*peer(nil), b.up...)
	b.mu.Unlock()
	var errs []error
	for _, p := range up {
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

// status returns a number of kilobytes from /proc/PID/status, in bytes.
func (p *peer) status(key string) int64 {
	if p.cmd == nil {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

func mounted(point string) bool {
	raw, _ := os.ReadFile("/proc/self/mounts")
	return strings.Contains(string(raw), " "+point+" ")
}

// The names of the peers, as the tables show them.
const (
	disk     = "disk"
	loopPass = "loopback, passthrough"
	loopback = "loopback"
	rclone   = "rclone"
	casfs    = "casfs"
)

const vault = "bench"

// peers makes all peers on new, empty directories. Extra arguments are for casfs.
func (b *bench) peers(args ...string) ([]*peer, error) {
	below, err := b.fresh("disk")
	if err != nil {
		return nil, err
	}
	all, err := b.over(below, true)
	if err != nil {
		return nil, err
	}
	c, err := b.mount(args...)
	if err != nil {
		return nil, err
	}
	return append(all, c), nil
}

// over makes the peers but casfs: on directories of their own, or all on the same.
func (b *bench) over(below string, own bool) ([]*peer, error) {
	under := func(name string) (string, error) {
		if own {
			return b.fresh(name)
		}
		return below, nil
	}
	all := []*peer{{b: b, name: disk, dir: below}}
	for _, l := range []struct{ name, flag string }{{loopPass, "-passthrough=true"}, {loopback, "-passthrough=false"}} {
		src, err := under("loop-src")
		if err != nil {
			return nil, err
		}
		point, err := b.fresh("loop-mnt")
		if err != nil {
			return nil, err
		}
		all = append(all, &peer{b: b, name: l.name, dir: point, point: point, argv: []string{b.loop, l.flag, src, point}})
	}
	if b.rclone != "" {
		src, err := under("rclone-src")
		if err != nil {
			return nil, err
		}
		point, err := b.fresh("rclone-mnt")
		if err != nil {
			return nil, err
		}
		cache, err := b.fresh("rclone-cache")
		if err != nil {
			return nil, err
		}
		// It, too, keeps back what is written until the measuring is over.
		all = append(all, &peer{b: b, name: rclone, dir: point, point: point, argv: []string{b.rclone, "mount",
			"--vfs-cache-mode", "full", "--cache-dir", cache, "--vfs-write-back", "1h", "--vfs-cache-max-age", "24h", "-q", src, point}})
	}
	return all, nil
}

// mount makes a casfs mount with a new embedded store and state and a vault in it, not yet started.
// It uploads nothing by itself unless args say otherwise.
func (b *bench) mount(args ...string) (*peer, error) {
	base, err := b.fresh("casfs")
	if err != nil {
		return nil, err
	}
	store := filepath.Join(base, "store")
	if out, err := exec.Command(b.casfs, "vault", "create", "--local", store, vault).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("vault create: %w\n%s", err, out)
	}
	return b.remount(base, args...), nil
}

// remount is the peer for a mount whose store and state are in base.
func (b *bench) remount(base string, args ...string) *peer {
	point := filepath.Join(base, "mnt")
	argv := append([]string{b.casfs, "mount", "--local", filepath.Join(base, "store"), "--state-dir", filepath.Join(base, "state"),
		"--settle", "24h", "--stream-above", "1T", "--drain", "stop", "--recall-guard-files", "0", "--recall-guard-bytes", "0", "--standard", "0s", "--log-level", "warn"}, args...)
	return &peer{b: b, name: casfs, dir: filepath.Join(point, vault), point: point, ready: "mounted", argv: append(argv, point)}
}

// base is where a casfs mount's store and state are.
func (p *peer) base() string { return filepath.Dir(p.point) }

// verb runs a verb of casfs and returns what it prints.
func (b *bench) verb(args ...string) (string, error) {
	cmd := exec.Command(b.casfs, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("casfs %s: %w\n%s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

func startAll(peers []*peer) error {
	for _, p := range peers {
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}

// dropCaches makes the kernel forget names and inodes ("2"), and pages with "3".
func dropCaches(what string) error {
	if what == "3" {
		syscall.Sync()
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0)
}

// command runs a program and throws its output away.
func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	var errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = nil, &errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(&errOut))
	}
	return nil
}

func tail(b *bytes.Buffer) string {
	out, _ := io.ReadAll(b)
	return string(out[max(0, len(out)-2000):])
}
