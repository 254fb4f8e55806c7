package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/casfs/casfs/cache/journal"
	"golang.org/x/sys/unix"
)

// disk is a file system of which the test says how much is free.
type disk struct{ free int64 }

func (d *disk) statfs(dir string) (int64, error) {
	free := d.free
	if st, err := os.Stat(filepath.Join(dir, "reserve")); err == nil {
		free -= st.Size()
	}
	return free, nil
}

func TestGuard(t *testing.T) {
	o := small(t.TempDir())
	o.MinFree, o.Reserve = 100<<20, 1<<20
	c := mustOpen(t, o)
	d := &disk{free: 1 << 30}
	c.guard.mu.Lock()
	c.guard.statfs = d.statfs
	c.guard.mu.Unlock()
	put := func(tx *Tx) error { return tx.PutMeta("m", []byte("x")) }
	for _, step := range []struct {
		free            int64
		update, reclaim bool
		reserve         bool
	}{
		{1 << 30, true, true, true},
		{102 << 20, true, true, true},
		{100 << 20, false, true, true}, // less the reserve
		{60 << 20, false, true, true},
		{40 << 20, false, true, false},  // given up
		{20 << 20, false, false, false}, // nearly nothing left
		{40 << 20, false, true, false},
		{100 << 20, false, true, false}, // enough, but not for the reserve too
		{102 << 20, true, true, true},
	} {
		d.free = step.free
		c.guard.look()
		if _, err := c.Update(put); (err == nil) != step.update || err != nil && !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d MiB free: Update: %v, want success %t", step.free>>20, err, step.update)
		}
		if _, err := c.Reclaim(put); (err == nil) != step.reclaim || err != nil && !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d MiB free: Reclaim: %v, want success %t", step.free>>20, err, step.reclaim)
		}
		if _, err := os.Stat(c.path("reserve")); (err == nil) != step.reserve {
			t.Errorf("%d MiB free: reserve: %v, want it there %t", step.free>>20, err, step.reserve)
		}
		view(t, c, func(tx *Tx) error { _, err := tx.Inode(RootIno); return err })
	}
	// Filled by others since the last look, a moment ago: nothing reaches badger.
	for _, update := range []func(func(*Tx) error) (uint64, error){c.Update, c.Reclaim} {
		d.free = 1 << 30
		c.guard.look()
		c.guard.mu.Lock()
		d.free = 0
		c.guard.looked = c.guard.looked.Add(-2 * freshFor)
		c.guard.mu.Unlock()
		if _, err := update(put); !errors.Is(err, ErrNoSpace) {
			t.Errorf("nothing free: %v", err)
		}
		if err := c.Room(); !errors.Is(err, ErrNoSpace) {
			t.Errorf("Room: %v", err)
		}
	}
	// Without a look in between, what is written counts.
	d.free = 102 << 20
	c.guard.look()
	_, err := c.Update(func(tx *Tx) error {
		for k := range 200 {
			if err := tx.SetXattr(1, fmt.Sprint(k), make([]byte, 200<<10), false, false); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("a change of 40 MB with 100 free: %v", err)
	}
}

// A journal that meets a full disk in spite of the guard changes nothing.
func TestJournalFull(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	v := populate(t, c, "v", 10)
	fail := errors.New("failed")
	for _, test := range []struct {
		err, want error
	}{{syscall.ENOSPC, ErrNoSpace}, {fail, fail}} {
		c.appendHook = func() error { return fmt.Errorf("write: %w", test.err) }
		_, err := c.Update(func(tx *Tx) error {
			_, err := tx.Create(v, "more", Inode{Mode: sIFREG}, 1)
			return err
		})
		if !errors.Is(err, test.want) {
			t.Errorf("Update: %v, want %v", err, test.want)
		}
		if got := countFiles(t, c, "v"); got != 10 {
			t.Errorf("%d files, want 10", got)
		}
	}
	c.appendHook = nil
	populate(t, c, "w", 3)
	if got := problems(t, c, false); got != nil {
		t.Errorf("%q", got)
	}
}

// When badger fails after the journal has the record, reads go on and the record comes true at the next start.
func TestIndexFails(t *testing.T) {
	for name, hook := range map[string]func(){
		"panic": func() { panic("nil map") },
		"error": nil,
	} {
		t.Run(name, func(t *testing.T) {
			o := small(t.TempDir())
			c := mustOpen(t, o)
			v := populate(t, c, "v", 10)
			if hook != nil {
				c.applyHook = hook
			} else {
				c.views.publish(5) // the index is not where the journal is
			}
			more := func(name string) error {
				_, err := c.Update(func(tx *Tx) error {
					_, err := tx.Create(v, name, Inode{Mode: sIFREG}, 1)
					return err
				})
				return err
			}
			if err := more("more"); !errors.Is(err, ErrReadOnly) {
				t.Fatalf("Update: %v, want ErrReadOnly", err)
			}
			if name == "error" {
				c.views.publish(12)
			}
			if got := countFiles(t, c, "v"); got != 10 {
				t.Errorf("%d files, want 10", got)
			}
			c.applyHook = nil
			if err := more("again"); !errors.Is(err, ErrReadOnly) {
				t.Errorf("second Update: %v, want ErrReadOnly", err)
			}
			c.Close()
			c = mustOpen(t, o)
			if c.Rebuilt() == "" {
				t.Error("not rebuilt")
			}
			if got := countFiles(t, c, "v"); got != 11 {
				t.Errorf("%d files, want 11", got)
			}
		})
	}
}

func TestJournalFails(t *testing.T) {
	o := small(t.TempDir())
	c := mustOpen(t, o)
	populate(t, c, "v", 10)
	c.appendHook = func() error { return journal.ErrFailed }
	if _, err := c.Update(func(tx *Tx) error { return tx.PutMeta("m", nil) }); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("Update: %v, want ErrReadOnly", err)
	}
	if got := countFiles(t, c, "v"); got != 10 {
		t.Errorf("%d files, want 10", got)
	}
}

// TestFullDisk fills a real file system around the catalog, in a process of its own: what a
// mistake here brings is SIGBUS.
func TestFullDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CASFS_CATALOG_FULL="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || strings.Contains(string(out), "mount: ") {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal(err, string(out))
		}
		t.Skip("no mount namespace of one's own here: ", err, string(out))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(string(out))
}

// fillDisk is the process of TestFullDisk.
func fillDisk(dir string) {
	must := func(err error, what string) {
		if err != nil {
			fmt.Printf("%s: %v\n", what, err)
			os.Exit(1)
		}
	}
	must(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400m"), "mount")
	o := Options{Dir: filepath.Join(dir, "state"), MinFree: 48 << 20, Reserve: 48 << 20, SnapshotEvery: 8 << 20, Logger: slog.New(slog.DiscardHandler)}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	must(err, "filler")
	// fill leaves n bytes free; less than nothing frees.
	var filled int64
	fill := func(n int64) {
		free, err := statfs(dir)
		must(err, "statfs")
		buf := make([]byte, 1<<20)
		for ; free > n; free -= int64(len(buf)) {
			if _, err := filler.WriteAt(buf, filled); err != nil {
				if errors.Is(err, syscall.ENOSPC) {
					return
				}
				must(err, "fill")
			}
			filled += int64(len(buf))
		}
	}
	empty := func() {
		must(filler.Truncate(0), "truncate")
		filled = 0
	}
	n, created := 0, 0
	var v uint64
	create := func(c *Catalog) error {
		_, err := c.Update(func(tx *Tx) error {
			if v == 0 {
				i, err := tx.Create(RootIno, "v", Inode{Mode: sIFDIR | 0o755}, 1)
				if err != nil {
					return err
				}
				v = i.Ino
				if err := tx.PutVault(Vault{Ino: v, Name: "v"}); err != nil {
					return err
				}
			}
			n++
			i, err := tx.Create(v, fmt.Sprintf("file%07d", n), Inode{Mode: sIFREG}, 1)
			if err != nil {
				return err
			}
			return tx.SetXattr(i.Ino, "user.x", make([]byte, 1000), false, false)
		})
		if err == nil {
			created++
		}
		return err
	}
	check := func(c *Catalog, what string) {
		files := int64(0)
		must(c.View(func(tx *Tx) error {
			for cookie := uint64(0); ; {
				list, err := tx.ReadDir(v, cookie, 1000)
				if err != nil || len(list) == 0 {
					return err
				}
				for _, d := range list {
					if _, err := tx.Inode(d.Ino); err != nil {
						return err
					}
					files++
					cookie = d.Cookie
				}
			}
		}), what)
		if files != int64(created) {
			must(fmt.Errorf("%d files, %d were acknowledged", files, created), what)
		}
	}
	c, err := Open(o)
	must(err, "open")
	refused := 0
	for round := range 2 {
		// Somebody else fills the disk while changes are made, then fills it to the last byte.
		for {
			err := create(c)
			if errors.Is(err, ErrNoSpace) {
				break
			}
			must(err, "create")
			if n%500 == 0 {
				free, _ := statfs(dir)
				fill(free - 16<<20)
			}
		}
		refused++
		check(c, "nearly full")
		fill(0)
		for refusals, more := 0, 0; refusals < 100; {
			err := create(c)
			switch {
			case errors.Is(err, ErrNoSpace):
				refusals++
			case err == nil && more < 100:
				more++ // badger has removed tables meanwhile
				fill(0)
			default:
				must(fmt.Errorf("create on a full disk: %v", err), "full")
			}
		}
		check(c, "full")
		must(c.Barrier(context.Background(), 0), "barrier on a full disk")
		if round%2 == 1 {
			fill(0)
			c.Close() // may have to leave badger as it is
			if _, err := Open(o); !errors.Is(err, ErrNoSpace) && !errors.Is(err, syscall.ENOSPC) {
				must(fmt.Errorf("open on a full disk: %v", err), "open")
			}
			empty()
			c, err = Open(o)
			must(err, "open again")
		}
		empty()
		c.guard.look()
		must(create(c), "create when there is room again")
		check(c, "room again")
		if _, err := os.Stat(c.path("reserve")); err != nil {
			must(err, "reserve")
		}
		// Make room in the catalog itself: what it wrote stays on the small disk.
		must(c.Snapshot(), "snapshot")
		must(create(c), "create")
		must(c.Snapshot(), "snapshot")
	}
	must(c.Close(), "close")
	c, err = Open(o)
	must(err, "last open")
	check(c, "end")
	must(c.Check(context.Background(), false, func(p string) { must(errors.New(p), "check") }), "check")
	fmt.Printf("%d files, refused in %d rounds\n", created, refused)
	os.Exit(0)
}
