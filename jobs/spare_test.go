package jobs

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas/local"
)

// Empty staging files made ahead are few, begin their life when they are taken, and leave nothing behind.
func TestSpares(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, local.Delays{}, func(o *Options) { o.Settle = 24 * time.Hour })
		files := 0
		burst := func(n int) (last int64) {
			t.Helper()
			for range n {
				files++
				a, h, err := r.e.Create(t.Context(), Caller{}, r.vault, fmt.Sprintf("f%d", files), 0o644, OpenFlags{Write: true})
				if err != nil {
					t.Fatal(err)
				}
				h.Release()
				last = a.Mtime
				synctest.Wait()
			}
			return last
		}
		spares := func() int {
			r.e.spare.mu.Lock()
			defer r.e.spare.mu.Unlock()
			return len(r.e.spare.files)
		}
		wantLocal := func(n int) {
			t.Helper()
			if all := len(r.e.store.List()); all != n {
				t.Errorf("%d local files, want %d", all, n)
			}
		}

		burst(1)
		wantLocal(1) // one file is no burst
		before := burst(40)
		if n := spares(); n <= sparesMost/2 || n > sparesMost {
			t.Errorf("%d files made ahead", n)
		}
		wantLocal(files + spares())
		var said []string
		if err := r.e.checkLocal(t.Context(), false, func(s string) { said = append(said, s) }); err != nil || len(said) > 0 {
			t.Errorf("a check of what is local: %q, %v", said, err)
		}
		for _, l := range r.e.spare.files {
			if err := l.SetMtime(time.Unix(0, before).Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if m := burst(1); m < before {
			t.Errorf("the mtime of a new file is %d, of an older one %d", m, before)
		}

		time.Sleep(3 * sparesIdle)
		synctest.Wait()
		wantLocal(files)

		burst(10)
		r.restart()
		wantLocal(files)

		burst(10)
		if spares() == 0 {
			t.Fatal("nothing made ahead")
		}
		for _, l := range r.e.spare.files {
			l.Close()
		}
		r.e.spare.files = nil // as a crash would leave them
		r.restart()
		wantLocal(files)
	})
}

// A check says nothing of files that are being made.
func TestCheckBesideCreates(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	var said []string
	var err error
	checks := 0
	r.e.atPoints(func(point string) {
		if point == "create.staging" || point == "truncate.staging" {
			checks++
			err = errors.Join(err, r.e.checkLocal(context.Background(), false, func(s string) { said = append(said, s) }))
		}
	})
	const files = 40
	for i := range files {
		r.write(fmt.Sprint("f", i), []byte("x"))
	}
	r.sync()
	r.write("f0", []byte("y")) // truncated
	if len(said) > 0 || err != nil || checks <= files {
		t.Errorf("%d checks: %q, %v", checks, said, err)
	}
}
