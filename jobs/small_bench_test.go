package jobs

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// BenchmarkSmallFiles does what the requests of "cp -r" do for each file, and says what each of them takes.
func BenchmarkSmallFiles(b *testing.B) {
	e, _, vault := benchEngine(b, 24*time.Hour)
	ctx := context.Background()
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
		e.Lookup(ctx, vault, name)
		lap(0)
		_, h, err := e.Create(ctx, Caller{}, vault, name, 0o644, OpenFlags{Write: true})
		if err != nil {
			b.Fatal(err)
		}
		lap(1)
		if _, err := e.Getattr(ctx, vault); err != nil {
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
