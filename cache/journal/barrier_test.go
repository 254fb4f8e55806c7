package journal

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// gate is an fsync that counts and waits for the test.
type gate struct {
	n       atomic.Int64
	entered chan struct{}
	leave   chan error
}

func newGate(j *Journal) *gate {
	g := &gate{entered: make(chan struct{}), leave: make(chan error)}
	j.fsync = func(*os.File) error {
		g.n.Add(1)
		g.entered <- struct{}{}
		return <-g.leave
	}
	return g
}

func TestOneFsyncServesAllWhoWait(t *testing.T) {
	j := open(t, t.TempDir())
	appendN(t, j, 1) // begins the segment
	g := newGate(j)
	var wg sync.WaitGroup
	barrier := func(seq uint64) { wg.Go(func() { _ = must(t, j.Barrier(context.Background(), seq)) }) }
	barrier(1)
	<-g.entered
	appendN(t, j, 50)
	// These come while the first fsync runs, which may not cover them: they share the next.
	waiting := func() int {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.queued == nil {
			return 0
		}
		return 1
	}
	for seq := uint64(2); seq <= 51; seq++ {
		barrier(seq)
	}
	for waiting() == 0 {
	}
	j.Barrier(canceled(), 51) // one more, that gives up waiting
	g.leave <- nil
	<-g.entered
	g.leave <- nil
	wg.Wait()
	// Late comers of the loop above find it done or join the queued round; nobody begins a third of his own
	// unless he came after the second one's start, when everything was covered already.
	if n := g.n.Load(); n != 2 {
		t.Errorf("%d fsyncs for 51 barriers, want 2", n)
	}
	if j.Durable() != 51 {
		t.Errorf("Durable() = %d, want 51", j.Durable())
	}
	if err := j.Barrier(context.Background(), 51); err != nil || g.n.Load() != 2 {
		t.Errorf("a barrier for what is durable: %v, %d fsyncs", err, g.n.Load())
	}
	j.fsync = fdatasync
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func must(t *testing.T, err error) error {
	if err != nil {
		t.Error(err)
	}
	return err
}

func TestBarrierEndsWithContext(t *testing.T) {
	j := open(t, t.TempDir())
	appendN(t, j, 1)
	g := newGate(j)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- j.Barrier(ctx, 1) }()
	<-g.entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	g.leave <- nil
	if err := j.barrier(1); err != nil { // the fsync was not given up
		t.Fatal(err)
	}
	if n := g.n.Load(); n != 1 {
		t.Errorf("%d fsyncs, want 1", n)
	}
	j.fsync = fdatasync
}

func TestFailedFsyncPoisons(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	appendN(t, j, 5)
	boom := errors.New("input/output error")
	j.fsync = func(*os.File) error { return boom }
	if err := j.Barrier(context.Background(), 5); !errors.Is(err, ErrFailed) || !errors.Is(err, boom) {
		t.Fatal(err)
	}
	j.fsync = fdatasync
	if err := j.Barrier(context.Background(), 5); !errors.Is(err, ErrFailed) {
		t.Errorf("second Barrier: %v, want ErrFailed", err)
	}
	if _, err := j.Append([][]Op{ops(6)}); !errors.Is(err, ErrFailed) {
		t.Errorf("Append: %v, want ErrFailed", err)
	}
	if err := j.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("Close: %v, want ErrFailed", err)
	}
	check(t, open(t, dir), 0, 5)
}

// The segment that is full is synced before the next begins: only the newest may have a torn end.
func TestRotationSyncsTheOldSegment(t *testing.T) {
	j := open(t, t.TempDir())
	appendN(t, j, 1)
	var synced []string
	j.fsync = func(f *os.File) error {
		synced = append(synced, f.Name())
		return nil
	}
	first := j.cur.f.Name()
	for j.Segments() == 1 {
		appendN(t, j, 1)
	}
	if len(synced) != 2 || synced[0] != first {
		t.Errorf("synced %v, want %s and the new one", synced, first)
	}
	if got, want := j.Durable(), j.Last()-1; got != want {
		t.Errorf("Durable() = %d, want %d", got, want)
	}
	j.fsync = fdatasync
}

func TestConcurrentAppendAndBarrier(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				seq, err := j.Append([][]Op{{{Key: []byte("k"), Value: []byte("v")}}})
				if err == nil {
					err = j.Barrier(context.Background(), seq)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if j.Durable() < seq {
					t.Errorf("Durable() = %d after a barrier for %d", j.Durable(), seq)
				}
			}
		})
	}
	wg.Wait()
	if j.Last() != 400 {
		t.Errorf("Last() = %d, want 400", j.Last())
	}
	closed(t, j)
	if got := open(t, dir).Last(); got != 400 {
		t.Errorf("Last() = %d after reopening, want 400", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	j := open(b, b.TempDir())
	j.segmentSize = 64 << 20
	rec := [][]Op{{{Key: make([]byte, 20), Value: make([]byte, 80)}, {Key: make([]byte, 20), Value: make([]byte, 80)}}}
	for range b.N {
		if _, err := j.Append(rec); err != nil {
			b.Fatal(err)
		}
	}
}

// A full segment is synced before the next is begun. When that cannot be, nothing is left for a barrier that waits for its turn.
func TestBarrierWhenNoSegmentCanBeBegun(t *testing.T) {
	j := open(t, t.TempDir())
	appendN(t, j, 1)
	g := newGate(j)
	done := make(chan error, 2)
	barrier := func(seq uint64) { go func() { done <- j.Barrier(context.Background(), seq) }() }
	barrier(1)
	<-g.entered
	appendN(t, j, 1)
	barrier(2)
	for queued := false; !queued; {
		j.mu.Lock()
		queued = j.queued != nil
		j.mu.Unlock()
	}
	full := errors.New("no room")
	j.mu.Lock()
	j.segmentSize = 1
	write := j.write
	j.fsync = fdatasync
	j.write = func(*os.File, []byte, int64) (int, error) { return 0, full }
	j.mu.Unlock()
	if _, err := j.Append([][]Op{{{Key: []byte("k"), Value: []byte("v")}}}); !errors.Is(err, full) {
		t.Fatal(err)
	}
	j.mu.Lock()
	j.write = write
	j.mu.Unlock()
	g.leave <- nil
	for range 2 {
		must(t, <-done)
	}
	if j.Durable() != 2 {
		t.Errorf("Durable() = %d, want 2", j.Durable())
	}
	appendN(t, j, 1)
	must(t, j.Barrier(context.Background(), 3))
}
