package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	b.unsynced = true // nothing here waits for the disk
	defer func() { b.unsynced = false }()
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
