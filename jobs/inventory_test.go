package jobs

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// upload puts an archive into the vault behind casfs's back.
func (r *recallRig) upload(description string, data []byte) string {
	r.t.Helper()
	id, err := r.client.UploadArchive(r.t.Context(), "v", description, bytes.NewReader(data), cas.PartHash{})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// tree lists everything below the vault: path → inode.
func (r *recallRig) tree() map[string]catalog.Inode {
	r.t.Helper()
	out := make(map[string]catalog.Inode)
	var walk func(dir uint64, path string)
	walk = func(dir uint64, path string) {
		entries, err := r.e.ReadDir(r.t.Context(), dir, 0, 100_000)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, d := range entries {
			var i catalog.Inode
			if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
				i, err = tx.Inode(d.Ino)
				return err
			}); err != nil {
				r.t.Fatal(err)
			}
			out[path+d.Name] = i
			if isDir(i.Mode) {
				walk(d.Ino, path+d.Name+"/")
			}
		}
	}
	walk(r.vault, "")
	return out
}

func (r *recallRig) files() []string {
	r.t.Helper()
	var list []string
	for path, i := range r.tree() {
		if isRegular(i.Mode) {
			list = append(list, path)
		}
	}
	slices.Sort(list)
	return list
}

func (r *recallRig) inventory() {
	r.t.Helper()
	if err := r.e.Inventory(context.Background(), "v", true, nil); err != nil {
		r.t.Fatal(err)
	}
}

// archives counts the vault's archives by state.
func (r *recallRig) archives() map[catalog.ArchiveState]int {
	r.t.Helper()
	n := make(map[catalog.ArchiveState]int)
	err := r.e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.Archives(r.vault) {
			if err != nil {
				return err
			}
			n[a.State]++
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestInventoryPagesRestartsAndFaults(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.stop()
		for i := range 25 {
			r.upload(fmt.Sprintf("d/f%02d", i), blob("x", 10+i))
		}
		r.inventories, r.inventoryLimit = true, 10
		r.start()
		time.Sleep(time.Hour)
		r.restart() // while the first page's job runs
		r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.CutReply, Bytes: 1500, Count: 3})
		time.Sleep(4 * time.Hour)
		if got := r.files(); len(got) != 10 {
			t.Errorf("%d files after the first page", len(got))
		}
		// The answer to the next page's request is lost, and the program away until its output is gone.
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.LoseReply, Count: 1})
		time.Sleep(time.Hour)
		r.stop()
		time.Sleep(60 * time.Hour)
		r.start()
		time.Sleep(10 * time.Hour)
		if got := r.files(); len(got) != 25 {
			t.Errorf("%d files after all pages: %q", len(got), got)
		}
		var v catalog.Vault
		if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
			v, err = tx.Vault(r.vault)
			return err
		}); err != nil || v.Merged == 0 {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

func TestInventoryAdoptsARunningJob(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.upload("f", []byte("f"))
		if _, err := r.client.InitiateJob(t.Context(), "v", cas.JobRequest{Type: cas.InventoryRetrieval}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		began := time.Now()
		var last Progress
		if err := r.e.Inventory(t.Context(), "v", true, func(p Progress) { last = p }); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 70*time.Minute {
			t.Errorf("it took %v", d)
		}
		if last.FilesDone != 1 {
			t.Errorf("progress %+v", last)
		}
		r.jobs(1)
		if got := r.files(); !slices.Equal(got, []string{"f"}) {
			t.Errorf("files %q", got)
		}
	})
}

func TestMissingArchiveIsDamagedAfterTwoInventories(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		ino, _ := r.coldFile("f", 1000)
		other, data := r.coldFile("g", 1000)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.client.DeleteArchive(t.Context(), "v", s.Archives[0].ID); err != nil {
			t.Fatal(err)
		}
		r.inventory() // too young to tell
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s after an early inventory", got)
		}
		time.Sleep(50 * time.Hour)
		r.inventory()
		if got := r.state(ino); got != "cold" {
			t.Errorf("state %s after one inventory", got)
		}
		time.Sleep(24 * time.Hour)
		r.inventory()
		if got := r.state(ino); got != "damaged" {
			t.Errorf("state %s after two inventories", got)
		}
		if n := r.archives(); n[catalog.Missing] != 1 || n[catalog.Live] != 1 {
			t.Errorf("archives %v", n)
		}
		r.want(other, data, 0, 1000)
		// Trash stays trash, whatever inventories list.
		if err := r.e.Unlink(t.Context(), r.vault, "g"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.inventory()
		if n := r.archives(); n[catalog.Trash] != 1 {
			t.Errorf("archives %v", n)
		}
		if got := r.files(); !slices.Equal(got, []string{"f"}) {
			t.Errorf("files %q", got)
		}
	})
}

func TestSecondUploadOfALostAnswerGoesToTheTrash(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.LoseReply, Count: 1})
		ino, data := r.coldFile("f", 1000)
		r.inventory()
		if n := r.archives(); n[catalog.Trash] != 1 || n[catalog.Live] != 1 {
			t.Errorf("archives %v", n)
		}
		if got := r.files(); !slices.Equal(got, []string{"f"}) {
			t.Errorf("files %q", got)
		}
		r.want(ino, data, 0, 1000)
	})
}

// What only looks like an archive of ours is somebody's bytes: it becomes a file, never trash.
func TestInventoryTrashesOnlyWhatIsHeldTwice(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		ino, data := r.coldFile("f", 1000)
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		var description string
		if err := r.e.catalog.View(func(tx *catalog.Tx) error {
			a, err := tx.ArchiveByID(r.vault, s.Archives[0].ID)
			description = a.Description
			return err
		}); err != nil {
			t.Fatal(err)
		}
		// A script that copied the description to other bytes; and one that copied both.
		r.upload(description, []byte("other bytes"))
		r.upload(description, data)
		r.inventory()
		if n := r.archives(); n[catalog.Live] != 2 || n[catalog.Trash] != 1 {
			t.Errorf("archives %v", n)
		}
		files := r.files()
		if len(files) != 2 || files[0] != "f" {
			t.Fatalf("files %q", files)
		}
		r.want(r.tree()[files[1]].Ino, []byte("other bytes"), 0, 100)
		r.want(ino, data, 0, 2000)
	})
}

// Check holds what the vault says of each archive against the catalog, and recalls nothing.
func TestCheckWithInventory(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		ids := make(map[string]string)
		for _, name := range []string{"good", "size", "hash", "young", "gone"} {
			ino, _ := r.coldFile(name, 1000)
			s, err := r.e.Stat(t.Context(), ino)
			if err != nil {
				t.Fatal(err)
			}
			ids[name] = s.Archives[0].ID
		}
		check := func() []string {
			t.Helper()
			var problems []string
			if err := r.e.Check(t.Context(), true, false, func(p string) { problems = append(problems, p) }); err != nil {
				t.Fatal(err)
			}
			slices.Sort(problems)
			return problems
		}
		if got := check(); len(got) != 0 {
			t.Errorf("at first: %q", got)
		}
		time.Sleep(50 * time.Hour)
		young, _ := r.coldFile("young2", 1000)
		s, err := r.e.Stat(t.Context(), young)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{s.Archives[0].ID, ids["gone"]} {
			if err := r.client.DeleteArchive(t.Context(), "v", id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			for _, name := range []string{"size", "hash"} {
				a, err := tx.ArchiveByID(r.vault, ids[name])
				if err != nil {
					return err
				}
				if name == "size" {
					a.Size++
				} else {
					a.TreeHash[0]++
				}
				if err := tx.PutArchive(a); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"/v/gone: archive " + ids["gone"] + " of vault v is missing from the inventory of ",
			"/v/hash: archive " + ids["hash"] + " of vault v is not what was uploaded: 1000 bytes with tree hash ",
			"/v/size: archive " + ids["size"] + " of vault v is not what was uploaded: 1000 bytes with tree hash ",
			"/v/young2: archive " + s.Archives[0].ID + " of vault v is missing from the inventory of ",
		}
		compare := func(got []string) {
			t.Helper()
			if !slices.EqualFunc(got, want, strings.HasPrefix) {
				t.Errorf("got  %q\nwant %q…", got, want)
			}
		}
		got := check()
		compare(got)
		if len(got) == 4 && (strings.Contains(got[0], "lag behind") || !strings.Contains(got[3], "lag behind")) {
			t.Errorf("only the young one may be missing for its youth: %q", got)
		}
		// The program is stopped while the inventory runs, and after its first page: the check begins anew.
		r.stop()
		r.inventoryLimit = 2
		r.start()
		if err := r.e.Inventory(t.Context(), "v", false, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Hour)
		r.restart()
		want[0] = "/v/gone: archive " + ids["gone"] + " of vault v is gone: two inventories, the last of "
		compare(check())
		if n := r.srv.Count(cas.OpJobOutput); n > 12 {
			t.Errorf("%d outputs were read", n)
		}
		if got := r.state(young); got != "cold" {
			t.Errorf("state %s", got)
		}
	})
}

// A store that always knows what it holds says that it took stock this second. One inventory a day is enough.
func TestInventoriesAreRare(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.stop()
		r.inventories = true
		r.start()
		for i := range 120 {
			r.write(fmt.Sprint("f", i), []byte("busy"))
			time.Sleep(time.Hour)
		}
		if n := r.srv.Count(cas.OpInitiateJob); n < 4 || n > 6 {
			t.Errorf("%d inventories in five days", n)
		}
		if n := r.srv.Count(cas.OpListJobs); n > 6*300 {
			t.Errorf("%d lists of jobs", n)
		}
		if n := r.archives(); n[catalog.Live] != 120 {
			t.Errorf("archives %v", n)
		}
	})
}

// TestInventoryOfADeletedVault: that it failed is nobody's problem once the vault is gone.
func TestInventoryOfADeletedVault(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		problems := func() []string {
			s, err := r.e.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.Problems
		}
		r.srv.Inject(castest.Fault{Op: cas.OpInitiateJob, Kind: castest.Status, Code: "AccessDeniedException"})
		if err := r.e.Inventory(t.Context(), "v", true, nil); err == nil {
			t.Fatal("the inventory did not fail")
		}
		synctest.Wait()
		if len(problems()) != 1 {
			t.Fatalf("problems %q", problems())
		}
		if err := r.e.Rmdir(t.Context(), catalog.RootIno, "v"); err != nil {
			t.Fatal(err)
		}
		if len(problems()) != 0 {
			t.Errorf("problems %q", problems())
		}
	})
}
