package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// coldFiles makes n cold files of size bytes.
func (r *recallRig) coldFiles(n, size int) []uint64 {
	r.t.Helper()
	inos := make([]uint64, n)
	for i := range inos {
		name := fmt.Sprintf("f%03d", i)
		inos[i] = r.write(name, blob(name, size))
	}
	r.cold()
	return inos
}

// openAll opens and reads every file at once, as a parallel sweep does, until
// ctx ends; it returns how often each error came.
func (r *recallRig) openAll(ctx context.Context, inos []uint64) map[string]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := make(map[string]int)
	for _, ino := range inos {
		wg.Go(func() {
			_, err := r.read(ctx, ino, 0, 10)
			kind := "ok"
			for name, e := range map[string]error{"guard": ErrGuard, "denied": ErrDenied, "again": ErrAgain, "ctx": context.DeadlineExceeded} {
				if errors.Is(err, e) {
					kind, err = name, nil
				}
			}
			if err != nil {
				kind = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			got[kind]++
		})
	}
	wg.Wait()
	return got
}

func TestGuardBoundsAParallelSweep(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.GuardFiles = 10 })
		inos := r.coldFiles(50, 1000)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		if got := r.openAll(ctx, inos); got["guard"] != 40 || got["ctx"] != 10 {
			t.Errorf("got %v", got)
		}
		r.jobs(10)
		var why string
		for _, ino := range inos {
			if s, err := r.e.Stat(t.Context(), ino); err == nil && s.State == "cold" && strings.Contains(s.Error, "casfs allow") {
				why = s.Error
			}
		}
		if why == "" {
			t.Error("no file says why it was refused")
		}
		// The limit holds over a restart, and falls with the count.
		r.restart()
		ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if got := r.openAll(ctx, inos); got["guard"] != 40 {
			t.Errorf("after a restart: %v", got)
		}
		time.Sleep(4 * time.Hour)
		ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if got := r.openAll(ctx, inos); got["ok"] != 10 || got["ctx"] != 10 || got["guard"] != 30 {
			t.Errorf("when the first are there: %v", got)
		}
		r.jobs(20)
		if err := r.e.Allow(15, 0); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if got := r.openAll(ctx, inos); got["ok"] != 10 || got["ctx"] != 25 || got["guard"] != 15 {
			t.Errorf("with an allowance: %v", got)
		}
		r.jobs(35)
		// Explicit recalls are not its business.
		res, err := r.e.Recall(t.Context(), RecallRequest{Inos: []uint64{r.vault}, Recursive: true, Wait: true}, nil)
		if err != nil || res.Local != 50 {
			t.Errorf("%+v, %v", res, err)
		}
		r.jobs(50)
	})
}

func TestGuardNeverStopsASerialReader(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.GuardFiles, o.Tier = 1, "expedited" })
		for i, ino := range r.coldFiles(5, 1000) {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), 1000), 0, 1000)
		}
		r.jobs(5)
	})
}

func TestGuardBoundsBytesPerDay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.GuardBytes, o.Tier = 3500, "expedited" })
		inos := r.coldFiles(8, 1000)
		for i, ino := range inos[:3] {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), 1000), 0, 1000)
		}
		if _, err := r.read(t.Context(), inos[3], 0, 10); !errors.Is(err, ErrGuard) {
			t.Errorf("got %v", err)
		}
		r.restart()
		if _, err := r.read(t.Context(), inos[3], 0, 10); !errors.Is(err, ErrGuard) {
			t.Errorf("after a restart: %v", err)
		}
		r.jobs(3)
		time.Sleep(25 * time.Hour)
		r.want(inos[3], blob("f003", 1000), 0, 1000)
		r.jobs(4)
	})
}

func TestQueueModeMeetsTheGuard(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Recall, o.GuardFiles = RecallQueue, 7 })
		inos := r.coldFiles(20, 100)
		for i, ino := range inos { // one after the other: nothing is made for what is refused
			want := ErrAgain
			if i >= 7 {
				want = ErrGuard
			}
			if _, err := r.read(t.Context(), ino, 0, 10); !errors.Is(err, want) {
				t.Errorf("file %d: %v, want %v", i, err, want)
			}
		}
		time.Sleep(time.Minute)
		if got := len(r.e.store.List()); got != 7 {
			t.Errorf("%d local files were made for 7 recalls", got)
		}
		for range 3 {
			if got := r.openAll(context.Background(), inos); got["again"] != 7 || got["guard"] != 13 {
				t.Errorf("got %v", got)
			}
			time.Sleep(time.Minute)
		}
		r.jobs(7)
	})
}

// fakeProc makes a /proc of processes: pid → comm, thread group, command line.
func fakeProc(t *testing.T, procs map[int][3]string) {
	t.Helper()
	old := procDir
	procDir = t.TempDir()
	t.Cleanup(func() { procDir = old })
	for pid, p := range procs {
		dir := filepath.Join(procDir, fmt.Sprint(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"comm": p[0] + "\n", "status": "Name:\t" + p[0] + "\nUmask:\t0022\nTgid:\t" + p[1] + "\nPid:\t1\n", "cmdline": p[2] + "\x00-x\x00",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDeniedCommands(t *testing.T) {
	fakeProc(t, map[int][3]string{
		10: {"updatedb", "10", "/usr/bin/updatedb"},
		11: {"pool-tracker", "12", "x"},
		12: {"tracker-extract", "12", "/usr/libexec/tracker-extract-3"},
		13: {"totem-video-thu", "13", "/usr/bin/totem-video-thumbnailer"},
		14: {"cp", "14", "cp"},
		15: {"totem-video-thu", "15", "something else"},
	})
	deny := []string{"updatedb", "tracker*", "*thumbnailer"}
	for pid, want := range map[uint32]string{10: "updatedb", 11: "tracker*", 12: "tracker*", 13: "*thumbnailer", 14: "", 15: "", 99: "", 0: ""} {
		if _, got := deniedComm(deny, pid); got != want {
			t.Errorf("pid %d: %q, want %q", pid, got, want)
		}
	}
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.DenyComm = deny })
		ino, _ := r.coldFile("f", 100)
		if _, err := r.e.Open(t.Context(), Caller{PID: 10}, ino, OpenFlags{Read: true}); !errors.Is(err, ErrDenied) {
			t.Errorf("updatedb: %v", err)
		}
		h, err := r.e.Open(t.Context(), Caller{PID: 14}, ino, OpenFlags{Read: true})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		if _, err := h.ReadAt(t.Context(), Caller{PID: 13}, make([]byte, 10), 0); !errors.Is(err, ErrDenied) {
			t.Errorf("a thumbnailer with another's handle: %v", err)
		}
		r.jobs(0)
	})
}
