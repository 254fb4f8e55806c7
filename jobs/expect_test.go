package jobs

import (
	"testing"
	"testing/synctest"
)

// TestOpenWhileALocalFileMoves opens an archived file to read and write just when its local file becomes a copy that
// may be evicted, and is: that makes no version of it, and does not fail.
func TestOpenWhileALocalFileMoves(t *testing.T) {
	for name, evict := range map[string]bool{"kept": false, "evicted": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, realistic, nil)
				data := blob("f", 3<<20)
				ino := r.write("f", data)
				if err := r.e.Sync(t.Context(), []uint64{ino}, nil); err != nil {
					t.Fatal(err)
				}
				f, err := r.e.acquire(ino)
				if err != nil {
					t.Fatal(err)
				}
				defer f.put()
				type opened struct {
					h   *Handle
					err error
				}
				result := make(chan opened, 1)
				f.mu.Lock()
				err = f.gateLocked(func() error {
					go func() {
						h, err := r.e.Open(t.Context(), Caller{}, ino, OpenFlags{Read: true, Write: true})
						result <- opened{h, err}
					}()
					synctest.Wait() // it waits for this to end
					if evict {
						return r.e.recall.evict(f, true, false)
					}
					return nil
				})
				f.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				o := <-result
				if o.err != nil {
					t.Fatal(o.err)
				}
				defer o.h.Release()
				f.mu.Lock()
				v := f.ver.V
				f.mu.Unlock()
				if v != 1 {
					t.Errorf("it is at version %d", v)
				}
				got := make([]byte, len(data))
				if n, err := o.h.ReadAt(t.Context(), Caller{}, got, 0); err != nil || n != len(data) || string(got) != string(data) {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		})
	}
}
