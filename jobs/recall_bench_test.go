package jobs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// benchEngine is an engine on an embedded store without delays, in real time, with one archived file.
func benchEngine(b *testing.B, size int) (*Engine, *cas.Client, uint64) {
	b.Helper()
	srv := castest.New(b, local.Options{})
	client := srv.Client(b)
	ctx := context.Background()
	if _, err := client.CreateVault(ctx, "v"); err != nil {
		b.Fatal(err)
	}
	e, err := Open(Options{StateDir: filepath.Join(b.TempDir(), "state"), Client: client, Settle: -1, StagingSize: 4 << 30, CacheSize: 4 << 30, MinFree: -1})
	if err != nil {
		b.Fatal(err)
	}
	if err := e.Probe(ctx); err != nil {
		b.Fatal(err)
	}
	e.recall.noInventory = true
	run, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- e.Run(run) }()
	b.Cleanup(func() {
		cancel()
		<-done
		e.Close()
	})
	v, err := e.Lookup(ctx, catalog.RootIno, "v")
	if err != nil {
		b.Fatal(err)
	}
	a, h, err := e.Create(ctx, Caller{}, v.Ino, "f", 0o644, OpenFlags{Write: true})
	if err != nil {
		b.Fatal(err)
	}
	buf := blob("bench", 1<<20)
	for off := 0; off < size; off += len(buf) {
		if _, err := h.WriteAt(ctx, Caller{}, buf, int64(off)); err != nil {
			b.Fatal(err)
		}
	}
	h.Release()
	if err := e.Sync(ctx, []uint64{v.Ino}, nil); err != nil {
		b.Fatal(err)
	}
	return e, client, a.Ino
}

// BenchmarkColdRead reads a cold file from beginning to end, recall included;
// BenchmarkFetchJob is the client's own download of the same archive, to compare with.
func BenchmarkColdRead(b *testing.B) {
	const size = 256 << 20
	e, _, ino := benchEngine(b, size)
	ctx := context.Background()
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		for { // the last byte is read before the archive as a whole is checked
			res, err := e.Evict(ctx, []uint64{ino}, false)
			if err != nil {
				b.Fatal(err)
			}
			if len(res.Skipped) == 0 {
				break
			}
			runtime.Gosched()
		}
		b.StartTimer()
		h, err := e.Open(ctx, Caller{}, ino, OpenFlags{Read: true})
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 1<<20)
		for off := int64(0); ; {
			n, err := h.ReadAt(ctx, Caller{}, buf, off)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
			off += int64(n)
		}
		h.Release()
	}
}

func BenchmarkFetchJob(b *testing.B) {
	const size = 256 << 20
	e, client, ino := benchEngine(b, size)
	ctx := context.Background()
	s, err := e.Stat(ctx, ino)
	if err != nil {
		b.Fatal(err)
	}
	id, err := client.InitiateJob(ctx, "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: s.Archives[0].ID})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		f, err := os.Create(filepath.Join(b.TempDir(), "out"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.FetchJob(ctx, "v", id, f, cas.FetchOptions{}); err != nil {
			b.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkMergeInventory merges a list of archives of all kinds of descriptions into an empty vault.
func BenchmarkMergeInventory(b *testing.B) {
	const n = 10_000
	for b.Loop() {
		b.StopTimer()
		e, _, _ := benchEngine(b, 1<<20)
		v, err := e.Lookup(context.Background(), catalog.RootIno, "v")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		m := merger{r: e.recall, inv: &inventory{ino: v.Ino, name: "v"}, stamp: time.Now().UnixNano()}
		for i := range n {
			d := fmt.Sprintf("/home/me/photos/%d/IMG_%d.jpg", i%97, i)
			switch i % 10 {
			case 0:
				d = ""
			case 1:
				d = "backup.tar" // of many
			case 2, 3, 4:
				d = formatDescription(Metadata{Intent: "feedbeef" + fmt.Sprint(i), Ino: uint64(i), V: 1, Size: 100, Mode: 0o644, Path: fmt.Sprintf("mine/%d/f%d", i%31, i)})
			}
			err := m.add(cas.InventoryEntry{ArchiveID: fmt.Sprintf("%0128d", i), Description: d, CreationDate: time.Now(), Size: 100})
			if err != nil {
				b.Fatal(err)
			}
		}
		if err := m.flush(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "archives/s")
}
