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

// besideDisk starts a mount that deletes at once what it replaces, and makes a directory on the disk below it.
func (b *bench) besideDisk() (c *peer, plain string, err error) {
	if plain, err = b.fresh("plain"); err != nil {
		return nil, "", err
	}
	c, err = b.started("--trash", "off")
	return c, plain, err
}

// started is a mount that is up.
func (b *bench) started(flags ...string) (*peer, error) {
	c, err := b.mount(flags...)
	if err != nil {
		return nil, err
	}
	return c, c.start()
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
	c, plain, err := b.besideDisk()
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
	b.values["archive/disk"] = 2 * r.ratio("copy + fsync")
	b.peaks("peak RSS after that", []*peer{c})
	return nil
}

// recall is how fast a cold file comes back, against a download of the same bytes.
func (b *bench) recall() error {
	src, err := b.source(b.o.size)
	if err != nil {
		return err
	}
	c, err := b.started("--stub", "0")
	if err != nil {
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
	c, err := b.started("--stub", "0", "--standard", "1h")
	if err != nil {
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
	reads := func(n int, reopen bool) func() ([]time.Duration, error) {
		return func() ([]time.Duration, error) { return latencies(warm, size, n, reopen) }
	}
	for _, w := range []struct {
		name string
		run  func() ([]time.Duration, error)
	}{
		{"warm read, 4 KiB", reads(100_000, false)},
		{"warm open, read, close, 4 KiB", reads(10_000, true)},
		{"create, write of 4 KiB, close, rename, unlink", func() ([]time.Duration, error) { return changeLatencies(c.dir, 2000) }},
	} {
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
				all, err := w.run()
				if err != nil {
					return 0, err
				}
				p50[name] = append(p50[name], percentile(all, 0.5))
				return percentile(all, 0.99), nil
			}}
		}
		with := fmt.Sprintf("%d waiting", b.o.waiters)
		r, err := b.compare(w.name+", p99", "one program, alone and while others wait for cold files of the same mount", "µs", true,
			[]contestant{measure("nobody waiting", false), measure(with, true)})
		if err != nil {
			return err
		}
		half := &result{name: w.name + ", p50", how: "the same", unit: "µs", less: true, peers: r.peers, cells: map[string][]float64{}}
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
	c, err := b.started("--staging-size", fmt.Sprint(limit), "--stream-above", fmt.Sprint(min(limit/4, 1<<30)), "--staging-wait", "15s")
	if err != nil {
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
