package jobs

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas/local"
)

// soon is how long the service takes where that does not matter.
var soon = local.Delays{Expedited: time.Second, Standard: time.Second, Bulk: time.Second, Inventory: time.Second}

// threeOf are the archives of one making of a file, as the vault has them.
type threeOf struct {
	data    []byte
	descr   [3]string
	content [3][]byte
}

// made makes up a version of three segments; with sets as casfs describes it, without as it did before.
// The first segment of a streamed one was sent while the file was being written.
func made(name string, v uint64, mtime int64, sets, streamed bool) (x threeOf) {
	const seg = 1000
	x.data = blob(name, 3*seg-1)
	var intents []string
	for i := range 3 {
		intents = append(intents, fmt.Sprintf("01234567-%s-%d", name, i))
	}
	for i := range 3 {
		x.content[i] = x.data[i*seg : min((i+1)*seg, len(x.data))]
		m := Metadata{Intent: intents[i], Ino: 5, V: v, Size: int64(len(x.data)), Mtime: mtime, Mode: 0o644, Born: 7, Seg: i, Segs: 3, Path: "f"}
		if sets {
			m.Set, m.Off = setOf(intents), int64(i*seg)
		}
		if streamed && i == 0 {
			m.Set, m.Segs, m.Size, m.Mtime = setOpen, 2, seg+10, mtime-1
		}
		x.descr[i] = formatDescription(m)
	}
	return x
}

// contents reads all files.
func (r *recallRig) contents() (list []string) {
	r.t.Helper()
	for path, i := range r.tree() {
		if !isRegular(i.Mode) {
			continue
		}
		data, err := r.read(context.Background(), i.Ino, 0, int(i.Size)+10)
		if err != nil {
			r.t.Fatalf("%s: %v", path, err)
		}
		list = append(list, string(data))
	}
	return list
}

// Segments of two makings of one version come in any order: each makes its own file, or none.
func TestSegmentsOfTwoHistories(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name   string
		va, vb uint64
		order  string // letters: segments of a and b
		sets   bool
		whole  string
		stream bool
	}{
		{"one after the other", 2, 2, "a0 a1 a2 b0 b1 b2", true, "ab", false},
		{"mixed", 2, 2, "a0 b1 a2 b0 a1 b2", true, "ab", false},
		{"mixed the other way", 2, 2, "b2 a1 b0 a2 b1 a0", true, "ab", false},
		{"as described before", 2, 2, "a0 b1 a2 b0 a1 b2", false, "ab", false},
		{"one is not complete", 2, 2, "a0 a2 b0 b1 b2", true, "b", false},
		{"none is complete", 2, 2, "a0 b1 a2", true, "", false},
		{"none is complete, as described before", 2, 2, "a0 b1 a2", false, "", false},
		{"the newer version is older", 3, 2, "a0 a1 a2 b0 b1 b2", true, "ab", false},
		{"the newer version is not complete", 3, 2, "a0 a2 b0 b1 b2", true, "b", false},
		{"the newer version is not complete, as described before", 3, 2, "a0 a2 b0 b1 b2", false, "b", false},
		{"streamed", 2, 2, "a0 b1 a2 b0 a1 b2", true, "ab", true},
		{"one is not complete, and was streamed", 2, 2, "a0 a2 b0 b1 b2", true, "b", true},
		{"the newer version is not complete, and was streamed", 3, 2, "a0 a2 b0 b1 b2", true, "b", true},
		{"the older version is not complete, and was streamed", 2, 3, "b0 b1 b2 a0 a2", true, "b", true},
	} {
		t.Run(x.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, soon, func(o *Options) { o.Tier = "expedited" })
				all := map[byte]threeOf{'a': made("a", x.va, 11, x.sets, x.stream), 'b': made("b", x.vb, 12, x.sets, x.stream)}
				for i := 0; i < len(x.order); i += 3 {
					p := all[x.order[i]]
					n := x.order[i+1] - '0'
					r.upload(p.descr[n], p.content[n])
					time.Sleep(time.Minute)
				}
				r.inventory()
				check := func() {
					t.Helper()
					got := r.contents()
					for _, c := range x.whole {
						if !slices.Contains(got, string(all[byte(c)].data)) {
							t.Errorf("%c is not shown", c)
						}
					}
					if len(got) != len(x.whole) {
						t.Errorf("%d files, want %d", len(got), len(x.whole))
					}
					if n := r.archives(); n[catalog.Trash] != 0 {
						t.Errorf("archives %v", n)
					}
				}
				check()
				r.inventory()
				check()
			})
		})
	}
}

// A stream whose middle was rewritten has fewer, longer segments than it was sent in. The vault alone gives it back.
func TestRebuildOfARewrittenStream(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, soon, func(o *Options) {
			o.Tier, o.Settle = "expedited", time.Hour
			o.PartSize, o.SegmentSize, o.SingleBelow, o.StreamAbove = 1<<20, 2<<20, 1<<20, 2<<20
		})
		ctx := context.Background()
		data := blob("f", 11<<20+5)
		a, h, err := r.e.Create(ctx, Caller{}, r.vault, "f", 0o644, OpenFlags{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		write := func(off, n int) {
			t.Helper()
			if _, err := h.WriteAt(ctx, Caller{}, data[off:off+n], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		for off := 0; off < len(data); off += 1 << 20 {
			write(off, min(1<<20, len(data)-off))
		}
		time.Sleep(time.Minute)
		copy(data[3<<20:], "this is in the second one")
		copy(data[5<<20:], "and this in the third")
		write(3<<20, 100)
		write(5<<20, 100)
		h.Release()
		r.stop()
		r.opts.SegmentSize = 8 << 20
		r.start()
		r.cold(a.Ino)
		s, err := r.e.Stat(ctx, a.Ino)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Archives) < 2 || s.Archives[1].Size != 4<<20 {
			t.Fatalf("%d archives, the second of %d bytes: this tests nothing", len(s.Archives), s.Archives[1].Size)
		}
		r.newMachine()
		r.inventory()
		if got := r.contents(); len(got) != 1 || got[0] != string(data) {
			t.Errorf("%d files", len(got))
		}
	})
}
