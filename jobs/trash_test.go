package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// piece is an archive of a version; set names those the version consists of, in order, by one letter each.
type piece struct {
	name string
	v    uint64
	set  string
}

func (p piece) data() []byte { return blob(p.name, 1000) }

// put uploads a piece as another machine would have, and returns what an inventory says of it.
func (r *recallRig) put(p piece) cas.InventoryEntry {
	r.t.Helper()
	intent := func(name string) string { return "01234567-" + name }
	m := Metadata{Intent: intent(p.name), Ino: 5, V: p.v, Size: 1000, Mtime: int64(p.v), Mode: 0o644, Born: 7, Path: "f"}
	if n := len(p.set); n > 1 {
		var set []string
		for _, name := range strings.Split(p.set, "") {
			set = append(set, intent(name))
		}
		m.Size, m.Segs, m.Seg = int64(n)*1000, n, strings.Index(p.set, p.name)
		m.Set, m.Off = setOf(set), int64(m.Seg)*1000
	}
	e := entryOf(r.upload(formatDescription(m), p.data()), m, p.data(), time.Now())
	time.Sleep(time.Minute)
	return e
}

// hold keeps the service from deleting until release.
func (r *recallRig) hold() (release func()) {
	return r.srv.Inject(castest.Fault{Op: cas.OpDeleteArchive, Kind: castest.Hold})
}

// begins empties the trash in the background. done waits for the end of that.
func (r *recallRig) begins() (done func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := r.e.Purge(context.Background(), nil); err != nil {
			r.t.Errorf("Purge: %v", err)
		}
	}()
	synctest.Wait()
	return func() { <-ended }
}

// due has the deadline of everything in the trash come now.
func (r *recallRig) due() {
	r.t.Helper()
	if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			a.Deadline = time.Now().UnixNano()
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	r.e.bin.kickTrash()
	synctest.Wait()
}

// dies runs a purge that dies when the service has deleted the first archive, and starts the engine again.
func (r *recallRig) dies() {
	died := false
	r.e.atPoints(func(point string) {
		if point == "trash.deleted" && !died {
			died = true
			runtime.Goexit()
		}
	})
	r.begins()()
	if !died {
		r.t.Error("nothing was deleted")
	}
	r.stop()
}

// While an archive is being deleted, and when nobody knows whether it was, inventories show no file of it.
func TestDeletedArchiveBecomesNoFile(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name    string
		pieces  []piece  // as they were made
		late    string   // the one that the first inventory does not list
		deleted bool     // the file that the first inventory shows
		with    []string // what the second shows when archives may be taken out of the trash, as pieces
		without []string
	}{
		{"a version of a deleted file", []piece{{"a", 1, "ab"}, {"b", 1, "ab"}, {"c", 2, "ac"}}, "c", true, []string{"ac"}, nil},
		{"a newer version", []piece{{"a", 1, "ab"}, {"b", 1, "ab"}, {"d", 2, "de"}, {"e", 2, "de"}, {"c", 3, "ac"}}, "c", false,
			[]string{"ac"}, []string{"de"}},
		{"another history", []piece{{"x", 5, ""}, {"z", 2, ""}, {"y", 6, ""}}, "z", false, []string{"x", "y", "z"}, []string{"y", "z"}},
	} {
		for how, remove := range map[string]func(r *recallRig, inventory func()){
			"none": func(_ *recallRig, inventory func()) { inventory() },
			"a purge": func(r *recallRig, inventory func()) {
				release := r.hold()
				done := r.begins()
				inventory()
				release()
				done()
			},
			"the deadline": func(r *recallRig, inventory func()) {
				release := r.hold()
				r.due()
				inventory()
				release()
			},
			"a crash": func(r *recallRig, inventory func()) {
				r.dies()
				defer r.hold()()
				r.start()
				inventory()
			},
		} {
			t.Run(x.name+", "+how, func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					r := newRecallRig(t, soon, func(o *Options) { o.Tier = "expedited" })
					var first, all []cas.InventoryEntry
					var late string // its ID
					for _, p := range x.pieces {
						e := r.put(p)
						all = append(all, e)
						if p.name == x.late {
							late = e.ArchiveID
						} else {
							first = append(first, e)
						}
					}
					r.merge(first, len(first))
					if x.deleted {
						if err := r.e.Unlink(t.Context(), r.vault, "f"); err != nil {
							t.Fatal(err)
						}
						time.Sleep(time.Minute)
					}
					if n := r.archives(); n[catalog.Trash] == 0 {
						t.Fatalf("archives %v", n)
					}
					remove(r, func() {
						if how != "none" && r.srv.Count(cas.OpDeleteArchive) == 0 {
							t.Fatal("nothing is being deleted: this tests nothing")
						}
						r.merge(all, len(all))
					})
					time.Sleep(time.Minute)
					want := x.without
					if how == "none" {
						want = x.with
					}
					check := func() {
						t.Helper()
						var shown []string
						for _, names := range want {
							data := ""
							for _, name := range strings.Split(names, "") {
								data += string(piece{name: name}.data())
							}
							shown = append(shown, data)
						}
						got := r.contents()
						slices.Sort(got)
						slices.Sort(shown)
						if !slices.Equal(got, shown) {
							t.Errorf("%d files, want %q", len(got), want)
						}
					}
					check()
					r.merge(all, len(all))
					check()
					if a, _ := r.archive(late); a.State != catalog.Live {
						t.Errorf("what was listed last has state %d", a.State)
					}
					// What comes after that is shown as ever.
					p := piece{"n", 9, ""}
					all = append(all, r.put(p))
					r.merge(all, len(all))
					if !slices.Contains(r.contents(), string(p.data())) {
						t.Error("the next version is not shown")
					}
				})
			})
		}
	}
}

// An archive that is being deleted takes no other's place.
func TestDeletedArchiveTakesNoPlace(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, soon, func(o *Options) { o.Tier = "expedited" })
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply, Count: 1})
		ino, _ := r.coldFile("f", 1000)
		a := r.archiveOf(ino)
		r.inventory() // the other goes to the trash
		time.Sleep(50 * time.Hour)
		r.deleteArchive(a.ID)
		r.inventory()
		time.Sleep(time.Hour)
		release := r.hold()
		done := r.begins()
		r.inventory()
		release()
		done()
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s", got)
		}
		if b := r.archiveOf(ino); b.ID != a.ID {
			t.Errorf("the file consists of archive %s", b.ID)
		}
		if n := r.archives(); n[catalog.Deleted] != 1 || n[catalog.Missing] != 1 {
			t.Errorf("archives %v", n)
		}
	})
}

// A purge that is interrupted, or refused, deletes no more; what was asked for by then and not answered is seen to.
func TestPurgeInterrupted(t *testing.T) {
	for name, x := range map[string]struct {
		fault castest.Fault
		left  int // in the trash, with their deadlines
	}{
		"by the user":             {castest.Fault{Kind: castest.Hold}, 2},
		"by the service":          {castest.Fault{Kind: castest.Status, Code: "AccessDeniedException"}, 3},
		"by the service in doubt": {castest.Fault{Kind: castest.Reset}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				r := newRecallRig(t, soon, nil)
				for i := range 3 {
					name := fmt.Sprint("f", i)
					r.coldFile(name, 100)
					time.Sleep(time.Minute)
					if err := r.e.Unlink(t.Context(), r.vault, name); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				x.fault.Op = cas.OpDeleteArchive
				remove := r.srv.Inject(x.fault)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				purged := make(chan error)
				go func() {
					n, err := r.e.Purge(ctx, nil)
					if n > 0 {
						t.Errorf("%d are said to be deleted", n)
					}
					purged <- err
				}()
				if x.fault.Kind == castest.Hold {
					synctest.Wait()
					cancel()
				}
				if err := <-purged; err == nil || (x.fault.Kind == castest.Hold) != errors.Is(err, context.Canceled) {
					t.Errorf("Purge: %v", err)
				}
				kept := func() (n int) {
					t.Helper()
					list, err := r.e.Trash(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, x := range list {
						if d := x.Deadline.Sub(x.Uploaded); d == 90*24*time.Hour {
							n++
						} else if x.Deadline.After(time.Now()) || x.Deadline.Before(x.Uploaded) {
							t.Errorf("one is deleted after %v, and was uploaded %v", x.Deadline, x.Uploaded)
						}
					}
					return n
				}
				if n := kept(); n != x.left {
					t.Errorf("%d stay, want %d", n, x.left)
				}
				remove()
				time.Sleep(2 * trashRetry)
				if n := kept(); n != x.left {
					t.Errorf("later %d stay, want %d", n, x.left)
				}
				if n := r.archives(); n[catalog.Trash] != x.left || n[catalog.Deleted] != 3-x.left {
					t.Errorf("archives %v", n)
				}
			})
		})
	}
}

// The end of time is not the beginning of it.
func TestTrashKeptForEver(t *testing.T) {
	now := time.Now()
	for _, age := range []time.Duration{0, 90 * 24 * time.Hour, math.MaxInt64} {
		e := &Engine{opts: Options{TrashAge: age}}
		a := catalog.Archive{State: catalog.Live, Created: now.UnixNano()}
		if e.trash(&a, now); a.State != catalog.Trash || a.Deadline < now.UnixNano() {
			t.Errorf("%v: state %d until %v", age, a.State, time.Unix(0, a.Deadline))
		}
	}
}
