package content

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file that is removed in the moment in which its last holder lets go of it is counted as room to come once, and
// whoever waits for room that does not come is told so.
func TestRemoveBesideTheLastClose(t *testing.T) {
	s := openStore(t, Options{CacheLimit: 1 << 20, Evict: func(uint64) error { return errors.New("in use") }})
	for id := uint64(1); id <= 20; id++ {
		f, err := s.CreateStaging(id)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 { // closing takes a while
			fd, err := unix.Dup(f.Fd())
			if err != nil {
				t.Fatal(err)
			}
			f.o.old = append(f.o.old, fd)
		}
		n := f.o.n
		var closed sync.WaitGroup
		closed.Go(func() { f.Close() })
		for last := false; !last; {
			s.mu.Lock()
			last = n.open == nil
			s.mu.Unlock()
		}
		if err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
		closed.Wait()
	}
	s.mu.Lock()
	if s.doomed != 0 {
		t.Errorf("%d removed files count as open", s.doomed)
	}
	s.mu.Unlock()
	release, err := s.ReserveContent(bg, 512<<10)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.CreateContent(1<<20, 512<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.WriteVerified(make([]byte, 512<<10), 0); err != nil {
		t.Fatal(err)
	}
	release()
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	if _, err := s.ReserveContent(ctx, 768<<10); !errors.Is(err, ErrNoSpace) {
		t.Errorf("waiting for room that does not come: %v", err)
	}
}
