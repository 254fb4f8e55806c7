package catalog

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// BenchmarkCreate makes files, each in one Update of about six keys.
func BenchmarkCreate(b *testing.B) {
	for _, durable := range []bool{false, true} {
		for _, writers := range []int{1, 64} {
			b.Run(fmt.Sprintf("durable=%t/writers=%d", durable, writers), func(b *testing.B) {
				c := mustOpen(b, small(b.TempDir()))
				v := mkvault(b, c, "v")
				b.ResetTimer()
				run(b, writers, func(i int64) error {
					seq, err := c.Update(func(tx *Tx) error {
						_, err := tx.Create(v, fmt.Sprintf("file%09d", i), Inode{Mode: sIFREG | 0o644}, i)
						return err
					})
					if err == nil && durable {
						err = c.Barrier(context.Background(), seq)
					}
					return err
				})
				b.StopTimer()
			})
		}
	}
}

// run spreads b.N calls over goroutines.
func run(b *testing.B, writers int, fn func(i int64) error) {
	used := cpu()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := fn(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}

// BenchmarkBadgerSync is the same amount of keys in badger's own durable transactions.
func BenchmarkBadgerSync(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, writers := range []int{1, 64} {
			b.Run(fmt.Sprintf("sync=%t/writers=%d", sync, writers), func(b *testing.B) {
				db, err := badger.Open(indexOptions(b.TempDir(), small("").Logger).WithSyncWrites(sync))
				if err != nil {
					b.Fatal(err)
				}
				defer db.Close()
				val := make([]byte, 70)
				b.ResetTimer()
				run(b, writers, func(i int64) error {
					return db.Update(func(txn *badger.Txn) error {
						for k := range 6 {
							if err := txn.Set(fmt.Appendf(nil, "%d-file%09d", k, i), val); err != nil {
								return err
							}
						}
						return nil
					})
				})
				b.StopTimer()
			})
		}
	}
}

// BenchmarkLookup resolves a name and reads its inode in one View.
func BenchmarkLookup(b *testing.B) {
	c := mustOpen(b, small(b.TempDir()))
	const n = 20000
	v := populate(b, c, "v", n)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("file%06d", i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		err := c.View(func(tx *Tx) error {
			d, err := tx.Lookup(v, names[i*7919%n])
			if err != nil {
				return err
			}
			_, err = tx.Inode(d.Ino)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadDir lists a directory of 200 000 entries in chunks, each found by its cookie and not by counting.
func BenchmarkReadDir(b *testing.B) {
	const n = 200_000
	c := mustOpen(b, small(b.TempDir()))
	v := mkvault(b, c, "v")
	for k := 0; k < n; k += 5000 {
		update(b, c, func(tx *Tx) error {
			for i := range 5000 {
				if _, err := tx.Create(v, fmt.Sprintf("file%06d", k+i), Inode{Mode: sIFREG}, 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b.ResetTimer()
	used := cpu()
	for range b.N {
		seen, cookie := 0, uint64(0)
		for {
			var list []Dirent
			view(b, c, func(tx *Tx) (err error) {
				list, err = tx.ReadDir(v, cookie, 500)
				return err
			})
			if len(list) == 0 {
				break
			}
			seen += len(list)
			cookie = list[len(list)-1].Cookie
		}
		if seen != n {
			b.Fatalf("%d entries, want %d", seen, n)
		}
	}
	b.ReportMetric((cpu()-used).Seconds()/float64(b.N), "cpu-s/op")
}

// BenchmarkMillion measures what grows with the catalog: opening it clean and
// after a crash, a snapshot, and the memory of each. -benchtime 1x is enough.
func BenchmarkMillion(b *testing.B) {
	const inodes = 1_000_000
	o := small(b.TempDir())
	o.SnapshotEvery = 64 << 20
	c, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	v := mkvault(b, c, "v")
	start, used := time.Now(), cpu()
	for d := range inodes / 1000 {
		update(b, c, func(tx *Tx) error {
			dir, err := tx.Create(v, fmt.Sprintf("directory%04d", d), Inode{Mode: sIFDIR | 0o755}, 1)
			for k := 0; k < 999 && err == nil; k++ {
				_, err = tx.Create(dir.Ino, fmt.Sprintf("some-file-name-%04d.dat", k), Inode{Mode: sIFREG | 0o644}, 1)
			}
			return err
		})
	}
	fmt.Printf("built in %v, cpu %v; %s\n", time.Since(start), cpu()-used, memory())
	start, used = time.Now(), cpu()
	if err := c.Snapshot(); err != nil {
		b.Fatal(err)
	}
	fmt.Printf("snapshot of %d MB in %v, cpu %v; %s\n", c.j.SnapshotBytes()>>20, time.Since(start), cpu()-used, memory())
	closing := func() {
		start, used := time.Now(), cpu()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		fmt.Printf("closed in %v, cpu %v\n", time.Since(start), cpu()-used)
	}
	closing()
	reopen := func(b *testing.B) {
		used := cpu()
		c, err = Open(o)
		b.ReportMetric((cpu() - used).Seconds(), "cpu-s")
		if err != nil {
			b.Fatal(err)
		}
		if got := c.Stats().Inodes; got != inodes+2 {
			b.Fatalf("%d inodes", got)
		}
	}
	b.Run("open=clean", func(b *testing.B) {
		for range b.N {
			reopen(b)
			b.StopTimer()
			if c.Rebuilt() != "" {
				b.Fatal(c.Rebuilt())
			}
			fmt.Println("open:", memory())
			closing()
			b.StartTimer()
		}
	})
	b.Run("pins", func(b *testing.B) { // written by a program that did not index pins
		for range b.N {
			b.StopTimer()
			reopen(b)
			update(b, c, func(tx *Tx) error { return tx.PutMeta(metaPins, nil) })
			closing()
			reopen(b)
			b.StartTimer()
			if made, err := c.IndexPins(context.Background()); !made || err != nil {
				b.Fatal(made, err)
			}
			b.StopTimer()
			closing()
			b.StartTimer()
		}
	})
	b.Run("open=rebuild", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			os.Remove(c.path("mark"))
			b.StartTimer()
			reopen(b)
			b.StopTimer()
			fmt.Println("rebuilt:", memory())
			closing()
			b.StartTimer()
		}
	})
	reopen(b)
	defer c.Close()
	b.Run("lookup", func(b *testing.B) {
		for i := range b.N {
			d := uint64(i*7919) % (inodes / 1000)
			err := c.View(func(tx *Tx) error {
				dir, err := tx.Lookup(v, fmt.Sprintf("directory%04d", d))
				if err != nil {
					return err
				}
				f, err := tx.Lookup(dir.Ino, fmt.Sprintf("some-file-name-%04d.dat", i*31%999))
				if err != nil {
					return err
				}
				_, err = tx.Inode(f.Ino)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		used := cpu()
		defer func() { b.ReportMetric((cpu() - used).Seconds(), "cpu-s") }()
		for range b.N {
			if err := c.Check(context.Background(), false, func(p string) { b.Error(p) }); err != nil {
				b.Fatal(err)
			}
		}
		fmt.Println("check:", memory())
	})
}

// cpu is the processor time this process has used: on a busy machine the better measure.
func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// memory is the process's resident memory, of it anonymous, after a collection.
func memory() string {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err.Error()
	}
	var s []string
	for _, line := range strings.Split(string(b), "\n") {
		for _, key := range []string{"VmRSS", "RssAnon", "VmHWM"} {
			if v, ok := strings.CutPrefix(line, key+":"); ok {
				s = append(s, key+" "+strings.TrimSpace(v))
			}
		}
	}
	return fmt.Sprintf("%s, heap %d MB", strings.Join(s, ", "), m.HeapAlloc>>20)
}
