package catalog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// copyState copies a state directory as it is, open or not, holes as holes.
func copyState(t testing.TB, src, dst string) {
	t.Helper()
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(path, src))
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		return copyFile(path, to)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	for off := int64(0); off < st.Size(); {
		begin, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, end-begin)); err != nil {
			return err
		}
		off = end
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return os.Chtimes(dst, st.ModTime(), st.ModTime())
}

// contents hashes every file an Open that fails must leave alone.
func contents(t testing.TB, dir string) map[string][32]byte {
	t.Helper()
	all := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel := strings.TrimPrefix(path, dir)
		if rel != "/lock" && rel != "/reserve" {
			all[rel] = sha256.Sum256(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// one returns the only or first file of a pattern, several the n-th.
func nth(t testing.TB, dir, pattern string, n int) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no %s (%v)", dir, pattern, err)
	}
	if n < 0 {
		n += len(files)
	}
	return files[n]
}

// change edits a file and puts its time back, as decay of the disk would.
func change(t testing.TB, path string, fn func([]byte) []byte) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b = fn(b); b == nil {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// The ways a file is damaged. at is a fraction of its length.
func flip(at float64) func([]byte) []byte {
	return func(b []byte) []byte {
		i := min(int(at*float64(len(b))), len(b)-1)
		for k := i; k < min(i+64, len(b)); k++ {
			b[k] ^= 0x55
		}
		return b
	}
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }

func half(b []byte) []byte { return b[:len(b)/2] }

func gone([]byte) []byte { return nil }

// damaged states: where the damage is done, and what Open makes of it.
const (
	intact = iota
	rebuilt
	replaced // the journal
	refused
)

type damageCase struct {
	name   string
	killed bool
	do     func(t *testing.T, dir string)
	want   int
	says   string // part of the reason or error
}

// told reports whether people are to be told: not after a mere crash, of an index that was deleted, or
// of what nobody has read.
func (k *damageCase) told() bool {
	switch k.name {
	case "clean: format flipped", "clean: segment covered by snapshot flipped",
		"killed: newest snapshot flipped", "killed: newest snapshot cut":
		return true
	}
	return k.want == replaced || k.want == rebuilt && !k.killed && !strings.HasPrefix(k.says, "index is missing") && !strings.Contains(k.name, "index deleted")
}

// TestDamage does to real files what disks, crashes and people do. Every case
// ends with all files there or with ErrDamaged and everything left as it was; never with a part of the tree.
func TestDamage(t *testing.T) {
	const n = 1500
	base := t.TempDir()
	// Two snapshots, several segments, tables on several levels; one copy closed, one as kill -9 leaves it.
	o := small(filepath.Join(base, "clean"))
	o.segmentSize = 64 << 10
	o.SnapshotEvery = 1 << 40
	c := mustOpen(t, o)
	v := mkvault(t, c, "v")
	for k := range n {
		update(t, c, func(tx *Tx) error {
			_, err := tx.Create(v, fmt.Sprintf("file%06d", k), Inode{Mode: sIFREG | 0o644}, int64(k))
			return err
		})
		if k == n/3 || k == 2*n/3 {
			if err := c.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		if k == n/2 { // a table on disk beside the log
			mustClose(t, c)
			c = mustOpen(t, o)
		}
	}
	killed := filepath.Join(base, "killed")
	copyState(t, o.Dir, killed)
	mustClose(t, c)

	// Another catalog of the same length.
	o2 := o
	o2.Dir = filepath.Join(base, "other")
	other := o2.Dir
	c = mustOpen(t, o2)
	for c.Stats().Seq < n+10 {
		update(t, c, func(tx *Tx) error { return tx.PutMeta("m", nil) })
	}
	mustClose(t, c)

	journal := func(pattern string, n int, fn func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { change(t, nth(t, filepath.Join(dir, "journal"), pattern, n), fn) }
	}
	index := func(pattern string, n int, fn func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { change(t, nth(t, filepath.Join(dir, "index"), pattern, n), fn) }
	}
	file := func(name string, fn func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { change(t, filepath.Join(dir, name), fn) }
	}
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := func(fns ...func(t *testing.T, dir string)) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, fn := range fns {
				fn(t, dir)
			}
		}
	}
	cases := []damageCase{
		{"clean: nothing", false, all(), intact, ""},
		{"clean: table flipped", false, index("*.sst", 0, flip(.3)), rebuilt, ".sst was changed"},
		{"clean: table's index flipped", false, index("*.sst", 0, flip(.97)), rebuilt, ".sst was changed"},
		{"clean: table's end flipped", false, index("*.sst", 0, flip(1)), rebuilt, ".sst was changed"},
		{"clean: table cut", false, index("*.sst", -1, half), rebuilt, "bytes instead of"},
		{"clean: table deleted", false, index("*.sst", 0, gone), rebuilt, ".sst is missing"},
		{"clean: MANIFEST flipped", false, index("MANIFEST", 0, flip(.5)), rebuilt, "MANIFEST was changed"},
		{"clean: MANIFEST cut", false, index("MANIFEST", 0, cut(5)), rebuilt, "MANIFEST has"},
		{"clean: MANIFEST deleted", false, index("MANIFEST", 0, gone), rebuilt, "MANIFEST is missing"},
		{"clean: key registry deleted", false, index("KEYREGISTRY", 0, gone), rebuilt, "KEYREGISTRY is missing"},
		{"clean: discard flipped", false, index("DISCARD", 0, flip(.5)), rebuilt, "DISCARD was changed"},
		{"clean: value log flipped", false, index("*.vlog", 0, flip(.5)), rebuilt, ".vlog was changed"},
		{"clean: foreign table", false, func(t *testing.T, dir string) {
			copyFile(nth(t, filepath.Join(dir, "index"), "*.sst", 0), filepath.Join(dir, "index", "099999.sst"))
		}, rebuilt, "099999.sst does not belong"},
		{"clean: foreign log", false, func(t *testing.T, dir string) {
			copyFile(nth(t, killed, "index/*.mem", 0), filepath.Join(dir, "index", "00099.mem"))
		}, rebuilt, "00099.mem does not belong"},
		{"clean: index deleted", false, remove("index"), rebuilt, "index is missing"},
		{"clean: index of an older copy", false, func(t *testing.T, dir string) {
			remove("index")(t, dir)
			copyState(t, filepath.Join(killed, "index"), filepath.Join(dir, "index"))
		}, rebuilt, "index is damaged"},
		{"clean: index and newest snapshot flipped", false, all(index("*.sst", 0, flip(.3)), journal("snap-*", -1, flip(.5))), rebuilt, ""},
		{"clean: index deleted, newest snapshot deleted", false, all(remove("index"), journal("snap-*", -1, gone)), rebuilt, ""},
		{"clean: index deleted, both snapshots flipped", false, all(remove("index"), journal("snap-*", 0, flip(.5)), journal("snap-*", 1, flip(.5))), refused, "records are missing"},
		{"clean: index deleted, snapshots deleted", false, all(remove("index"), journal("snap-*", 0, gone), journal("snap-*", 0, gone)), refused, "records are missing"},
		{"clean: both snapshots flipped", false, all(journal("snap-*", 0, flip(.5)), journal("snap-*", 1, flip(.5))), intact, ""},
		{"clean: mark flipped", false, file("mark", flip(.2)), rebuilt, "not known how"},
		{"clean: mark deleted", false, file("mark", gone), rebuilt, "not known how"},
		{"clean: format flipped", false, file("format", flip(0)), intact, ""},
		{"clean: format deleted", false, file("format", gone), intact, ""},
		{"clean: format and mark deleted", false, all(file("format", gone), file("mark", gone)), rebuilt, "not known how"},
		{"clean: lock and reserve deleted", false, all(file("lock", gone), file("reserve", gone)), intact, ""},
		{"clean: journal torn", false, journal("seg-*", -1, cut(3)), replaced, "were on stable storage"},
		{"clean: journal's last record flipped", false, journal("seg-*", -1, flip(1)), replaced, "were on stable storage"},
		{"clean: journal flipped", false, journal("seg-*", -1, flip(.5)), replaced, "fails its checksum"},
		{"clean: journal's older segment flipped", false, journal("seg-*", -2, flip(.5)), replaced, "fails its checksum"},
		{"clean: segment covered by snapshot flipped", false, journal("seg-*", 0, flip(.5)), intact, ""},
		{"clean: last segment deleted", false, journal("seg-*", -1, gone), replaced, "were on stable storage"},
		{"clean: segment deleted", false, journal("seg-*", -2, gone), replaced, "are missing between"},
		{"clean: journal and index flipped", false, all(journal("seg-*", -1, flip(.5)), index("*.sst", 0, flip(.3))), refused, "fails its checksum"},
		{"clean: journal flipped, mark deleted", false, all(journal("seg-*", -1, flip(.5)), file("mark", gone)), refused, "fails its checksum"},
		{"clean: journal of another catalog", false, func(t *testing.T, dir string) {
			remove("journal")(t, dir)
			copyState(t, filepath.Join(other, "journal"), filepath.Join(dir, "journal"))
		}, refused, "the journal of"},
		{"clean: journal deleted", false, remove("journal"), refused, "journal is missing"},
		{"clean: journal emptied", false, all(remove("journal"), func(t *testing.T, dir string) { os.Mkdir(filepath.Join(dir, "journal"), 0o700) }), refused, "journal is missing"},
		{"clean: journal, format and mark deleted", false, all(remove("journal"), remove("format"), remove("mark")), refused, "journal is missing"},
		{"clean: all but format deleted", false, all(remove("journal"), remove("mark"), remove("index")), refused, "journal is missing"},
		{"clean: all but mark deleted", false, all(remove("journal"), remove("format"), remove("index")), refused, "journal is missing"},
		{"clean: mark flipped, all others deleted", false, all(remove("journal"), remove("format"), remove("index"), file("mark", flip(.2))), refused, "journal is missing"},
		{"killed: nothing", true, all(), rebuilt, "not closed"},
		{"killed: log flipped", true, index("*.mem", 0, flip(.001)), rebuilt, "not closed"},
		{"killed: log cut", true, index("*.mem", 0, half), rebuilt, "not closed"},
		{"killed: log deleted", true, index("*.mem", 0, gone), rebuilt, "not closed"},
		{"killed: table cut", true, index("*.sst", 0, half), rebuilt, "not closed"},
		{"killed: MANIFEST deleted", true, index("MANIFEST", 0, gone), rebuilt, "not closed"},
		{"killed: index deleted", true, remove("index"), rebuilt, "index is missing"},
		{"killed: journal flipped", true, journal("seg-*", -1, flip(.5)), refused, "fails its checksum"},
		{"killed: newest snapshot flipped", true, journal("snap-*", -1, flip(.9)), rebuilt, "not closed"},
		{"killed: newest snapshot cut", true, journal("snap-*", -1, half), rebuilt, "not closed"},
		{"killed: both snapshots flipped", true, all(journal("snap-*", 0, flip(.5)), journal("snap-*", 1, flip(.5))), refused, "records are missing"},
		{"killed: journal deleted", true, remove("journal"), refused, "journal is missing"},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			o := o
			o.Dir = filepath.Join(t.TempDir(), "state")
			src := filepath.Join(base, "clean")
			if k.killed {
				src = killed
			}
			copyState(t, src, o.Dir)
			k.do(t, o.Dir)
			before := contents(t, o.Dir)
			c, err := Open(o)
			if k.want == refused {
				if !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), k.says) || !strings.Contains(fmt.Sprint(err), "Restore") {
					t.Fatalf("Open: %v, want ErrDamaged with %q and advice", err, k.says)
				}
				if now := contents(t, o.Dir); !maps.Equal(now, before) {
					t.Errorf("a refused Open changed files: %v, before %v", slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(before)))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.Rebuilt(); got == "" != (k.want == intact) || !strings.Contains(got, k.says) {
				t.Errorf("Rebuilt() = %q, want %q", got, k.says)
			}
			if got := c.Damage(); len(got) > 0 != k.told() {
				t.Errorf("Damage() = %q", got)
			}
			if k.want == replaced {
				was := maps.Clone(before)
				maps.DeleteFunc(was, func(name string, _ [32]byte) bool { return !strings.HasPrefix(name, "/journal/") })
				for name, sum := range contents(t, filepath.Join(o.Dir, "journal.damaged.1")) {
					if was["/journal"+name] != sum {
						t.Errorf("damaged journal: %s was not kept as it was", name)
					}
					delete(was, "/journal"+name)
				}
				if len(was) > 0 {
					t.Errorf("damaged journal: %v was not kept", was)
				}
			}
			if got := countFiles(t, c, "v"); got != n {
				t.Errorf("%d files, want %d", got, n)
			}
			if got := problems(t, c, false); got != nil && !strings.Contains(k.name, "snapshots flipped") {
				t.Errorf("%q", got)
			}
			populate(t, c, "w", 20)
			mustClose(t, c)
			c = mustOpen(t, o)
			if c.Rebuilt() != "" {
				t.Errorf("rebuilt again: %s", c.Rebuilt())
			}
			if got := c.Damage(); len(got) > 0 != (k.want == replaced || strings.Contains(k.name, "segment covered")) {
				t.Errorf("the next time: Damage() = %q", got)
			}
			if got := countFiles(t, c, "w"); got != 20 {
				t.Errorf("%d files, want 20", got)
			}
		})
	}
}

// TestDamageWhileOpen: a table that decays between its making and the close is not taken over by the mark.
func TestDamageWhileOpen(t *testing.T) {
	const n = 500
	for _, k := range []struct {
		name string
		do   func([]byte) []byte
	}{{"nothing", func(b []byte) []byte { return b }}, {"block", flip(.3)}, {"index", flip(.97)}, {"end", flip(1)}} {
		t.Run(k.name, func(t *testing.T) {
			o := small(filepath.Join(t.TempDir(), "state"))
			o.NoCompaction = true
			c := mustOpen(t, o)
			populate(t, c, "v", n)
			mustClose(t, c)
			if err := os.RemoveAll(filepath.Join(o.Dir, "index")); err != nil {
				t.Fatal(err)
			}
			c = mustOpen(t, o) // makes tables
			change(t, nth(t, filepath.Join(o.Dir, "index"), "*.sst", 0), k.do)
			mustClose(t, c)
			c = mustOpen(t, o)
			if got := c.Rebuilt(); (got == "") != (k.name == "nothing") {
				t.Errorf("Rebuilt() = %q", got)
			}
			if got := countFiles(t, c, "v"); got != n {
				t.Errorf("%d files, want %d", got, n)
			}
			mustClose(t, c)
		})
	}
}
