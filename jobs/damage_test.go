package jobs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// spoil flips bytes in the middle of the last file of a pattern below the state directory.
func (r *rig) spoil(pattern string) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.o.StateDir, pattern))
	r.must(err)
	if len(files) == 0 {
		r.t.Fatalf("no %s", pattern)
	}
	name := files[len(files)-1]
	b, err := os.ReadFile(name)
	r.must(err)
	for i := len(b) / 2; i < min(len(b)/2+64, len(b)); i++ {
		b[i] ^= 0x55
	}
	r.must(os.WriteFile(name, b, 0o600))
}

// What was found damaged and mended shows in status, not only in the log: a journal for as long as what is left of it is kept.
func TestDamageShows(t *testing.T) {
	for _, x := range []struct {
		name, pattern string
		words         []string
		stays         bool
	}{
		{"journal", "journal/seg-*", []string{"journal", "journal.damaged.1", "Nothing of the tree is lost"}, true},
		{"index", "index/MANIFEST", []string{"index was not to be trusted", "MANIFEST", "Nothing of the tree is lost"}, false},
		{"mark", "mark", []string{"mark", "unreadable", "Nothing of the tree is lost"}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newRig(t, nil)
			archived, staged := pattern(3<<20, 1), pattern(100<<10, 2)
			a := r.write("archived", archived)
			r.sync()
			r.close()
			r.o.Settle = time.Hour
			r.open()
			s := r.write("staged", staged)
			r.close()
			r.spoil(x.pattern)
			r.open()
			for _, w := range x.words {
				r.wantSaid(w)
			}
			r.expect(a, archived)
			r.expect(s, staged)
			r.wantState(s, "staged")
			r.reopen()
			if x.stays {
				r.wantSaid("journal.damaged.1")
				r.must(os.RemoveAll(filepath.Join(r.o.StateDir, "journal.damaged.1")))
				r.reopen()
			}
			r.wantNoProblem()
			r.evict(a)
			r.expect(a, archived)
			r.expect(s, staged)
		})
	}
}

// wantSaid wants some problem in status that says words.
func (r *rig) wantSaid(words string) {
	r.t.Helper()
	st, err := r.e.Status(context.Background())
	r.must(err)
	for _, p := range st.Problems {
		if strings.Contains(p, words) {
			return
		}
	}
	r.t.Errorf("no problem says %q: %q", words, st.Problems)
}

// A staging file that is missing, and one that nobody knows: neither is silent, and nothing else suffers.
func TestStagingFilesMissingAndUnknown(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	gone, kept := r.write("gone", pattern(100<<10, 1)), r.write("kept", pattern(100<<10, 2))
	var local uint64
	r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
		v, err := tx.Version(gone, 1)
		local = v.Local
		return err
	}))
	r.close()
	files, err := filepath.Glob(filepath.Join(r.o.StateDir, "staging", "*", "*"))
	r.must(err)
	for _, name := range files {
		if strings.HasSuffix(name, fmt.Sprintf("%016x", local)) {
			// Under a number that no record has.
			r.must(os.MkdirAll(filepath.Join(r.o.StateDir, "staging", "ff"), 0o700))
			r.must(os.Rename(name, filepath.Join(r.o.StateDir, "staging", "ff", "00000000000fffff")))
		}
	}
	r.open()
	r.wantProblem("/v/gone", "staging file", "is missing", "not in the vault")
	r.wantProblem("lost+found", "the catalog does not know")
	r.wantState(gone, "damaged")
	r.expect(kept, pattern(100<<10, 2))
	left, err := filepath.Glob(filepath.Join(r.o.StateDir, "lost+found", "*"))
	r.must(err)
	if len(left) != 1 {
		t.Fatalf("lost+found: %q", left)
	}
	if b, err := os.ReadFile(left[0]); err != nil || string(b) != string(pattern(100<<10, 1)) {
		t.Errorf("%d other bytes were kept, %v", len(b), err)
	}
	// Writing it anew is the way out.
	r.write("gone", pattern(50<<10, 3))
	r.must(r.e.Sync(context.Background(), nil, nil))
	st, err := r.e.Status(context.Background())
	r.must(err)
	for _, p := range st.Problems {
		if strings.Contains(p, "/v/gone") {
			t.Errorf("still a problem: %s", p)
		}
	}
	r.evict(gone)
	r.expect(gone, pattern(50<<10, 3))
}
