package jobs

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
)

// BenchmarkSmallFiles does what the requests of "cp -r" do for each file, and says what each of them takes.
func BenchmarkSmallFiles(b *testing.B) {
	srv := castest.New(b, local.Options{})
	client := srv.Client(b)
	ctx := context.Background()
	if _, err := client.CreateVault(ctx, "v"); err != nil {
		b.Fatal(err)
	}
	e, err := Open(Options{StateDir: filepath.Join(b.TempDir(), "state"), Client: client, Settle: 24 * time.Hour, StagingSize: 4 << 30, MinFree: -1})
	if err != nil {
		b.Fatal(err)
	}
	if err := e.Probe(ctx); err != nil {
		b.Fatal(err)
	}
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
	buf := blob("small", 10<<10)
	var took [6]time.Duration
	n := 0
	for b.Loop() {
		name := fmt.Sprintf("file%08d", n)
		n++
		began := time.Now()
		lap := func(i int) {
			now := time.Now()
			took[i] += now.Sub(began)
			began = now
		}
		e.Lookup(ctx, v.Ino, name)
		lap(0)
		_, h, err := e.Create(ctx, Caller{}, v.Ino, name, 0o644, OpenFlags{Write: true})
		if err != nil {
			b.Fatal(err)
		}
		lap(1)
		if _, err := e.Getattr(ctx, v.Ino); err != nil {
			b.Fatal(err)
		}
		lap(2)
		if _, err := h.WriteAt(ctx, Caller{}, buf, 0); err != nil {
			b.Fatal(err)
		}
		lap(3)
		if err := h.Flush(ctx); err != nil {
			b.Fatal(err)
		}
		lap(4)
		h.Release()
		lap(5)
	}
	for i, what := range []string{"lookup", "create", "getattr", "write", "flush", "release"} {
		b.ReportMetric(float64(took[i].Nanoseconds())/1e3/float64(n), what+"-µs")
	}
}
