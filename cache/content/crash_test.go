package content

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A crashCase is one operation that is stopped before each of its durable steps.
type crashCase struct {
	name  string
	setup func(t *testing.T, s *Store)
	op    func(s *Store) error // must be repeatable after any crash
	// check looks at a store opened after a crash somewhere in op (done: after it).
	check func(t *testing.T, s *Store, done bool)
	steps int // how many steps op has at least, lest the test goes blind
}

var crashData = random(3*mib+12345, 42)

// keepsPromise checks that file 1 holds data wherever the store says it does, and
// returns what it found. Staging must be complete but for what was dropped.
func keepsPromise(t *testing.T, s *Store, data []byte, mayMiss bool) Entry {
	t.Helper()
	e, err := s.Stat(1)
	if err != nil {
		if !mayMiss {
			t.Fatal(err)
		}
		return e
	}
	f, err := s.Open(1)
	must(t, err)
	defer f.Close()
	if e.Size != int64(len(data)) {
		t.Fatalf("%v of %d bytes, want %d", e.Kind, e.Size, len(data))
	}
	for _, r := range f.VerifiedRanges() {
		p := make([]byte, r.Len)
		if _, err := f.ReadVerified(p, r.Off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, data[r.Off:r.End()]) {
			t.Fatalf("%v: wrong bytes in %v", e.Kind, r)
		}
	}
	sameFootprint(t, s.stateDir, allocatedOf(t, s), e.Allocated)
	return e
}

func allocatedOf(t *testing.T, s *Store) (sum int64) {
	sum = allocated(t, s.dirs[inStaging]) + allocated(t, s.dirs[inState])
	if s.dirs[inCache] != "" {
		sum += allocated(t, s.dirs[inCache])
	}
	return sum
}

func withFile(s *Store, id uint64, fn func(f *File) error) error {
	f, err := s.Open(id)
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(f)
}

func setupStaged(sync bool) func(*testing.T, *Store) {
	return func(t *testing.T, s *Store) {
		f := staged(t, s, 1, crashData)
		if sync {
			must(t, f.Sync())
		}
		must(t, f.Close())
	}
}

func setupPunched(t *testing.T, s *Store) {
	setupStaged(true)(t, s)
	must(t, withFile(s, 1, func(f *File) error { return f.DropUploaded(0, mib) }))
}

func setupContent(t *testing.T, s *Store) {
	f, err := s.CreateContent(1, int64(len(crashData)))
	must(t, err)
	must(t, f.WriteVerified(crashData, 0))
	must(t, f.Close())
	// A recall that is long done.
	must(t, s.syncNames(s.contentPlace(), 1))
}

func setupPart(t *testing.T, s *Store) {
	f, err := s.CreateContent(1, int64(len(crashData)))
	must(t, err)
	must(t, f.WriteVerified(crashData[mib:2*mib], mib))
	must(t, f.Close())
	must(t, s.syncNames(s.contentPlace(), 1))
}

var crashCases = []crashCase{
	{
		name: "promote", setup: setupStaged(true), steps: 2,
		op: func(s *Store) error { return s.Promote(1) },
		check: func(t *testing.T, s *Store, done bool) {
			if e := keepsPromise(t, s, crashData, false); !e.Complete {
				t.Errorf("%+v", e)
			}
		},
	},
	{
		name: "promote punched", setup: setupPunched, steps: 6,
		op: func(s *Store) error { return s.Promote(1) },
		check: func(t *testing.T, s *Store, done bool) {
			if e := keepsPromise(t, s, crashData, false); e.Complete {
				t.Errorf("%+v", e)
			}
			must(t, withFile(s, 1, func(f *File) error {
				if f.Verified(0, mib) || !f.Verified(mib, 2*mib) {
					return fmt.Errorf("verified: %v", f.VerifiedRanges())
				}
				return nil
			}))
		},
	},
	{
		name: "demote", setup: setupContent, steps: 1,
		op: func(s *Store) error { return s.Demote(1) },
		check: func(t *testing.T, s *Store, done bool) {
			if e := keepsPromise(t, s, crashData, false); !e.Complete {
				t.Errorf("%+v", e)
			}
		},
	},
	{
		name: "drop uploaded", setup: setupStaged(true), steps: 5,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error { return f.DropUploaded(mib, mib) })
		},
		check: func(t *testing.T, s *Store, done bool) {
			keepsPromise(t, s, crashData, false)
			must(t, withFile(s, 1, func(f *File) error {
				if !f.Verified(0, mib) || !f.Verified(2*mib, 1<<40) {
					return fmt.Errorf("verified: %v", f.VerifiedRanges())
				}
				if done && f.Verified(mib, 1) {
					return errors.New("not dropped")
				}
				return nil
			}))
		},
	},
	{
		name: "drop uploaded again", setup: setupPunched, steps: 5,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error { return f.DropUploaded(mib, mib) })
		},
		check: func(t *testing.T, s *Store, done bool) {
			keepsPromise(t, s, crashData, false)
			must(t, withFile(s, 1, func(f *File) error {
				if f.Verified(0, 1) || f.Verified(mib-1, 1) || done && f.Verified(mib, 1) {
					return fmt.Errorf("verified: %v", f.VerifiedRanges())
				}
				return nil
			}))
		},
	},
	{
		// After a truncation, dropped parts that were cut off can be written again, and what is written there stays.
		name: "truncate and rewrite punched", setup: setupPunched, steps: 4,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error {
				if err := f.Truncate(0); err != nil {
					return err
				}
				if _, err := f.WriteAt(bg, crashData, 0); err != nil {
					return err
				}
				return f.Sync()
			})
		},
		check: func(t *testing.T, s *Store, done bool) {
			e, err := s.Stat(1)
			must(t, err)
			if done {
				keepsPromise(t, s, crashData, false)
				if !e.Complete {
					t.Errorf("%+v", e)
				}
				return
			}
			// Half way the size may be anything, but no hole may pass for the user's zeros.
			must(t, withFile(s, 1, func(f *File) error {
				for _, r := range f.VerifiedRanges() {
					p := make([]byte, r.Len)
					if _, err := f.ReadAt(p, r.Off); err != nil {
						return err
					}
					if e.Size == int64(len(crashData)) && !bytes.Equal(p, crashData[r.Off:r.End()]) {
						return fmt.Errorf("wrong bytes in %v", r)
					}
				}
				return nil
			}))
		},
	},
	{
		name: "recall", setup: func(*testing.T, *Store) {}, steps: 8,
		op: func(s *Store) error {
			if err := s.Remove(1); err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			f, err := s.CreateContent(1, int64(len(crashData)))
			if err != nil {
				return err
			}
			defer f.Close()
			for _, i := range []int{1, 3, 0, 2} {
				if err := f.WriteVerified(crashData[i*mib:min((i+1)*mib, len(crashData))], int64(i*mib)); err != nil {
					return err
				}
			}
			return nil
		},
		check: func(t *testing.T, s *Store, done bool) {
			e := keepsPromise(t, s, crashData, true)
			if done && !e.Complete {
				t.Logf("%+v", e) // fine after power loss: the name was not synced
			}
		},
	},
	{
		name: "recall goes on", setup: setupPart, steps: 6,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error {
				for _, i := range []int{0, 1, 2, 3} {
					if err := f.WriteVerified(crashData[i*mib:min((i+1)*mib, len(crashData))], int64(i*mib)); err != nil {
						return err
					}
				}
				return nil
			})
		},
		check: func(t *testing.T, s *Store, done bool) {
			keepsPromise(t, s, crashData, false)
			must(t, withFile(s, 1, func(f *File) error {
				if !f.Verified(mib, mib) {
					return errors.New("lost what was verified before")
				}
				return nil
			}))
		},
	},
	{
		name: "drop of complete", setup: setupContent, steps: 6,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error { return f.Drop(mib, mib) })
		},
		check: func(t *testing.T, s *Store, done bool) {
			keepsPromise(t, s, crashData, false)
			must(t, withFile(s, 1, func(f *File) error {
				if done && f.Verified(mib, 1) {
					return errors.New("not dropped")
				}
				return nil
			}))
		},
	},
	{
		name: "drop of part", setup: setupPart, steps: 5,
		op: func(s *Store) error {
			return withFile(s, 1, func(f *File) error { return f.Drop(mib, mib/2) })
		},
		check: func(t *testing.T, s *Store, done bool) {
			keepsPromise(t, s, crashData, false)
		},
	},
	{
		name: "remove staged", setup: setupPunched, steps: 2,
		op: func(s *Store) error {
			if err := s.Remove(1); err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			return nil
		},
		check: func(t *testing.T, s *Store, done bool) {
			if e := keepsPromise(t, s, crashData, true); e.ID != 0 && e.Complete {
				t.Error("the file outlived its record")
			}
		},
	},
	{
		name: "remove part", setup: setupPart, steps: 2,
		op: func(s *Store) error {
			if err := s.Remove(1); err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			return nil
		},
		check: func(t *testing.T, s *Store, done bool) { keepsPromise(t, s, crashData, true) },
	},
	{
		name: "quarantine", setup: setupPunched, steps: 3,
		op: func(s *Store) error {
			if _, err := s.Quarantine(1); err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			return nil
		},
		check: func(t *testing.T, s *Store, done bool) {
			e := keepsPromise(t, s, crashData, true)
			if e.ID != 0 {
				if e.Complete {
					t.Error("the file outlived its record")
				}
				return
			}
			var data, record bool
			entries, err := os.ReadDir(filepath.Join(s.stateDir, "lost+found"))
			must(t, err)
			for _, e := range entries {
				if filepath.Ext(e.Name()) == punchedSuffix {
					record = true
				} else {
					data = true
				}
			}
			if !data || !record {
				t.Errorf("lost+found has data %v, record %v", data, record)
			}
		},
	},
}

// interrupted runs op until the k-th step; it returns the step, "" when op came to its end.
func interrupted(t *testing.T, s *Store, k int, op func(s *Store) error, atCrash func()) (step string) {
	t.Helper()
	stopped, done := make(chan string), make(chan error)
	s.hook = func(step string) error {
		if k == 0 {
			stopped <- step
			select {} // frozen as it is, nothing is cleaned up
		}
		k--
		return nil
	}
	go func() { done <- op(s) }()
	select {
	case step = <-stopped:
	case err := <-done:
		must(t, err)
		s.hook = nil
	}
	atCrash()
	return step
}

// abandon closes what is open below dir, as the end of the process does. Nobody uses these descriptors any more.
func abandon(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			fd, err := strconv.Atoi(e.Name())
			must(t, err)
			unix.Close(fd)
		}
	}
}

// The daemon is killed before every durable step of every operation; the next one repeats it.
func TestKilledBetweenSteps(t *testing.T) {
	for _, c := range crashCases {
		t.Run(c.name, func(t *testing.T) {
			seen := map[string]bool{}
			for k := 0; ; k++ {
				o := Options{StateDir: memDir(t), MinFree: -1}
				s := openStore(t, o)
				c.setup(t, s)
				step := interrupted(t, s, k, c.op, func() {})
				abandon(t, o.StateDir)
				s = openStore(t, o)
				c.check(t, s, step == "")
				must(t, c.op(s))
				c.check(t, s, true)
				must(t, s.Close())
				s = openStore(t, o)
				c.check(t, s, true)
				must(t, s.Close())
				if t.Failed() {
					t.Fatalf("killed before step %d, %q", k, step)
				}
				if step == "" {
					if k < c.steps {
						t.Errorf("only %d steps seen: %v", k, seen)
					}
					return
				}
				seen[step] = true
				must(t, os.RemoveAll(o.StateDir))
			}
		})
	}
}

// The order of durable steps where ext4 would forgive another one.
func TestStepOrder(t *testing.T) {
	s := openStore(t, Options{})
	var steps []string
	s.hook = func(step string) error {
		if step != "write" {
			steps = append(steps, step)
		}
		return nil
	}
	want := func(name string, list ...string) {
		t.Helper()
		if !slices.Equal(steps, list) {
			t.Errorf("%s: %q, want %q", name, steps, list)
		}
		steps = nil
	}
	sidecar := []string{"sidecar.write", "sidecar.sync", "sidecar.rename", "dir.sync"}
	f := staged(t, s, 1, crashData)
	want("create", "create")
	must(t, f.Sync())
	want("sync", "sync", "dir.sync")
	must(t, f.Sync())
	want("sync again", "sync")
	must(t, f.DropUploaded(2*mib, mib))
	want("drop uploaded", append(sidecar, "punch")...)
	must(t, f.Truncate(2*mib+5))
	want("truncate", append([]string{"truncate.sync"}, sidecar...)...)
	must(t, f.Truncate(2*mib))
	want("truncate more", "truncate.sync", "punched.remove", "dir.sync")
	must(t, f.Truncate(mib))
	want("truncate the rest")
	must(t, s.Promote(1))
	want("promote", "promote.datasync", "promote.rename")
	must(t, f.Drop(0, 5))
	want("drop", "sidecar.write", "sidecar.sync", "sidecar.rename", "drop.rename", "dir.sync", "drop.punch")
	must(t, f.Close())
	must(t, s.Remove(1))
	want("remove", "remove.map", "remove.data")
	f, err := s.CreateContent(1, 2*mib)
	must(t, err)
	want("create", "create")
	must(t, f.WriteVerified(crashData[:mib], 0))
	want("range", "verified.datasync", "sidecar.write", "sidecar.sync", "sidecar.rename")
	must(t, f.WriteVerified(crashData[mib:2*mib], mib))
	want("last range", "verified.datasync", "complete.rename", "dir.sync", "complete.unmap")
	must(t, s.Demote(1))
	want("demote", "demote.rename")
	must(t, f.Sync())
	want("sync after a move", "sync", "dir.sync")
	must(t, f.Close())
}

// A write that slips in while a Promote syncs is synced as well.
func TestWriteDuringPromote(t *testing.T) {
	s := openStore(t, Options{})
	f := staged(t, s, 1, make([]byte, mib))
	syncs := 0
	s.hook = func(step string) error {
		switch step {
		case "promote.datasync":
			if syncs++; syncs == 1 {
				f.o.gen.Add(1)
			}
		case "promote.rename":
			if syncs == 1 {
				t.Error("renamed with bytes that were not synced")
			}
		}
		return nil
	}
	must(t, s.Promote(1))
	if syncs != 2 {
		t.Errorf("%d syncs", syncs)
	}
	must(t, f.Close())
}

// A range that was written before a Drop and would be recorded after it is not.
func TestDropBeforeCommit(t *testing.T) {
	s := openStore(t, Options{})
	f, err := s.CreateContent(1, 4*mib)
	must(t, err)
	b, err := f.o.writeVerified(crashData[:2*mib], 0)
	must(t, err)
	must(t, f.Drop(mib, mib))
	must(t, f.o.commit(b))
	if got := f.VerifiedRanges(); len(got) != 1 || got[0] != (Range{0, mib}) {
		t.Errorf("%v", got)
	}
	must(t, f.Close())
}
