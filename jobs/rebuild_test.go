package jobs

import (
	"context"
	"fmt"
	"maps"
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

// newMachine throws the state directory away.
func (r *recallRig) newMachine() {
	r.t.Helper()
	r.stop()
	r.opts.StateDir = filepath.Join(r.t.TempDir(), "state")
	r.start()
}

func TestForeignArchivesBecomeFiles(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.stop()
		r.inventories = true
		ids := make(map[string]string)
		for i, d := range []string{
			"", "photo.jpg", "photo.jpg", "photo.jpg", "../../etc/passwd", "/home/me/a.txt", "home/me/a.txt", "home", "photo.jpg/under",
			"two\nlines", "bad\xffbyte", "照片/夏.jpg", "照片/夏.jpg"[:5], strings.Repeat("x", 1024),
			`{"Path":"c:\\my\\file.txt","UTCDateModified":"20120926T211216Z"}`, "casfs2 id=1",
		} {
			if strings.ContainsAny(d, "\n\xff") || len(d) == 5 {
				d = strings.ToValidUTF8(strings.ReplaceAll(d, "\n", " "), "\uFFFD") // no header can carry it
			}
			ids[r.upload(d, blob(fmt.Sprint(i), 100+i))] = d
		}
		r.start()
		if got := r.files(); len(got) != 0 {
			t.Fatalf("before the inventory: %q", got)
		}
		// Until it is there the tree takes writes.
		r.write("new", []byte("new"))
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		files := r.files()
		if len(files) != len(ids)+1 {
			t.Errorf("%d files of %d archives: %q", len(files), len(ids), files)
		}
		for _, want := range []string{"photo.jpg", "etc/passwd", "home/me/a.txt", "照片/夏.jpg", "my/file.txt", "casfs2 id=1", "two lines", "new"} {
			if !slices.Contains(files, want) {
				t.Errorf("%s is missing among %q", want, files)
			}
		}
		tree := r.tree()
		if got := time.Unix(0, tree["my/file.txt"].Mtime).UTC(); got.Year() != 2012 {
			t.Errorf("mtime %v", got)
		}
		if r.seen.entries["photo.jpg"] == 0 {
			t.Error("the kernel was not told of a new name")
		}
		// Their IDs are reachable, their bytes too.
		s, err := r.e.Stat(t.Context(), tree["etc/passwd"].Ino)
		if err != nil || len(s.Archives) != 1 || ids[s.Archives[0].ID] != "../../etc/passwd" || s.State != "cold" {
			t.Errorf("stat %+v, %v", s, err)
		}
		r.want(tree["etc/passwd"].Ino, blob("4", 104), 0, 200)
		// Again: nothing changes, stable names.
		if err := r.e.Sync(t.Context(), []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		r.inventory()
		r.restart()
		time.Sleep(30 * time.Hour)
		if again := r.tree(); !slices.Equal(slices.Sorted(maps.Keys(again)), slices.Sorted(maps.Keys(tree))) {
			t.Errorf("the second inventory changed the tree to %q", r.files())
		}
	})
}

func TestRebuild(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) {
			o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 2<<20, 1<<20
			o.Settle = time.Hour // so that modes and times are set before the descriptions are written
		})
		r.inventories = true
		ctx := context.Background()
		want := make(map[string][]byte)
		mkdir := func(parent uint64, name string) uint64 {
			a, err := r.e.Mkdir(ctx, Caller{UID: 7, GID: 8}, parent, name, 0o755)
			if err != nil {
				t.Fatal(err)
			}
			return a.Ino
		}
		photos := mkdir(r.vault, "photos")
		deep := mkdir(photos, "2019 夏")
		for i := range 30 {
			name := fmt.Sprintf("f%02d", i)
			data := blob(name, 1+i*1000)
			ino := r.writeIn(deep, name, data)
			mode, uid, at := uint32(0o600+i%8), uint32(i), time.Unix(1_500_000_000+int64(i), int64(i))
			if _, err := r.e.Setattr(ctx, Caller{}, ino, nil, SetAttr{Mode: &mode, UID: &uid, Mtime: &at}); err != nil {
				t.Fatal(err)
			}
			want["photos/2019 夏/"+name] = data
		}
		want["big"] = blob("big", 5<<20+3)
		r.write("big", want["big"])
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		// One is rewritten, one renamed and rewritten, one deleted.
		for name, to := range map[string]string{"f03": "f03", "f04": "g04"} {
			a, err := r.e.Lookup(ctx, deep, name)
			if err != nil {
				t.Fatal(err)
			}
			if name != to {
				if err := r.e.Rename(ctx, deep, name, r.vault, to, 0); err != nil {
					t.Fatal(err)
				}
			}
			h, err := r.e.Open(ctx, Caller{}, a.Ino, OpenFlags{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.WriteAt(ctx, Caller{}, []byte("second"), 10); err != nil {
				t.Fatal(err)
			}
			h.Release()
			copy(want["photos/2019 夏/"+name][10:], "second")
		}
		want["g04"] = want["photos/2019 夏/f04"]
		delete(want, "photos/2019 夏/f04")
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		before := r.tree()

		r.newMachine()
		if got := r.files(); len(got) != 0 {
			t.Fatalf("before the inventory: %q", got)
		}
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		after := r.tree()
		if got, want := slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)); !slices.Equal(got, want) {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
		for path, b := range before {
			a := after[path]
			if isDir(b.Mode) {
				continue
			}
			if a.Size != b.Size || a.Mtime != b.Mtime || a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID {
				t.Errorf("%s: got %+v, want %+v", path, a, b)
			}
		}
		for path, data := range want {
			if path == "big" || strings.HasSuffix(path, "04") || strings.HasSuffix(path, "f03") || strings.HasSuffix(path, "f10") {
				r.want(after[path].Ino, data, 0, len(data)+10)
			}
		}
		if n := r.archives(); n[catalog.Trash] != 2 || n[catalog.Live] != 30+3 {
			t.Errorf("archives %v", n)
		}
		r.inventory()
		if again := r.tree(); !slices.Equal(slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(again))) {
			t.Errorf("the second inventory changed the tree to %q", slices.Sorted(maps.Keys(again)))
		}
	})
}

// TestRebuildModesOfDirectories: what one user keeps from others stays kept from them.
func TestRebuildModesOfDirectories(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		r.inventories = true
		ctx := context.Background()
		chmod := func(ino uint64, mode uint32) {
			if _, err := r.e.Setattr(ctx, Caller{}, ino, nil, SetAttr{Mode: &mode}); err != nil {
				t.Fatal(err)
			}
		}
		mkdir := func(parent uint64, name string, mode uint32) uint64 {
			a, err := r.e.Mkdir(ctx, Caller{UID: 7, GID: 8}, parent, name, mode)
			if err != nil {
				t.Fatal(err)
			}
			return a.Ino
		}
		secret := func(dir uint64, name string) {
			a, h, err := r.e.Create(ctx, Caller{}, dir, name, 0o600, OpenFlags{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.WriteAt(ctx, Caller{}, blob(name, 100), 0); err != nil {
				t.Fatal(err)
			}
			h.Release()
			chmod(a.Ino, 0o600)
		}
		priv := mkdir(r.vault, "priv", 0o700)
		r.writeIn(priv, "x", blob("x", 10))
		r.writeIn(mkdir(priv, "within", 0o755), "x", blob("x", 20))
		r.writeIn(mkdir(r.vault, "tmp", 0o1777), "x", blob("x", 30))
		group := mkdir(r.vault, "group", 0o2770)
		inner := mkdir(group, "inner", 0o755)
		chmod(inner, 0o755) // made without the bit, or it was taken from it
		r.writeIn(inner, "x", blob("x", 40))
		r.writeIn(mkdir(r.vault, "usual", 0o755), "x", blob("x", 50))
		// A file that others may not read tells nothing of its directory.
		home := mkdir(r.vault, "home", 0o755)
		secret(home, "a")
		r.writeIn(home, "b", blob("b", 60))
		// Of what is deeper than a description is long, neither path nor modes are told.
		name, deep := strings.Repeat("夏", 30), priv
		for range 5 {
			deep = mkdir(deep, name, 0o755)
		}
		r.writeIn(deep, "deep", blob("deep", 70))
		if err := r.e.Sync(ctx, []uint64{r.vault}, nil); err != nil {
			t.Fatal(err)
		}
		before := r.tree()
		err := r.e.catalog.View(func(tx *catalog.Tx) error {
			for a, err := range tx.Archives(r.vault) {
				if err != nil {
					return err
				}
				if strings.HasSuffix(a.Description, " path=usual/x") && strings.Contains(a.Description, "dirs=") {
					t.Errorf("the usual is told: %s", a.Description)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}

		r.newMachine()
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		after := r.tree()
		for path, b := range before {
			if strings.Contains(path, name) {
				continue
			}
			if a := after[path]; a.Mode != b.Mode {
				t.Errorf("%s: mode %o, want %o", path, a.Mode, b.Mode)
			}
		}
		cut := "lost+found/" + name + "/" + name + "/" + name
		if a, b := after[cut+"/deep"].Mode, after[cut].Mode; a != modeRegular|0o600 || b != modeDir|0o700 {
			t.Errorf("below lost+found: modes %o and %o of a file and its directory, want 600 and 700; there are %q", a, b, r.files())
		}
	})
}

// TestRebuildOfUntoldDirectories: archives of earlier versions, and what has no room for more, tell nothing of their directories.
func TestRebuildOfUntoldDirectories(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		if _, err := r.e.Mkdir(t.Context(), Caller{}, r.vault, "mine", 0o711); err != nil {
			t.Fatal(err)
		}
		want := make(map[string]uint32)
		for i, x := range []struct {
			key, path, dir string
			mode, want     uint32
		}{
			{"path", "secret/f", "secret", 0o600, 0o700},
			{"path", "group/f", "group", 0o640, 0o750},
			{"path", "others/f", "others", 0o604, 0o705},
			{"path", "all/deep/f", "all/deep", 0o4644, 0o755},
			{"path", "mine/f", "mine", 0o644, 0o711},
			{"path", "mine/deep/f", "mine/deep", 0o600, 0o700},
			{"dirs=1777.700 path", "mine/told/f", "mine/told", 0o644, 0o700},
			// Earlier versions cut anywhere.
			{"path~", "lf/whole/f", "lost+found/lf/whole", 0o644, 0o755},
			{"path~", "/whole/f", "lost+found/whole", 0o644, 0o755},
		} {
			r.upload(fmt.Sprintf("casfs1 id=01234567%d ino=%d v=1 size=%d mtime=7 mode=%o uid=1 gid=2 %s=%s", i, 100+i, 100+i, x.mode, x.key, x.path), blob(x.path, 100+i))
			want[x.dir] = x.want
		}
		r.inventory()
		tree := r.tree()
		for dir, mode := range want {
			if got := tree[dir].Mode; got != modeDir|mode {
				t.Errorf("%s: mode %o, want %o", dir, got, mode)
			}
		}
		if got := tree["all"].Mode; got != modeDir|0o755 {
			t.Errorf("all: mode %o", got)
		}
	})
}

func TestSegmentsMeetAnywhere(t *testing.T) {
	for _, sets := range []bool{true, false} {
		t.Run(fmt.Sprintf("sets %v", sets), func(t *testing.T) { segmentsMeetAnywhere(t, sets) })
	}
}

func segmentsMeetAnywhere(t *testing.T, sets bool) {
	// A file that grew while it was uploaded keeps the segment it ended with.
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier, o.CacheSize = "expedited", 24<<20 })
		data := blob("f", 4<<20+1234)
		cut := []int{0, 1<<20 + 5, 3<<20 - 7, len(data)}
		for i := range 3 {
			v := uint64(1)
			if i > 0 {
				v = 2
			}
			m := Metadata{Intent: "0123456789", Ino: 5, V: v, Size: int64(len(data)), Mode: 0o644, Seg: i, Segs: 3, Path: "f"}
			if i == 0 {
				m.Segs, m.Size = 1, 1<<20+5
			}
			m.Intent += fmt.Sprint(i)
			if sets && i > 0 {
				m.Set, m.Off = setOf([]string{"01234567890", "01234567891", "01234567892"}), int64(cut[i])
			}
			r.upload(formatDescription(m), data[cut[i]:cut[i+1]])
		}
		r.inventory()
		a, err := r.e.Lookup(t.Context(), r.vault, "f")
		if err != nil || a.Size != int64(len(data)) || len(r.files()) != 1 {
			t.Fatalf("%+v, %v, files %q", a, err, r.files())
		}
		r.want(a.Ino, data, 2<<20, 100)
		r.jobs(2) // the inventory's and one segment's
		r.want(a.Ino, data, 0, len(data))
		r.jobs(4)
		time.Sleep(time.Minute)
		if got := r.state(a.Ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		if _, err := r.e.Evict(t.Context(), []uint64{a.Ino}, false); err != nil || r.used() != 0 {
			t.Errorf("%d bytes are left, %v", r.used(), err)
		}
	})
}

// TestNewerVersionOfAFileInUse: it is shown beside the file, which stays, and so does what it consists of.
func TestNewerVersionOfAFileInUse(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier, o.TrashAge = "expedited", time.Hour })
		ctx := t.Context()
		upload := func(v uint64) []byte {
			data := blob(fmt.Sprint(v), int(300+v))
			m := Metadata{Intent: fmt.Sprintf("01234567-%d", v), Ino: 5, V: v, Size: int64(len(data)), Mode: 0o644, Born: 7, Path: "f"}
			r.upload(formatDescription(m), data)
			time.Sleep(time.Hour)
			return data
		}
		first := upload(1)
		r.inventory()
		a, err := r.e.Lookup(ctx, r.vault, "f")
		if err != nil {
			t.Fatal(err)
		}
		r.want(a.Ino, first, 0, 1000)
		time.Sleep(time.Minute)
		h, err := r.e.Open(ctx, Caller{}, a.Ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		second := upload(2)
		r.inventory()
		h.Release()
		if n := r.archives(); n[catalog.Trash] != 0 || n[catalog.Live] != 2 {
			t.Errorf("archives %v", n)
		}
		if files := r.files(); len(files) != 2 {
			t.Fatalf("files %q", files)
		}
		r.cold()
		time.Sleep(rebuildGrace + 24*time.Hour)
		r.want(a.Ino, first, 0, 1000)
		for _, i := range r.tree() {
			if isRegular(i.Mode) && i.Ino != a.Ino {
				r.want(i.Ino, second, 0, 1000)
			}
		}
		// Whoever deletes the file has it in the trash, as ever.
		if err := r.e.Unlink(ctx, r.vault, "f"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := r.archives(); n[catalog.Live] != 1 {
			t.Errorf("archives after the file was deleted: %v", n)
		}
	})
}

func TestStateDirectoryOfYesterday(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		r.coldFile("before", 100)
		r.stop()
		backup := filepath.Join(t.TempDir(), "backup")
		if err := os.CopyFS(backup, os.DirFS(r.opts.StateDir)); err != nil {
			t.Fatal(err)
		}
		r.start()
		lost := make(map[string][]byte)
		var inos []uint64
		for _, name := range []string{"lost1", "lost2", "lost3"} {
			ino, data := r.coldFile(name, 500)
			lost[name] = data
			inos = append(inos, ino)
		}
		// The disk dies; what is restored knows nothing of them and uses their numbers again.
		r.stop()
		r.opts.StateDir = backup
		r.start()
		again := false
		for _, name := range []string{"new1", "new2", "new3"} {
			ino, data := r.coldFile(name, 700)
			lost[name] = data
			again = again || slices.Contains(inos, ino)
		}
		if !again {
			t.Log("inode numbers are not used again")
		}
		r.inventory()
		if n := r.archives(); n[catalog.Trash] != 0 || n[catalog.Live] != 7 {
			t.Errorf("archives %v", n)
		}
		tree := r.tree()
		for name, data := range lost {
			r.want(tree[name].Ino, data, 0, 1000)
		}
	})
}

// rewrite replaces the content of a file, archives it and drops the local copy.
func (r *recallRig) rewrite(ino uint64, data []byte) {
	r.t.Helper()
	ctx := context.Background()
	h, err := r.e.Open(ctx, Caller{}, ino, OpenFlags{Write: true, Truncate: true})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, Caller{}, data, 0); err != nil {
		r.t.Fatal(err)
	}
	h.Release()
	r.cold(ino)
}

// After an older state directory was restored, inode and version numbers are given out twice. A rebuild from the vault must take
// none of what was written before and after for an older version of the other.
func TestRebuildAfterRollback(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"single": 0, "segments": 5 << 20} {
		t.Run(name, func(t *testing.T) { inBubble(t, func(t *testing.T) { rebuildAfterRollback(t, more) }) })
	}
}

// rebuildAfterRollback is about files of more bytes than a few.
func rebuildAfterRollback(t *testing.T, more int) {
	r := newRecallRig(t, realistic, func(o *Options) {
		o.Tier = "expedited"
		o.PartSize, o.SegmentSize, o.SingleBelow = 1<<20, 2<<20, 1<<20
	})
	blob := func(name string, n int) []byte { return blob(name, n+more) }
	kept, _ := r.coldFile("kept", 100+more)
	ahead, _ := r.coldFile("ahead", 100+more)
	r.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(r.opts.StateDir)); err != nil {
		t.Fatal(err)
	}
	r.start()
	want := make(map[string]bool) // contents
	keep := func(data []byte) []byte {
		want[string(data)] = true
		return data
	}
	lost := make(map[uint64]bool)
	for _, name := range []string{"lost1", "lost2", "lost3"} {
		ino, data := r.coldFile(name, 500+more)
		keep(data)
		lost[ino] = true
		time.Sleep(time.Minute)
	}
	// One file gets further before than after.
	r.rewrite(kept, blob("kept v2", 510))
	s, err := r.e.Stat(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	second := s.Archives
	r.rewrite(kept, keep(blob("kept v3", 520)))
	r.rewrite(ahead, keep(blob("ahead v2", 530)))
	time.Sleep(time.Hour)
	r.stop()
	r.opts.StateDir = backup
	r.start()
	again := 0
	for _, name := range []string{"new1", "new2", "new3"} {
		ino, _ := r.coldFile(name, 700+more)
		r.rewrite(ino, keep(blob(name+" v2", 710)))
		if lost[ino] {
			again++
		}
		time.Sleep(time.Minute)
	}
	if again == 0 {
		t.Fatal("no inode number was used again: this tests nothing")
	}
	r.rewrite(kept, keep(blob("kept again", 720)))
	r.rewrite(ahead, blob("ahead again", 730))
	r.rewrite(ahead, keep(blob("ahead again v3", 740)))
	// Nothing but the times tells that "kept v3" was not made of "kept again".
	for _, a := range second {
		r.deleteArchive(a.ID)
	}
	r.newMachine()
	r.inventory()
	for path, i := range r.tree() {
		if !isRegular(i.Mode) {
			continue
		}
		data, err := r.read(t.Context(), i.Ino, 0, 1000+more)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		delete(want, string(data))
	}
	for data := range want {
		t.Errorf("a file of %d bytes is not shown", len(data))
	}
	before := r.archives()
	r.inventory()
	if again := r.archives(); !maps.Equal(again, before) {
		t.Errorf("another inventory makes %v of %v", again, before)
	}
}

// TestRebuildInAnyOrder: two histories of a file in which no version number is the same, since not every
// version became an archive. Both end with an archive that nothing replaces, however the inventory is sorted, and cut.
func TestRebuildInAnyOrder(t *testing.T) {
	t.Parallel()
	type made struct {
		v, hour uint64
	}
	// 1, then 5 before and 2 and 6 after an older state directory was restored.
	all := []made{{1, 1}, {5, 2}, {2, 3}, {6, 4}}
	var orders [][]made
	var permute func(head, rest []made)
	permute = func(head, rest []made) {
		if len(rest) == 0 {
			orders = append(orders, slices.Clone(head))
		}
		for i, x := range rest {
			permute(append(slices.Clone(head), x), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	permute(nil, all)
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, nil)
		rc := r.e.recall
		began := time.Now()
		time.Sleep(24 * time.Hour)
		for k, order := range orders {
			for _, batch := range []int{1, 2, 4} {
				name := fmt.Sprintf("f%d-%d", k, batch)
				m := merger{r: rc, inv: &inventory{ino: r.vault, name: "v", first: true}, stamp: time.Now().UnixNano()}
				for i, x := range order {
					data := blob(fmt.Sprint(name, x), 100+int(x.v))
					md := Metadata{Intent: fmt.Sprintf("01234567%s-%d-%d", name, x.v, x.hour), Ino: uint64(1000 + 10*k + batch), Born: 7, V: x.v,
						Size: int64(len(data)), Mode: 0o644, Path: name}
					if err := m.add(cas.InventoryEntry{
						ArchiveID: fmt.Sprint(name, "-v", x.v), Size: int64(len(data)), TreeHash: cas.TreeHash(data),
						CreationDate: began.Add(time.Duration(x.hour) * time.Hour), Description: formatDescription(md),
					}); err != nil {
						t.Fatal(err)
					}
					if (i+1)%batch == 0 {
						if err := m.flush(); err != nil {
							t.Fatal(err)
						}
					}
				}
				for _, v := range []int{5, 6} {
					err := r.e.catalog.View(func(tx *catalog.Tx) error {
						a, err := tx.ArchiveByID(r.vault, fmt.Sprint(name, "-v", v))
						if err != nil {
							return err
						}
						if used, err := inUse(tx, a); err != nil || !used || a.State != catalog.Live {
							t.Errorf("%v, %d at once: version %d is in use %v, state %d, %v", order, batch, v, used, a.State, err)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}
