package catalog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

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
