package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

func TestLifeOfAFile(t *testing.T) {
	for _, size := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2 << 20, 2<<20 + 1, 8<<20 + 5, 19 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := newRig(t, nil)
			data := pattern(size, 7)
			ino := r.write("file", data)
			r.expect(ino, data)
			r.sync()
			r.wantState(ino, "resident")
			r.expect(ino, data)
			segments := (size + 8<<20 - 1) / (8 << 20)
			r.wantArchives(segments)
			r.reopen()
			r.wantState(ino, "resident")
			r.expect(ino, data)
			if size > 0 {
				r.evict(ino)
				s := r.wantState(ino, "cold")
				if s.LocalBytes != 0 || len(s.Archives) != segments {
					t.Errorf("cold: %+v", s)
				}
				a, err := r.e.Getattr(context.Background(), ino)
				r.must(err)
				if a.Blocks != 1 {
					t.Errorf("%d blocks of a cold file", a.Blocks)
				}
				r.expect(ino, data)
				r.wantState(ino, "resident")
			}
			var bad []string
			r.must(r.e.checkLocal(context.Background(), false, func(p string) { bad = append(bad, p) }))
			if len(bad) > 0 {
				t.Errorf("check: %v", bad)
			}
		})
	}
}

func TestRewrite(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	data := pattern(3<<20, 1)
	ino := r.write("f", data)
	r.sync()

	// In place, resident.
	h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	copy(data[100:], "changed")
	r.writeAll(h, []byte("changed"), 100)
	h.Release()
	r.expect(ino, data)
	r.sync()
	r.expect(ino, data)
	if v := r.wantState(ino, "resident").Version; v != 2 {
		t.Errorf("version %d", v)
	}

	// Append to a cold file recalls it.
	r.evict(ino)
	h, err = r.e.Open(ctx, someone, ino, OpenFlags{Write: true, Append: true})
	r.must(err)
	r.writeAll(h, []byte("tail"), int64(len(data)))
	data = append(data, "tail"...)
	h.Release()
	r.sync()
	r.expect(ino, data)

	// Truncating a cold file does not.
	r.evict(ino)
	jobs := r.recalls()
	data = pattern(100, 3)
	if got := r.write("f", data); got != ino {
		t.Fatalf("inode %d, want %d", got, ino)
	}
	if n := r.recalls(); n != jobs {
		t.Errorf("%d jobs to truncate", n-jobs)
	}
	r.expect(ino, data)
	r.sync()
	r.evict(ino)
	r.expect(ino, data)

	// Shrinking and growing by truncate.
	for _, size := range []int64{50, 0, 1 << 20, 10} {
		_, err := r.e.Setattr(ctx, someone, ino, nil, SetAttr{Size: &size})
		r.must(err)
		grown := make([]byte, size)
		copy(grown, data)
		data = grown
		r.expect(ino, data)
		r.sync()
		r.expect(ino, data)
	}
	list, err := r.e.Trash(ctx)
	r.must(err)
	if len(list) != 6 {
		t.Errorf("%d archives in the trash", len(list))
	}
	for _, x := range list {
		if d := x.Deadline.Sub(x.Uploaded); d != 90*24*time.Hour {
			t.Errorf("deadline after %s", d)
		}
		if x.Path != "/v/f" {
			t.Errorf("path %q", x.Path)
		}
	}
}

func TestSameContentWhileReadersHoldTheDescriptor(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	ino := r.write("f", []byte("old content"))
	r.sync()
	reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
	r.must(err)
	if !reader.Local() || reader.Fd() < 0 {
		t.Fatal("a resident file is not local")
	}
	peek := func() string {
		b := make([]byte, 100)
		n, err := os.NewFile(dup(t, reader.Fd()), "").ReadAt(b, 0)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := peek(); got != "old content" {
		t.Fatalf("%q", got)
	}
	r.write("f", []byte("new"))
	if got := peek(); got != "new" {
		t.Errorf("descriptor shows %q after a rewrite", got)
	}
	second, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
	r.must(err)
	if second.Fd() != reader.Fd() {
		t.Errorf("descriptors %d and %d while both are open", second.Fd(), reader.Fd())
	}
	r.sync()
	if got := peek(); got != "new" {
		t.Errorf("descriptor shows %q after the upload", got)
	}
	r.writeAll(second, []byte("NEW!"), 0)
	if got := peek(); got != "NEW!" {
		t.Errorf("descriptor shows %q after another rewrite", got)
	}
	second.Release()
	reader.Release()
	r.sync()
	r.evict(ino)
	r.expect(ino, []byte("NEW!"))
}

// The kernel may finish a later open first; an open that did not get the descriptor
// fails with EIO then. Only a call on the handle tells that its open is over.
func TestWriterOpenedBeforeTheDescriptorIsGivenOut(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	ino := r.write("f", []byte("content"))
	r.sync()
	for what, call := range map[string]func(*Handle){
		"flush":   func(h *Handle) { r.must(h.Flush(ctx)) },
		"write":   func(h *Handle) { r.writeAll(h, []byte("c"), 0) },
		"release": func(h *Handle) { h.Release() },
	} {
		writer, err := r.e.Open(ctx, someone, ino, OpenFlags{Write: true})
		r.must(err)
		if writer.Local() {
			t.Fatal("a first handle that writes got the descriptor")
		}
		for _, want := range []bool{false, true} {
			reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
			r.must(err)
			if reader.Local() != want {
				t.Errorf("%s: local %v, want %v", what, reader.Local(), want)
			}
			reader.Release()
			call(writer)
		}
		writer.Release()
		r.sync()
	}
}

func TestUnlink(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = time.Hour })
	ctx := context.Background()
	// Never settled: never uploaded.
	ino := r.write("a", []byte("short-lived"))
	r.must(r.e.Unlink(ctx, r.vault, "a"))
	r.sync()
	eventually(t, func() bool {
		_, err := r.e.Getattr(ctx, ino)
		return errors.Is(err, catalog.ErrNotExist)
	})
	r.wantArchives(0)
	if st := r.e.catalog.Stats(); st.StagedFiles != 0 {
		t.Errorf("%d staged files", st.StagedFiles)
	}

	// Open while unlinked.
	a, h, err := r.e.Create(ctx, someone, r.vault, "b", 0o600, OpenFlags{Read: true, Write: true})
	r.must(err)
	r.writeAll(h, []byte("still here"), 0)
	r.must(r.e.Unlink(ctx, r.vault, "b"))
	time.Sleep(50 * time.Millisecond)
	if got := r.readHandle(h); string(got) != "still here" {
		t.Errorf("%q", got)
	}
	if b, err := r.e.Getattr(ctx, a.Ino); err != nil || b.Nlink != 0 || b.Size != 10 {
		t.Errorf("%+v, %v", b, err)
	}
	h.Release()
	eventually(t, func() bool {
		_, err := r.e.Getattr(ctx, a.Ino)
		return errors.Is(err, catalog.ErrNotExist)
	})

	// Archived: to the trash.
	r.write("c", []byte("archived"))
	r.sync()
	r.must(r.e.Unlink(ctx, r.vault, "c"))
	eventually(t, func() bool {
		list, err := r.e.Trash(ctx)
		return err == nil && len(list) == 1
	})
	if err := r.e.Rmdir(ctx, catalog.RootIno, "v"); !errors.Is(err, ErrBusy) {
		t.Errorf("rmdir of a vault with trash: %v", err)
	}
	n, err := r.e.Purge(ctx, nil)
	if err != nil || n != 1 {
		t.Errorf("purge: %d, %v", n, err)
	}
	r.wantArchives(0)
	r.must(r.e.Rmdir(ctx, catalog.RootIno, "v"))
	if len(r.e.store.List()) != 0 {
		t.Errorf("local files left: %v", r.e.store.List())
	}
}

func TestVaults(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	if _, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "not a name", 0o755); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("%v", err)
	}
	a, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "w", 0o750)
	r.must(err)
	if a.Mode&0o777 != 0o750 || a.UID != 1000 {
		t.Errorf("%+v", a)
	}
	if _, err := r.e.Mkdir(ctx, someone, catalog.RootIno, "w", 0o750); !errors.Is(err, catalog.ErrExist) {
		t.Errorf("%v", err)
	}
	if b, err := r.e.Getxattr(ctx, a.Ino, "user.cas.qcs"); err != nil || !strings.HasSuffix(string(b), "vaults/w") {
		t.Errorf("%q, %v", b, err)
	}
	if _, _, err := r.e.Create(ctx, someone, catalog.RootIno, "file", 0o644, OpenFlags{Write: true}); !errors.Is(err, catalog.ErrPerm) {
		t.Errorf("a file beside vaults: %v", err)
	}
	// Gone at the service, but nothing is forgotten.
	r.must(r.client.DeleteVault(ctx, "w"))
	r.must(r.e.Probe(ctx))
	st, err := r.e.Status(ctx)
	r.must(err)
	if len(st.Problems) != 1 || st.Vaults != 2 {
		t.Errorf("%+v", st)
	}
	r.must(r.e.Rmdir(ctx, catalog.RootIno, "w"))
	if _, err := r.e.Lookup(ctx, catalog.RootIno, "w"); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func dup(t testing.TB, fd int) uintptr {
	t.Helper()
	n, err := dupFd(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(n)
}

// A shared mapping of a descriptor the kernel uses itself stores past the engine; a write to the descriptor does the same.
func TestStoresPastTheEngine(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	data := pattern(100<<10, 1)
	ino := r.write("f", data)
	r.sync()
	r.evict(ino)
	r.expect(ino, data) // recalled: the local file's mtime is another
	r.wantState(ino, "resident")
	mtime := func() int64 {
		a, err := r.e.Getattr(ctx, ino)
		r.must(err)
		return a.Mtime
	}
	before := mtime()
	open := func(fl OpenFlags) *Handle {
		h, err := r.e.Open(ctx, someone, ino, fl)
		r.must(err)
		return h
	}
	reader := open(OpenFlags{Read: true})
	writer := open(OpenFlags{Read: true, Write: true})
	if !writer.Local() || writer.Fd() != reader.Fd() {
		t.Fatalf("descriptors %d and %d", reader.Fd(), writer.Fd())
	}
	// Nothing is stored: nothing has happened.
	writer.Release()
	if s := r.wantState(ino, "resident"); s.Version != 1 {
		t.Errorf("version %d of a file nobody wrote to", s.Version)
	}
	if mtime() != before {
		t.Error("its mtime has moved")
	}

	store := func(off int) {
		copy(data[off:], "stored")
		f := os.NewFile(dup(t, writer.Fd()), "")
		defer f.Close()
		if _, err := f.WriteAt([]byte("stored"), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	// Stored: a new version, also after a crash before the close.
	writer = open(OpenFlags{Read: true, Write: true})
	store(5)
	r.reopen()
	r.expect(ino, data)
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 2 {
		t.Errorf("version %d", s.Version)
	}
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(50)
	writer.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 3 {
		t.Errorf("version %d", s.Version)
	}
	reader.Release()
	r.evict(ino)
	r.expect(ino, data)
	r.wantState(ino, "resident")

	// Another writer, which has no descriptor, is the last to close.
	plain := open(OpenFlags{Write: true})
	r.must(plain.Flush(ctx)) // its open is over
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	if plain.Local() || !writer.Local() {
		t.Fatalf("local: %v, %v", plain.Local(), writer.Local())
	}
	store(70)
	writer.Release()
	plain.Release()
	reader.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 4 {
		t.Errorf("version %d", s.Version)
	}
	// A time that is set afterwards hides the store.
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(90)
	mode, set := uint32(0o600), time.Unix(1e9, 0)
	_, err := r.e.Setattr(ctx, someone, ino, nil, SetAttr{Mode: &mode, Mtime: &set})
	r.must(err)
	writer.Release()
	reader.Release()
	r.sync()
	if s := r.wantState(ino, "resident"); s.Version != 5 {
		t.Errorf("version %d", s.Version)
	}
	r.evict(ino)
	r.expect(ino, data)

	// While the upload is under way.
	reader = open(OpenFlags{Read: true})
	writer = open(OpenFlags{Read: true, Write: true})
	store(500)
	slow := r.srv.Inject(castest.Fault{Op: cas.OpUploadArchive, Kind: castest.Delay, Delay: 100 * time.Millisecond, Count: 1})
	n := r.srv.Count(cas.OpUploadArchive)
	done := make(chan error)
	go func() { done <- r.e.Sync(ctx, nil, nil) }()
	eventually(t, func() bool { return r.srv.Count(cas.OpUploadArchive) == n+1 })
	store(5000)
	r.must(<-done)
	slow()
	writer.Release()
	reader.Release()
	r.sync()
	r.evict(ino)
	r.expect(ino, data)
}
