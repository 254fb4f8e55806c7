package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// TestStates renames, deletes, changes and reads files while they settle, are
// uploaded, evicted and recalled. Each worker knows what its files must hold; the engine
// does its own things to them all the time.
func TestStates(t *testing.T) { testStates(t, envInt(t, "CASFS_STATES_ROUNDS", 80), nil) }

func testStates(t *testing.T, rounds int, change func(*jobs.Options)) {
	seed := uint64(envInt(t, "CASFS_STATES_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("CASFS_STATES_ROUNDS=%d CASFS_STATES_SEED=%d", rounds, seed)
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) {
		j.Settle = time.Millisecond
		j.PartSize, j.SingleBelow = 1<<20, 1<<20
		if change != nil {
			change(j)
		}
	})
	root, err := x.e.RootIno()
	if err != nil {
		t.Fatal(err)
	}
	const workers = 6
	var working, background sync.WaitGroup
	var stop atomic.Bool
	background.Go(func() {
		for !stop.Load() {
			if _, err := x.e.Evict(t.Context(), []uint64{root}, true); err != nil {
				t.Errorf("evict: %v", err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	background.Go(func() {
		for !stop.Load() {
			if _, err := x.e.Recall(t.Context(), jobs.RecallRequest{Inos: []uint64{root}, Recursive: true, Wait: true}, nil); err != nil && !stop.Load() {
				t.Errorf("recall: %v", err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	final := make([]map[string][]byte, workers)
	for k := range workers {
		working.Go(func() {
			w := &worker{x: x, t: t, rng: rand.New(rand.NewPCG(seed, uint64(k))), dir: x.path(fmt.Sprint("w", k)), want: map[string][]byte{}}
			final[k] = w.want
			if err := os.Mkdir(w.dir, 0o755); err != nil {
				t.Error(err)
				return
			}
			for i := range rounds {
				if err := w.step(); err != nil {
					t.Errorf("worker %d, round %d of seed %d: %v\n%s", k, i, seed, err, strings.Join(w.trace[max(0, len(w.trace)-12):], "\n"))
					return
				}
			}
		})
	}
	working.Wait()
	stop.Store(true)
	background.Wait()
	if t.Failed() {
		return
	}
	x.evict()
	x.remount()
	for k, want := range final {
		dir := x.path(fmt.Sprint("w", k))
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != len(want) {
			t.Errorf("%s has %d names, want %d", dir, len(list), len(want))
		}
		for name, data := range want {
			wantContent(t, x.path(fmt.Sprint("w", k), name), data)
		}
	}
}

// worker works in a directory of its own.
type worker struct {
	x     *mounted
	t     *testing.T
	rng   *rand.Rand
	dir   string
	want  map[string][]byte
	n     int
	trace []string
}

func (w *worker) pick() string {
	k := w.rng.IntN(len(w.want))
	for name := range w.want {
		if k == 0 {
			return name
		}
		k--
	}
	return ""
}

func (w *worker) step() (err error) {
	if len(w.want) < 4 {
		w.n++
		name := fmt.Sprint("f", w.n)
		data := fill(w.rng.IntN(3<<20), w.rng.Uint64())
		w.trace = append(w.trace, fmt.Sprintf("create %s %d", name, len(data)))
		if err := os.WriteFile(w.dir+"/"+name, data, 0o644); err != nil {
			return err
		}
		w.want[name] = data
		return nil
	}
	name := w.pick()
	p, data := w.dir+"/"+name, w.want[name]
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s (%d bytes): %w", name, len(data), err)
		}
	}()
	note := func(format string, args ...any) { w.trace = append(w.trace, name+": "+fmt.Sprintf(format, args...)) }
	switch w.rng.IntN(10) {
	case 0:
		note("unlink")
		delete(w.want, name)
		return os.Remove(p)
	case 1:
		to := w.pick()
		note("rename to %s", to)
		if to != name {
			w.want[to] = data
			delete(w.want, name)
		}
		return os.Rename(p, w.dir+"/"+to)
	case 2:
		note("chmod, utimes")
		at := time.Unix(int64(w.rng.IntN(1e9)), int64(w.rng.IntN(1e9)))
		if err := errors.Join(os.Chmod(p, 0o600), os.Chtimes(p, at, at)); err != nil {
			return err
		}
		fi, err := os.Stat(p)
		if err == nil && !fi.ModTime().Equal(at) {
			err = fmt.Errorf("mtime %v, want %v", fi.ModTime(), at)
		}
		return err
	case 3:
		note("append")
		f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		more := fill(w.rng.IntN(100000), w.rng.Uint64())
		_, err = f.Write(more)
		w.want[name] = append(bytes.Clone(data), more...)
		return errors.Join(err, f.Close())
	case 4:
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		some := fill(1+w.rng.IntN(50000), w.rng.Uint64())
		off := w.rng.IntN(len(data) + 1000)
		note("write %d at %d", len(some), off)
		_, err = f.WriteAt(some, int64(off))
		next := bytes.Clone(data)
		if n := off + len(some); n > len(next) {
			next = append(next, make([]byte, n-len(next))...)
		}
		copy(next[off:], some)
		w.want[name] = next
		back := make([]byte, len(next))
		if _, rerr := f.ReadAt(back, 0); rerr == nil && !bytes.Equal(back, next) {
			err = errors.Join(err, fmt.Errorf("reads back otherwise at %d", firstDiff(back, next)))
		} else {
			err = errors.Join(err, rerr)
		}
		if w.rng.IntN(2) == 0 {
			err = errors.Join(err, f.Sync())
		}
		return errors.Join(err, f.Close())
	case 5:
		size := w.rng.IntN(len(data)*2 + 1)
		note("truncate to %d", size)
		next := make([]byte, size)
		copy(next, data)
		w.want[name] = next
		return os.Truncate(p, int64(size))
	case 6:
		note("replace")
		next := fill(w.rng.IntN(2<<20), w.rng.Uint64())
		w.want[name] = next
		return os.WriteFile(p, next, 0)
	}
	note("read")
	got, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		var st unix.Stat_t
		unix.Stat(p, &st)
		return fmt.Errorf("read %d bytes, stat says %d; first difference at %d; state %s", len(got), st.Size, firstDiff(got, data), w.x.attr(p, "user.cas.state"))
	}
	return nil
}
