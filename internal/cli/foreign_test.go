package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/internal/built"
)

// foreign is an archive somebody else made.
type foreign struct {
	n           int
	kind, id    string
	description string
}

func (f foreign) content() string {
	if f.kind == "twice" {
		return "twice\n"
	}
	return fmt.Sprintf("archive %d\n", f.n)
}

// fillVault has the Python client make n archives of every kind of description.
func (s *server) fillVault(vault string, n int) map[string]foreign {
	t := s.u.t
	t.Helper()
	py, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is needed for this test (Debian: apt-get install python3)")
	}
	cmd := exec.CommandContext(t.Context(), py, filepath.Join("..", "..", "testdata", "pyclient", "casclient.py"),
		"--config", filepath.Join(s.dir, "credentials"), "fill", vault, strconv.Itoa(n))
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("filling the vault: %v", err)
	}
	all := make(map[string]foreign)
	for line := range bytes.Lines(out) {
		var f foreign
		var d string
		if _, err := fmt.Sscan(string(line), &f.n, &f.kind, &f.id, &d); err != nil && d == "" && !strings.HasSuffix(string(line), " \n") {
			t.Fatalf("%q: %v", line, err)
		}
		b, err := base64.StdEncoding.DecodeString(strings.Trim(d, "-"))
		if err != nil {
			t.Fatal(err)
		}
		f.description = string(b)
		all[f.id] = f
	}
	if len(all) != n {
		t.Fatalf("%d archives were made, want %d", len(all), n)
	}
	return all
}

// listing maps the archive IDs of all files below dir to their paths, and looks at every name.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	byID := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := d.Name()
		if name == "" || name == "." || name == ".." || len(name) > 255 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			t.Errorf("a name %q", name)
		}
		if d.IsDir() {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() || fi.Size() == 0 {
			t.Errorf("%s: mode %v, size %d", path, fi.Mode(), fi.Size())
		}
		var b [256]byte
		n, err := unix.Getxattr(path, "user.cas.archive-id", b[:])
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		id := string(b[:n])
		if other, ok := byID[id]; ok {
			t.Errorf("%s and %s are the same archive", path, other)
		}
		byID[id], _ = filepath.Rel(dir, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return byID
}

// peakMemory is the most a process ever had resident, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestForeignVault mounts a vault that a client in another language filled over plain HTTP with descriptions as
// cascmd, SDKs, the console and other Glacier tools write them, and worse. CASFS_FOREIGN is the number of archives.
func TestForeignVault(t *testing.T) {
	n := 1000
	if s := os.Getenv("CASFS_FOREIGN"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	built.Require(t)
	u := newUser(t)
	u.limit = time.Hour
	s := u.serve(u.path("store"), "--standard", "50ms", "--inventory", "50ms")
	began := time.Now()
	made := s.fillVault("old", n)
	t.Logf("%d archives made in %v", n, time.Since(began).Round(time.Millisecond))

	m := &mounted{u: u, point: u.path("mnt"), flags: []string{s.config()}}
	if err := os.Mkdir(m.point, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clean)
	m.start()
	idle := peakMemory(t, m.pid())
	began = time.Now()
	u.ok("inventory", "--wait", filepath.Join(m.point, "old"))
	merged, mergedPeak := time.Since(began), peakMemory(t, m.pid())
	began = time.Now()
	paths := listing(t, filepath.Join(m.point, "old"))
	peak := peakMemory(t, m.pid())
	t.Logf("%d archives merged in %v, listed in %v; peak memory %d MiB before, %d MiB merged, %d MiB listed", n,
		merged.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), idle>>20, mergedPeak>>20, peak>>20)
	// What the kernel knows of a directory entry costs some hundred bytes, what is merged a bounded number of them.
	if limit := idle + 64<<20 + 4096*int64(n); peak > limit && !built.Race {
		t.Errorf("peak memory %d MiB", peak>>20)
	}
	for id, f := range made {
		if paths[id] == "" {
			t.Errorf("archive %d, described as %q, is nowhere", f.n, f.description)
		}
	}
	if len(paths) != n {
		t.Errorf("%d files of %d archives", len(paths), n)
	}

	// Readable names: one of each kind, the first that was made.
	byKind := make(map[string]foreign)
	for _, f := range slices.SortedFunc(maps.Values(made), func(a, b foreign) int { return cmp.Compare(a.n, b.n) }) {
		if _, ok := byKind[f.kind]; !ok {
			byKind[f.kind] = f
		}
	}
	for kind, want := range map[string]string{
		"cascmd": "home/me/photos/0/IMG_00000.jpg", "cascmd-relative": "documents/1/report 1.txt", "chinese": "照片备份 第5卷 (2019年夏)",
		"windows": "Users/me/file 10.txt", "mt1": "mt1/第13 line.dat", "mt2": "mt2/第14 line.dat",
		"fastglacier": "fast/夏 16.txt", "json": "云/file+17.txt",
	} {
		if got := paths[byKind[kind].id]; got != want {
			t.Errorf("%s, described as %q: got %q, want %q", kind, byKind[kind].description, got, want)
		}
	}
	for _, kind := range []string{"passwd", "duplicate", "twice"} {
		plain := 0
		for id, f := range made {
			if name := map[string]string{"passwd": "etc/passwd", "duplicate": "backup.tar", "twice": "the same again"}[kind]; f.kind == kind && paths[id] == name {
				plain++
			}
		}
		if plain != 1 {
			t.Errorf("%d archives described alike (%s) have the plain name, want one", plain, kind)
		}
	}
	for kind, f := range byKind {
		if b, err := os.ReadFile(filepath.Join(m.point, "old", paths[f.id])); err != nil || string(b) != f.content() {
			t.Errorf("%s: read %q, %v", kind, b, err)
		}
	}

	// Again, and on a new machine: the same names.
	u.ok("inventory", "--wait", filepath.Join(m.point, "old"))
	same := func(when string) {
		t.Helper()
		again := listing(t, filepath.Join(m.point, "old"))
		for id, p := range paths {
			if again[id] != p {
				t.Errorf("%s archive %d is %q, was %q", when, made[id].n, again[id], p)
			}
		}
	}
	same("after a second inventory")
	u.ok("umount", m.point)
	if err := os.RemoveAll(u.path("state")); err != nil {
		t.Fatal(err)
	}
	m.start()
	u.ok("inventory", "--wait", filepath.Join(m.point, "old"))
	same("on a new machine")
	u.ok("umount", m.point)
}
