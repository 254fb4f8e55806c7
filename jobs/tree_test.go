package jobs

import (
	"bytes"
	"context"
	"testing"
)

// TestAttributesOfAFileBeingClosed: the size is known to the live file until its last handle
// is released, and to the catalog from then on. Who asks for it at that moment gets it, from one or the other.
func TestAttributesOfAFileBeingClosed(t *testing.T) {
	ctx := context.Background()
	for what, ask := range map[string]func(r *rig, ino uint64) (Attr, error){
		"lookup":  func(r *rig, _ uint64) (Attr, error) { return r.e.Lookup(ctx, r.vault, "f") },
		"getattr": func(r *rig, ino uint64) (Attr, error) { return r.e.Getattr(ctx, ino) },
		"link":    func(r *rig, ino uint64) (Attr, error) { return r.e.Link(ctx, ino, r.vault, "g") },
		"readdir": func(r *rig, ino uint64) (Attr, error) {
			list, attrs, err := r.e.ReadDirPlus(ctx, r.vault, 0, 10)
			for i := range list {
				if list[i].Ino == ino {
					return attrs[i], err
				}
			}
			return Attr{}, err
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Settle = 1 << 40 })
			ino := r.write("f", []byte("short"))
			h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
			r.must(err)
			data := bytes.Repeat([]byte("longer "), 1000)
			r.writeAll(h, data, 0)
			before, err := r.e.Getattr(ctx, ino)
			r.must(err)
			r.e.wasRead = func() {
				r.e.wasRead = nil
				h.Release()
			}
			if what == "getattr" {
				// It finds the live file first; so it must begin when there is none.
				r.e.wasRead = nil
				h.Release()
			}
			a, err := ask(r, ino)
			r.must(err)
			if a.Size != int64(len(data)) || a.Mtime != before.Mtime || a.Blocks != before.Blocks {
				t.Errorf("size %d, mtime %d, %d blocks; before the release %d, %d, %d", a.Size, a.Mtime, a.Blocks, before.Size, before.Mtime, before.Blocks)
			}
		})
	}
}
