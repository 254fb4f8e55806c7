package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// TestModel does random operations on the mount and on a plain directory and
// compares what each call returns and what it leaves, with evictions, recalls
// and remounts in between. CASFS_MODEL_OPS is how many (1000), CASFS_MODEL_SEED
// repeats a run; both are printed.
func TestModel(t *testing.T) {
	ops := envInt(t, "CASFS_MODEL_OPS", 1000)
	seed := uint64(envInt(t, "CASFS_MODEL_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("CASFS_MODEL_OPS=%d CASFS_MODEL_SEED=%d", ops, seed)
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) {
		j.PartSize, j.SingleBelow = 1<<20, 2<<20 // multipart for files of a size that is quick
	})
	m := &model{
		t: t, x: x, rng: rand.New(rand.NewPCG(seed, 0)),
		roots: [2]string{x.path(), t.TempDir()},
	}
	// A set-group-ID or other mode of the temporary directory would be inherited.
	if err := errors.Join(os.Chmod(m.roots[0], 0o755), os.Chmod(m.roots[1], 0o755)); err != nil {
		t.Fatal(err)
	}
	defer m.closeAll()
	for i := range ops {
		m.step(i)
		if t.Failed() {
			t.Fatalf("stopped at operation %d of seed %d; the last ones:\n%s", i, seed, strings.Join(m.trace[max(0, len(m.trace)-25):], "\n"))
		}
	}
	m.closeAll()
	m.compareAll()
	x.evict()
	x.remount()
	m.compareAll()
}

func envInt(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// model is a run. Index 0 is the mount, 1 the plain directory.
type model struct {
	t     *testing.T
	x     *mounted
	rng   *rand.Rand
	roots [2]string
	open  []pair
	trace []string
	whole [2][]byte // of compare, used again
}

// pair is the same file opened in both.
type pair struct {
	f     [2]*os.File
	flags int
	path  string
}

func (m *model) closeAll() {
	for _, p := range m.open {
		p.f[0].Close()
		p.f[1].Close()
	}
	m.open = nil
}

// name picks a path. There are few, so that calls meet.
func (m *model) name() string {
	const letters = "abcdef"
	depth := 1 + m.rng.IntN(3)
	var parts []string
	for range depth {
		parts = append(parts, letters[m.rng.IntN(len(letters)):][:1])
	}
	return filepath.Join(parts...)
}

// existing prefers a path that is there.
func (m *model) existing() string {
	var all []string
	filepath.WalkDir(m.roots[1], func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(m.roots[1], p); err == nil && rel != "." {
			all = append(all, rel)
		}
		return nil
	})
	if len(all) == 0 || m.rng.IntN(10) == 0 {
		return m.name()
	}
	return all[m.rng.IntN(len(all))]
}

// size picks offsets and lengths: mostly small, sometimes over a part.
func (m *model) size() int64 {
	switch m.rng.IntN(20) {
	case 0:
		return int64(m.rng.IntN(5 << 20))
	case 1, 2:
		return []int64{0, 1, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1}[m.rng.IntN(8)]
	}
	return int64(m.rng.IntN(20000))
}

func (m *model) data() []byte {
	n := min(m.size(), 2<<20)
	return fill(int(n), m.rng.Uint64())
}

// both runs a call in the two trees and wants the same error and result.
func (m *model) both(what string, do func(i int, root string) (string, error)) {
	m.t.Helper()
	m.trace = append(m.trace, what)
	var res [2]string
	var errs [2]error
	for i, root := range m.roots {
		res[i], errs[i] = do(i, root)
	}
	a, b := errnoOf(errs[0]), errnoOf(errs[1])
	if a != b {
		m.t.Errorf("%s: %v (%v), want %v (%v)", what, a, errs[0], b, errs[1])
		return
	}
	m.trace[len(m.trace)-1] += fmt.Sprintf(" → %v", b)
	if res[0] != res[1] {
		m.t.Errorf("%s: got %s, want %s", what, clip(res[0]), clip(res[1]))
	}
}

func clip(s string) string {
	if len(s) > 400 {
		return fmt.Sprintf("%q… (%d bytes)", s[:400], len(s))
	}
	return strconv.Quote(s)
}

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	if err == nil {
		return 0
	}
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// changed runs a call that must move the same of mtime and ctime of a path in both trees.
func (m *model) changed(what, path string, do func(i int, root string) (string, error)) {
	m.t.Helper()
	times := func() (st [2]unix.Stat_t, ok bool) {
		for i, root := range m.roots {
			if err := unix.Lstat(filepath.Join(root, path), &st[i]); err != nil {
				return st, false
			}
		}
		return st, true
	}
	before, ok1 := times()
	m.both(what, do)
	after, ok2 := times()
	if !ok1 || !ok2 || before[0].Ino != after[0].Ino || before[1].Ino != after[1].Ino {
		return
	}
	for _, w := range []struct {
		name string
		of   func(unix.Stat_t) unix.Timespec
	}{
		{"mtime", func(s unix.Stat_t) unix.Timespec { return s.Mtim }},
		{"ctime", func(s unix.Stat_t) unix.Timespec { return s.Ctim }},
	} {
		got, want := w.of(before[0]) != w.of(after[0]), w.of(before[1]) != w.of(after[1])
		if got != want {
			m.t.Errorf("%s: %s of %s moved: %v, want %v", what, w.name, path, got, want)
		}
	}
}

func (m *model) step(i int) {
	switch p := m.rng.IntN(1000); {
	case p < 5:
		m.trace = append(m.trace, "remount")
		m.closeAll()
		m.x.remount()
		m.compareAll()
	case p < 20:
		m.trace = append(m.trace, "archive and evict")
		m.x.evict()
		if m.rng.IntN(3) == 0 {
			m.compareAll()
		}
	case p < 30:
		m.trace = append(m.trace, "archive")
		m.x.archive()
	case p < 35:
		m.compareAll()
	case p < 700:
		m.pathCall()
	default:
		m.handleCall()
	}
	if i%200 == 199 {
		m.compareAll()
	}
}

// pathCall is a call on a path; what it touched is compared at once.
func (m *model) pathCall() {
	p := m.existing()
	j := func(root string, elem string) string { return filepath.Join(root, elem) }
	touched := []string{p, filepath.Dir(p)}
	switch m.rng.IntN(20) {
	case 0:
		data := m.data()
		m.both(fmt.Sprintf("write file %s %d", p, len(data)), func(_ int, r string) (string, error) {
			// Without O_NONBLOCK a fifo would wait for a reader.
			f, err := os.OpenFile(j(r, p), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
			if err != nil {
				return "", err
			}
			_, err = f.Write(data)
			return "", errors.Join(err, f.Close())
		})
	case 1:
		p = m.name()
		touched = []string{p, filepath.Dir(p)}
		data := m.data()
		m.both(fmt.Sprintf("create %s %d", p, len(data)), func(_ int, r string) (string, error) {
			f, err := os.OpenFile(j(r, p), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return "", err
			}
			_, err = f.Write(data)
			return "", errors.Join(err, f.Close())
		})
	case 2, 3:
		p = m.name()
		touched = []string{p, filepath.Dir(p)}
		m.changed("mkdir "+p, filepath.Dir(p), func(_ int, r string) (string, error) { return "", os.Mkdir(j(r, p), 0o755) })
	case 4:
		m.changed("rmdir "+p, filepath.Dir(p), func(_ int, r string) (string, error) { return "", unix.Rmdir(j(r, p)) })
	case 5:
		m.changed("unlink "+p, filepath.Dir(p), func(_ int, r string) (string, error) { return "", unix.Unlink(j(r, p)) })
	case 6, 7, 8:
		q := m.name()
		if m.rng.IntN(2) == 0 {
			q = m.existing()
		}
		flags := []uint{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[m.rng.IntN(5)]
		touched = append(touched, q, filepath.Dir(q))
		m.changed(fmt.Sprintf("rename %s %s %d", p, q, flags), filepath.Dir(q), func(_ int, r string) (string, error) {
			return "", unix.Renameat2(unix.AT_FDCWD, j(r, p), unix.AT_FDCWD, j(r, q), flags)
		})
	case 9:
		q := m.name()
		touched = append(touched, q, filepath.Dir(q))
		m.changed(fmt.Sprintf("link %s %s", p, q), p, func(_ int, r string) (string, error) {
			return "", unix.Link(j(r, p), j(r, q))
		})
	case 10:
		q := m.name()
		touched = []string{q, filepath.Dir(q)}
		m.both(fmt.Sprintf("symlink %s %s", p, q), func(_ int, r string) (string, error) {
			return "", unix.Symlink(p, j(r, q))
		})
	case 11:
		mode := uint32(m.rng.IntN(0o10000))
		m.changed(fmt.Sprintf("chmod %s %o", p, mode), p, func(_ int, r string) (string, error) {
			// Not through symlinks: they lead out of the tree or to other names.
			if isLink(j(r, p)) {
				return "", nil
			}
			return "", unix.Chmod(j(r, p), mode)
		})
	case 12:
		uid, gid := m.rng.IntN(3)-1, m.rng.IntN(3)-1
		m.changed(fmt.Sprintf("chown %s %d %d", p, uid, gid), p, func(_ int, r string) (string, error) {
			return "", unix.Lchown(j(r, p), uid, gid)
		})
	case 13:
		ts := func() unix.Timespec {
			switch m.rng.IntN(4) {
			case 0:
				return unix.Timespec{Nsec: unix.UTIME_OMIT}
			case 1:
				return unix.Timespec{Sec: -int64(m.rng.IntN(1e6)), Nsec: int64(m.rng.IntN(1e9))}
			}
			return unix.Timespec{Sec: int64(m.rng.IntN(2e9)), Nsec: int64(m.rng.IntN(1e9))}
		}
		times := []unix.Timespec{ts(), ts()}
		m.both(fmt.Sprintf("utimens %s %v", p, times), func(_ int, r string) (string, error) {
			err := unix.UtimesNanoAt(unix.AT_FDCWD, j(r, p), times, unix.AT_SYMLINK_NOFOLLOW)
			var st unix.Stat_t
			if err == nil && times[1].Nsec != unix.UTIME_OMIT {
				err = unix.Lstat(j(r, p), &st)
			}
			return fmt.Sprint(st.Mtim), err
		})
	case 14:
		size := m.size()
		m.changed(fmt.Sprintf("truncate %s %d", p, size), p, func(_ int, r string) (string, error) {
			if isLink(j(r, p)) {
				return "", nil
			}
			return "", unix.Truncate(j(r, p), size)
		})
	case 15, 16:
		name, value := "user."+string(rune('a'+m.rng.IntN(3))), fill(m.rng.IntN(300), m.rng.Uint64())
		flags := []int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[m.rng.IntN(4)]
		m.changed(fmt.Sprintf("setxattr %s %s %d %d", p, name, len(value), flags), p, func(_ int, r string) (string, error) {
			return "", unix.Lsetxattr(j(r, p), name, value, flags)
		})
	case 17:
		name := "user." + string(rune('a'+m.rng.IntN(3)))
		m.changed(fmt.Sprintf("removexattr %s %s", p, name), p, func(_ int, r string) (string, error) {
			return "", unix.Lremovexattr(j(r, p), name)
		})
	case 18:
		p = m.name()
		touched = []string{p, filepath.Dir(p)}
		m.both("mkfifo "+p, func(_ int, r string) (string, error) { return "", unix.Mkfifo(j(r, p), 0o640) })
	case 19:
		q := m.existing()
		touched = append(touched, q)
		m.both(fmt.Sprintf("copy %s %s", p, q), func(_ int, r string) (string, error) { return "", copyRange(j(r, p), j(r, q)) })
	}
	for _, p := range touched {
		m.compare(p)
	}
}

func isLink(p string) bool {
	fi, err := os.Lstat(p)
	return err == nil && fi.Mode()&fs.ModeSymlink != 0
}

func copyRange(from, to string) error {
	var st unix.Stat_t
	for _, p := range []string{from, to} {
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	off := int64(100)
	_, err = unix.CopyFileRange(int(in.Fd()), &off, int(out.Fd()), nil, 10000, 0)
	return err
}

// handleCall is a call on an open file, which may have been renamed, replaced or deleted since.
func (m *model) handleCall() {
	if len(m.open) < 4 && (len(m.open) == 0 || m.rng.IntN(4) == 0) {
		p := m.existing()
		flags := []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC | os.O_CREATE}[m.rng.IntN(5)]
		var h pair
		h.flags, h.path = flags, p
		m.both(fmt.Sprintf("open %s %#o", p, flags), func(i int, r string) (string, error) {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(r, p), &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
				return "not a file", nil
			}
			f, err := os.OpenFile(filepath.Join(r, p), flags|unix.O_NOFOLLOW, 0o644)
			h.f[i] = f
			return "", err
		})
		if h.f[0] != nil && h.f[1] != nil {
			m.open = append(m.open, h)
		}
		return
	}
	if len(m.open) == 0 {
		return
	}
	k := m.rng.IntN(len(m.open))
	h := m.open[k]
	fd := func(i int) int { return int(h.f[i].Fd()) }
	off, data := m.size(), m.data()
	switch m.rng.IntN(10) {
	case 0:
		m.both("close "+h.path, func(i int, _ string) (string, error) { return "", h.f[i].Close() })
		m.open = slices.Delete(m.open, k, k+1)
		return
	case 1, 2:
		m.both(fmt.Sprintf("pwrite %s %d %d", h.path, off, len(data)), func(i int, _ string) (string, error) {
			n, err := unix.Pwrite(fd(i), data, off)
			return fmt.Sprint(n), err
		})
	case 3:
		m.both(fmt.Sprintf("write %s %d", h.path, len(data)), func(i int, _ string) (string, error) {
			n, err := unix.Write(fd(i), data)
			return fmt.Sprint(n), err
		})
	case 4, 5:
		buf := make([]byte, len(data))
		m.both(fmt.Sprintf("pread %s %d %d", h.path, off, len(buf)), func(i int, _ string) (string, error) {
			n, err := unix.Pread(fd(i), buf, off)
			return string(buf[:max(n, 0)]), err
		})
	case 6:
		m.both(fmt.Sprintf("ftruncate %s %d", h.path, off), func(i int, _ string) (string, error) {
			return "", unix.Ftruncate(fd(i), off)
		})
	case 7:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}[m.rng.IntN(4)]
		m.both(fmt.Sprintf("fallocate %s %d %d %d", h.path, mode, off, len(data)+1), func(i int, _ string) (string, error) {
			return "", unix.Fallocate(fd(i), mode, off, int64(len(data)+1))
		})
	case 8:
		m.both("fsync "+h.path, func(i int, _ string) (string, error) { return "", unix.Fsync(fd(i)) })
	case 9:
		at := []int{unix.SEEK_SET, unix.SEEK_END, unix.SEEK_CUR}[m.rng.IntN(3)]
		m.both(fmt.Sprintf("lseek %s %d", h.path, at), func(i int, _ string) (string, error) {
			n, err := unix.Seek(fd(i), int64(len(data)), at)
			return fmt.Sprint(n), err
		})
	}
	m.both("fstat "+h.path, func(i int, _ string) (string, error) {
		var st unix.Stat_t
		err := unix.Fstat(fd(i), &st)
		return fmt.Sprintf("mode %o links %d size %d owner %d:%d", st.Mode, st.Nlink, st.Size, st.Uid, st.Gid), err
	})
}

// describe is everything about a path that must be equal, but its content.
func describe(p string) (string, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return "", st, err
	}
	s := fmt.Sprintf("mode %o links %d owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" size %d", st.Size)
	case unix.S_IFLNK:
		target, err := os.Readlink(p)
		if err != nil {
			return "", st, err
		}
		s += fmt.Sprintf(" size %d → %s", st.Size, target)
	case unix.S_IFDIR:
		list, err := os.ReadDir(p)
		if err != nil {
			return "", st, err
		}
		for _, e := range list {
			s += fmt.Sprintf(" %q:%v", e.Name(), e.Type())
		}
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return "", st, err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 1024)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return "", st, err
		}
		s += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return s, st, nil
}

func (m *model) compare(rel string) {
	m.t.Helper()
	m.both("compare "+rel, func(i int, r string) (string, error) {
		p := filepath.Join(r, rel)
		m.whole[i] = m.whole[i][:0]
		s, st, err := describe(p)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			m.whole[i], err = readInto(m.whole[i], p)
		}
		return s, err
	})
	if got, want := m.whole[0], m.whole[1]; !bytes.Equal(got, want) {
		at := firstDiff(got, want)
		m.t.Errorf("%s differs at %d of %d bytes, got %x…, want %x…", rel, at, len(want), got[at:min(at+16, len(got))], want[at:min(at+16, len(want))])
	}
	m.trace = m.trace[:len(m.trace)-1] // of no use in the trace
}

// readInto is os.ReadFile into a buffer that grows when it has to.
func readInto(b []byte, p string) ([]byte, error) {
	f, err := os.Open(p)
	if err != nil {
		return b, err
	}
	defer f.Close()
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, 1<<20)
		}
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

// compareAll compares the two trees whole.
func (m *model) compareAll() {
	m.t.Helper()
	var rels [2][]string
	for i, root := range m.roots {
		err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(root, p)
			rels[i] = append(rels[i], rel)
			return nil
		})
		if err != nil {
			m.t.Fatalf("walk %s: %v", root, err)
		}
	}
	if !slices.Equal(rels[0], rels[1]) {
		m.t.Fatalf("the trees differ: %q, want %q", rels[0], rels[1])
	}
	for _, rel := range rels[1] {
		m.compare(rel)
	}
	// Hard links are the same in both.
	byIno := [2]map[uint64][]string{{}, {}}
	for i, root := range m.roots {
		for _, rel := range rels[1] {
			st := stat(m.t, filepath.Join(root, rel))
			byIno[i][st.Ino] = append(byIno[i][st.Ino], rel)
		}
	}
	groups := func(g map[uint64][]string) string {
		var all []string
		for _, names := range g {
			all = append(all, strings.Join(names, "="))
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	if a, b := groups(byIno[0]), groups(byIno[1]); a != b {
		m.t.Fatalf("hard links differ:\n%s\nwant\n%s", a, b)
	}
}
