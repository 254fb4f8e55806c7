package fs

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
)

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %q: %v", path, err)
	}
	return st
}

func TestTimes(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	write(t, p, []byte("x"))
	set := func(a, m unix.Timespec) unix.Stat_t {
		t.Helper()
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, m}, 0); err != nil {
			t.Fatal(err)
		}
		return stat(t, p)
	}
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	st := set(unix.Timespec{Sec: 1000000000, Nsec: 123456789}, unix.Timespec{Sec: -1000, Nsec: 987654321})
	if st.Atim.Sec != 1000000000 || st.Atim.Nsec != 123456789 || st.Mtim.Sec != -1000 || st.Mtim.Nsec != 987654321 {
		t.Errorf("got atime %v, mtime %v", st.Atim, st.Mtim)
	}
	ctime := st.Ctim
	st2 := set(omit, unix.Timespec{Sec: 5, Nsec: 6})
	if st2.Atim != st.Atim || st2.Mtim.Sec != 5 || st2.Mtim.Nsec != 6 {
		t.Errorf("UTIME_OMIT: got %v, %v", st2.Atim, st2.Mtim)
	}
	if st2.Ctim == ctime {
		t.Error("ctime did not move")
	}
	st3 := set(now, omit)
	if time.Since(time.Unix(st3.Atim.Unix())).Abs() > time.Minute || st3.Mtim != st2.Mtim {
		t.Errorf("UTIME_NOW: got %v, %v", st3.Atim, st3.Mtim)
	}
	// In every state, and over a remount.
	want := set(unix.Timespec{Sec: 7, Nsec: 8}, unix.Timespec{Sec: 9, Nsec: 10})
	x.cold(p)
	x.remount()
	if got := stat(t, p); got.Mtim != want.Mtim || got.Ctim != want.Ctim {
		t.Errorf("after eviction and remount: mtime %v ctime %v, want %v %v", got.Mtim, got.Ctim, want.Mtim, want.Ctim)
	}
	wantContent(t, p, []byte("x"))
	if got := stat(t, p); got.Mtim != want.Mtim || got.Ctim != want.Ctim {
		t.Errorf("after a recall: mtime %v ctime %v, want %v %v", got.Mtim, got.Ctim, want.Mtim, want.Ctim)
	}
}

func TestStatfs(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	var st unix.Statfs_t
	if err := unix.Statfs(x.dir, &st); err != nil {
		t.Fatal(err)
	}
	if total := st.Blocks * uint64(st.Bsize); total < 1<<49 || st.Bavail == 0 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
	if st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("flags %x, want nosuid and nodev", st.Flags)
	}
}
