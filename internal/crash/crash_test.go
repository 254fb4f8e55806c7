package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/internal/built"
)

// counts is what a run has done, by what it is called.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[what] += n
}

func (c *counts) of(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[what]
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for n := range c.n {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%8d  %s\n", c.n[n], n)
	}
	return b.String()
}

// run is a machine with its workers.
type run struct {
	t       *testing.T
	m       *machine
	rng     *rand.Rand
	workers []*worker
	kills   *counts
	checks  *counts
	total   int
	began   time.Time
}

// TestCrash kills the mount CASFS_CRASHES times (20) and looks each time whether a promise was broken.
func TestCrash(t *testing.T) {
	built.Require(t, "cp", "rsync", "rm")
	n := 20
	if s := os.Getenv("CASFS_CRASHES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CASFS_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CASFS_CRASH_SEED=%d", seed)
	kills, checks := &counts{n: map[string]int{}}, &counts{n: map[string]int{}}
	total := 0
	// The store dies with the mount, or is a process of its own that goes on: then answers get lost.
	for i, served := range []bool{false, true} {
		name, share := "embedded", n*3/5
		if served {
			name, share = "served", n-n*3/5
		}
		t.Run(name, func(t *testing.T) {
			r := &run{t: t, began: time.Now(), rng: rand.New(rand.NewPCG(seed, uint64(i))), kills: kills, checks: checks}
			r.m = newMachine(t, served, "--standard", "20ms", "--inventory", "20ms", "--trash", "off",
				"--parts", "1", "--segment-size", "32M", "--stream-above", "8M", "--staging-size", "64M", "--cache-size", "256M",
				"--recall-guard-files", "0", "--recall-guard-bytes", "0")
			r.crash(share)
			total += r.total
		})
	}
	t.Logf("%d kills:\n%s\npromises:\n%s", total, kills, checks)
}

func (r *run) worker(dir string, step func(*worker) error) {
	r.workers = append(r.workers, &worker{t: r.t, m: r.m, dir: filepath.Join(r.m.mnt, dir), know: tree{}, counts: r.checks, step: step,
		rng: rand.New(rand.NewPCG(r.rng.Uint64(), 1))})
}

func (r *run) crash(n int) {
	r.worker("v/files", files)
	r.worker("v/more", files)
	r.worker("v/vaults", vaults)
	r.worker("v/bigs", bigs)
	r.worker("v/programs", programs)
	r.worker("made", makers)

	d := r.m.launch("", nil)
	for _, w := range r.workers {
		if w.dir != filepath.Join(r.m.mnt, "made") {
			if err := os.MkdirAll(w.dir, 0o755); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	d.kill()
	r.killed("at rest")
	all := points(r.t)
	r.rng.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	for i := 0; r.total < n && !r.t.Failed(); i++ {
		switch i % 20 {
		case 3:
			r.starting()
		case 8:
			r.ending("unmounting")
		case 13:
			r.ending("terminating")
		case 1, 5, 7, 9, 11, 15, 17, 19:
			r.loaded(all[0])
			all = append(all[1:], all[0])
		default:
			r.loaded("")
		}
		if i%50 == 49 {
			r.audit()
		}
	}
	if !r.t.Failed() {
		r.audit()
	}
}

func (r *run) killed(how string) {
	r.total++
	r.kills.add(how, 1)
	r.t.Logf("kill %d after %v: %s", r.total, time.Since(r.began).Round(time.Millisecond), how)
}

// flags of one life: they may be others each time.
func (r *run) flags() (flags []string, vault bool) {
	vault = r.rng.IntN(4) == 0
	flags = []string{"--settle", []string{"0", "30ms", "1h"}[r.rng.IntN(3)]}
	if vault {
		flags = append(flags, "--fsync", "vault")
	}
	return flags, vault
}

// load lets the workers work until wait returns, and waits for them. dying tells
// them that errors are expected.
func (r *run) load(d *daemon, vault, slow bool, wait func(dying *atomic.Bool)) {
	var dying atomic.Bool
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, w := range r.workers {
		w.d, w.vault, w.slow, w.over = d, vault, slow, dying.Load
		wg.Go(func() { w.run(stop) })
	}
	wait(&dying)
	close(stop)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		d.cmd.Process.Signal(syscall.SIGQUIT) // its stacks
		<-done
		r.t.Fatal("a worker hangs")
	}
}

// loaded kills the mount while everybody works: at a point, or at any time.
func (r *run) loaded(point string) {
	flags, vault := r.flags()
	at := ""
	if point != "" {
		at = fmt.Sprintf("%s:%d", point, 1+r.rng.IntN(3))
	}
	d := r.m.launch(at, nil, flags...)
	if d == nil {
		r.killed(point + ", while starting")
		return
	}
	if !r.verify(d) {
		r.killed(point + ", while being looked at")
		return
	}
	wait := time.Duration(50+r.rng.IntN(500)) * time.Millisecond
	how := "at any time"
	r.load(d, vault, strings.HasPrefix(point, "stream."), func(*atomic.Bool) {
		if point != "" {
			if d.awaitDeath(4 * time.Second) {
				how = point
				return
			}
			how += " (" + point + " not reached)"
		} else {
			d.awaitDeath(wait)
		}
		d.kill()
	})
	<-d.dead
	if !d.killed() {
		r.t.Errorf("the mount ended with %v", d.cmd.ProcessState)
	}
	r.killed(how)
}

// starting kills the mount before it is ready, or just after.
func (r *run) starting() {
	flags, _ := r.flags()
	wait := time.Duration(r.rng.IntN(500)) * time.Millisecond
	d := r.m.launch("", func(p *os.Process) { time.AfterFunc(wait, func() { p.Kill() }) }, flags...)
	if d != nil {
		<-d.dead
	}
	r.killed("while starting")
}

// ending kills the mount while it unmounts, after casfs umount or SIGTERM.
func (r *run) ending(how string) {
	flags, vault := r.flags()
	d := r.m.launch("", nil, flags...)
	if !r.verify(d) {
		r.t.Fatal("the mount is dead")
	}
	wait := time.Duration(r.rng.IntN(300)) * time.Millisecond
	var umount error
	r.load(d, vault, false, func(dying *atomic.Bool) {
		d.awaitDeath(200 * time.Millisecond)
		dying.Store(true)
		if how == "unmounting" {
			c := r.m.command("umount", r.m.mnt)
			done := make(chan error)
			go func() { done <- c.Run() }()
			d.awaitDeath(wait + 100*time.Millisecond)
			d.kill()
			umount = <-done
			return
		}
		d.cmd.Process.Signal(syscall.SIGTERM)
		d.awaitDeath(wait)
		d.kill()
	})
	if !d.killed() {
		r.kills.add(how+": ended before the kill", 1)
	} else {
		r.killed(how)
	}
	if how == "unmounting" && umount == nil {
		for _, w := range r.workers {
			for n, x := range w.know {
				if isFile(x) && len(x.data) > 0 && (w.pending == nil || w.pending.names[n] == nil) {
					now := *x
					now.archived = true
					w.know[n] = &now
				}
			}
		}
	}
}

// verify holds everything the workers know against the mount. It reports false when the mount died meanwhile.
func (r *run) verify(d *daemon) bool {
	r.t.Helper()
	for _, w := range r.workers {
		var err error
		if w.dir == filepath.Join(r.m.mnt, "v", "bigs") {
			// Parts of a long file that was being written may be in the vault only, and readable when all of it is there.
			err = r.sync(d, w.dir)
		}
		var got tree
		if err == nil {
			got, err = look(w.dir, nil)
		}
		if filepath.Base(w.dir) == "made" {
			got = tree{}
			if err == nil {
				got[""] = &node{dir: true}
			} else if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			if d.awaitDeath(10 * time.Second) {
				return false
			}
			r.t.Fatal(err)
		}
		var extra []string
		if err := w.know.check(got, w.pending, r.checks, &extra); err != nil {
			r.t.Errorf("%s:\n%v", filepath.Base(w.dir), err)
		}
		for _, n := range extra {
			if err := os.Remove(w.path(n)); err != nil {
				if d.awaitDeath(10 * time.Second) {
					return false
				}
				r.t.Error(err)
			}
		}
		w.pending = nil
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
	return true
}

func (r *run) sync(d *daemon, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err = d.control.Sync(ctx, []uint64{st.Sys().(*syscall.Stat_t).Ino}, nil)
	return err
}

// audit lets everything come to rest and holds the vault against the tree: each
// archive belongs to one file, each file has its archives, and all of it comes back.
func (r *run) audit() {
	t := r.t
	t.Helper()
	t.Logf("audit after %v", time.Since(r.began).Round(time.Millisecond))
	d := r.m.launch("", nil, "--settle", "0")
	if !r.verify(d) {
		t.Fatal("the mount is dead")
	}
	v := filepath.Join(r.m.mnt, "v")
	r.m.casfs("sync", v)
	for _, w := range r.workers {
		for n, x := range w.know {
			if isFile(x) && len(x.data) > 0 {
				now := *x
				now.archived = true
				w.know[n] = &now
			}
		}
	}
	r.m.casfs("inventory", "--wait", v)
	if out := r.m.casfs("check", r.m.mnt); strings.Contains(out, "problem") && !strings.Contains(out, "no problem") {
		t.Errorf("casfs check:\n%s", out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for began := time.Now(); ; {
		st, err := d.control.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		trash, err := d.control.Trash(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("it does not come to rest: %+v\n%+v", st, trash)
		}
		// What the inventory has found of uploads whose answer was lost stays for a week, unless told otherwise.
		var found []string
		for _, x := range trash {
			if time.Until(x.Deadline) > time.Hour {
				found = append(found, x.ArchiveID)
			}
		}
		if len(found) > 0 {
			n, err := d.control.Purge(ctx, found)
			if err != nil {
				t.Fatal(err)
			}
			r.checks.add("archives of lost answers, found by the inventory", n)
		}
		if len(st.Problems) > 0 {
			t.Errorf("status: %q", st.Problems)
		}
		if st.Trash.Files == 0 && len(st.Uploads) == 0 {
			break
		}
		if !d.awaitDeath(20 * time.Millisecond) {
			continue
		}
		t.Fatal("the mount is dead")
	}
	owner := map[string]string{}
	for _, w := range r.workers {
		for n, x := range w.know {
			if !isFile(x) {
				continue
			}
			st, err := os.Stat(w.path(n))
			if err != nil {
				t.Fatal(err)
			}
			list, err := d.control.Stat(ctx, []uint64{st.Sys().(*syscall.Stat_t).Ino})
			if err != nil {
				t.Fatal(err)
			}
			var sum int64
			for _, a := range list[0].Archives {
				if other, twice := owner[a.ID]; twice {
					t.Errorf("archive %s is %s's and %s's", a.ID, other, w.path(n))
				}
				owner[a.ID] = w.path(n)
				sum += a.Size
			}
			if sum != int64(len(x.data)) {
				t.Errorf("%s has %d bytes and %d in archives", w.path(n), len(x.data), sum)
			}
		}
	}
	held := r.archives(ctx)
	for id, what := range held {
		if owner[id] == "" {
			t.Errorf("archive %s (%s) is nobody's", id, what)
		}
		r.checks.add("archives at the service, each of one file", 1)
	}
	for id, name := range owner {
		if held[id] == "" {
			t.Errorf("%s's archive %s is not at the service", name, id)
		}
	}
	r.m.evict(v)
	r.m.casfs("recall", "-r", "--wait", v)
	if !r.verify(d) {
		t.Fatal("the mount is dead")
	}
	for _, w := range r.workers {
		for _, x := range w.know {
			if x.archived {
				r.checks.add("files read back from the vault", 1)
			}
		}
	}
	t.Logf("read back after %v", time.Since(r.began).Round(time.Millisecond))
	r.m.casfs("umount", r.m.mnt)
	if !d.awaitDeath(time.Minute) {
		t.Fatal("the mount does not end")
	}
	if left, _ := filepath.Glob(r.m.path("state/*/lost+found/*")); len(left) > 0 {
		t.Errorf("lost+found: %v", left)
	}
	if left, _ := filepath.Glob(r.m.path("state/*/staging/*/*")); len(left) > 0 {
		t.Errorf("staging after everything is in the vault: %v", left)
	}
}

// archives lists the vault, as the service tells it.
func (r *run) archives(ctx context.Context) map[string]string {
	t := r.t
	t.Helper()
	f, err := os.Open(r.m.path("store/credentials"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	keys := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), " = "); ok {
			keys[k] = v
		}
	}
	c, err := cas.New(cas.Options{Endpoint: "unix://" + r.m.path("store/socket"), AppID: keys["appid"],
		Credentials: cas.Credentials{SecretID: keys["secretid"], SecretKey: keys["secretkey"]}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	vault, err := c.Vault(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	job, err := vault.RetrieveInventory(ctx, cas.InventoryOptions{})
	if err == nil {
		err = job.Wait(ctx, 20*time.Millisecond)
	}
	list := map[string]string{}
	if err == nil {
		_, err = job.Inventory(ctx, func(x cas.InventoryEntry) error {
			list[x.ArchiveID] = x.Description
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}
