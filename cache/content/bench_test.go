package content

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// compare runs batches of two functions in turn and reports the ratio of their fastest tenths:
// what the store adds, whatever else the machine is doing.
func compare(b *testing.B, batch int, bare, ours func(i int)) {
	times := [2][]time.Duration{}
	fns := [2]func(int){bare, ours}
	i := 0
	for b.Loop() {
		for k, fn := range fns {
			start := time.Now()
			for j := range batch {
				fn(i + j)
			}
			times[k] = append(times[k], time.Since(start))
		}
		i += batch
	}
	var t [2]float64
	for k := range times {
		slices.Sort(times[k])
		t[k] = float64(times[k][len(times[k])/10]) / float64(batch)
	}
	b.ReportMetric(t[0], "bare-ns")
	b.ReportMetric(t[1], "ours-ns")
	b.ReportMetric(t[0]/t[1], "ratio")
	b.ReportMetric(0, "ns/op")
}

// Writes of a staging file against bare pwrite on the same file system.
func BenchmarkWriteAt(b *testing.B) {
	for where, dir := range map[string]string{"disk": b.TempDir(), "memory": memDir(b)} {
		for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
			for _, kind := range []string{"append", "overwrite"} {
				b.Run(fmt.Sprintf("%s/%s/%dk", where, kind, size>>10), func(b *testing.B) {
					p := random(size, 1)
					span := 64 << 20
					if kind == "overwrite" {
						span = 4 << 20 // both files stay in the processor's cache
					}
					os.Remove(filepath.Join(dir, "bare"))
					fd, err := openFile(filepath.Join(dir, "bare"), unix.O_CREAT)
					must(b, err)
					defer unix.Close(fd)
					s := openStore(b, Options{StateDir: filepath.Join(dir, "store")})
					f, err := s.CreateStaging(1)
					must(b, err)
					defer s.Remove(1)
					defer f.Close()
					if kind == "overwrite" {
						_, err = pwrite(fd, make([]byte, span), 0)
						must(b, err)
						_, err = f.WriteAt(bg, make([]byte, span), 0)
						must(b, err)
					}
					batch := span / size
					write := func(i int) int64 { return int64(i%(span/size)) * int64(size) }
					compare(b, batch, func(i int) {
						off := write(i)
						if off == 0 && kind == "append" {
							must(b, unix.Ftruncate(fd, 0))
						}
						_, err := unix.Pwrite(fd, p, off)
						must(b, err)
					}, func(i int) {
						off := write(i)
						if off == 0 && kind == "append" {
							must(b, f.Truncate(0))
						}
						_, err := f.WriteAt(bg, p, off)
						must(b, err)
					})
				})
			}
		}
	}
}

func BenchmarkReadAt(b *testing.B) {
	s := openStore(b, Options{StateDir: memDir(b)})
	f := staged(b, s, 1, random(4<<20, 1))
	defer f.Close()
	for _, size := range []int{4 << 10, 1 << 20} {
		p := make([]byte, size)
		for name, read := range map[string]func(p []byte, off int64) (int, error){"ReadAt": f.ReadAt, "ReadVerified": f.ReadVerified} {
			b.Run(fmt.Sprintf("%s/%dk", name, size>>10), func(b *testing.B) {
				off := func(i int) int64 { return int64(i%(4<<20/size)) * int64(size) }
				compare(b, 1+(1<<20)/size, func(i int) {
					_, err := unix.Pread(f.Fd(), p, off(i))
					must(b, err)
				}, func(i int) {
					_, err := read(p, off(i))
					must(b, err)
				})
			})
		}
	}
}

// Many small files: create, write, close.
func BenchmarkSmallFiles(b *testing.B) {
	p := random(4096, 1)
	for where, dir := range map[string]string{"disk": b.TempDir(), "memory": memDir(b)} {
		b.Run(where, func(b *testing.B) {
			for i := range 256 {
				must(b, os.MkdirAll(filepath.Join(dir, shardName(i)), 0o700))
			}
			s := openStore(b, Options{StateDir: filepath.Join(dir, "store")})
			next := uint64(len(s.nodes))
			compare(b, 256, func(i int) {
				fd, err := openFile(fmt.Sprintf("%s/%s/%016x", dir, shardName(i&255), i), unix.O_CREAT)
				must(b, err)
				_, err = unix.Pwrite(fd, p, 0)
				must(b, err)
				unix.Close(fd)
			}, func(i int) {
				next++
				f, err := s.CreateStaging(next)
				must(b, err)
				_, err = f.WriteAt(bg, p, 0)
				must(b, err)
				must(b, f.Close())
			})
		})
	}
}

// Opening a store of 100,000 complete files and 1,000 incomplete ones.
func BenchmarkOpenStore(b *testing.B) {
	dir := b.TempDir()
	s := openStore(b, Options{StateDir: dir})
	const whole, parts = 100_000, 1_000
	for id := uint64(1); id <= whole; id++ {
		must(b, s.needShard(inState, id))
		must(b, os.WriteFile(s.path(inState, id, ""), nil, 0o600))
	}
	for id := uint64(whole + 1); id <= whole+parts; id++ {
		must(b, os.WriteFile(s.path(inState, id, partSuffix), nil, 0o600))
		must(b, os.Truncate(s.path(inState, id, partSuffix), mib))
		must(b, os.WriteFile(s.path(inState, id, mapSuffix), encodeSidecar(id, mib, nil), 0o600))
	}
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			s, err := Open(Options{StateDir: dir, MinFree: -1})
			must(b, err)
			if len(s.nodes) != whole+parts {
				b.Fatal(len(s.nodes))
			}
			s.Close()
		}
	})
	s, err := Open(Options{StateDir: dir, MinFree: -1})
	must(b, err)
	b.Run("List", func(b *testing.B) {
		for b.Loop() {
			if len(s.List()) != whole+parts {
				b.Fatal("missing")
			}
		}
	})
	b.Run("Touch", func(b *testing.B) {
		id := uint64(0)
		for b.Loop() {
			id = id%whole + 1
			s.Touch(id)
		}
	})
	s.Close()
}

// Recalled ranges of 32 MiB by several workers against pwrite and fdatasync of the same.
func BenchmarkWriteVerified(b *testing.B) {
	const part, parts = 32 << 20, 8
	p := random(part, 1)
	b.Run("pwrite+fdatasync", func(b *testing.B) {
		dir := b.TempDir()
		b.SetBytes(part * parts)
		for b.Loop() {
			fd, err := openFile(filepath.Join(dir, "f"), unix.O_CREAT|unix.O_TRUNC)
			must(b, err)
			for i := range int64(parts) {
				_, err := pwrite(fd, p, i*part)
				must(b, err)
			}
			must(b, unix.Fdatasync(fd))
			unix.Close(fd)
		}
	})
	b.Run("content", func(b *testing.B) {
		s := openStore(b, Options{StateDir: b.TempDir()})
		b.SetBytes(part * parts)
		id := uint64(0)
		for b.Loop() {
			id++
			release, err := s.ReserveContent(bg, part*parts)
			must(b, err)
			f, err := s.CreateContent(id, part*parts)
			must(b, err)
			var left atomic.Int64
			done := make(chan error, parts)
			for range 4 {
				go func() {
					for {
						i := left.Add(1) - 1
						if i >= parts {
							return
						}
						done <- f.WriteVerified(p, i*part)
					}
				}()
			}
			for range parts {
				must(b, <-done)
			}
			must(b, f.Close())
			release()
			must(b, s.Remove(id))
		}
	})
}
