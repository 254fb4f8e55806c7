package catalog

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// opAt is the n-th change of a history that depends on nothing but its seed.
func opAt(seed, n uint64) op { return randomOp(rand.New(rand.NewPCG(seed, n)), int64(n)) }

// step makes the n-th change and notes its number in the same Update.
func step(tx *Tx, seed, n uint64) error {
	var err error
	switch n {
	case 1, 2:
		err = applyTx(tx, vaultOp(n))
	default:
		err = applyTx(tx, opAt(seed, n)) // an error is part of the history
	}
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return tx.PutMeta("step", binary.AppendUvarint(nil, n))
}

func vaultOp(n uint64) op {
	return op{Kind: "mkdir", Name: []string{"v", "w"}[n-1], Mode: 0o755, Now: int64(n)}
}

// stepsDone returns the number of the last change the catalog holds.
func stepsDone(c *Catalog) (n uint64, err error) {
	err = c.View(func(tx *Tx) error {
		b, err := tx.Meta("step")
		if errors.Is(err, ErrNotExist) {
			return nil
		}
		n, _ = binary.Uvarint(b)
		return err
	})
	return n, err
}

// compareSteps replays a history in the model and compares.
func compareSteps(t testing.TB, c *Catalog, seed, n uint64) {
	t.Helper()
	m := newModel()
	for i := uint64(1); i <= n; i++ {
		if i <= 2 {
			m.apply(vaultOp(i))
		} else {
			m.apply(opAt(seed, i))
		}
	}
	if err := m.equal(c); err != nil {
		t.Fatalf("after %d changes: %v", n, err)
	}
}

const killSeed = 20240607

func killOptions(dir string) Options {
	o := small(dir)
	o.SnapshotEvery = 64 << 10
	o.segmentSize = 32 << 10
	return o
}

// victim changes the catalog until it is killed, and says on standard output which changes were acknowledged.
func victim(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	o := killOptions(dir)
	o.Logger = slog.New(slog.DiscardHandler)
	c, err := Open(o)
	fail(err)
	n, err := stepsDone(c)
	fail(err)
	for {
		n++
		seq, err := c.Update(func(tx *Tx) error { return step(tx, killSeed, n) })
		fail(err)
		if n%50 == 0 {
			fail(c.Barrier(context.Background(), seq))
		}
		fmt.Println(n)
	}
}

// TestKill kills a process that changes the catalog at random moments, again and again: what it
// acknowledged is there, and what is there is exactly the history up to some change.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	r := rand.New(rand.NewPCG(killSeed, 1))
	kills, rebuilt := 12, 0
	if testing.Short() {
		kills = 3
	}
	var acked uint64
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CASFS_CATALOG_VICTIM="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(out)
		stop := r.IntN(400)
		for i := 0; in.Scan(); i++ {
			if _, err := fmt.Sscan(in.Text(), &acked); err != nil {
				t.Fatal(in.Text())
			}
			if i == stop {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		c := mustOpen(t, killOptions(dir))
		if c.Rebuilt() != "" {
			rebuilt++
		}
		n, err := stepsDone(c)
		if err != nil {
			t.Fatal(err)
		}
		if n < acked || n > acked+1 {
			t.Fatalf("%d changes are there, %d were acknowledged", n, acked)
		}
		compareSteps(t, c, killSeed, n)
		if got := problems(t, c, false); got != nil {
			t.Errorf("%q", got)
		}
		if r.IntN(2) == 0 {
			mustClose(t, c)
		} else {
			crash(t, c)
		}
	}
	t.Logf("%d kills, %d rebuilt, %d changes acknowledged", kills, rebuilt, acked)
	if rebuilt != kills {
		t.Errorf("rebuilt %d times after %d kills", rebuilt, kills)
	}
}

// TestPowerLoss keeps of the journal only what barriers made stable, plus any
// part of what followed, and of badger anything: every change before the last barrier is there, and no change without those before it.
func TestPowerLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(killSeed, 2))
	for range 6 {
		src := filepath.Join(t.TempDir(), "state")
		o := small(src)
		c := mustOpen(t, o)
		var stable int64 // bytes of the segment
		var barriered uint64
		n := uint64(0)
		for range 200 + r.IntN(300) {
			n++
			seq := update(t, c, func(tx *Tx) error { return step(tx, killSeed, n) })
			if r.IntN(40) == 0 {
				if err := c.Barrier(context.Background(), seq); err != nil {
					t.Fatal(err)
				}
				barriered, stable = n, size1(t, src)
			}
		}
		end := size1(t, src)
		for range 4 {
			dir := filepath.Join(t.TempDir(), "state")
			copyState(t, src, dir)
			keep := stable + r.Int64N(end-stable+1)
			if err := os.Truncate(segment1(t, dir), keep); err != nil {
				t.Fatal(err)
			}
			o.Dir = dir
			c2 := mustOpen(t, o)
			got, err := stepsDone(c2)
			if err != nil {
				t.Fatal(err)
			}
			if got < barriered || got > n || keep == end && got != n {
				t.Fatalf("%d of %d changes are there, %d had a barrier", got, n, barriered)
			}
			compareSteps(t, c2, killSeed, got)
			// Numbers given out and lost are not given out again: files may bear them.
			lost := c.nextID
			update(t, c2, func(tx *Tx) error {
				if id := tx.NextID(); id < lost {
					t.Errorf("NextID() = %d again", id)
				}
				return nil
			})
			mustClose(t, c2)
		}
		mustClose(t, c)
	}
}

func segment1(t testing.TB, dir string) string {
	t.Helper()
	segs, err := filepath.Glob(filepath.Join(dir, "journal", "seg-*.log"))
	if err != nil || len(segs) != 1 {
		t.Fatal(segs, err)
	}
	return segs[0]
}

func size1(t testing.TB, dir string) int64 {
	t.Helper()
	st, err := os.Stat(segment1(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}
