package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// target is what a value shall be, and what is to be said when it is not.
type target struct {
	what  string
	key   string
	unit  string
	want  float64
	most  bool   // want is the most, not the least
	short string // {key} stands for a value
}

var targets = []target{
	{"sequential write to close, against loopback without passthrough", "write/loopback", "×", 1.5, false, ""},
	{"sequential write to close, against rclone", "write/rclone", "×", 2.5, false, ""},
	{"warm sequential read, against loopback with passthrough", "read/seq", "×", 0.95, false, readShort},
	{"warm random read, against loopback with passthrough", "read/random", "×", 0.95, false, ""},
	{"`cp -r` of small files in, against the disk below", "small/disk cp -r", "×", 0.45, false, fuseShort("cp -r")},
	{"`cp -r` of small files in, against rclone", "small/rclone cp -r", "×", 2.5, false, rcloneShort("cp -r")},
	{"`rsync -a` of small files in, against the disk below", "small/disk rsync -a", "×", 0.45, false, fuseShort("rsync -a")},
	{"`rsync -a` of small files in, against rclone", "small/rclone rsync -a", "×", 2.5, false, rcloneShort("rsync -a")},
	{"time of a cold `find -ls` of the largest tree, against the disk below", "list/disk", "×", 1.5, true, listShort},
	{"speed of the same, against rclone", "list/rclone", "×", 5, false, ""},
	{"write to archived, against hashing every byte four times", "archive", "×", 0.6, false, archiveShort},
	{"recall, against a download with one hash", "recall", "×", 0.8, false, ""},
	{"mount of the largest catalog", "mount/s", "s", 2, true, ""},
	{"peak RSS of that mount", "mount/MiB", "MiB", 500, true, ""},
	{"peak RSS while streaming", "stream", "MiB", 300, true, ""},
	{"p99 of warm reads with waiters, against without", "waiters warm read, 4 KiB", "×", 1.5, true, ""},
	{"p99 of making, renaming and removing a file with waiters, against without", "waiters create, write of 4 KiB, close, rename, unlink", "×", 1.5, true, ""},
	{"p99 of warm open, read, close with waiters, against without", "waiters warm open, read, close, 4 KiB", "×", 1.5, true, ""},
}

// fuseShort explains what small files cost.
func fuseShort(tool string) string {
	return "FUSE itself costs that much: go-fuse's loopback, which only passes on and keeps no records, reaches {small/fuse " + tool + "} × of the disk here, and casfs is {small/loopback " + tool + "} × as fast as that. " +
		"For a file `cp -r` waits for five answers of the daemon, one after the other (look-up, create, the directory's attributes, which the kernel wants again after each change since it checks permissions, write, flush), " +
		"and `rsync -a` for thirteen. The engine's part is 90 µs of processor time a file, 50 of them for the create: staging file, journal and index (`go test -run '^$' -bench SmallFiles ./jobs`, with -cpuprofile)."
}

// rcloneShort explains why rclone is not left further behind.
func rcloneShort(tool string) string {
	return "The loopback itself, which keeps no records, is {small/bound " + tool + "} × as fast as rclone here, and casfs is {small/loopback " + tool + "} × as fast as the loopback: " +
		"the kernel asks it once more for each file, for the directory's attributes, and a create is a staging file, a record in the journal and some six keys in the index, which rclone, remembering nothing over a crash, does without."
}

const readShort = "Noise. The kernel reads from the page cache below and asks casfs for nothing but the open, as with the loopback; how it happened to lay out the pages of a file decides. " +
	"Medians of five of either differ by a quarter from run to run: 0.77, 0.86, 1.00, 1.04 and 1.22 × were seen on one machine in one evening."

const listShort = "What a system call and a page fault cost decides. The loopback needs {list/fuse} × the time of the disk here, and casfs is {list/loopback} × as fast as that; " +
	"on a machine where they cost half as much, the loopback needed 1.94 ×, casfs 1.10 ×."

const archiveShort = "Both sides run on the same processors and the same disk here, and hashing is not all they do. In a profile of `casfs sync` (perf) SHA-256 was 64 %: " +
	"40 for the store, which takes its two hashes one after the other by the standard library, so that it checks the client's code, and 24 for the client, which takes both at once. " +
	"The processors were 64 % busy, and that is not a matter of more parts at a time (`--parts 16` gives a twentieth): the rest is waiting for the disk, to which every byte goes twice, " +
	"into staging and into the store, each time with fsync. Two GiB at the rate of `copy + fsync` take {archive/disk} of all that time. Before that the bytes were copied through FUSE, a sixth of the time."

func (t *target) met(v float64) bool {
	if t.most {
		return v <= t.want
	}
	return v >= t.want
}

// report is the page.
func (b *bench) report() string {
	var w strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&w, format, args...) }
	p("# Benchmarks\n\n")
	p("Written by `make bench`; do not edit. Peers take turns, round after round, on the same machine and file system: %d rounds count, after %d of warm-up. "+
		"Cells are medians with the smallest and largest value in brackets. The ratio says how many times as fast casfs was as the peer.\n\n", b.o.runs, b.o.warm)
	p("Ratios can be compared between machines; the other numbers belong to this one.\n\n")

	p("## The machine and the programs\n\n| | |\n|---|---|\n")
	for _, row := range b.machine() {
		p("| %s | %s |\n", row[0], row[1])
	}
	p("\nThe directory below everything is on the same file system as the state directories, the store and the other peers' sources and caches. "+
		"casfs is mounted as `casfs mount --local STORE --state-dir STATE --settle 24h`, so that nothing is uploaded while something else is measured; rclone likewise as `%s`.\n\n",
		"rclone mount --vfs-cache-mode full --vfs-write-back 1h SOURCE MOUNTPOINT")
	for _, n := range b.notes {
		p("%s\n\n", n)
	}

	p("## Targets\n\n| target | wanted | measured | |\n|---|---|---|---|\n")
	var why []string
	for i := range targets {
		t := &targets[i]
		v, ok := b.values[t.key]
		if !ok || v == 0 && strings.Contains(t.key, "rclone") {
			continue
		}
		sign, verdict := "≥", "met"
		if t.most {
			sign = "≤"
		}
		if !t.met(v) {
			verdict = "**missed**"
			if t.short != "" {
				short := regexp.MustCompile(`{[^}]*}`).ReplaceAllStringFunc(t.short, func(key string) string { return number(b.values[strings.Trim(key, "{}")]) })
				why = append(why, fmt.Sprintf("* %s: %s", t.what, short))
			}
		}
		p("| %s | %s %s %s | %s %s | %s |\n", t.what, sign, number(t.want), t.unit, number(v), t.unit, verdict)
	}
	if why = slices.Compact(why); len(why) > 0 {
		p("\nWhat was missed, and why:\n\n%s\n", strings.Join(why, "\n"))
	}

	p("\n## Results\n")
	for _, r := range b.results {
		p("\n**%s** (%s): %s\n\n", r.name, r.unit, r.how)
		own := slices.Contains(r.peers, casfs) && len(r.peers) > 1
		if own {
			p("| | %s | casfs is … × as fast |\n|---|---|---|\n", r.unit)
		} else {
			p("| | %s |\n|---|---|\n", r.unit)
		}
		for _, name := range r.peers {
			c := r.cells[name]
			p("| %s | %s (%s–%s) |", name, number(r.median(name)), number(slices.Min(c)), number(slices.Max(c)))
			switch {
			case own && name != casfs:
				p(" %s |", number(r.ratio(name)))
			case own:
				p(" |")
			}
			p("\n")
		}
	}
	p("\nThe run took %.0f minutes.\n", time.Since(b.began).Minutes())
	return w.String()
}

// machine describes where and with what it was measured.
func (b *bench) machine() [][2]string {
	first := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return ""
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(line)
	}
	find := func(file, pattern string) string {
		raw, _ := os.ReadFile(file)
		if m := regexp.MustCompile(pattern).FindSubmatch(raw); m != nil {
			return strings.TrimSpace(string(bytes.Join(m[1:], []byte(" "))))
		}
		return ""
	}
	args := []string{"go run ./internal/bench"}
	for _, a := range os.Args[1:] {
		if !strings.HasPrefix(a, "-dir") {
			args = append(args, a)
		}
	}
	rows := [][2]string{
		{"date", b.began.UTC().Format("2006-01-02 15:04 UTC")},
		{"command", "`" + strings.Join(args, " ") + "`"},
		{"processors", fmt.Sprintf("%d × %s", runtime.NumCPU(), find("/proc/cpuinfo", `model name\s*: (.*)`))},
		{"memory", find("/proc/meminfo", `MemTotal:\s*(.*)`)},
		{"load before", find("/proc/loadavg", `^(\S+ \S+ \S+)`)},
		{"file system", first("stat", "-f", "-c", "%T", b.dir)},
		{"kernel", first("uname", "-sr")},
		{"casfs", first(b.casfs, "version")},
		{"Go", runtime.Version()},
		{"go-fuse loopback", first("go", "list", "-m", "github.com/hanwen/go-fuse/v2")},
	}
	if b.rclone != "" {
		rows = append(rows, [2]string{"rclone", first(b.rclone, "version")})
	}
	return rows
}
