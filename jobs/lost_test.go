package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

func (r *rig) check(repair bool) (problems []string) {
	r.t.Helper()
	r.must(r.e.Check(context.Background(), false, repair, func(p string) { problems = append(problems, p) }))
	slices.Sort(problems)
	return problems
}

func (r *rig) wantCheck(repair bool, want ...[]string) {
	r.t.Helper()
	got := r.check(repair)
	if len(got) != len(want) {
		r.t.Fatalf("check: %q", got)
	}
	for i, words := range want {
		for _, w := range words {
			if !strings.Contains(got[i], w) {
				r.t.Errorf("check does not say %q: %q", w, got[i])
			}
		}
	}
}

// The vault of archived files is deleted. Check says what is left of each, loses nothing of it, and with --repair sends what is
// complete here to the vault that was made in its place.
func TestArchivedFilesOfALostVault(t *testing.T) {
	t.Parallel()
	quietly(t, func(o *Options) { o.Settle, o.SegmentSize = -1, 4<<20 }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		data := pattern(9<<20, 1)
		var inos [3]uint64
		at := time.Unix(1_500_000_000, 77)
		for i := range inos {
			inos[i] = r.write(fmt.Sprint("f", i), data[i:])
			_, err := r.e.Setattr(ctx, someone, inos[i], nil, SetAttr{Mtime: &at})
			r.must(err)
		}
		r.sync()
		// One is complete, one has a segment here, one nothing.
		for i := range inos {
			r.evict(inos[i])
		}
		res, err := r.e.Recall(ctx, RecallRequest{Inos: inos[:1], Wait: true}, nil)
		if err != nil || res.Local != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		res, err = r.e.Recall(ctx, RecallRequest{Inos: inos[1:2], Off: 5 << 20, Len: 1 << 20, Wait: true}, nil)
		if err != nil || res.Local != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		time.Sleep(time.Hour)
		r.wantCheck(false)
		asked := r.srv.Count(cas.OpInitiateJob)
		r.deleteVault()
		r.must(r.e.Probe(ctx))
		r.wantProblem("does not have the vault v any more", "casfs check")
		gone := [][]string{
			{"/v/f0: the service does not have the vault v any more", "complete", "kept", "casfs vault create v"},
			{fmt.Sprintf("/v/f1: the service does not have the vault v any more; %d of its %d bytes are on this machine, and kept", 4<<20, len(data)-1)},
			{fmt.Sprintf("1 files of %d bytes were only in the vault v, which the service does not have any more", len(data)-2)},
		}
		slices.SortFunc(gone, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
		r.wantCheck(false, gone...)
		r.wantCheck(true, gone...) // there is nowhere to send it to
		for i, want := range []string{"The local copy is complete and kept", "What is local of it is kept", "Nothing of it is on this machine"} {
			if s := r.wantState(inos[i], "damaged"); !strings.Contains(s.Explain, want) {
				t.Errorf("%+v", s)
			}
		}
		r.expect(inos[0], data)

		r.makeVault()
		r.must(r.e.Probe(ctx))
		r.wantProblem("the vault v was deleted at the service and made again", "the archives of 3 files went with it", "1 of them are complete", "casfs check --repair")
		r.reopen()
		anew := [][]string{
			{"/v/f0: its archive went with the vault v, which was deleted at the service and made again", "complete", "casfs check --repair uploads it again"},
			{"/v/f1: its archive went with the vault v", "bytes are on this machine, and kept"},
			{"1 files of ", "were only in the vault v as it was before"},
		}
		slices.SortFunc(anew, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
		r.wantCheck(false, anew...)
		uploads := func() int { return r.srv.Count(cas.OpCompleteUpload) }
		before := uploads()
		time.Sleep(24 * time.Hour)
		if n := uploads(); n != before {
			t.Errorf("%d uploads that nobody has asked for", n-before)
		}

		// A program that reads it meanwhile has the kernel use the local file itself.
		h, err := r.e.Open(ctx, someone, inos[0], OpenFlags{Read: true})
		r.must(err)
		for i := range anew {
			if strings.HasPrefix(anew[i][0], "/v/f0") {
				anew[i] = append(anew[i][:2:2], "(mended: it is uploaded again)")
			}
		}
		r.wantCheck(true, anew...)
		r.must(r.e.Sync(ctx, nil, nil))
		h.Release()
		r.wantState(inos[0], "resident")
		if a, err := r.e.Getattr(ctx, inos[0]); err != nil || a.Mtime != at.UnixNano() {
			t.Errorf("mtime %v, %v", a.Mtime, err)
		}
		rest := slices.DeleteFunc(anew, func(words []string) bool { return strings.HasPrefix(words[0], "/v/f0") })
		r.wantCheck(true, rest...)
		r.evict(inos[0])
		r.expect(inos[0], data)
		r.wantArchives(3)
		if n := r.srv.Count(cas.OpInitiateJob) - asked; n > 3+3+3 {
			t.Errorf("%d jobs", n)
		}
		// What was in the old vault is trash that costs nothing to delete.
		_, err = r.e.Purge(ctx, nil)
		r.must(err)
		r.expect(inos[0], data)
		r.must(r.e.Unlink(ctx, r.vault, "f1"))
		r.must(r.e.Unlink(ctx, r.vault, "f2"))
		time.Sleep(time.Minute)
		r.wantNoProblem()
		r.wantCheck(false)
	})
}

// The same of a file whose archive somebody has deleted.
func TestRepairOfAMissingArchive(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		data := pattern(1<<20, 1)
		ino := r.write("f", data)
		r.sync()
		synctest.Wait() // the first inventory may list the archive, which would be missing no more
		s := r.stat(ino)
		r.must(r.client.DeleteArchive(ctx, "v", s.Archives[0].ID))
		_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
			a, err := tx.ArchiveByID(r.vault, s.Archives[0].ID)
			a.State = catalog.Missing
			return errors.Join(err, tx.PutArchive(a))
		})
		r.must(err)
		r.e.recall.markDamaged(verKey{ino, 1}, missingText)
		r.wantCheck(false, []string{"/v/f: its archive is damaged or gone: " + missingText, "complete", "casfs check --repair"})
		r.wantState(ino, "damaged")
		r.wantCheck(true, []string{"/v/f: ", "(mended: it is uploaded again)"})
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantCheck(true)
		r.wantState(ino, "resident")
		r.evict(ino)
		r.expect(ino, data)
		r.wantArchives(1)
	})
}

// A copy that is not any more what was archived does not become a version that nothing tells from a good one.
func TestRepairOfAChangedCopy(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle, o.SegmentSize = -1, 2<<20 }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		data := pattern(5<<20, 1)
		ino := r.write("f", data)
		r.sync()
		time.Sleep(time.Hour)
		r.deleteVault()
		r.must(r.e.Probe(ctx))
		r.makeVault()
		r.must(r.e.Probe(ctx))
		var local string
		r.must(filepath.WalkDir(filepath.Join(r.o.StateDir, "content"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if i, err := d.Info(); err == nil && i.Size() == int64(len(data)) {
					local = path
				}
			}
			return err
		}))
		if local == "" {
			t.Fatal("no local copy")
		}
		put := func(b byte) {
			t.Helper()
			w, err := os.OpenFile(local, os.O_WRONLY, 0)
			r.must(err)
			_, err = w.WriteAt([]byte{b}, 3<<20)
			r.must(errors.Join(err, w.Close()))
		}
		put(^data[3<<20])
		r.wantCheck(true, []string{"/v/f: its archive went with the vault v", "kept, but not uploaded again", "its tree hash is another"})
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantArchives(0)
		r.wantState(ino, "damaged")
		put(data[3<<20])
		r.wantCheck(true, []string{"/v/f: ", "(mended: it is uploaded again)"})
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantArchives(3)
		r.wantState(ino, "resident")
		r.expect(ino, data)
	})
}

// A file that somebody tried to read, and found damaged, is as lost as the others.
func TestLostFilesAreCountedAllTheSame(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		inos := []uint64{r.write("f0", pattern(1000, 1)), r.write("f1", pattern(1000, 2))}
		r.sync()
		for _, ino := range inos {
			r.evict(ino)
		}
		time.Sleep(time.Hour)
		r.deleteVault()
		r.must(r.e.Probe(context.Background()))
		r.wantCheck(false, []string{"2 files of 2000 bytes were only in the vault v"})
		r.e.recall.markDamaged(verKey{inos[0], 1}, "the service does not know the archive")
		r.wantState(inos[0], "damaged")
		r.wantCheck(false, []string{"2 files of 2000 bytes were only in the vault v"})
	})
}
