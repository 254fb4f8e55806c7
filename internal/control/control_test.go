package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/jobs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeEngine answers each verb with what a test put into it.
type fakeEngine struct {
	sync   func(ctx context.Context, inos []uint64, progress func(jobs.Progress)) error
	evict  jobs.EvictResult
	recall func(r jobs.RecallRequest) (jobs.RecallResult, error)
	status jobs.Status
	stat   map[uint64]jobs.FileStatus
	trash  []jobs.TrashEntry
	purge  func(ids []string) (int, error)
	allow  func(files int, bytes int64) error
	vault  string
	check  []string
}

func (f *fakeEngine) Sync(ctx context.Context, inos []uint64, progress func(jobs.Progress)) error {
	return f.sync(ctx, inos, progress)
}
func (f *fakeEngine) Evict(context.Context, []uint64, bool) (jobs.EvictResult, error) {
	return f.evict, nil
}
func (f *fakeEngine) Recall(_ context.Context, r jobs.RecallRequest, _ func(jobs.Progress)) (jobs.RecallResult, error) {
	return f.recall(r)
}
func (f *fakeEngine) Allow(files int, bytes int64) error { return f.allow(files, bytes) }
func (f *fakeEngine) Stat(_ context.Context, ino uint64) (jobs.FileStatus, error) {
	st, ok := f.stat[ino]
	if !ok {
		return st, fmt.Errorf("inode %d: %w", ino, jobs.ErrStale)
	}
	return st, nil
}
func (f *fakeEngine) Status(context.Context) (jobs.Status, error)        { return f.status, nil }
func (f *fakeEngine) Trash(context.Context) ([]jobs.TrashEntry, error)   { return f.trash, nil }
func (f *fakeEngine) Purge(_ context.Context, ids []string) (int, error) { return f.purge(ids) }
func (f *fakeEngine) Inventory(_ context.Context, vault string, _ bool, progress func(jobs.Progress)) error {
	f.vault = vault
	return nil
}
func (f *fakeEngine) Check(_ context.Context, _, _ bool, report func(string)) error {
	for _, p := range f.check {
		report(p)
	}
	return nil
}

// start serves e on a fresh socket and returns a client of it.
func start(t *testing.T, e Engine, change func(*Server)) (*Server, *Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Engine: e, Info: func() Info { return Info{PID: 42, Mountpoint: "/m", Vault: "v"} }}
	if change != nil {
		change(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	c, info, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if info.PID != 42 || info.Mountpoint != "/m" {
		t.Errorf("ping: got %+v", info)
	}
	return s, c
}

func TestRoundTrips(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	e := &fakeEngine{
		status: jobs.Status{Files: 3, Uploads: []jobs.UploadStatus{{Path: "a\nb", Size: 5, Done: 2}}, Since: now},
		stat:   map[uint64]jobs.FileStatus{7: {Path: "x", Ino: 7, State: "cold", ETA: &now}},
		evict:  jobs.EvictResult{Files: 2, Bytes: 9, Skipped: []jobs.Skipped{{Path: "p", Reason: "open"}}},
		trash:  []jobs.TrashEntry{{Vault: "v", ArchiveID: "id", Size: 1, Uploaded: now, Deadline: now}},
		check:  []string{"one", "two"},
	}
	var gotRecall jobs.RecallRequest
	e.recall = func(r jobs.RecallRequest) (jobs.RecallResult, error) {
		gotRecall = r
		return jobs.RecallResult{Local: 1, Pending: 2, Failures: []jobs.Skipped{{Path: "q", Reason: "gone"}}}, nil
	}
	var gotIDs []string
	e.purge = func(ids []string) (int, error) { gotIDs = ids; return len(ids), nil }
	var gotFiles int
	var gotBytes int64
	e.allow = func(files int, bytes int64) error { gotFiles, gotBytes = files, bytes; return nil }
	_, c := start(t, e, func(s *Server) { s.Describe = func(st *jobs.Status) { st.PID = 42 } })
	ctx := t.Context()

	st, err := c.Status(ctx)
	want := e.status
	want.PID = 42
	if err != nil || !reflect.DeepEqual(st, want) {
		t.Errorf("Status: got %+v, %v, want %+v", st, err, want)
	}
	files, err := c.Stat(ctx, []uint64{7})
	if err != nil || len(files) != 1 || !reflect.DeepEqual(files[0], e.stat[7]) {
		t.Errorf("Stat: got %+v, %v", files, err)
	}
	ev, err := c.Evict(ctx, []uint64{1}, true)
	if err != nil || !reflect.DeepEqual(ev, e.evict) {
		t.Errorf("Evict: got %+v, %v", ev, err)
	}
	req := jobs.RecallRequest{Inos: []uint64{1, 2}, Recursive: true, Tier: "bulk", Off: 1 << 20, Len: 1 << 21, Wait: true}
	rr, err := c.Recall(ctx, req, nil)
	if err != nil || rr.Pending != 2 || len(rr.Failures) != 1 || !reflect.DeepEqual(gotRecall, req) {
		t.Errorf("Recall: got %+v, %v; the engine saw %+v", rr, err, gotRecall)
	}
	if err := c.Allow(ctx, 5, 6); err != nil || gotFiles != 5 || gotBytes != 6 {
		t.Errorf("Allow: %v, the engine saw %d files, %d bytes", err, gotFiles, gotBytes)
	}
	tr, err := c.Trash(ctx)
	if err != nil || !reflect.DeepEqual(tr, e.trash) {
		t.Errorf("Trash: got %+v, %v", tr, err)
	}
	if n, err := c.Purge(ctx, []string{"-a", "b"}); err != nil || n != 2 || !reflect.DeepEqual(gotIDs, []string{"-a", "b"}) {
		t.Errorf("Purge: got %d, %v; the engine saw %q", n, err, gotIDs)
	}
	if err := c.Inventory(ctx, "", true, nil); err != nil || e.vault != "v" {
		t.Errorf("Inventory without a name: %v, the engine saw %q, want the mount's vault", err, e.vault)
	}
	var problems []string
	if err := c.Check(ctx, false, false, func(p string) { problems = append(problems, p) }); err != nil || !reflect.DeepEqual(problems, e.check) {
		t.Errorf("Check: got %q, %v", problems, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for _, want := range []error{jobs.ErrPending, jobs.ErrUpload, jobs.ErrGuard, jobs.ErrClosing, cas.ErrUnavailable, cas.ErrClockSkew, context.DeadlineExceeded} {
		e := &fakeEngine{recall: func(jobs.RecallRequest) (jobs.RecallResult, error) {
			return jobs.RecallResult{Failed: 3}, fmt.Errorf("file x: %w", want)
		}}
		_, c := start(t, e, nil)
		r, err := c.Recall(t.Context(), jobs.RecallRequest{}, nil)
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "file x: ") {
			t.Errorf("got %v, want the kind and text of %v", err, want)
		}
		if r.Failed != 3 {
			t.Errorf("the partial result is lost: got %+v", r)
		}
	}
}

func TestProgressArrives(t *testing.T) {
	e := &fakeEngine{sync: func(_ context.Context, inos []uint64, progress func(jobs.Progress)) error {
		for i := range int64(1000) {
			progress(jobs.Progress{FilesDone: i, FilesTotal: 1000, Current: "x"})
		}
		progress(jobs.Progress{FilesDone: 1000, FilesTotal: 1000})
		return nil
	}}
	_, c := start(t, e, nil)
	var last jobs.Progress
	n := 0
	if _, err := c.Sync(t.Context(), []uint64{1}, func(p jobs.Progress) { last = p; n++ }); err != nil {
		t.Fatal(err)
	}
	if last.FilesDone != 1000 || n > 500 {
		t.Errorf("got %d lines, the last %+v; want few, and the final one", n, last)
	}
}

func TestDisconnectCancels(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan error, 1)
	e := &fakeEngine{sync: func(ctx context.Context, _ []uint64, _ func(jobs.Progress)) error {
		close(entered)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}
	_, c := start(t, e, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := c.Sync(ctx, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("client: got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("daemon: got %v", err)
	}
}

func TestDaemonDies(t *testing.T) {
	entered := make(chan struct{})
	e := &fakeEngine{sync: func(ctx context.Context, _ []uint64, progress func(jobs.Progress)) error {
		progress(jobs.Progress{})
		close(entered)
		<-ctx.Done()
		return nil
	}}
	s, c := start(t, e, nil)
	go func() { <-entered; s.http.Close() }()
	if _, err := c.Sync(t.Context(), nil, nil); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}

func TestUnmountWaitsForTheEnd(t *testing.T) {
	replied := make(chan struct{})
	s, c := start(t, &fakeEngine{}, func(s *Server) {
		s.Unmount = func(_ context.Context, r UnmountRequest, _ func(jobs.Progress)) (UnmountReply, error) {
			defer close(replied)
			if r.Timeout != int64(time.Minute) || !r.Lazy {
				t.Errorf("got %+v", r)
			}
			return UnmountReply{Pending: []jobs.Pending{{Path: "left", Size: 3}}}, nil
		}
	})
	type answer struct {
		rep UnmountReply
		err error
	}
	got := make(chan answer, 1)
	go func() {
		rep, err := c.Unmount(t.Context(), UnmountRequest{Lazy: true, Timeout: int64(time.Minute)}, nil)
		got <- answer{rep, err}
	}()
	<-replied
	s.Finish(10 * time.Second) // returns when the reply is out
	select {
	case a := <-got:
		t.Fatalf("the verb returned (%+v) before the daemon was gone", a)
	default:
	}
	s.Close()
	if a := <-got; a.err != nil || len(a.rep.Pending) != 1 || a.rep.Pending[0].Path != "left" {
		t.Errorf("got %+v", a)
	}
}

func TestFinishAnswersWhoWaits(t *testing.T) {
	entered := make(chan struct{})
	e := &fakeEngine{sync: func(ctx context.Context, _ []uint64, _ func(jobs.Progress)) error {
		close(entered)
		<-ctx.Done()
		return jobs.ErrClosing
	}}
	s, c := start(t, e, nil)
	go func() { <-entered; s.Finish(10 * time.Second) }()
	if _, err := c.Sync(t.Context(), nil, nil); !errors.Is(err, jobs.ErrClosing) {
		t.Errorf("got %v, want ErrClosing", err)
	}
}

// TestFinishWhileOthersAsk: requests come in while the last ones are waited for.
func TestFinishWhileOthersAsk(t *testing.T) {
	for range 50 {
		entered := make(chan struct{})
		e := &fakeEngine{sync: func(ctx context.Context, _ []uint64, _ func(jobs.Progress)) error {
			close(entered)
			<-ctx.Done()
			return jobs.ErrClosing
		}}
		s, c := start(t, e, nil)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						c.Trash(t.Context()) // may fail: its context ends
					}
				}
			})
		}
		synced := make(chan error, 1)
		go func() {
			_, err := c.Sync(t.Context(), nil, nil)
			synced <- err
		}()
		<-entered
		s.Finish(10 * time.Second)
		close(stop)
		wg.Wait()
		if err := <-synced; !errors.Is(err, jobs.ErrClosing) {
			t.Errorf("got %v, want ErrClosing", err)
		}
	}
}

func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "control")
	if len(path) <= maxSocketPath {
		t.Fatal("the path is not long enough to test anything")
	}
	for range 2 { // the second replaces what a killed daemon left
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 || st.Mode()&os.ModeSocket == 0 {
			t.Fatalf("got %v, %v, want a socket of mode 0600", st, err)
		}
		conn, err := DialSocket(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.(*listener).UnixListener.SetUnlinkOnClose(false)
		l.Close()
	}
	os.Remove(path)
	if _, _, err := Dial(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no casfs answers") {
		t.Errorf("dial without a daemon: got %v", err)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	e := &fakeEngine{sync: func(context.Context, []uint64, func(jobs.Progress)) error { panic("boom") }}
	_, c := start(t, e, nil)
	if _, err := c.Sync(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after a crash of one request: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	_, c := start(t, &fakeEngine{}, nil)
	if _, err := call[none](t.Context(), c, "frobnicate", none{}, nil, nil); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("unknown verb: got %v", err)
	}
	if _, err := call[none](t.Context(), c, verbStat, map[string]string{"inos": "x"}, nil, nil); err == nil || !strings.Contains(err.Error(), "bad request") {
		t.Errorf("bad body: got %v", err)
	}
}

// TestJSONNames: what scripts read from --json has one kind of names, whichever type it comes from.
func TestJSONNames(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || seen[typ] {
			return
		}
		seen[typ] = true
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, "- ") {
				t.Errorf("%v.%s is called %q in JSON", typ, f.Name, name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[jobs.Status]())
	walk(reflect.TypeFor[jobs.FileStatus]())
	walk(reflect.TypeFor[Info]())
}
