package jobs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// benchEngine is an engine on an embedded store without delays, in real time, with a vault, v.
func benchEngine(b *testing.B, settle time.Duration) (e *Engine, client *cas.Client, vault uint64) {
	b.Helper()
	srv := castest.New(b, local.Options{})
	client = srv.Client(b)
	ctx := context.Background()
	if _, err := client.CreateVault(ctx, "v"); err != nil {
		b.Fatal(err)
	}
	e, err := Open(Options{StateDir: filepath.Join(b.TempDir(), "state"), Client: client, Settle: settle, StagingSize: 4 << 30, CacheSize: 4 << 30, MinFree: -1})
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
	return e, client, v.Ino
}

// benchFile is benchEngine with one archived file.
func benchFile(b *testing.B, size int) (*Engine, *cas.Client, uint64) {
	b.Helper()
	e, client, vault := benchEngine(b, -1)
	ctx := context.Background()
	a, h, err := e.Create(ctx, Caller{}, vault, "f", 0o644, OpenFlags{Write: true})
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
	if err := e.Sync(ctx, []uint64{vault}, nil); err != nil {
		b.Fatal(err)
	}
	return e, client, a.Ino
}

// BenchmarkColdRead reads a cold file from beginning to end, recall included;
// BenchmarkFetchJob is the client's own download of the same archive, to compare with.
func BenchmarkColdRead(b *testing.B) {
	const size = 256 << 20
	e, _, ino := benchFile(b, size)
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
	e, client, ino := benchFile(b, size)
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

// BenchmarkMergeInventory reads the inventory of 100 000 archives with all kinds of descriptions, ten jobs' worth, into
// an empty vault: entries per second, and the most memory the process had, before and in all.
func BenchmarkMergeInventory(b *testing.B) {
	const n = 100_000
	e, _, _ := benchFile(b, 1<<20)
	var peak, before int64
	for b.Loop() {
		b.StopTimer()
		name := fmt.Sprint("v", b.N)
		v, err := e.Mkdir(context.Background(), Caller{}, catalog.RootIno, name, 0o755)
		if err != nil {
			b.Fatal(err)
		}
		before = resetPeak(b)
		b.StartTimer()
		for page := range 10 {
			m := merger{r: e.recall, inv: &inventory{ino: v.Ino, name: name}, stamp: time.Now().UnixNano()}
			_, err := cas.DecodeInventory(inventoryJSON(page*n/10, n/10), m.add)
			if err != nil {
				b.Fatal(err)
			}
			if err := m.flush(); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		peak = max(peak, peakMemory(b))
		b.StartTimer()
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(before>>20), "MiB-before")
	b.ReportMetric(float64(peak>>20), "MiB-peak") // with the mapped tables of the database, which the kernel may drop
	b.ReportMetric(float64(m.HeapSys>>20), "MiB-heap")
}

// inventoryJSON streams the list of archives from to from+n.
func inventoryJSON(from, n int) io.Reader {
	r, w := io.Pipe()
	go func() {
		out := bufio.NewWriter(w)
		fmt.Fprintf(out, `{"VaultQCS":"qcs:id/0:cas:ap-guangzhou:uid/1:vaults/v","InventoryDate":"2017-08-29T01:00:00.000Z","ArchiveList":[`)
		for i := from; i < from+n; i++ {
			d := fmt.Sprintf("/home/me/photos/%d/IMG_%d.jpg", i%97, i)
			switch i % 10 {
			case 0:
				d = ""
			case 1:
				d = "backup.tar" // of many
			case 2, 3, 4:
				d = formatDescription(Metadata{Intent: "feedbeef" + fmt.Sprint(i), Ino: uint64(i), V: 1, Size: 100, Mode: 0o644, Path: fmt.Sprintf("mine/%d/f%d", i%31, i)})
			}
			if i > from {
				out.WriteByte(',')
			}
			fmt.Fprintf(out, `{"ArchiveId":"%0128d","ArchiveDescription":%q,"CreationDate":"2017-08-28T08:29:41.000Z","Size":100,"SHA256TreeHash":"%064x"}`, i, d, i)
		}
		out.WriteString("]}")
		w.CloseWithError(out.Flush())
	}()
	return r
}

// resetPeak makes peakMemory begin anew and returns what is resident.
func resetPeak(b *testing.B) int64 {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	return peakMemory(b)
}

// peakMemory is the most that was resident, in bytes.
func peakMemory(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		b.Fatal(err)
	}
	return kb << 10
}
