package jobs

import (
	"bytes"
	"context"
	"testing"
)

// The record that local bytes are no copy of an archive any more survives power
// loss before the bytes change: else what was written would pass as verified.
func TestChangedCopyIsOnRecordFirst(t *testing.T) {
	r := newRig(t, nil)
	data := bytes.Repeat([]byte("archived"), 1<<10)
	ino := r.write("f", data)
	r.sync()
	r.wantState(ino, "resident")

	ctx := context.Background()
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
	r.must(err)
	defer h.Release()
	if _, err := h.WriteAt(ctx, someone, []byte("changed"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := r.e.acquire(ino)
	r.must(err)
	defer f.put()
	f.mu.Lock()
	seq, v := f.seq, f.ver.V
	f.mu.Unlock()
	if v != 2 {
		t.Fatalf("version %d, want 2", v)
	}
	if durable := r.e.catalog.Durable(); durable < seq {
		t.Errorf("bytes changed with the record of it at %d, durable only up to %d", seq, durable)
	}
}
