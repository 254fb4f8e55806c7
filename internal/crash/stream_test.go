package crash

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/built"
)

// memory is the most the daemon ever held, in bytes.
func (d *daemon) memory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var kib int64
	_, text, _ := strings.Cut(string(b), "VmHWM:")
	_, err = fmt.Sscan(text, &kib)
	return kib << 10, err
}

// allocated is what lies on disk below dir.
func allocated(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := os.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			sum += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return sum, err
}

// stamped is a file of zeros with its offset in every 16 MiB, which the store keeps sparse.
type stamped struct{ size int64 }

const (
	stampEvery = 16 << 20
	chunkOf    = 1 << 20
)

// fill makes the bytes at off.
func (s stamped) fill(b []byte, off int64) {
	clear(b)
	if off%stampEvery == 0 {
		binary.BigEndian.PutUint64(b, uint64(off)+1)
	}
}

// TestStreamThroughStaging writes a file many times as long as staging may be. With
// CASFS_TEST_BIG it is 40 GiB through 2 GiB, or as CASFS_STREAM says ("SIZE STAGING" in MiB).
func TestStreamThroughStaging(t *testing.T) {
	built.Require(t)
	size, staging := int64(512<<20), int64(64<<20)
	if os.Getenv("CASFS_TEST_BIG") != "" {
		size, staging = 40<<30, 2<<30
	}
	if s := os.Getenv("CASFS_STREAM"); s != "" {
		if _, err := fmt.Sscan(s, &size, &staging); err != nil {
			t.Fatal(err)
		}
		size, staging = size<<20, staging<<20
	}
	cache := int64(64 << 20)
	if size <= 1<<30 {
		cache = 2 * size
	}
	m := newMachine(t, false, "--standard", "20ms", "--inventory", "20ms", "--staging-size", fmt.Sprint(staging),
		"--cache-size", fmt.Sprint(cache), "--staging-wait", "1m", "--recall-guard-bytes", "0")
	d := m.launch("", nil)
	v := filepath.Join(m.mnt, "v")
	if err := os.Mkdir(v, 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(v, "long")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	data := stamped{size + 12345}
	began := time.Now()
	b := make([]byte, chunkOf)
	var mostDisk int64
	looked := time.Now()
	for off := int64(0); off < data.size; off += chunkOf {
		p := b[:min(chunkOf, data.size-off)]
		data.fill(p, off)
		if _, err := out.Write(p); err != nil {
			t.Fatalf("at %d MiB after %v: %v", off>>20, time.Since(began), err)
		}
		if time.Since(looked) > 100*time.Millisecond {
			looked = time.Now()
			n, err := allocated(m.path("state"))
			if err != nil {
				t.Fatal(err)
			}
			mostDisk = max(mostDisk, n)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	written := time.Since(began)
	m.casfs("sync", name)
	archived := time.Since(began)
	memory, err := d.memory()
	if err != nil {
		t.Fatal(err)
	}
	store, err := allocated(m.path("store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB through %d MiB: written in %v (%.0f MiB/s), archived after %v; %d MiB on disk at most, %d MiB of memory, %d MiB in the store",
		size>>20, staging>>20, written.Round(time.Millisecond), float64(size>>20)/written.Seconds(), archived.Round(time.Millisecond),
		mostDisk>>20, memory>>20, store>>20)
	if limit := staging + staging/10 + 100<<20; mostDisk > limit { // the catalog's reserve and badger's tables
		t.Errorf("%d MiB on disk", mostDisk>>20)
	}
	if !built.Race && memory > 300<<20 { // the race detector has memory of its own
		t.Errorf("%d MiB of memory", memory>>20)
	}
	st, err := os.Stat(name)
	if err != nil || st.Size() != data.size {
		t.Fatalf("%v, %v", st.Size(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := d.control.Stat(ctx, []uint64{st.Sys().(*syscall.Stat_t).Ino})
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, a := range list[0].Archives {
		sum += a.Size
	}
	if sum != data.size {
		t.Errorf("%d bytes in %d archives", sum, len(list[0].Archives))
	}
	// Back again: all of it, or 8 places far apart.
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	step := int64(chunkOf)
	if cache > size {
		m.casfs("recall", "--wait", name)
	} else {
		step = size / 8 / stampEvery * stampEvery
	}
	want := make([]byte, chunkOf)
	for off := int64(0); off < data.size; off += step {
		n := min(chunkOf, data.size-off)
		data.fill(want[:n], off)
		if _, err := in.ReadAt(b[:n], off); err != nil && err != io.EOF {
			t.Fatalf("reading at %d: %v", off, err)
		}
		if !bytes.Equal(b[:n], want[:n]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	in.Close()
	m.casfs("umount", m.mnt)
	<-d.dead
}
