package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

func sizeName(n int64) string {
	if n >= 1<<30 && n%(1<<30) == 0 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// startTime is how long a program takes that does nothing.
func (b *bench) startTime() error {
	run := func(name string, argv ...string) contestant {
		return contestant{name, func() (float64, error) {
			const times = 10
			began := time.Now()
			for range times {
				if err := command(argv[0], argv[1:]...); err != nil {
					return 0, err
				}
			}
			return time.Since(began).Seconds() * 1000 / times, nil
		}}
	}
	all := []contestant{run("/bin/true", "true"), run(casfs, b.casfs, "version")}
	if b.rclone != "" {
		all = append(all, run(rclone, b.rclone, "version"))
	}
	_, err := b.compare("start of the program", "`casfs version`, `rclone version`, `true`", "ms", true, all)
	return err
}

// writes are sequential writes of a large file.
func (b *bench) writes() error {
	peers, err := b.peers()
	if err != nil {
		return err
	}
	if err := startAll(peers); err != nil {
		return err
	}
	for _, sync := range []bool{false, true} {
		name, how := "sequential write, to close", "open, write(2) of 1 MiB, close"
		if sync {
			name, how = "sequential write, fsync, close", "open, write(2) of 1 MiB, fsync, close"
		}
		r, err := b.compare(name+", "+sizeName(b.o.size), how, "MB/s", false, each(peers, func(p *peer) (float64, error) {
			file := filepath.Join(p.dir, "large")
			v, err := rate(mb(b.o.size), func() error { return write(file, b.o.size, sync) })
			if err != nil {
				return 0, err
			}
			return v, os.Remove(file)
		}))
		if err != nil {
			return err
		}
		if !sync {
			b.values["write/loopback"] = r.ratio(loopback)
			b.values["write/rclone"] = r.ratio(rclone)
		}
	}
	b.peaks("peak RSS after these writes", peers)
	return nil
}

// reads are warm reads of a large file.
func (b *bench) reads() error {
	peers, err := b.peers()
	if err != nil {
		return err
	}
	if err := startAll(peers); err != nil {
		return err
	}
	// Written anew for each round: how the kernel happened to lay out the pages of
	// one file would otherwise be the difference.
	r, err := b.compare("sequential read, warm, "+sizeName(b.o.size), "read(2) of 1 MiB from the page cache, of a file just written", "MB/s", false, each(peers, func(p *peer) (float64, error) {
		file := filepath.Join(p.dir, "large")
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		if err := write(file, b.o.size, false); err != nil {
			return 0, err
		}
		return rate(mb(b.o.size), func() error { return read(file) })
	}))
	if err != nil {
		return err
	}
	b.values["read/seq"] = r.ratio(loopPass)
	r, err = b.compare("random read, warm, 4 KiB", "pread(2) at random places of the same file, one program", "reads/s", false, each(peers, func(p *peer) (float64, error) {
		f, err := os.Open(filepath.Join(p.dir, "large"))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		n := 200_000
		if p.name == rclone || p.name == loopback {
			n = 20_000
		}
		return rate(float64(n), func() error { return randomReads(f, b.o.size, n) })
	}))
	if err != nil {
		return err
	}
	b.values["read/random"] = r.ratio(loopPass)
	return nil
}

// smallFiles copies a tree of small files in.
func (b *bench) smallFiles() error {
	peers, err := b.peers()
	if err != nil {
		return err
	}
	if err := startAll(peers); err != nil {
		return err
	}
	tree, files, bytes, err := b.smallTree(b.o.files)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d files, %.0f MB", files, mb(bytes))
	for _, tool := range []struct {
		name string
		argv []string
	}{{"cp -r", []string{"cp", "-r"}}, {"rsync -a", []string{"rsync", "-a"}}} {
		if _, err := exec.LookPath(tool.argv[0]); err != nil {
			b.note("%s is not installed.", tool.argv[0])
			continue
		}
		r, err := b.compare(tool.name+" in, "+what, "`"+tool.name+"` of the first files of the Go source tree, to its end", "files/s", false, each(peers, func(p *peer) (float64, error) {
			to := b.copyTo(p.dir)
			return rate(float64(files), func() error { return command(tool.argv[0], append(tool.argv[1:], tree+"/.", to)...) })
		}))
		if err != nil {
			return err
		}
		b.values["small/disk "+tool.name] = r.ratio(disk)
		b.values["small/fuse "+tool.name] = r.between(loopPass, disk)
		b.values["small/loopback "+tool.name] = r.ratio(loopPass)
		b.values["small/rclone "+tool.name] = r.ratio(rclone)
	}
	b.peaks("peak RSS after these copies", peers)
	if err := b.stopAll(); err != nil {
		return err
	}
	return b.smallToArchived(tree, files, what)
}

// copyTo names a directory to copy a tree to, another one each time: ext4 creates
// files slowly where many were deleted a moment ago, so nothing is deleted between rounds.
func (b *bench) copyTo(dir string) string {
	b.next++
	return filepath.Join(dir, fmt.Sprintf("copy-%d", b.next))
}

// smallToArchived copies a tree in and waits until each file is an archive.
func (b *bench) smallToArchived(tree string, files int, what string) error {
	plain, err := b.fresh("plain")
	if err != nil {
		return err
	}
	c, err := b.mount("--trash", "off")
	if err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	copied := func(dir string, durable func(to string) error) contestant {
		name := disk
		if dir == c.dir {
			name = casfs
		}
		return contestant{name, func() (float64, error) {
			to := b.copyTo(dir)
			return rate(float64(files), func() error {
				if err := command("cp", "-r", tree+"/.", to); err != nil {
					return err
				}
				return durable(to)
			})
		}}
	}
	r, err := b.compare("`cp -r` in, to archived, "+what, "`cp -r`, then `casfs sync`; on the disk `sync -f`", "files/s", false, []contestant{
		copied(plain, func(to string) error { return command("sync", "-f", to) }),
		copied(c.dir, func(to string) error { _, err := b.verb("sync", to); return err }),
	})
	if err != nil {
		return err
	}
	b.values["small/archived"] = r.ratio(disk)
	b.peaks("peak RSS after that", []*peer{c})
	return nil
}

// metadata creates, stats and removes empty files.
func (b *bench) metadata() error {
	peers, err := b.peers()
	if err != nil {
		return err
	}
	if err := startAll(peers); err != nil {
		return err
	}
	n := b.o.create
	name := func(p *peer, i int) string { return filepath.Join(p.dir, fmt.Sprintf("f%06d", i)) }
	times := map[string][3][]float64{}
	whole := each(peers, func(p *peer) (float64, error) {
		var t [3]float64
		began := time.Now()
		lap := func(i int) {
			now := time.Now()
			t[i] = float64(n) / now.Sub(began).Seconds()
			began = now
		}
		for i := range n {
			f, err := os.OpenFile(name(p, i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return 0, err
			}
			if err := f.Close(); err != nil {
				return 0, err
			}
		}
		lap(0)
		if err := dropCaches("2"); err != nil {
			return 0, err
		}
		began = time.Now()
		for i := range n {
			if _, err := os.Lstat(name(p, i)); err != nil {
				return 0, err
			}
		}
		lap(1)
		for i := range n {
			if err := os.Remove(name(p, i)); err != nil {
				return 0, err
			}
		}
		lap(2)
		all := times[p.name]
		for i := range t {
			all[i] = append(all[i], t[i])
		}
		times[p.name] = all
		return t[0], nil
	})
	r, err := b.compare("create", "open(O_CREAT|O_EXCL), close of empty files in one directory", "files/s", false, whole)
	if err != nil {
		return err
	}
	for i, more := range []struct{ name, how string }{{"stat", "lstat of each, the kernel's inode cache dropped before"}, {"unlink", "unlink of each"}} {
		s := &result{name: more.name, how: more.how, unit: "files/s", peers: r.peers, cells: map[string][]float64{}}
		for _, p := range r.peers {
			s.cells[p] = times[p][i+1][b.o.warm:]
		}
		b.results = append(b.results, s)
	}
	return nil
}

// lists walks large trees whose names nobody has in memory.
func (b *bench) lists() error {
	for _, n := range b.o.lists {
		below, err := b.fresh("list")
		if err != nil {
			return err
		}
		if err := emptyFiles(below, n); err != nil {
			return err
		}
		peers, err := b.over(below, false)
		if err != nil {
			return err
		}
		base, err := b.filled(n)
		if err != nil {
			return err
		}
		peers = append(peers, b.remount(base))
		for _, w := range []struct {
			name string
			argv []string
		}{{"find -ls", []string{"find", "DIR", "-ls"}}, {"ls -lR", []string{"ls", "-lR", "DIR"}}, {"du -s", []string{"du", "-s", "DIR"}}} {
			r, err := b.cold(fmt.Sprintf("`%s`, cold, %d entries", w.name, n), "just mounted, the kernel's inode cache dropped", "ms", each(peers, func(p *peer) (float64, error) {
				if err := p.start(); err != nil {
					return 0, err
				}
				if err := dropCaches("2"); err != nil {
					return 0, err
				}
				argv := append([]string(nil), w.argv...)
				for i := range argv {
					if argv[i] == "DIR" {
						argv[i] = p.dir
					}
				}
				began := time.Now()
				if err := command(argv[0], argv[1:]...); err != nil {
					return 0, err
				}
				return time.Since(began).Seconds() * 1000, p.stop()
			}))
			if err != nil {
				return err
			}
			if w.argv[0] == "find" && n == b.o.lists[len(b.o.lists)-1] {
				b.values["list/disk"] = 1 / r.ratio(disk)
				b.values["list/rclone"] = r.ratio(rclone)
			}
		}
	}
	return nil
}

// mountTimes mounts large catalogs.
func (b *bench) mountTimes() error {
	for _, n := range b.o.mounts {
		base, err := b.filled(n)
		if err != nil {
			return err
		}
		var peak, anon []float64
		r, err := b.cold(fmt.Sprintf("mount, %d entries", n), "from exec to the line that says that it is mounted", "ms", []contestant{{casfs, func() (float64, error) {
			p := b.remount(base)
			if err := p.start(); err != nil {
				return 0, err
			}
			ms := p.took.Seconds() * 1000
			if _, err := os.ReadDir(p.dir); err != nil {
				return 0, err
			}
			time.Sleep(time.Second) // what it does in the background belongs to it
			peak = append(peak, float64(p.status("VmHWM"))/mib)
			anon = append(anon, float64(p.status("RssAnon"))/mib)
			return ms, p.stop()
		}}})
		if err != nil {
			return err
		}
		b.results = append(b.results,
			&result{name: fmt.Sprintf("peak RSS after that mount, %d entries", n), how: "VmHWM one second later", unit: "MiB", less: true, peers: []string{casfs}, cells: map[string][]float64{casfs: peak}},
			&result{name: fmt.Sprintf("of it not backed by files, %d entries", n), how: "RssAnon then", unit: "MiB", less: true, peers: []string{casfs}, cells: map[string][]float64{casfs: anon}})
		b.values["mount/s"], b.values["mount/MiB"] = r.median(casfs)/1000, median(peak)
	}
	return nil
}

// hashAll hashes a file so many times, on all processors.
func hashAll(name string, times int) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	const piece = 16 * mib
	work := make(chan int64)
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			buf := make([]byte, piece)
			for off := range work {
				n, err := f.ReadAt(buf, off)
				if err != nil && err != io.EOF {
					errs[i] = err
				}
				for range times {
					sha256.Sum256(buf[:n])
				}
			}
		})
	}
	for off := int64(0); off < st.Size(); off += piece {
		work <- off
	}
	close(work)
	wg.Wait()
	return errors.Join(errs...)
}

// archive is how fast what is written gets into the vault.
func (b *bench) archive() error {
	src, err := b.source(b.o.size)
	if err != nil {
		return err
	}
	if err := read(src); err != nil {
		return err
	}
	c, err := b.mount("--trash", "off")
	if err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	plain, err := b.fresh("plain")
	if err != nil {
		return err
	}
	total := mb(b.o.size)
	i := 0
	r, err := b.compare("write to archived, "+sizeName(b.o.size), "copy in by calls of 1 MiB, then `casfs sync`; against reading the same bytes and hashing them 4 times on all processors, and against copying with fsync", "MB/s", false, []contestant{
		{"hash × 4", func() (float64, error) { return rate(total, func() error { return hashAll(src, 4) }) }},
		{"copy + fsync", func() (float64, error) {
			to := filepath.Join(plain, "copy")
			v, err := rate(total, func() error {
				if err := copyIn(to, src); err != nil {
					return err
				}
				f, err := os.Open(to)
				if err != nil {
					return err
				}
				defer f.Close()
				return f.Sync()
			})
			os.Remove(to)
			return v, err
		}},
		{casfs, func() (float64, error) {
			i++
			to := filepath.Join(c.dir, fmt.Sprintf("large%d", i))
			v, err := rate(total, func() error {
				if err := copyIn(to, src); err != nil {
					return err
				}
				_, err := b.verb("sync", to)
				return err
			})
			os.Remove(to)
			return v, err
		}},
	})
	if err != nil {
		return err
	}
	b.values["archive"] = r.ratio("hash × 4")
	b.peaks("peak RSS after that", []*peer{c})
	return nil
}

// recall is how fast a cold file comes back, against a download of the same bytes.
func (b *bench) recall() error {
	src, err := b.source(b.o.size)
	if err != nil {
		return err
	}
	c, err := b.mount("--stub", "0")
	if err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	store := filepath.Join(c.base(), "store")
	file := filepath.Join(c.dir, "large")
	if err := copyIn(file, src); err != nil {
		return err
	}
	if _, err := b.verb("sync", file); err != nil {
		return err
	}
	out, err := b.verb("stat", "--json", file)
	if err != nil {
		return err
	}
	var about []struct {
		Archives []struct{ ID string } `json:"archives"`
	}
	if err := json.Unmarshal([]byte(out), &about); err != nil || len(about) != 1 || len(about[0].Archives) != 1 {
		return fmt.Errorf("casfs stat tells no archive: %s (%v)", out, err)
	}
	out, err = b.verb("job", "start", "--local", store, "--json", "--wait", vault, about[0].Archives[0].ID)
	if err != nil {
		return err
	}
	var job struct {
		ID string `json:"id"`
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&job); err != nil {
		return err
	}
	fetched := b.path("fetched")
	total := mb(b.o.size)
	r, err := b.compare("recall of a cold file, "+sizeName(b.o.size), "read(2) of 1 MiB of an evicted file, the service's job being ready at once; against `casfs job fetch` of such a job's output", "MB/s", false, []contestant{
		{"job fetch", func() (float64, error) {
			os.Remove(fetched)
			return rate(total, func() error {
				_, err := b.verb("job", "fetch", "--local", store, vault, job.ID, fetched)
				return err
			})
		}},
		{"read", func() (float64, error) {
			if _, err := b.verb("evict", file); err != nil {
				return 0, err
			}
			return rate(total, func() error { return read(file) })
		}},
		{casfs, func() (float64, error) {
			if _, err := b.verb("evict", file); err != nil {
				return 0, err
			}
			return rate(total, func() error {
				_, err := b.verb("recall", "--wait", file)
				return err
			})
		}},
	})
	if err != nil {
		return err
	}
	b.values["recall"] = r.ratio("job fetch")
	b.values["recall/read"] = r.between("read", "job fetch")
	b.peaks("peak RSS after that", []*peer{c})
	return nil
}

// waiters is what programs that wait for cold files do to those that read warm ones.
func (b *bench) waiters() error {
	c, err := b.mount("--stub", "0", "--standard", "1h")
	if err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	cold := filepath.Join(c.dir, "cold")
	if err := os.Mkdir(cold, 0o755); err != nil {
		return err
	}
	for i := range b.o.waiters {
		if err := write(filepath.Join(cold, fmt.Sprintf("f%04d", i)), 64<<10, false); err != nil {
			return err
		}
	}
	if _, err := b.verb("sync", cold); err != nil {
		return err
	}
	if _, err := b.verb("evict", "-r", cold); err != nil {
		return err
	}
	warm, size := filepath.Join(c.dir, "warm"), b.o.size/4
	if err := write(warm, size, false); err != nil {
		return err
	}
	var waiting []*exec.Cmd
	begin := func() error {
		if waiting != nil {
			return nil
		}
		for i := range b.o.waiters {
			cmd := exec.Command("cat", filepath.Join(cold, fmt.Sprintf("f%04d", i)))
			if err := cmd.Start(); err != nil {
				return err
			}
			waiting = append(waiting, cmd)
		}
		time.Sleep(2 * time.Second) // until all are at it
		return nil
	}
	end := func() {
		for _, cmd := range waiting {
			cmd.Process.Kill()
		}
		for _, cmd := range waiting {
			cmd.Wait()
		}
		waiting = nil
	}
	defer end()
	for _, w := range []struct {
		name   string
		reopen bool
		n      int
	}{{"read", false, 100_000}, {"open, read, close", true, 10_000}} {
		var p50 = map[string][]float64{}
		measure := func(name string, with bool) contestant {
			return contestant{name, func() (float64, error) {
				if with {
					if err := begin(); err != nil {
						return 0, err
					}
				} else {
					end()
				}
				all, err := latencies(warm, size, w.n, w.reopen)
				if err != nil {
					return 0, err
				}
				p50[name] = append(p50[name], percentile(all, 0.5))
				return percentile(all, 0.99), nil
			}}
		}
		with := fmt.Sprintf("%d waiting", b.o.waiters)
		r, err := b.compare("warm "+w.name+", 4 KiB, p99", "one program, alone and while others wait for cold files of the same mount", "µs", true,
			[]contestant{measure("nobody waiting", false), measure(with, true)})
		if err != nil {
			return err
		}
		half := &result{name: "warm " + w.name + ", 4 KiB, p50", how: "the same", unit: "µs", less: true, peers: r.peers, cells: map[string][]float64{}}
		for k, v := range p50 {
			half.cells[k] = v[b.o.warm:]
		}
		b.results = append(b.results, half)
		b.values["waiters "+w.name] = r.median(with) / r.median("nobody waiting")
	}
	end()
	return nil
}

// stream writes a file much larger than the room for staged bytes. When that
// gets stuck, it says so and measures with room enough.
func (b *bench) stream() error {
	limit := max(b.o.stream/10, 256*mib)
	err := b.streamThrough(limit)
	if errors.Is(err, syscall.ENOSPC) {
		b.note("Streaming %s through %s of staging ended with ENOSPC; repeated with room for all of it.", sizeName(b.o.stream), sizeName(limit))
		if err := b.stopAll(); err != nil {
			return err
		}
		err = b.streamThrough(b.o.stream * 2)
	}
	return err
}

func (b *bench) streamThrough(limit int64) error {
	c, err := b.mount("--staging-size", fmt.Sprint(limit), "--stream-above", fmt.Sprint(min(limit/4, 1<<30)), "--staging-wait", "15s")
	if err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	file := filepath.Join(c.dir, "stream")
	began := time.Now()
	if err := writeZeros(file, b.o.stream); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	if _, err := b.verb("sync", file); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	one := func(name, how, unit string, less bool, v float64) {
		b.results = append(b.results, &result{name: name, how: how, unit: unit, less: less, peers: []string{casfs}, cells: map[string][]float64{casfs: {v}}})
	}
	rss := float64(c.status("VmHWM")) / mib
	one("stream of "+sizeName(b.o.stream)+" with "+sizeName(limit)+" of staging", "zeros, write to archived, once", "MB/s", false, mb(b.o.stream)/took)
	one("peak RSS of that", "VmHWM after it", "MiB", true, rss)
	b.values["stream"] = rss
	fmt.Printf("   %.0f MB/s, peak RSS %.0f MiB\n", mb(b.o.stream)/took, rss)
	return nil
}

func writeZeros(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, mib)
	for left := size; left > 0; left -= mib {
		if _, err := f.Write(buf[:min(left, mib)]); err != nil {
			return err
		}
	}
	return f.Close()
}
