package catalog

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestVersionsAndLocal(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		a := Version{Ino: 50, V: 1, State: Archived, Local: 9, Complete: true, Size: 4}
		if err := tx.PutVersion(a); err != nil {
			return err
		}
		// A content file that is changed becomes the next version's staging file; order must not matter.
		b := Version{Ino: 50, V: 2, State: Staged, Local: 9, Size: 5}
		a.Local = 0
		return errors.Join(tx.PutVersion(b), tx.PutVersion(a))
	})
	view(t, c, func(tx *Tx) error {
		v, err := tx.VersionByLocal(9)
		if v.V != 2 {
			t.Errorf("VersionByLocal: %+v", v)
		}
		all, err2 := tx.Versions(50)
		if len(all) != 2 || all[0].V != 1 || all[1].V != 2 {
			t.Errorf("Versions: %+v", all)
		}
		if _, err := tx.VersionByLocal(8); !errors.Is(err, ErrNotExist) {
			t.Errorf("VersionByLocal(8): %v", err)
		}
		return errors.Join(err, err2)
	})
}

func TestArchives(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		for tx.NextID() < 200 { // the numbers used here
		}
		for k := range uint64(20) {
			a := Archive{Num: 100 + k, Vault: 1 + k%2, ID: fmt.Sprintf("id%d", k), Intent: fmt.Sprintf("in%d", k/2), State: Live}
			if k >= 10 {
				a.State, a.Deadline = Trash, int64(k)-15
			}
			if err := tx.PutArchive(a); err != nil {
				return err
			}
		}
		return nil
	})
	nums := func(all []Archive, err error) (n []uint64) {
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			n = append(n, a.Num)
		}
		return n
	}
	view(t, c, func(tx *Tx) error {
		if a, err := tx.ArchiveByID(1, "id2"); err != nil || a.Num != 102 {
			t.Errorf("ArchiveByID: %+v, %v", a, err)
		}
		for _, id := range []string{"id", "id22", "id3", ""} { // id3 is the other vault's
			if a, err := tx.ArchiveByID(1, id); !errors.Is(err, ErrNotExist) {
				t.Errorf("ArchiveByID(%q): %+v, %v", id, a, err)
			}
		}
		if a, err := tx.ArchiveByIntent("in1"); err != nil || a.Num != 102 {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if a, err := tx.ArchiveByIntent("in5"); err != nil || a.Num != 110 {
			t.Errorf("ArchiveByIntent in the trash: %+v, %v", a, err)
		}
		if a, err := tx.ArchiveByIntent("in"); !errors.Is(err, ErrNotExist) {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if got := nums(collect(tx.TrashUntil(-1))); !slices.Equal(got, []uint64{110, 111, 112, 113, 114}) {
			t.Errorf("TrashUntil(-1): %v", got)
		}
		if got := nums(collect(tx.TrashUntil(100))); len(got) != 10 {
			t.Errorf("TrashUntil(100): %v", got)
		}
		if got := nums(collect(tx.Archives(2))); len(got) != 10 || got[0]%2 != 1 {
			t.Errorf("Archives(2): %v", got)
		}
		if got := nums(collect(tx.Archives(0))); len(got) != 20 {
			t.Errorf("Archives(0): %v", got)
		}
		return nil
	})
	update(t, c, func(tx *Tx) error { // a live one goes before an older one that is not
		a, err := tx.Archive(102)
		a.State = Deleted
		return errors.Join(err, tx.PutArchive(a), tx.DeleteArchive(110), tx.DeleteArchive(110))
	})
	view(t, c, func(tx *Tx) error {
		if a, err := tx.ArchiveByIntent("in1"); err != nil || a.Num != 103 {
			t.Errorf("ArchiveByIntent: %+v, %v", a, err)
		}
		if got := nums(collect(tx.TrashUntil(-5))); len(got) != 0 {
			t.Errorf("TrashUntil: %v", got)
		}
		return nil
	})
	if got := problems(t, c, false); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestUploadsRetrievalsVaultsMeta(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	update(t, c, func(tx *Tx) error {
		u, r := sampleUpload, sampleRetrieval
		var errs []error
		for k := range 5 {
			u.Intent, r.ID = fmt.Sprint("intent", k), uint64(k+1)
			errs = append(errs, tx.PutUpload(u), tx.PutRetrieval(r),
				tx.PutVault(Vault{Ino: uint64(20 + k), Name: fmt.Sprint("vault", k)}))
		}
		errs = append(errs, tx.DeleteUpload("intent1"), tx.DeleteRetrieval(2), tx.DeleteVault(21),
			tx.PutMeta("m", []byte("x")), tx.PutMeta("n", []byte{}))
		return errors.Join(errs...)
	})
	view(t, c, func(tx *Tx) error {
		us, err1 := collect(tx.Uploads())
		rs, err2 := collect(tx.Retrievals())
		vs, err3 := tx.Vaults()
		if len(us) != 4 || len(rs) != 4 || len(vs) != 4 {
			t.Errorf("%d uploads, %d retrievals, %d vaults; want 4", len(us), len(rs), len(vs))
		}
		for name, err := range map[string]error{
			"Upload":      second(tx.Upload("intent1")),
			"Retrieval":   second(tx.Retrieval(2)),
			"Vault":       second(tx.Vault(21)),
			"VaultByName": second(tx.VaultByName("vault1")),
			"Meta":        second(tx.Meta("other")),
		} {
			if !errors.Is(err, ErrNotExist) {
				t.Errorf("%s of what is not there: %v", name, err)
			}
		}
		if v, err := tx.VaultByName("vault3"); err != nil || v.Ino != 23 {
			t.Errorf("VaultByName: %+v, %v", v, err)
		}
		if b, err := tx.Meta("n"); err != nil || b == nil || len(b) != 0 {
			t.Errorf("Meta: %v, %v", b, err)
		}
		return errors.Join(err1, err2, err3)
	})
	// A vault deleted at the service and made again is found; forgetting the old one does not hide it.
	update(t, c, func(tx *Tx) error {
		return errors.Join(tx.PutVault(Vault{Ino: 40, Name: "vault0"}), tx.DeleteVault(20), tx.PutMeta("m", nil))
	})
	view(t, c, func(tx *Tx) error {
		if v, err := tx.VaultByName("vault0"); err != nil || v.Ino != 40 {
			t.Errorf("VaultByName: %+v, %v", v, err)
		}
		if _, err := tx.Meta("m"); !errors.Is(err, ErrNotExist) {
			t.Errorf("Meta: %v", err)
		}
		return nil
	})
}

func second[T any](_ T, err error) error { return err }

func TestTooLarge(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	for name, fn := range map[string]func(tx *Tx) error{
		"meta":  func(tx *Tx) error { return tx.PutMeta("m", make([]byte, maxValue)) },
		"key":   func(tx *Tx) error { return tx.PutMeta(strings.Repeat("m", 5000), []byte("x")) },
		"xattr": func(tx *Tx) error { return tx.SetXattr(1, strings.Repeat("m", 256), nil, false, false) },
	} {
		if _, err := c.Update(fn); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestReadDirPlus: what it tells is what the getters tell, in whatever order
// names, inodes and versions were made.
func TestReadDirPlus(t *testing.T) {
	c, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var v uint64
	_, err = c.Update(func(tx *Tx) error {
		i, err := tx.Create(RootIno, "vault", Inode{Mode: 0o040755}, 1)
		v = i.Ino
		if err != nil {
			return err
		}
		for n := range 300 {
			mode := uint32(0o100644)
			if n%7 == 0 {
				mode = 0o040755
			}
			i, err := tx.Create(v, fmt.Sprintf("n%d", n), Inode{Mode: mode}, int64(n))
			if err != nil {
				return err
			}
			for range n % 20 {
				tx.NextID() // gaps, some wider than what is passed by
			}
			if mode == 0o100644 && n%3 != 0 {
				i.Version = uint64(n%4 + 1)
				if err := tx.PutVersion(Version{Ino: i.Ino, V: i.Version, State: Archived, Size: int64(n)}); err != nil {
					return err
				}
				if err := tx.PutInode(i); err != nil {
					return err
				}
			}
			if n%11 == 5 && mode == 0o100644 {
				if _, err := tx.Link(i.Ino, v, fmt.Sprintf("link%d", n), 1); err != nil {
					return err
				}
			}
			if n%50 == 9 {
				if _, _, err := tx.Rename(v, "n2", v, "n2", 0, 1); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = c.View(func(tx *Tx) error {
		var after uint64
		seen := 0
		for {
			list, err := tx.ReadDirPlus(v, after, 64)
			if err != nil || len(list) == 0 {
				if seen < 300 {
					t.Errorf("%d entries", seen)
				}
				return err
			}
			for _, l := range list {
				seen++
				after = l.Cookie
				d, err := tx.Lookup(v, l.Name)
				if err != nil || d != l.Dirent {
					t.Errorf("%s: %+v, looked up %+v (%v)", l.Name, l.Dirent, d, err)
				}
				i, err := tx.Inode(l.Ino)
				if err != nil || !reflect.DeepEqual(i, l.Inode) {
					t.Errorf("%s: inode %+v, not %+v (%v)", l.Name, l.Inode, i, err)
				}
				var ver Version
				if i.Version != 0 {
					if ver, err = tx.Version(i.Ino, i.Version); err != nil {
						t.Error(err)
					}
				}
				if !reflect.DeepEqual(ver, l.Version) {
					t.Errorf("%s: version %+v, not %+v", l.Name, l.Version, ver)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
