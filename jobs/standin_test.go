package jobs

import (
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// archiveOf returns the record of a file's only archive.
func (r *recallRig) archiveOf(ino uint64) (a catalog.Archive) {
	r.t.Helper()
	if err := r.e.catalog.View(func(tx *catalog.Tx) error {
		i, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		v, err := tx.Version(ino, i.Version)
		if err != nil {
			return err
		}
		a, err = tx.Archive(v.Extents[0].Archive)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *recallRig) deleteArchive(id string) {
	r.t.Helper()
	if err := r.client.DeleteArchive(r.t.Context(), "v", id); err != nil {
		r.t.Fatal(err)
	}
}

// purge empties the trash, as time does.
func (r *recallRig) purge() {
	r.t.Helper()
	if _, err := r.e.Purge(r.t.Context(), nil); err != nil {
		r.t.Fatal(err)
	}
}

// A lost answer has left two archives of a file. When the one that the catalog knows is gone, the other takes its
// place; it is never the one in the trash.
func TestDuplicateOfAMissingArchive(t *testing.T) {
	t.Parallel()
	lost := func(t *testing.T, r *recallRig) (ino uint64, data []byte) {
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply, Count: 1})
		return r.coldFile("f", 1000)
	}
	good := func(t *testing.T, r *recallRig, ino uint64, data []byte, gone string) {
		t.Helper()
		if a := r.archiveOf(ino); a.ID == gone || a.State != catalog.Live || a.Ino != ino {
			t.Errorf("the file consists of %+v", a)
		}
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s", got)
		}
		if files := r.files(); len(files) != 1 {
			t.Errorf("files %q", files)
		}
		r.want(ino, data, 0, 2000)
		r.cold(ino)
		r.purge()
		r.want(ino, data, 0, 2000)
		r.restart()
		r.want(ino, data, 0, 2000)
	}
	for name, test := range map[string]func(t *testing.T, r *recallRig){
		// The program finds the one missing twice before it sees the other: that one was not listed until then.
		"seen after it was missing": func(t *testing.T, r *recallRig) {
			ino, data := r.coldFile("f", 1000)
			a := r.archiveOf(ino)
			r.deleteArchive(a.ID)
			time.Sleep(50 * time.Hour)
			for range 2 {
				time.Sleep(time.Hour)
				r.inventory()
			}
			if got := r.state(ino); got != "damaged" {
				t.Fatalf("state %s", got)
			}
			r.upload(a.Description, data)
			time.Sleep(time.Hour)
			r.inventory()
			good(t, r, ino, data, a.ID)
		},
		// It is gone before the first inventory sees the other.
		"seen while it is missing": func(t *testing.T, r *recallRig) {
			ino, data := lost(t, r)
			a := r.archiveOf(ino)
			r.deleteArchive(a.ID)
			time.Sleep(50 * time.Hour)
			for range 2 {
				time.Sleep(time.Hour)
				r.inventory()
				if n := r.archives(); n[catalog.Trash] > 1 || n[catalog.Trash] == 1 && n[catalog.Live] == 0 {
					t.Errorf("archives %v", n)
				}
			}
			good(t, r, ino, data, a.ID)
		},
		// The other was in the trash already, and nobody has emptied it.
		"in the trash": func(t *testing.T, r *recallRig) {
			ino, data := lost(t, r)
			a := r.archiveOf(ino)
			r.inventory()
			if n := r.archives(); n[catalog.Trash] != 1 || n[catalog.Live] != 1 {
				t.Fatalf("archives %v", n)
			}
			time.Sleep(50 * time.Hour)
			r.deleteArchive(a.ID)
			for range 2 {
				time.Sleep(time.Hour)
				r.inventory()
			}
			good(t, r, ino, data, a.ID)
		},
		// The same for a file that an inventory has made of the archive.
		"of a rebuilt file": func(t *testing.T, r *recallRig) {
			ino, data := lost(t, r)
			a := r.archiveOf(ino)
			r.deleteArchive(a.ID)
			r.upload(a.Description, data)
			r.newMachine()
			r.inventory()
			ino = r.tree()["f"].Ino
			first := r.archiveOf(ino).ID
			r.deleteArchive(first)
			time.Sleep(50 * time.Hour)
			for range 2 {
				time.Sleep(time.Hour)
				r.inventory()
			}
			good(t, r, ino, data, first)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				test(t, newRecallRig(t, soon, func(o *Options) { o.Tier = "expedited" }))
			})
		})
	}
}

// The one that is gone comes back when another is in its place: one of them goes to the trash, the file has its bytes.
func TestMissingArchiveComesBackToADuplicate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, soon, func(o *Options) { o.Tier = "expedited" })
		ino, data := r.coldFile("f", 1000)
		a := r.archiveOf(ino)
		if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			a.State = catalog.Missing // as two incomplete inventories would have it
			return tx.PutArchive(a)
		}); err != nil {
			t.Fatal(err)
		}
		r.e.recall.markDamaged(verKey{ino, 1}, missingText)
		r.upload(a.Description, data)
		r.inventory()
		r.inventory()
		if n := r.archives(); n[catalog.Live] != 1 || n[catalog.Trash] != 1 {
			t.Errorf("archives %v", n)
		}
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s", got)
		}
		r.purge()
		r.want(ino, data, 0, 2000)
	})
}
