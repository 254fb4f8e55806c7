package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// The power fails before every durable step of every operation: only what was synced is still there.
func TestPowerLossBetweenSteps(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts a file system some hundred times")
	}
	l := newLoopFS(t, 128<<20)
	for i, c := range append(crashCases, crashCase{
		name: "promote unsynced", setup: setupStaged(false), steps: 2,
		op: func(s *Store) error { return s.Promote(1) },
		check: func(t *testing.T, s *Store, done bool) {
			if e, err := s.Stat(1); err == nil && e.Kind == Content {
				keepsPromise(t, s, crashData, false)
			}
		},
	}, crashCase{
		// fsync alone makes a new file durable: bytes, size, mtime and name.
		name: "sync", setup: func(*testing.T, *Store) {}, steps: 3,
		op: func(s *Store) error {
			err := withFile(s, 1, func(f *File) error { return nil })
			if err == nil {
				err = s.Remove(1)
			}
			if err != nil && !errors.Is(err, ErrNotExist) {
				return err
			}
			f, err := s.CreateStaging(1)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt(bg, crashData, 0); err != nil {
				return err
			}
			return f.Sync()
		},
		check: func(t *testing.T, s *Store, done bool) {
			if done {
				keepsPromise(t, s, crashData, false)
			}
		},
	}) {
		// Names usually reach the disk before data does: once as it comes, once with all names and no more data.
		for _, commit := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/names=%v", c.name, commit), func(t *testing.T) {
				for k := 0; ; k++ {
					o := Options{StateDir: filepath.Join(l.dir, fmt.Sprintf("%d-%d", i, k)), MinFree: -1}
					s := openStore(t, o)
					c.setup(t, s)
					step := interrupted(t, s, k, c.op, func() {
						if commit {
							must(t, l.commitNames())
						}
						must(t, l.cutPower())
					})
					abandon(t, o.StateDir)
					l.remount(t)
					s = openStore(t, o)
					c.check(t, s, step == "")
					err := c.op(s)
					if err != nil && !errors.Is(err, ErrNotExist) && !errors.Is(err, fs.ErrNotExist) {
						t.Fatal(err)
					}
					must(t, s.Close())
					must(t, os.RemoveAll(o.StateDir))
					if t.Failed() {
						t.Fatalf("power lost before step %d, %q", k, step)
					}
					if step == "" {
						return
					}
				}
			})
		}
	}
}
