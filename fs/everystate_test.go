package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// operations are what is done to a file in each of its states. They get its path; what they
// make beside it begins with that path, too.
var operations = []struct {
	name  string
	bytes bool // needs the file's bytes: while these are only in the vault it waits
	do    func(p string) error
}{
	{"rename", false, func(p string) error { return os.Rename(p, p+".moved") }},
	{"rename into a directory", false, func(p string) error { return errors.Join(os.Mkdir(p+".d", 0o755), os.Rename(p, p+".d/f")) }},
	{"replaced by a rename", false, func(p string) error {
		return errors.Join(os.WriteFile(p+".new", []byte("new"), 0o644), os.Rename(p+".new", p))
	}},
	{"rename over another", false, func(p string) error {
		return errors.Join(os.WriteFile(p+".other", []byte("other"), 0o644), os.Rename(p, p+".other"))
	}},
	{"exchange", false, func(p string) error {
		return errors.Join(os.WriteFile(p+".other", []byte("other"), 0o644), unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, p+".other", unix.RENAME_EXCHANGE))
	}},
	{"link", false, func(p string) error { return os.Link(p, p+".link") }},
	{"link, unlink", false, func(p string) error { return errors.Join(os.Link(p, p+".link"), os.Remove(p)) }},
	{"unlink", false, os.Remove},
	{"unlink, make again", false, func(p string) error {
		return errors.Join(os.Remove(p), os.WriteFile(p, []byte("again"), 0o600))
	}},
	{"chmod", false, func(p string) error { return unix.Chmod(p, 0o4751) }},
	{"chown", false, func(p string) error { return os.Chown(p, 17, 18) }},
	{"utimens", false, func(p string) error { return os.Chtimes(p, time.Unix(1e9, 1), time.Unix(1e9, 123456789)) }},
	{"setxattr", false, func(p string) error {
		return errors.Join(unix.Setxattr(p, "user.a", []byte("1"), 0), unix.Setxattr(p, "user.b", nil, 0), unix.Removexattr(p, "user.a"))
	}},
	{"touch", false, func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}},
	{"rewrite", false, func(p string) error { return os.WriteFile(p, fill(5077, 99), 0o644) }},
	{"truncate to nothing", false, func(p string) error { return os.Truncate(p, 0) }},
	{"truncate to nothing, grow", false, func(p string) error { return errors.Join(os.Truncate(p, 0), os.Truncate(p, 5000)) }},
	{"cut", true, func(p string) error { return os.Truncate(p, 1<<20+1) }},
	{"grow", true, func(p string) error { return os.Truncate(p, 2<<20) }},
	{"append", true, func(p string) error {
		return withFile(p, os.O_WRONLY|os.O_APPEND, func(f *os.File) error { _, err := f.Write(fill(5000, 5)); return err })
	}},
	{"overwrite", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error { _, err := f.WriteAt(fill(5000, 6), 1<<20-100); return err })
	}},
	{"write beyond the end", true, func(p string) error {
		return withFile(p, os.O_WRONLY, func(f *os.File) error { _, err := f.WriteAt([]byte("far"), 2<<20); return err })
	}},
	{"write without waiting in open", true, func(p string) error {
		return withFile(p, os.O_RDWR|unix.O_NONBLOCK, func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 100); return err })
	}},
	{"punch", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20-5000, 10000)
		})
	}},
	{"fallocate", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 2<<20) })
	}},
	{"write, fsync", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error {
			_, err := f.WriteAt([]byte("durable"), 7)
			return errors.Join(err, f.Sync())
		})
	}},
	{"write while it moves", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error {
			_, err := f.WriteAt([]byte("before"), 10)
			err = errors.Join(err, os.Rename(p, p+".moved"))
			_, err2 := f.WriteAt([]byte("after"), 1<<20)
			return errors.Join(err, err2)
		})
	}},
	{"write after unlink", true, func(p string) error {
		return withFile(p, os.O_RDWR, func(f *os.File) error {
			err := os.Remove(p)
			_, err2 := f.WriteAt([]byte("gone"), 10)
			return errors.Join(err, err2)
		})
	}},
	{"read", true, func(p string) error { _, err := os.ReadFile(p); return err }},
	{"read after unlink", true, func(p string) error {
		return withFile(p, os.O_RDONLY, func(f *os.File) error {
			err := os.Remove(p)
			b, err2 := io.ReadAll(f)
			if len(b) != everySize {
				err2 = fmt.Errorf("%d bytes: %w", len(b), err2)
			}
			return errors.Join(err, err2)
		})
	}},
	{"read what is replaced meanwhile", true, func(p string) error {
		return withFile(p, os.O_RDONLY, func(f *os.File) error {
			err := errors.Join(os.WriteFile(p+".new", []byte("new"), 0o644), os.Rename(p+".new", p))
			b, err2 := io.ReadAll(f)
			if len(b) != everySize {
				err2 = fmt.Errorf("%d bytes: %w", len(b), err2)
			}
			return errors.Join(err, err2)
		})
	}},
	{"copy", true, func(p string) error {
		return withFile(p, os.O_RDONLY, func(f *os.File) error {
			to, err := os.Create(p + ".copy")
			if err != nil {
				return err
			}
			_, err = io.Copy(to, f)
			return errors.Join(err, to.Close())
		})
	}},
}

// everySize is the size of the files: more than one part, more than one window of a recall.
const everySize = 1<<20 + 200<<10 + 1234

func withFile(p string, flags int, do func(*os.File) error) error {
	f, err := os.OpenFile(p, flags, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// everyState brings files into a state and keeps them there until release. Files it may open it returns; they are closed after the operations.
var everyState = []struct {
	name  string // as user.cas.state tells it
	what  string
	bring func(x *mounted, paths []string) (release func(), open []*os.File)
}{
	{"staged", "being written", func(x *mounted, paths []string) (func(), []*os.File) {
		var open []*os.File
		for _, p := range paths {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				x.t.Fatal(err)
			}
			if _, err := f.Write(fill(100, 1)); err != nil { // as they are
				x.t.Fatal(err)
			}
			open = append(open, f)
		}
		return nil, open
	}},
	{"staged", "settling", func(*mounted, []string) (func(), []*os.File) { return nil, nil }},
	{"uploading", "", func(x *mounted, paths []string) (func(), []*os.File) {
		release := x.hold(cas.OpUploadPart)
		x.background(func(ctx context.Context) { x.e.Sync(ctx, x.inos(paths), nil) })
		return release, nil
	}},
	{"resident", "", func(x *mounted, _ []string) (func(), []*os.File) { x.archive(); return nil, nil }},
	{"resident", "read by somebody", func(x *mounted, paths []string) (func(), []*os.File) {
		x.archive()
		var open []*os.File
		for _, p := range paths {
			f, err := os.Open(p)
			if err != nil {
				x.t.Fatal(err)
			}
			if _, err := f.Read(make([]byte, 100)); err != nil {
				x.t.Fatal(err)
			}
			open = append(open, f)
		}
		return nil, open
	}},
	{"partial", "", func(x *mounted, paths []string) (func(), []*os.File) {
		x.cold(paths...)
		for _, p := range paths {
			if err := withFile(p, os.O_RDONLY, func(f *os.File) error { _, err := f.ReadAt(make([]byte, 1), 1<<20+8192); return err }); err != nil {
				x.t.Fatal(err)
			}
		}
		return x.hold(cas.OpJobOutput), nil
	}},
	{"recalling", "", func(x *mounted, paths []string) (func(), []*os.File) {
		x.cold(paths...)
		release := x.hold(cas.OpJobOutput)
		if _, err := x.e.Recall(x.t.Context(), jobs.RecallRequest{Inos: x.inos(paths)}, nil); err != nil {
			x.t.Fatal(err)
		}
		return release, nil
	}},
	{"cold", "", func(x *mounted, paths []string) (func(), []*os.File) {
		x.cold(paths...)
		return x.hold(cas.OpInitiateJob), nil
	}},
}

// hold keeps requests of an operation from the service until release, or the test's end.
func (x *mounted) hold(op string) (release func()) {
	release = sync.OnceFunc(x.store.Inject(castest.Fault{Op: op, Kind: castest.Hold}))
	x.t.Cleanup(release)
	return release
}

// background runs something until it is over, at the end of the test at the latest.
func (x *mounted) background(do func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); do(ctx) }()
	x.t.Cleanup(func() { cancel(); <-done })
}

func (x *mounted) inos(paths []string) (inos []uint64) {
	for _, p := range paths {
		inos = append(inos, inoOf(x.t, p))
	}
	return inos
}

// TestEveryState does everything that can be done to a file in every state a file
// can be in, all of it at once, and wants what a plain directory has
// afterwards: at once, and when all was archived, evicted and mounted again.
func TestEveryState(t *testing.T) {
	var data [][]byte
	for i := range operations {
		data = append(data, fill(everySize, uint64(i)))
		copy(data[i], fill(100, 1))
	}
	for _, state := range everyState {
		t.Run(strings.TrimSuffix(state.name+", "+state.what, ", "), func(t *testing.T) {
			x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) {
				j.Settle = time.Hour
				j.PartSize, j.SingleBelow, j.Window, j.WindowAbove, j.Stub = 1<<20, 1<<20, 1<<20, 1<<20, -1
				j.Uploads, j.Parts, j.Fetches, j.GuardFiles = 64, 64, 64, -1
			})
			roots := []string{x.path(), t.TempDir()}
			var paths [2][]string
			for i, op := range operations {
				name := strings.ReplaceAll(op.name, " ", "-")
				for k, root := range roots {
					paths[k] = append(paths[k], filepath.Join(root, name))
					write(t, paths[k][i], data[i])
				}
			}
			release, open := state.bring(x, paths[0])
			if release == nil {
				release = func() {}
			}
			for _, p := range paths[0] {
				eventually(t, filepath.Base(p)+" is "+state.name, func() bool { return x.attr(p, "user.cas.state") == state.name })
			}
			var all, soon sync.WaitGroup
			var released atomic.Bool
			for i, op := range operations {
				soon.Add(1)
				all.Go(func() {
					err := op.do(paths[0][i])
					if released.Load() && !op.bytes {
						t.Errorf("%s had to wait", op.name)
					}
					if want := op.do(paths[1][i]); errnoOf(err) != errnoOf(want) {
						t.Errorf("%s: %v, want %v", op.name, err, want)
					}
					if !op.bytes {
						soon.Done()
					}
				})
				if op.bytes {
					soon.Done()
				}
			}
			// What needs no bytes needs no vault. The others may wait until it answers.
			quick := make(chan struct{})
			go func() { soon.Wait(); close(quick) }()
			select {
			case <-quick:
			case <-time.After(20 * time.Second):
			}
			released.Store(true)
			release()
			all.Wait()
			for _, f := range open {
				f.Close()
			}
			same := func(when string) {
				t.Helper()
				got, want := everything(t, roots[0]), everything(t, roots[1])
				if !slices.Equal(got, want) {
					t.Errorf("%s:\n%s", when, lineDiff(strings.Join(got, "\n"), strings.Join(want, "\n")))
				}
			}
			same("at once")
			x.evictAll()
			x.remount()
			same("cold, after a remount")
			if err := x.e.Check(t.Context(), false, false, func(p string) { t.Errorf("check: %s", p) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// everything describes a tree: what describe tells, contents, and times that were set.
func everything(t *testing.T, root string) (lines []string) {
	t.Helper()
	var data []byte
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		s, st, err := describe(p)
		if err != nil {
			return err
		}
		if at := time.Unix(st.Mtim.Unix()); at.Year() < 2020 {
			s += at.String()
		}
		if isFile(st.Mode) {
			if data, err = readInto(data[:0], p); err != nil {
				return err
			}
			s += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		lines = append(lines, rel+": "+s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
