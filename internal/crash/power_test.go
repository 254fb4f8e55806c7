package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/built"
)

// disk is an ext4 file system in a file: after a cut, only what was synced is on it.
type disk struct {
	t          *testing.T
	image, dir string
	mnt        string // of the casfs that has its state on it
}

// system runs a program of the system.
func system(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// newDisk mounts one, and proves that what is not synced does not survive on it.
func newDisk(t *testing.T, image, dir string, mib int64) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil && os.Getenv("CASFS_REQUIRE_FUSE") == "" {
		t.Skip(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, mib<<20); err != nil {
		t.Fatal(err)
	}
	system(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := &disk{t: t, image: image, dir: dir}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d.mount()
	for name, sync := range map[string]bool{"synced": true, "not-synced": false} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(name)
		if err == nil && sync {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	d.pull()
	d.replace()
	if b, err := os.ReadFile(filepath.Join(dir, "synced")); err != nil || string(b) != "synced" {
		t.Fatalf("what was synced: %q, %v", b, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "not-synced")); len(b) > 0 {
		t.Fatalf("what was not synced is there: %q", b)
	}
	for _, name := range []string{"synced", "not-synced"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return d
}

// mount leaves to fsync when something is written: nothing else does for ten minutes.
func (d *disk) mount() {
	d.t.Helper()
	system(d.t, "mount", "-o", "loop,commit=600,noauto_da_alloc", d.image, d.dir)
}

// pull pulls the plug: what has not been written to the disk is gone, and nothing is written any more.
func (d *disk) pull() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	err = unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush)
	f.Close()
	if err != nil {
		d.t.Fatalf("EXT4_IOC_SHUTDOWN: %v", err)
	}
}

// replace mounts the disk as it is after pull. Nobody may have a file of it open, nor one of the
// mount's: the kernel may read and write those on the disk directly.
func (d *disk) replace() {
	d.t.Helper()
	// What the killed casfs had registered for passthrough stays open until its mount is gone, and a while longer.
	for d.mnt != "" && unix.Unmount(d.mnt, unix.MNT_DETACH) == nil {
	}
	err := unix.Unmount(d.dir, 0)
	for end := time.Now().Add(time.Minute); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = unix.Unmount(d.dir, 0) {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		d.t.Fatalf("unmounting %s: %v", d.dir, err)
	}
	d.mount()
	probe := filepath.Join(d.dir, "probe")
	err = os.WriteFile(probe, nil, 0o600)
	if errors.Is(err, unix.EIO) {
		// A mount namespace cloned meanwhile keeps the dead file system; what is on its disk is what counts.
		if err := unix.Unmount(d.dir, 0); err != nil {
			d.t.Fatal(err)
		}
		system(d.t, "cp", "--sparse=always", d.image, d.image+"x")
		d.image += "x"
		d.mount()
		err = os.WriteFile(probe, nil, 0o600)
	}
	if err = errors.Join(err, os.Remove(probe)); err != nil {
		d.t.Fatal(err)
	}
}

// powered is a machine whose state directory is on a disk of its own. The service goes on when the plug is pulled.
func powered(t *testing.T) (*machine, *disk) {
	m := newMachine(t, true, "--standard", "20ms", "--inventory", "20ms", "--recall-guard-files", "0",
		"--staging-size", "200M", "--cache-size", "200M", "--parts", "2")
	d := newDisk(t, m.path("disk"), m.path("state"), 700)
	d.mnt = m.mnt
	return m, d
}

// promise is one way to be told that something is on stable disk.
type promise struct {
	name string
	old  []byte // the file before, in the vault and here; nil: there is none
	do   func(dir, file string, sync func(string) error) error
	file string // where it is to be then; "": file
	want []byte // nil: nothing
}

func fill1(n int, b byte) []byte { return bytes.Repeat([]byte{b, b + 1, b + 2}, n/3+1)[:n] }

// store opens a file, changes it and calls a sync.
func store(name string, flags int, run func(f *os.File) error) error {
	f, err := os.OpenFile(name, os.O_RDWR|flags, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(run(f), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func promises() []promise {
	old, data := fill1(300<<10, 'a'), fill1(200<<10, 'k')
	patched := bytes.Clone(old)
	copy(patched[70<<10:], data[:10<<10])
	put := func(f *os.File) error { _, err := f.Write(data); return err }
	patch := func(f *os.File) error { _, err := f.WriteAt(data[:10<<10], 70<<10); return err }
	then := func(fs ...func(*os.File) error) func(*os.File) error {
		return func(f *os.File) error {
			for _, fn := range fs {
				if err := fn(f); err != nil {
					return err
				}
			}
			return nil
		}
	}
	sync := (*os.File).Sync
	return []promise{
		{name: "new", want: data, do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_CREATE, then(put, sync))
		}},
		{name: "fdatasync", want: data, do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_CREATE, then(put, func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }))
		}},
		{name: "O_SYNC", want: data, do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_CREATE|os.O_SYNC, put)
		}},
		{name: "in new directories", want: data, file: "made/made/file", do: func(dir, _ string, _ func(string) error) error {
			if err := os.MkdirAll(filepath.Join(dir, "made/made"), 0o755); err != nil {
				return err
			}
			return store(filepath.Join(dir, "made/made/file"), os.O_CREATE, then(put, sync))
		}},
		{name: "a copy is changed", old: old, want: patched, do: func(_, file string, _ func(string) error) error {
			return store(file, 0, then(patch, sync))
		}},
		{name: "a synced file is changed", want: patched, do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_CREATE, then(func(f *os.File) error { _, err := f.Write(old); return err }, sync, patch, sync))
		}},
		{name: "written anew", old: old, want: data, do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_TRUNC, then(put, sync))
		}},
		{name: "appended", old: old, want: append(bytes.Clone(old), data...), do: func(_, file string, _ func(string) error) error {
			return store(file, os.O_APPEND, then(put, sync))
		}},
		{name: "cut short", old: old, want: old[:100<<10], do: func(_, file string, _ func(string) error) error {
			return store(file, 0, then(func(f *os.File) error { return f.Truncate(100 << 10) }, sync))
		}},
		{name: "mapped", old: old, want: patched, do: func(_, file string, _ func(string) error) error {
			return store(file, 0, func(f *os.File) error {
				m, err := unix.Mmap(int(f.Fd()), 0, len(old), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				copy(m[70<<10:], data[:10<<10])
				return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
			})
		}},
		// As editors do.
		{name: "replaced", old: old, want: data, do: func(dir, file string, _ func(string) error) error {
			if err := store(file+".tmp", os.O_CREATE, then(put, sync)); err != nil {
				return err
			}
			if err := os.Rename(file+".tmp", file); err != nil {
				return err
			}
			return syncDir(dir)
		}},
		{name: "renamed, then synced", old: old, want: data, do: func(_, file string, _ func(string) error) error {
			return store(file+".tmp", os.O_CREATE, then(put, func(*os.File) error { return os.Rename(file+".tmp", file) }, sync))
		}},
		{name: "moved", old: old, want: old, file: "moved to", do: func(dir, file string, _ func(string) error) error {
			if err := os.Rename(file, filepath.Join(dir, "moved to")); err != nil {
				return err
			}
			return syncDir(dir)
		}},
		{name: "removed", old: old, do: func(dir, file string, _ func(string) error) error {
			if err := os.Remove(file); err != nil {
				return err
			}
			return syncDir(dir)
		}},
		{name: "casfs sync", want: data, do: func(_, file string, sync func(string) error) error {
			if err := store(file, os.O_CREATE, put); err != nil {
				return err
			}
			return sync(file)
		}},
	}
}

// TestPowerLossAfterEachPromise makes promises of every kind, pulls the plug, and looks whether they are kept. The last
// one has nothing after it that could keep it by chance; each of them is the last once.
func TestPowerLossAfterEachPromise(t *testing.T) {
	built.Require(t, "mkfs.ext4")
	m, disk := powered(t)
	all := promises()
	kept := 0
	begin := func() *daemon {
		d := m.launch("", nil, "--settle", "1h")
		if d == nil {
			t.Fatal("the mount died")
		}
		return d
	}
	d := begin()
	for life := range all {
		list := all[len(all)-5:] // some at a time
		sync := func(path string) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err = d.control.Sync(ctx, []uint64{st.Sys().(*syscall.Stat_t).Ino}, nil)
			return err
		}
		top := filepath.Join(m.mnt, "v", fmt.Sprint(life))
		for _, p := range list {
			dir := filepath.Join(top, p.name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if p.old != nil {
				if err := os.WriteFile(filepath.Join(dir, "file"), p.old, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := sync(top); err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			dir := filepath.Join(top, p.name)
			if err := p.do(dir, filepath.Join(dir, "file"), sync); err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
		}
		d.kill()
		disk.pull()
		disk.replace()
		d = begin()
		for _, p := range list {
			what := fmt.Sprintf("%s, with %s last", p.name, list[len(list)-1].name)
			name := filepath.Join(top, p.name, "file")
			if p.file != "" {
				if _, err := os.Lstat(name); err == nil {
					t.Errorf("%s: the old name is there", what)
				}
				name = filepath.Join(top, p.name, p.file)
			}
			got, err := os.ReadFile(name)
			switch {
			case p.want == nil && errors.Is(err, os.ErrNotExist), p.want != nil && err == nil && bytes.Equal(got, p.want):
				kept++
			default:
				t.Errorf("%s: %d bytes (%v), %d were promised", what, len(got), err, len(p.want))
			}
			if p.name == "casfs sync" && !inVault(name) {
				t.Errorf("%s: it is not in the vault", what)
			}
		}
		if t.Failed() {
			break
		}
		all = append(all[1:], all[0])
	}
	t.Logf("%d promises kept over %d power losses", kept, len(all))
}

// TestPowerLoss pulls the plug under load, CASFS_CRASHES/10 times (3): what
// fsync and casfs sync have acknowledged is there, under the names that were synced.
func TestPowerLoss(t *testing.T) {
	built.Require(t, "mkfs.ext4")
	n := 3
	if s := os.Getenv("CASFS_CRASHES"); s != "" {
		k, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		n = max(n, k/10)
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CASFS_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CASFS_CRASH_SEED=%d", seed)
	counts := &counts{n: map[string]int{}}
	r := &run{t: t, began: time.Now(), rng: rand.New(rand.NewPCG(seed, 9)), kills: counts, checks: counts}
	var disk *disk
	r.m, disk = powered(t)
	r.worker("v/files", files)
	r.worker("v/more", files)
	r.worker("v/vaults", vaults)
	for i := range n + 1 {
		d := r.m.launch("", nil, "--settle", []string{"0", "50ms", "1h"}[r.rng.IntN(3)])
		if d == nil {
			t.Fatal("the mount died")
		}
		for _, w := range r.workers {
			if i > 0 {
				w.afterPowerLoss(counts)
				continue
			}
			if err := errors.Join(os.MkdirAll(w.dir, 0o755), syncDir(w.dir)); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() || i == n {
			break
		}
		before := counts.of(synced)
		r.load(d, false, false, func(dying *atomic.Bool) {
			d.awaitDeath(time.Duration(300+r.rng.IntN(700)) * time.Millisecond)
			// However slow the machine is: a loss before anything was promised would test nothing.
			for end := time.Now().Add(time.Minute); counts.of(synced) < before+leastSynced; {
				if d.awaitDeath(20*time.Millisecond) || time.Now().After(end) {
					t.Errorf("%d operations were synced", counts.of(synced)-before)
					break
				}
			}
			dying.Store(true)
			d.kill()
			disk.pull()
		})
		disk.replace()
		counts.add("power losses", 1)
	}
	t.Logf("\n%s", counts)
	if t.Failed() {
		return
	}
	if kept := counts.of(keptDir) + counts.of(keptArchived) + counts.of(keptFile); counts.of("power losses") != n || kept < n || counts.of(cutShort) == 0 {
		t.Errorf("this has tested next to nothing")
	}
}

// leastSynced is how many synced operations come before each power loss at least.
const leastSynced = 10

// What was found after a power loss.
const (
	keptDir      = "directories and links as synced"
	keptArchived = "files in the vault as acknowledged"
	keptFile     = "files intact after fsync"
	cutShort     = "operations under way when the power went"
)

// afterPowerLoss holds what is there against what was synced, and goes on from what is there.
func (w *worker) afterPowerLoss(c *counts) {
	w.t.Helper()
	if w.pending != nil {
		c.add(cutShort, 1)
		for n := range w.pending.names {
			w.afloat[n] = true
		}
		w.pending = nil
	}
	unreadable := map[string]error{}
	got, err := look(w.dir, unreadable)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for n := range w.know {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		want, is := w.know[n], got[n]
		if w.afloat[n] {
			c.add("names changed since the last sync", 1)
			continue
		}
		what := fmt.Sprintf("%s/%s", filepath.Base(w.dir), n)
		switch {
		case is == nil:
			w.t.Errorf("%s, which was synced, is not there", what)
		case want.dir != is.dir || want.link != is.link:
			w.t.Errorf("%s is of another type", what)
		case want.dir || want.link != "":
			c.add(keptDir, 1)
		case want.archived && (!is.archived || unreadable[n] != nil || !bytes.Equal(want.data, is.data)):
			w.t.Errorf("%s was in the vault: %d bytes, %d now, in the vault: %v, %v", what, len(want.data), len(is.data), is.archived, unreadable[n])
		case want.archived:
			c.add(keptArchived, 1)
		case want.synced && (unreadable[n] != nil || !bytes.Equal(want.data, is.data)):
			w.t.Errorf("%s was synced: %d bytes, %d now, %v", what, len(want.data), len(is.data), unreadable[n])
		case want.synced:
			c.add(keptFile, 1)
		default:
			c.add("files that were not synced", 1)
		}
	}
	for n := range got {
		if w.know[n] == nil && !w.afloat[n] {
			w.t.Errorf("%s/%s is there, and its removal was synced", filepath.Base(w.dir), n)
		}
	}
	w.know, w.afloat = tree{}, map[string]bool{}
	for n, x := range got {
		if err := unreadable[n]; err != nil {
			c.add("files that were not synced and are gone", 1)
			if err := os.Remove(w.path(n)); err != nil {
				w.t.Error(err)
			}
			w.afloat[n] = true
			continue
		}
		w.know[n] = &node{dir: x.dir, link: x.link, data: x.data}
		w.afloat[n] = true
	}
}
