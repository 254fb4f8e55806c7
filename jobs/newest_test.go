package jobs

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
)

// Programs replace files: each version is a file of its own, with the same path. The newest has the name after a rebuild, however
// the inventory is sorted; the older ones stand beside it.
func TestNewestHasTheName(t *testing.T) {
	t.Parallel()
	inAnyOrder(t, func(name string, ino uint64, began time.Time) (list []cas.InventoryEntry) {
		// Three files; the second is of two versions, the oldest and the newest of all.
		for i, x := range []struct {
			ino, v uint64
			hour   int
		}{
			{1, 1, 2}, {2, 1, 1}, {2, 2, 4}, {3, 1, 3},
		} {
			data := blob(fmt.Sprint(name, i), 300+i)
			m := Metadata{Intent: fmt.Sprintf("01234567%s-%d", name, i), Ino: 10*ino + x.ino, Born: 7, V: x.v, Size: int64(len(data)), Mode: 0o644, Path: name}
			list = append(list, entryOf(fmt.Sprint(name, "-", i), m, data, began.Add(time.Duration(x.hour)*time.Hour)))
		}
		return list
	}, func(t *testing.T, r *recallRig, name string) {
		var named []string
		tree := r.tree()
		for _, p := range r.files() {
			if p == name || len(p) > len(name) && p[:len(name)+1] == name+" " {
				named = append(named, p)
			}
		}
		if len(named) != 3 || tree[name].Size != 302 {
			t.Errorf("%s is of %d bytes, all of them: %q", name, tree[name].Size, named)
		}
	})
}

// A file that became a directory, and the other way round.
func TestNewestHasTheDirectory(t *testing.T) {
	t.Parallel()
	inAnyOrder(t, func(name string, ino uint64, began time.Time) (list []cas.InventoryEntry) {
		for i, path := range []string{name, name + "/under"} {
			data := blob(path, 300+i)
			m := Metadata{Intent: fmt.Sprintf("01234567%s-%d", name, i), Ino: 10*ino + uint64(i), Born: 7, V: 1, Size: int64(len(data)), Mode: 0o644, Path: path}
			list = append(list, entryOf(fmt.Sprint(name, "-", i), m, data, began.Add(time.Duration(i+1)*time.Hour)))
		}
		return list
	}, func(t *testing.T, r *recallRig, name string) {
		if files := r.files(); !slices.Contains(files, name+"/under") {
			t.Errorf("%s is missing among %q", name+"/under", files)
		}
	})
}

// What is replaced by a rename is back with its last bytes under its name; what somebody has changed or moved after
// an inventory keeps its name.
func TestRebuildAfterReplacing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Settle = time.Hour })
		r.inventories = true
		ctx := context.Background()
		replace := func(name string, data []byte) {
			t.Helper()
			r.write(".tmp", data)
			if err := r.e.Rename(ctx, r.vault, ".tmp", r.vault, name, 0); err != nil {
				t.Fatal(err)
			}
			if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		versions := make([][]byte, 4)
		for i := range versions {
			versions[i] = blob(fmt.Sprint("version ", i), 1000+i)
			if i < 3 {
				replace("report.txt", versions[i])
				replace("kept.txt", versions[i])
			}
		}
		time.Sleep(30 * time.Hour)
		r.newMachine()
		time.Sleep(30 * time.Hour)
		tree := r.tree()
		r.want(tree["report.txt"].Ino, versions[2], 0, 2000)
		r.want(tree["kept.txt"].Ino, versions[2], 0, 2000)
		if files := r.files(); len(files) != 6 {
			t.Errorf("%q", files)
		}
		// Changed here, then another machine uploads a newer one.
		h, err := r.e.Open(ctx, Caller{}, tree["kept.txt"].Ino, OpenFlags{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		mine := append(bytes.Clone(versions[2]), "mine"...)
		if _, err := h.WriteAt(ctx, Caller{}, []byte("mine"), int64(len(versions[2]))); err != nil {
			t.Fatal(err)
		}
		h.Release()
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for i, name := range []string{"report.txt", "kept.txt"} {
			m := Metadata{Intent: fmt.Sprintf("76543210another-%d", i), Ino: 77 + uint64(i), Born: 7, V: 1, Size: int64(len(versions[3])), Mode: 0o600, Path: name}
			r.upload(formatDescription(m), versions[3])
		}
		time.Sleep(time.Hour)
		r.inventory()
		tree = r.tree()
		r.want(tree["report.txt"].Ino, versions[3], 0, 2000)
		r.want(tree["kept.txt"].Ino, mine, 0, 2000)
		if files := r.files(); len(files) != 8 {
			t.Errorf("%q", files)
		}
		r.restart()
		time.Sleep(30 * time.Hour)
		if again := r.tree(); again["report.txt"].Ino != tree["report.txt"].Ino || again["kept.txt"].Ino != tree["kept.txt"].Ino || len(again) != len(tree) {
			t.Errorf("another inventory makes %q", r.files())
		}
	})
}
