// Command bench measures casfs side by side with what a user would pick instead,
// in one run on one machine, and writes the result as a page of documentation.
//
// It is run by "make bench". Every workload is done by all peers in turn, round
// after round, so that whatever else the machine does hits all of them alike; a
// round or two before count for nothing; medians are shown with the range they were
// found in. What matters are the ratios: absolute numbers say more about the machine.
//
// The peers: the directory below everything (the floor), go-fuse's loopback
// example with and without passthrough (what FUSE costs), and rclone mount with
// a full VFS cache over a local backend (left out with a line when it is not installed).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are what the flags say.
type options struct {
	size    int64 // of large files
	stream  int64 // of the file that is streamed
	files   int   // of the small-file tree
	create  int   // files made by the create/stat/unlink loop
	lists   []int // entries of the listed trees
	mounts  []int // entries of the mounted catalogs
	waiters int
	runs    int
	warm    int
	only    map[string]bool
	dir     string
	tree    string
	out     string
}

// section is a group of workloads that -only can pick.
type section struct {
	name string
	run  func(*bench) error
}

// ext4 creates files slowly where many were deleted in the last minutes: what makes
// many files comes when what went on before the run is over, and before those that delete many.
var sections = []section{
	{"start", (*bench).startTime},
	{"write", (*bench).writes},
	{"read", (*bench).reads},
	{"archive", (*bench).archive},
	{"recall", (*bench).recall},
	{"waiters", (*bench).waiters},
	{"stream", (*bench).stream},
	{"small", (*bench).smallFiles},
	{"catalog", (*bench).changes},
	{"mount", (*bench).mountTimes},
	{"list", (*bench).lists},
	{"meta", (*bench).metadata},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	var quick bool
	var only string
	var sizeMB, streamMB int64
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.name
	}
	flag.Int64Var(&sizeMB, "size", 1024, "`MiB` of a large file")
	flag.Int64Var(&streamMB, "stream", 20*1024, "`MiB` of the file streamed through the mount")
	flag.IntVar(&o.files, "files", 10000, "files of the tree that is copied in")
	flag.IntVar(&o.runs, "runs", 5, "rounds that count")
	flag.BoolVar(&quick, "quick", false, "small sizes and three rounds: does it work at all?")
	flag.StringVar(&only, "only", "", "run these only, separated by commas: "+strings.Join(names, ", "))
	flag.StringVar(&o.dir, "dir", "", "work `directory`, on the file system to be measured (default: a new one in the current directory)")
	flag.StringVar(&o.tree, "tree", filepath.Join(goroot(), "src"), "`directory` with the small files to copy")
	flag.StringVar(&o.out, "out", "", "`file` for the result as Markdown (none with -quick and -only, unless given)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q?", flag.Arg(0))
	}
	o.warm, o.create, o.lists, o.mounts, o.waiters = 1, 2000, []int{10000, 100000}, []int{10000, 100000, 1000000}, 300
	if quick {
		sizeMB, streamMB, o.files, o.runs, o.create = min(sizeMB, 64), min(streamMB, 512), min(o.files, 500), min(o.runs, 3), 300
		o.lists, o.mounts, o.waiters = []int{2000}, []int{2000}, 30
	}
	o.size, o.stream = sizeMB<<20, streamMB<<20
	if o.runs < 1 || sizeMB < 1 {
		return errors.New("-runs and -size are at least 1")
	}
	if only != "" {
		o.only = map[string]bool{}
		for _, n := range strings.Split(only, ",") {
			if !strings.Contains(","+strings.Join(names, ",")+",", ","+n+",") {
				return fmt.Errorf("-only: there is no %q; there are: %s", n, strings.Join(names, ", "))
			}
			o.only[n] = true
		}
	}
	if o.out == "" && !quick && only == "" {
		o.out = "docs/benchmarks.md"
	}

	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.cleanUp()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		b.cleanUp()
		os.Exit(1)
	}()
	if err := b.keepMemory(); err != nil {
		return err
	}
	var failed error
	for _, s := range sections {
		if o.only != nil && !o.only[s.name] {
			continue
		}
		if b.interrupted() {
			break
		}
		// Memory is as empty for each section as for the first.
		if err := dropCaches("3"); err != nil {
			return err
		}
		began := time.Now()
		fmt.Printf("\n== %s\n", s.name)
		// What fails does not keep the rest from being measured.
		if err := errors.Join(s.run(b), b.stopAll()); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
			b.note("%s failed: %v", s.name, err)
		}
		fmt.Printf("   (%s took %.0f s)\n", s.name, time.Since(began).Seconds())
		if o.out != "" {
			// Now, and not only at the end: what was measured must not be lost with the run.
			if err := os.WriteFile(o.out, []byte(b.report()), 0o644); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n%s", b.report())
	return failed
}

// goroot is where the Go source tree is.
func goroot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return runtime.Version()
	}
	return strings.TrimSpace(string(out))
}
