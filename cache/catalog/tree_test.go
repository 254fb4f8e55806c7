package catalog

import (
	"errors"
	"fmt"
	"testing"
)

// A program that lists a directory while it changes it meets every entry that was there all the time once, and none for ever.
func TestListingWhileRenaming(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 200)
	seen := map[uint64]int{}
	for cookie := uint64(0); ; {
		var list []Dirent
		view(t, c, func(tx *Tx) (err error) {
			list, err = tx.ReadDir(v, cookie, 7)
			return err
		})
		if len(list) == 0 {
			break
		}
		for _, d := range list {
			cookie = d.Cookie
			if seen[d.Ino]++; seen[d.Ino] > 1 {
				t.Fatalf("%s is listed again", d.Name)
			}
			update(t, c, func(tx *Tx) error {
				_, _, err := tx.Rename(v, d.Name, v, "x"+d.Name, 0, 1)
				return err
			})
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d entries seen, want 200", len(seen))
	}
}

// A name that is replaced stays where it is in listings: saving a file the usual way does not show it twice.
func TestReplacedNameKeepsItsPlace(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 10)
	var before, after Dirent
	update(t, c, func(tx *Tx) (err error) {
		before, err = tx.Lookup(v, "file000003")
		if err != nil {
			return err
		}
		if _, err := tx.Create(v, "tmp", Inode{Mode: sIFREG}, 1); err != nil {
			return err
		}
		moved, replaced, err := tx.Rename(v, "tmp", v, "file000003", 0, 2)
		if err != nil || replaced.Ino != before.Ino || replaced.Nlink != 0 || moved.Ctime != 2 {
			t.Errorf("Rename: %+v, %+v, %v", moved, replaced, err)
		}
		after, err = tx.Lookup(v, "file000003")
		return err
	})
	if after.Cookie != before.Cookie || after.Ino == before.Ino {
		t.Errorf("%+v, was %+v", after, before)
	}
}

func TestCookiesGrow(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	last := uint64(firstID - 1)
	for k := range 50 {
		update(t, c, func(tx *Tx) error {
			i, err := tx.Create(v, fmt.Sprint("f", k), Inode{Mode: sIFREG}, 1)
			if err != nil {
				return err
			}
			if _, err := tx.Link(i.Ino, v, fmt.Sprint("l", k), 1); err != nil {
				return err
			}
			for _, name := range []string{fmt.Sprint("f", k), fmt.Sprint("l", k)} {
				d, err := tx.Lookup(v, name)
				if err != nil || d.Cookie <= last {
					return fmt.Errorf("%+v, %v after %d", d, err, last)
				}
				last = d.Cookie
			}
			_, err = tx.Unlink(v, fmt.Sprint("f", k), 1)
			return err
		})
	}
}

func TestMaxLinks(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 1)
	update(t, c, func(tx *Tx) error {
		d, err := tx.Lookup(v, "file000000")
		if err != nil {
			return err
		}
		i, err := tx.Inode(d.Ino)
		i.Nlink = maxLinks - 1
		if err := errors.Join(err, tx.PutInode(i)); err != nil {
			return err
		}
		if _, err := tx.Link(d.Ino, v, "last", 1); err != nil {
			return err
		}
		if _, err := tx.Link(d.Ino, v, "more", 1); !errors.Is(err, ErrMaxLinks) {
			t.Errorf("Link: %v, want ErrMaxLinks", err)
		}
		return nil
	})
}

// An orphan that gets a name again (linkat of an open, unlinked file) is none any more.
func TestLinkOfOrphan(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := populate(t, c, "v", 1)
	update(t, c, func(tx *Tx) error {
		i, err := tx.Unlink(v, "file000000", 5)
		if err != nil || i.Nlink != 0 || i.Ctime != 5 {
			t.Errorf("Unlink: %+v, %v", i, err)
		}
		if o, err := tx.Orphans(); err != nil || len(o) != 1 || o[0] != i.Ino {
			t.Errorf("Orphans: %v, %v", o, err)
		}
		if _, err := tx.Path(i.Ino); !errors.Is(err, ErrNotExist) {
			t.Errorf("Path: %v", err)
		}
		if i, err = tx.Link(i.Ino, v, "again", 6); err != nil || i.Nlink != 1 {
			t.Errorf("Link: %+v, %v", i, err)
		}
		if o, err := tx.Orphans(); err != nil || len(o) != 0 {
			t.Errorf("Orphans: %v, %v", o, err)
		}
		return err
	})
}

func TestKindsOfInodes(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	update(t, c, func(tx *Tx) error {
		for _, test := range []struct {
			template Inode
			want     Inode // the fields that depend on the kind
			err      error
		}{
			{Inode{Mode: sIFREG | 0o644, Rdev: 5, Target: "t", Size: 9}, Inode{Nlink: 1}, nil},
			{Inode{Mode: sIFLNK | 0o777, Target: "target"}, Inode{Nlink: 1, Target: "target", Size: 6}, nil},
			{Inode{Mode: sIFCHR | 0o600, Rdev: 0x0103}, Inode{Nlink: 1, Rdev: 0x0103}, nil},
			{Inode{Mode: sIFBLK | 0o600, Rdev: 0x0800}, Inode{Nlink: 1, Rdev: 0x0800}, nil},
			{Inode{Mode: sIFIFO | 0o600}, Inode{Nlink: 1}, nil},
			{Inode{Mode: sIFSOCK | 0o600}, Inode{Nlink: 1}, nil},
			{Inode{Mode: sIFDIR | 0o700}, Inode{Nlink: 2, Parent: v}, nil},
			{Inode{Mode: 0o644}, Inode{}, ErrInvalid},
		} {
			name := fmt.Sprintf("%o", test.template.Mode)
			got, err := tx.Create(v, name, test.template, 7)
			if !errors.Is(err, test.err) {
				t.Errorf("%s: %v, want %v", name, err, test.err)
			}
			if err != nil {
				continue
			}
			want := test.want
			want.Ino, want.Mode, want.Vault = got.Ino, test.template.Mode, v
			want.Atime, want.Mtime, want.Ctime, want.Btime = 7, 7, 7, 7
			if got != want {
				t.Errorf("%s: %+v, want %+v", name, got, want)
			}
			if stored, err := tx.Inode(got.Ino); err != nil || stored != got {
				t.Errorf("%s: stored %+v, %v", name, stored, err)
			}
		}
		return nil
	})
}

func TestPathOfDeepDirectory(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	const depth = 2000
	update(t, c, func(tx *Tx) error {
		at := v
		for range depth {
			i, err := tx.Create(at, "d", Inode{Mode: sIFDIR | 0o755}, 1)
			if err != nil {
				return err
			}
			at = i.Ino
		}
		p, err := tx.Path(at)
		if len(p) != 1+2*depth || p[:5] != "v/d/d" {
			t.Errorf("Path has %d bytes: %.20s", len(p), p)
		}
		if root, err := tx.Path(RootIno); root != "" || err != nil {
			t.Errorf("Path of the root: %q, %v", root, err)
		}
		_, _, loop := tx.Rename(RootIno, "v", at, "x", 0, 1)
		if !errors.Is(loop, ErrPerm) {
			t.Errorf("moving the vault: %v", loop)
		}
		first, err2 := tx.Lookup(v, "d")
		_, _, loop = tx.Rename(v, "d", at, "x", 0, 1)
		if !errors.Is(loop, ErrLoop) || first.Ino == 0 {
			t.Errorf("moving a directory below itself: %v", loop)
		}
		return errors.Join(err, err2)
	})
}
