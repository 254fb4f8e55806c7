package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/noise"
)

// worker uses one directory of the mount and remembers what was acknowledged.
type worker struct {
	t       *testing.T
	m       *machine
	dir     string // in the mount
	rng     *rand.Rand
	know    tree
	pending *pending
	counts  *counts
	step    func(w *worker) error
	afloat  map[string]bool // names that were changed since the last sync: power loss may undo it

	// Of the daemon's life.
	d     *daemon
	vault bool        // --fsync=vault
	slow  bool        // leave the daemon time to stream
	over  func() bool // the mount dies, or ends: errors are expected

	n int
}

// synced counts the operations after which something was promised to survive a power loss.
const synced = "of them synced"

// errOver ends a worker: its mount is dying.
var errOver = errors.New("over")

// run works until stop is closed or the mount is gone.
func (w *worker) run(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		if err := w.step(w); err != nil {
			if !errors.Is(err, errOver) {
				w.t.Errorf("%s: %v", filepath.Base(w.dir), err)
			}
			return
		}
	}
}

// do runs one operation. p says what may be there when the mount dies meanwhile;
// done records what is acknowledged when it does not.
func (w *worker) do(p pending, run func() error, done func()) error {
	w.pending = &p
	err := run()
	if err != nil {
		if w.over() || w.d.awaitDeath(10*time.Second) {
			return errOver
		}
		return fmt.Errorf("%s: %w", p.what, err)
	}
	w.pending = nil
	done()
	if w.afloat == nil || p.sync {
		w.afloat = map[string]bool{}
	}
	if !p.sync {
		for n := range p.names {
			w.afloat[n] = true
		}
	}
	w.counts.add("operations acknowledged", 1)
	if p.sync {
		w.counts.add(synced, 1)
	}
	return nil
}

func (w *worker) path(name string) string { return filepath.Join(w.dir, name) }

func (w *worker) bytes(n int) []byte {
	return noise.Bytes(n, w.rng.Uint64())
}

// pick returns a name for which want holds, or "".
func (w *worker) pick(want func(*node) bool) string {
	var list []string
	for n, x := range w.know {
		if want(x) {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return ""
	}
	sort.Strings(list)
	return list[w.rng.IntN(len(list))]
}

func isFile(n *node) bool { return !n.dir && n.link == "" }
func isDir(n *node) bool  { return n.dir }

// fresh is a name in some directory, which may be taken.
func (w *worker) fresh() string {
	name := fmt.Sprintf("f%d", w.rng.IntN(12))
	if d := w.pick(isDir); d != "" && w.rng.IntN(2) == 0 {
		name = d + "/" + name
	}
	return name
}

// write makes or replaces a file, in pieces, with fsync or without.
func (w *worker) write(name string, data []byte, sync bool) error {
	old := w.know[name]
	if old != nil && !isFile(old) {
		return nil
	}
	piece := 64 << 10
	if len(data) > 1<<20 {
		piece = 1 << 20
	}
	p := pending{sync: sync, what: fmt.Sprintf("write %s, %d bytes", name, len(data)), names: map[string]func(*node) bool{name: or(is(old), prefixOf(data))}}
	return w.do(p, func() error {
		f, err := os.OpenFile(w.path(name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		for off := 0; off < len(data); off += piece {
			if _, err := f.WriteAt(data[off:min(off+piece, len(data))], int64(off)); err != nil {
				return err
			}
			if w.slow && off%(4<<20) == 0 {
				time.Sleep(20 * time.Millisecond) // a writer that is slower than the disk
			}
		}
		if sync {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		return f.Close()
	}, func() { w.know[name] = &node{data: data, synced: sync, archived: sync && w.vault && len(data) > 0} })
}

// patch writes over, or beyond, a part of a file.
func (w *worker) patch(name string, off int, data []byte, sync bool) error {
	old := w.know[name]
	after := append([]byte(nil), old.data...)
	for len(after) < off+len(data) {
		after = append(after, make([]byte, off+len(data)-len(after))...)
	}
	copy(after[off:], data)
	p := pending{sync: sync, what: fmt.Sprintf("patch %s at %d, %d bytes", name, off, len(data)),
		names: map[string]func(*node) bool{name: mixed(old.data, data, off)}}
	return w.do(p, func() error {
		f, err := os.OpenFile(w.path(name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt(data, int64(off)); err != nil {
			return err
		}
		if sync {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		return f.Close()
	}, func() { w.know[name] = &node{data: after, synced: sync, archived: sync && w.vault} })
}

// names of what a rename of old to new moves.
func (w *worker) rename(from, to string) error {
	before := tree{}
	for n, x := range w.know {
		if n == from || n == to || strings.HasPrefix(n, from+"/") || strings.HasPrefix(n, to+"/") {
			before[n] = x
		}
	}
	after := tree{}
	for n, x := range before {
		if n == from || strings.HasPrefix(n, from+"/") {
			after[to+strings.TrimPrefix(n, from)] = x
		}
	}
	p := pending{what: "rename " + from + " to " + to, names: map[string]func(*node) bool{}}
	for _, list := range []tree{before, after} {
		for n := range list {
			p.names[n] = is(before[n], after[n])
		}
	}
	p.joint = func(got tree) bool {
		for _, list := range []tree{before, after} {
			all := true
			for n := range p.names {
				all = all && same(list[n], got[n]) == ""
			}
			if all {
				return true
			}
		}
		return false
	}
	return w.do(p, func() error { return os.Rename(w.path(from), w.path(to)) }, func() {
		for n := range before {
			delete(w.know, n)
		}
		for n, x := range after {
			w.know[n] = x
		}
		w.counts.add("renames", 1)
	})
}

func (w *worker) remove(name string) error {
	p := pending{what: "remove " + name, names: map[string]func(*node) bool{name: is(w.know[name], nil)}}
	return w.do(p, func() error { return os.Remove(w.path(name)) }, func() { delete(w.know, name) })
}

// files is a worker with small files: every namespace call, every way to write.
func files(w *worker) error {
	w.n++
	switch w.rng.IntN(16) {
	case 0, 1, 2:
		return w.write(w.fresh(), w.bytes(w.rng.IntN(100<<10)), w.rng.IntN(2) == 0)
	case 3:
		return w.write(w.fresh(), w.bytes(w.rng.IntN(3<<20)), w.rng.IntN(2) == 0)
	case 4, 5:
		if name := w.pick(isFile); name != "" {
			n := len(w.know[name].data)
			return w.patch(name, w.rng.IntN(n+n/8+1), w.bytes(1+w.rng.IntN(30<<10)), w.rng.IntN(2) == 0)
		}
	case 6:
		if name := w.pick(isFile); name != "" {
			return w.patch(name, len(w.know[name].data), w.bytes(1+w.rng.IntN(10<<10)), w.rng.IntN(2) == 0)
		}
	case 7:
		if name := w.pick(isFile); name != "" {
			old := w.know[name].data
			n := w.rng.IntN(len(old) + 1000)
			after := append(append([]byte(nil), old...), make([]byte, 1000)...)[:n]
			p := pending{what: fmt.Sprintf("truncate %s to %d", name, n), names: map[string]func(*node) bool{name: is(&node{data: old}, &node{data: after})}}
			return w.do(p, func() error { return os.Truncate(w.path(name), int64(n)) }, func() { w.know[name] = &node{data: after} })
		}
	case 8, 9, 10:
		from, to := w.pick(isFile), w.fresh()
		if from != "" && from != to && (w.know[to] == nil || isFile(w.know[to])) {
			return w.rename(from, to)
		}
	case 11:
		if name := w.pick(isFile); name != "" {
			return w.remove(name)
		}
	case 12:
		name := fmt.Sprintf("d%d", w.rng.IntN(3))
		switch x := w.know[name]; {
		case x == nil:
			p := pending{what: "mkdir " + name, names: map[string]func(*node) bool{name: is(nil, &node{dir: true})}}
			return w.do(p, func() error { return os.Mkdir(w.path(name), 0o755) }, func() { w.know[name] = &node{dir: true} })
		case w.rng.IntN(2) == 0:
			for n := range w.know {
				if strings.HasPrefix(n, name+"/") {
					return nil
				}
			}
			return w.remove(name)
		default:
			if to := fmt.Sprintf("d%d", w.rng.IntN(3)); w.know[to] == nil {
				return w.rename(name, to)
			}
		}
	case 13:
		name, target := fmt.Sprintf("l%d", w.rng.IntN(3)), fmt.Sprintf("to/%d", w.n)
		if w.know[name] != nil {
			return w.remove(name)
		}
		p := pending{what: "symlink " + name, names: map[string]func(*node) bool{name: is(nil, &node{link: target})}}
		return w.do(p, func() error { return os.Symlink(target, w.path(name)) }, func() { w.know[name] = &node{link: target} })
	case 14:
		if name := w.pick(isFile); name != "" {
			old := w.know[name]
			now := *old
			if w.rng.IntN(2) == 0 {
				now.mode = fs.FileMode(0o600 + w.rng.IntN(0o100))
				p := pending{what: "chmod " + name, names: map[string]func(*node) bool{name: is(old, &now)}}
				return w.do(p, func() error { return os.Chmod(w.path(name), now.mode) }, func() { w.know[name] = &now })
			}
			now.mtime = 1e18 + w.rng.Int64N(1e17)
			p := pending{what: "utimens " + name, names: map[string]func(*node) bool{name: is(old, &now)}}
			return w.do(p, func() error { return os.Chtimes(w.path(name), time.Time{}, time.Unix(0, now.mtime)) }, func() { w.know[name] = &now })
		}
	case 15:
		return w.do(pending{what: "fsync of the directory", sync: true}, func() error {
			d, err := os.Open(w.dir)
			if err != nil {
				return err
			}
			defer d.Close()
			return d.Sync()
		}, func() {})
	}
	return nil
}

// sync is casfs sync of a file.
func (w *worker) sync(name string) error {
	return w.do(pending{what: "casfs sync " + name, sync: true}, func() error {
		st, err := os.Stat(w.path(name))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err = w.d.control.Sync(ctx, []uint64{st.Sys().(*syscall.Stat_t).Ino}, nil)
		return err
	}, func() {
		now := *w.know[name]
		now.archived = true
		w.know[name] = &now
	})
}

// vaults is a worker whose files go to the vault, leave the disk and come back.
func vaults(w *worker) error {
	name := fmt.Sprintf("v%d", w.rng.IntN(6))
	x := w.know[name]
	if x == nil || w.rng.IntN(8) == 0 {
		return w.write(name, w.bytes(1+w.rng.IntN(500<<10)), w.rng.IntN(3) == 0)
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		return w.sync(name)
	case 2:
		if x.archived {
			return w.do(pending{what: "evict " + name}, func() error {
				err := unix.Setxattr(w.path(name), "user.cas.evict", []byte("1"), 0)
				if errors.Is(err, unix.EBUSY) {
					err = nil // just being fetched
				}
				return err
			}, func() { w.counts.add("evictions", 1) })
		}
	case 3:
		return w.do(pending{what: "recall " + name}, func() error {
			return unix.Setxattr(w.path(name), "user.cas.recall", []byte("standard"), 0)
		}, func() {})
	case 4:
		return w.do(pending{what: "read " + name}, func() error {
			b, err := os.ReadFile(w.path(name))
			if err == nil {
				if why := same(&node{data: x.data}, &node{data: b}); why != "" {
					w.t.Errorf("%s, while all is well: %s", name, why)
				}
			}
			return err
		}, func() { w.counts.add("reads", 1) })
	case 5:
		return w.patch(name, w.rng.IntN(len(x.data)+1), w.bytes(1000), w.rng.IntN(2) == 0)
	}
	return nil
}

// bigs is a worker with files of several parts, segments, and streams.
func bigs(w *worker) error {
	name := fmt.Sprintf("b%d", w.rng.IntN(2))
	x := w.know[name]
	switch k := w.rng.IntN(6); {
	case x == nil, k == 0:
		n := 17<<20 + w.rng.IntN(24<<20)
		if w.slow {
			n = 40<<20 + w.rng.IntN(30<<20)
		}
		return w.write(name, w.bytes(n), w.rng.IntN(2) == 0)
	case k == 1:
		return w.rename(name, "b2")
	case k == 2:
		if w.know["b2"] != nil {
			return w.remove("b2")
		}
	case k == 3:
		return w.sync(name)
	case k == 4 && x.archived: // else parts may have left for the vault already, and cannot be changed
		return w.patch(name, w.rng.IntN(len(x.data)+1), w.bytes(1000), w.rng.IntN(2) == 0)
	}
	return nil
}

// programs is a worker that copies a tree with cp and mirrors it with rsync.
func programs(w *worker) error {
	src := w.m.path("src")
	w.n++
	if w.n%5 == 1 {
		// The source changes; it is on an ordinary disk.
		for i := range 12 {
			if w.n > 1 && w.rng.IntN(3) > 0 {
				continue
			}
			name := filepath.Join(src, fmt.Sprintf("s%d", i%3), fmt.Sprintf("file%d", i))
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(name, w.bytes(w.rng.IntN(120<<10)), 0o644); err != nil {
				return err
			}
			mtime := time.Unix(0, 1e18+w.rng.Int64N(1e17))
			if err := os.Chtimes(name, mtime, mtime); err != nil {
				return err
			}
		}
	}
	from, err := look(src, nil)
	if err != nil {
		return err
	}
	program := func(what, to string, remove bool, args ...string) error {
		p := pending{what: what, names: map[string]func(*node) bool{}}
		if to != "" {
			p.names[to] = is(w.know[to], nil, &node{dir: true})
			p.extra = to + "/"
		}
		after := tree{}
		for n, x := range from {
			now := &node{dir: x.dir, data: x.data}
			if !x.dir {
				now.mode, now.mtime = x.mode, x.mtime
			}
			after[to+"/"+n] = now
			old := w.know[to+"/"+n]
			if x.dir {
				p.names[to+"/"+n] = is(old, nil, &node{dir: true})
			} else {
				p.names[to+"/"+n] = or(is(old, nil), prefixOf(x.data))
			}
		}
		if remove {
			for n, x := range w.know {
				if strings.HasPrefix(n, to+"/") {
					p.names[n] = is(nil, x)
				}
			}
		}
		return w.do(p, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, args[0], args[1:]...)
			c.Dir = w.m.home
			out, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out[:min(len(out), 1000)])
			}
			return err
		}, func() {
			for n := range w.know {
				if n == to || strings.HasPrefix(n, to+"/") {
					delete(w.know, n)
				}
			}
			if !remove {
				w.know[to] = &node{dir: true}
				for n, x := range after {
					w.know[n] = x
				}
			}
			w.counts.add("runs of "+args[0], 1)
		})
	}
	switch {
	case w.n%5 == 0 || w.know["copy"] != nil:
		if w.know["copy"] == nil {
			return nil
		}
		return program("rm -r", "copy", true, "rm", "-r", w.path("copy"))
	case w.n%2 == 0:
		return program("cp -a", "copy", false, "cp", "-a", src, w.path("copy"))
	default:
		return program("rsync", "mirror", false, "rsync", "-a", "--delete", src+"/", w.path("mirror")+"/")
	}
}

// makers is a worker that makes and removes a vault.
func makers(w *worker) error {
	if w.know[""] == nil {
		return w.do(pending{what: "mkdir of a vault", names: map[string]func(*node) bool{"": is(nil, &node{dir: true})}},
			func() error { return os.Mkdir(w.dir, 0o755) }, func() { w.know[""] = &node{dir: true} })
	}
	err := w.do(pending{what: "rmdir of a vault", names: map[string]func(*node) bool{"": is(nil, &node{dir: true})}},
		func() error { return os.Remove(w.dir) }, func() { delete(w.know, "") })
	time.Sleep(20 * time.Millisecond) // the others are to be heard, too
	return err
}
