package fs

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// elsewhere is a directory on another file system than the state directories of tests.
func elsewhere(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "casfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if stat(t, dir).Dev == stat(t, t.TempDir()).Dev {
		t.Fatalf("%s and the directories of tests are on one file system", dir)
	}
	return dir
}

// TestCacheElsewhere: with the cache on another file system a recalled file is copied into staging when it is changed. Whoever
// has it open meanwhile, in whatever way, sees and keeps every write.
func TestCacheElsewhere(t *testing.T) {
	x := mountForTest(t, local.Delays{}, func(j *jobs.Options, _ *Options) { j.CacheDir = elsewhere(t) })
	p := x.path("f")
	data := fill(3<<20, 1)
	write(t, p, data)
	x.cold(p)
	wantContent(t, p, data) // it is in the cache now
	open := func(flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(p, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	same := func(what string, r io.ReaderAt) {
		t.Helper()
		got := make([]byte, len(data)+1)
		n, err := r.ReadAt(got, 0)
		if err != io.EOF || !bytes.Equal(got[:n], data) {
			t.Errorf("%s: %d bytes of %d, %v, first difference at %d", what, n, len(data), err, firstDiff(got[:n], data))
		}
	}
	early, both := open(os.O_RDONLY), open(os.O_RDWR)
	same("a reader", early)
	change := func(f *os.File, text string, off int64) {
		t.Helper()
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			t.Fatal(err)
		}
		copy(data[off:], text)
	}
	change(both, "the first change copies it", 1<<20)
	late, writer := open(os.O_RDONLY), open(os.O_WRONLY)
	change(writer, "the second does not", 2<<20)
	for name, f := range map[string]*os.File{"opened before": early, "that wrote": both, "opened after": late} {
		same("a handle "+name, f)
	}
	// Archived with all of them open, then changed again.
	x.archive()
	change(both, "and again", 100)
	same("a reader from the beginning", early)
	for _, f := range []*os.File{early, both, late, writer} {
		f.Close()
	}
	x.archive()
	wantContent(t, p, data)
	// Through a shared mapping, by a program of its own, beside a reader of what is in the cache.
	x.cold(p)
	wantContent(t, p, data)
	early = open(os.O_RDONLY)
	model := t.TempDir() + "/model"
	write(t, model, data)
	if out, err := programCmd("mmap", p, model, "elsewhere").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, p, data)
	early.Close()
	x.archive()
	x.cold(p)
	wantContent(t, p, data)
	x.remount()
	wantContent(t, p, data)
	x.cold(p)
	wantContent(t, p, data)
}

func TestPassthroughElsewhere(t *testing.T) {
	testPassthrough(t, func(j *jobs.Options, _ *Options) { j.CacheDir = elsewhere(t) })
}

func TestStatesElsewhere(t *testing.T) {
	testStates(t, envInt(t, "CASFS_STATES_ROUNDS", 80)/4, func(j *jobs.Options) { j.CacheDir = elsewhere(t) })
}
