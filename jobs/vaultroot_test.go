package jobs

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// TestRebuildOfTheVaultsDirectory: its mode and owner travel as those of the directories in it do, from the newest archive; what
// somebody has set on the new machine stays.
func TestRebuildOfTheVaultsDirectory(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.inventories = true
		set := func(mode, uid, gid uint32) {
			t.Helper()
			if _, err := r.e.Setattr(t.Context(), Caller{}, r.vault, nil, SetAttr{Mode: &mode, UID: &uid, GID: &gid}); err != nil {
				t.Fatal(err)
			}
		}
		write := func(name string) uint64 {
			t.Helper()
			ino := r.write(name, blob(name, 100))
			if err := r.e.Sync(t.Context(), []uint64{r.vault}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			return ino
		}
		want := func(when string, mode, uid, gid uint32) {
			t.Helper()
			a, err := r.e.Getattr(t.Context(), r.vault)
			if err != nil || a.Mode != modeDir|mode || a.UID != uid || a.GID != gid {
				t.Errorf("%s: mode %o, owner %d:%d, %v, want %o, %d:%d", when, a.Mode, a.UID, a.GID, err, mode, uid, gid)
			}
		}
		rebuild := func() {
			t.Helper()
			r.newMachine()
			time.Sleep(5 * time.Hour)
			synctest.Wait()
		}
		if a := r.archiveOf(write("plain")); strings.Contains(a.Description, " root=") {
			t.Errorf("the usual is told: %s", a.Description)
		}
		set(0o2770, 7, 8)
		write("a")
		rebuild()
		want("rebuilt", 0o2770, 7, 8)
		write("b") // tells what it was rebuilt with
		set(0o755, 0, 0)
		write("c") // tells the usual, for older archives tell something else
		rebuild()
		want("after the usual again", 0o755, 0, 0)
		set(0o700, 9, 9)
		write("d")

		// Somebody has set it before the inventory is there.
		r.newMachine()
		set(0o711, 1, 2)
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		want("set here", 0o711, 1, 2)
		if _, err := r.e.Lookup(t.Context(), r.vault, "d"); err != nil {
			t.Error(err)
		}
	})
}

// TestNewestOfTheVaultsDirectory: what an archive tells of the vault's directory is as old as its description, however long it took to send.
func TestNewestOfTheVaultsDirectory(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.SingleBelow, o.PartSize = 1<<20, 1<<20 })
		r.inventories = true
		set := func(mode uint32) {
			t.Helper()
			if _, err := r.e.Setattr(t.Context(), Caller{}, r.vault, nil, SetAttr{Mode: &mode}); err != nil {
				t.Fatal(err)
			}
		}
		set(0o777)
		complete := r.srv.Inject(castest.Fault{Op: cas.OpCompleteUpload, Kind: castest.Hold})
		large := r.write("large", blob("large", 3<<20))
		time.Sleep(time.Minute)
		set(0o700)
		small := r.write("small", blob("small", 100))
		if err := r.e.Sync(t.Context(), []uint64{small}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		complete()
		if err := r.e.Sync(t.Context(), []uint64{large}, nil); err != nil {
			t.Fatal(err)
		}
		r.newMachine()
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		a, err := r.e.Getattr(t.Context(), r.vault)
		if err != nil || a.Mode != modeDir|0o700 {
			t.Errorf("mode %o, %v", a.Mode, err)
		}
	})
}

// TestTheVaultsDirectoryIsPassedOn: who only passes on what an inventory told does not make it newer than what another machine has set since.
func TestTheVaultsDirectoryIsPassedOn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.inventories = true
		want := func(when string, mode, uid, gid uint32) {
			t.Helper()
			a, err := r.e.Getattr(t.Context(), r.vault)
			if err != nil || a.Mode != modeDir|mode || a.UID != uid || a.GID != gid {
				t.Errorf("%s: mode %o, owner %d:%d, %v, want %o, %d:%d", when, a.Mode, a.UID, a.GID, err, mode, uid, gid)
			}
		}
		tell := func(ino uint64, mode uint32) { // as another machine does
			now := time.Now().UnixNano()
			r.upload(formatDescription(Metadata{Intent: fmt.Sprint("other", ino), Ino: ino, V: 1, Size: 4, Mtime: now, Mode: 0o644,
				Path: fmt.Sprint("other", ino), Root: &VaultRoot{mode, 7, 8, now}}), []byte("data"))
			time.Sleep(time.Minute)
		}
		write := func(name string) {
			t.Helper()
			ino := r.write(name, blob(name, 100))
			if err := r.e.Sync(t.Context(), []uint64{ino}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		rebuild := func() {
			t.Helper()
			r.newMachine()
			time.Sleep(5 * time.Hour)
			synctest.Wait()
		}
		tell(1, 0o777)
		rebuild()
		want("open to all", 0o777, 7, 8)
		tell(2, 0o700)
		write("passes on")
		rebuild()
		want("private", 0o700, 7, 8)

		// Nor does who made it from the list, and mounts as somebody else now.
		r.newMachine()
		r.stop()
		r.opts.UID = 99
		r.start()
		write("before the inventory")
		rebuild()
		want("still private", 0o700, 7, 8)
	})
}
