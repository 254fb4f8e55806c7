package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// small keeps tests' disk use low, and what is synced independent of time.
func small(dir string) Options {
	return Options{Dir: dir, Reserve: 1 << 20, MinFree: 1 << 20, Logger: slog.New(slog.DiscardHandler), markEvery: time.Hour}
}

func mustOpen(t testing.TB, o Options) *Catalog {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustClose(t testing.TB, c *Catalog) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// update fails the test when the change fails.
func update(t testing.TB, c *Catalog, fn func(tx *Tx) error) uint64 {
	t.Helper()
	seq, err := c.Update(fn)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func view(t testing.TB, c *Catalog, fn func(tx *Tx) error) {
	t.Helper()
	if err := c.View(fn); err != nil {
		t.Fatal(err)
	}
}

// crash ends a catalog as kill -9 would: nothing is flushed or marked. (Badger's own goroutines are
// ended, which writes tables the next start must not trust.)
func crash(t interface{ Fatal(...any) }, c *Catalog) {
	c.quiesce()
	if err := closeIndex(c.db); err != nil {
		t.Fatal(err)
	}
	if err := c.j.Close(); err != nil {
		t.Fatal(err)
	}
	c.lock.Close()
}

// mkvault makes a vault directory.
func mkvault(t testing.TB, c *Catalog, name string) uint64 {
	t.Helper()
	var ino uint64
	update(t, c, func(tx *Tx) error {
		i, err := tx.Create(RootIno, name, Inode{Mode: sIFDIR | 0o755}, 1)
		if err != nil {
			return err
		}
		ino = i.Ino
		return tx.PutVault(Vault{Ino: ino, Name: name, Archives: -1})
	})
	return ino
}

// populate makes a vault with n files.
func populate(t testing.TB, c *Catalog, vault string, n int) uint64 {
	t.Helper()
	v := mkvault(t, c, vault)
	for k := range n {
		update(t, c, func(tx *Tx) error {
			_, err := tx.Create(v, fmt.Sprintf("file%06d", k), Inode{Mode: sIFREG | 0o644}, int64(k))
			return err
		})
	}
	return v
}

// countFiles looks at what populate made through every table a listing and a look-up use.
func countFiles(t testing.TB, c *Catalog, vault string) int {
	t.Helper()
	n := 0
	view(t, c, func(tx *Tx) error {
		v, err := tx.VaultByName(vault)
		if err != nil {
			return err
		}
		for cookie := uint64(0); ; {
			list, err := tx.ReadDir(v.Ino, cookie, 100)
			if err != nil || len(list) == 0 {
				return err
			}
			for _, d := range list {
				l, err := tx.Lookup(v.Ino, d.Name)
				if err != nil || l != d {
					return fmt.Errorf("lookup %s: %+v, %v; listed %+v", d.Name, l, err, d)
				}
				if _, err := tx.Inode(d.Ino); err != nil {
					return err
				}
				if p, err := tx.Path(d.Ino); err != nil || p != vault+"/"+d.Name {
					return fmt.Errorf("path %q, %v", p, err)
				}
				n++
				cookie = d.Cookie
			}
		}
	})
	return n
}

func TestCreateCloseReopen(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	id := c.ID()
	populate(t, c, "v", 300)
	if err := c.Barrier(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	want := c.Stats()
	mustClose(t, c)
	c = mustOpen(t, o)
	if got := c.Rebuilt(); got != "" {
		t.Errorf("Rebuilt() = %q after a clean close", got)
	}
	if c.ID() != id {
		t.Errorf("ID() = %s, want %s", c.ID(), id)
	}
	if got := countFiles(t, c, "v"); got != 300 {
		t.Errorf("%d files, want 300", got)
	}
	if got := c.Stats(); got != want {
		t.Errorf("Stats() = %+v, want %+v", got, want)
	}
}

func TestCrashRebuilds(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	populate(t, c, "v", 300)
	want := c.Stats()
	crash(t, c)
	c = mustOpen(t, o)
	if c.Rebuilt() == "" {
		t.Error("not rebuilt after a crash")
	}
	if got := countFiles(t, c, "v"); got != 300 {
		t.Errorf("%d files, want 300", got)
	}
	if got := c.Stats(); got != want {
		t.Errorf("Stats() = %+v, want %+v", got, want)
	}
}

// While there are changes the mark follows the journal, so that the loss of the journal's end shows.
func TestMarkFollowsJournal(t *testing.T) {
	o := small(t.TempDir())
	o.markEvery = time.Microsecond
	c := mustOpen(t, o)
	populate(t, c, "v", 20)
	for seq := c.Stats().Seq; ; {
		if m, err := c.readMark(); err == nil && m != nil && m.Seq >= seq && !m.Clean {
			break
		}
		runtime.Gosched() // ends with the test's time if it never comes
	}
	dir := filepath.Join(t.TempDir(), "state")
	c.quiesce()
	copyState(t, o.Dir, dir)
	o.Dir = dir
	change(t, nth(t, dir, "journal/seg-*", -1), cut(3))
	if _, err := Open(o); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open with a journal cut below the mark: %v, want ErrDamaged", err)
	}
}

func TestInUse(t *testing.T) {
	o := small(t.TempDir())
	mustOpen(t, o)
	_, err := Open(o)
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("second Open: %v, want ErrInUse", err)
	}
	if want := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not name %s", err, want)
	}
}

func TestUpdateErrorChangesNothing(t *testing.T) {
	c := mustOpen(t, small(t.TempDir()))
	v := mkvault(t, c, "v")
	boom := errors.New("boom")
	for name, fn := range map[string]func(tx *Tx) error{
		"error": func(*Tx) error { return boom },
		"panic": func(*Tx) error { panic("boom") },
	} {
		_, err := c.Update(func(tx *Tx) error {
			if _, err := tx.Create(v, "x", Inode{Mode: sIFREG}, 1); err != nil {
				return err
			}
			return fn(tx)
		})
		if err == nil || name == "error" && err != boom {
			t.Errorf("%s: %v", name, err)
		}
	}
	view(t, c, func(tx *Tx) error {
		if _, err := tx.Lookup(v, "x"); !errors.Is(err, ErrNotExist) {
			t.Errorf("Lookup: %v, want ErrNotExist", err)
		}
		d, err := tx.Inode(v)
		if d.Entries != 0 {
			t.Errorf("Entries = %d, want 0", d.Entries)
		}
		return err
	})
}

func TestFailedOpenLeavesLockFree(t *testing.T) {
	o := small(t.TempDir())
	mustClose(t, mustOpen(t, o))
	if err := os.WriteFile(filepath.Join(o.Dir, "format"), []byte("casfs-catalog 99 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Open(o); !errors.Is(err, ErrFormat) {
			t.Fatalf("Open: %v, want ErrFormat", err)
		}
	}
}

// The catalog may be in a directory of any name.
func TestDirectoryOfAnyName(t *testing.T) {
	o := small(filepath.Join(t.TempDir(), "a[b*c?d\\"))
	c := mustOpen(t, o)
	populate(t, c, "v", 3)
	mustClose(t, c)
	c = mustOpen(t, o)
	if got := countFiles(t, c, "v"); got != 3 || c.Rebuilt() != "" {
		t.Errorf("%d files, rebuilt: %q", got, c.Rebuilt())
	}
}
