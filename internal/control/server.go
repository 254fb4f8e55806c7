package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/casfs/casfs/jobs"
)

// Engine is what requests are answered with; *jobs.Engine is one.
type Engine interface {
	Sync(ctx context.Context, inos []uint64, progress func(jobs.Progress)) error
	Evict(ctx context.Context, inos []uint64, recursive bool) (jobs.EvictResult, error)
	Recall(ctx context.Context, r jobs.RecallRequest, progress func(jobs.Progress)) (jobs.RecallResult, error)
	Allow(files int, bytes int64) error
	Stat(ctx context.Context, ino uint64) (jobs.FileStatus, error)
	Status(ctx context.Context) (jobs.Status, error)
	Trash(ctx context.Context) ([]jobs.TrashEntry, error)
	Purge(ctx context.Context, archiveIDs []string) (int, error)
	Inventory(ctx context.Context, vault string, wait bool, progress func(jobs.Progress)) error
	Check(ctx context.Context, inventory, repair bool, report func(problem string)) error
}

var _ Engine = (*jobs.Engine)(nil)

// Server answers requests of verbs. Its fields are set before Serve.
type Server struct {
	Engine Engine
	// Info says who answers; called for every ping.
	Info func() Info
	// Describe adds to a status what the engine does not know; may be nil.
	Describe func(*jobs.Status)
	// Unmount drains and unmounts. When it returned nil the daemon is expected to exit soon; the connection is held
	// open until it does, which is how the verb learns that the process is gone.
	Unmount func(ctx context.Context, r UnmountRequest, progress func(jobs.Progress)) (UnmountReply, error)
	Logger  *slog.Logger // nil: discard

	http   http.Server
	once   sync.Once
	stop   context.CancelFunc // ends the contexts of all requests
	base   context.Context
	closed chan struct{}

	// Not a WaitGroup: requests come in while others are waited for.
	mu      sync.Mutex
	replies int           // requests whose result was not sent yet
	idle    chan struct{} // of who waits for none of them, closed then; nil: nobody waits
}

func (s *Server) init() {
	s.once.Do(func() {
		if s.Logger == nil {
			s.Logger = slog.New(slog.DiscardHandler)
		}
		s.base, s.stop = context.WithCancel(context.Background())
		s.closed = make(chan struct{})
	})
}

// Serve accepts connections on l until l is closed. Requests in flight go on; Finish and Close end them.
func (s *Server) Serve(l net.Listener) error {
	s.init()
	s.http.Handler = s.handler()
	s.http.BaseContext = func(net.Listener) context.Context { return s.base }
	s.http.ErrorLog = slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug)
	err := s.http.Serve(l)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Finish ends the contexts of the requests in flight and waits, at most for
// limit, until each has been answered. Connections stay open: a umount verb waits for the end of the process.
func (s *Server) Finish(limit time.Duration) {
	s.init()
	s.stop()
	s.mu.Lock()
	if s.replies == 0 {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(limit):
	}
}

func (s *Server) begun() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies++
}

func (s *Server) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.replies--; s.replies == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Close breaks all connections.
func (s *Server) Close() error {
	s.init()
	s.stop()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return s.http.Close()
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	handle(s, mux, verbPing, func(context.Context, none, *stream) (Info, error) {
		return s.Info(), nil
	})
	handle(s, mux, verbStatus, func(ctx context.Context, _ none, _ *stream) (jobs.Status, error) {
		st, err := s.Engine.Status(ctx)
		if err == nil && s.Describe != nil {
			s.Describe(&st)
		}
		return st, err
	})
	handle(s, mux, verbStat, func(ctx context.Context, r inosRequest, _ *stream) ([]jobs.FileStatus, error) {
		var out []jobs.FileStatus
		for _, ino := range r.Inos {
			f, err := s.Engine.Stat(ctx, ino)
			if err != nil {
				return out, err
			}
			out = append(out, f)
		}
		return out, nil
	})
	handle(s, mux, verbSync, func(ctx context.Context, r inosRequest, st *stream) (syncReply, error) {
		var rep syncReply
		err := s.Engine.Sync(ctx, r.Inos, func(p jobs.Progress) { rep.Done = p; st.progress(p) })
		var refused *jobs.SyncError
		if errors.As(err, &refused) {
			rep.Failures = refused.Failures
		}
		return rep, err
	})
	handle(s, mux, verbEvict, func(ctx context.Context, r inosRequest, _ *stream) (jobs.EvictResult, error) {
		return s.Engine.Evict(ctx, r.Inos, r.Recursive)
	})
	handle(s, mux, verbRecall, func(ctx context.Context, r jobs.RecallRequest, st *stream) (jobs.RecallResult, error) {
		return s.Engine.Recall(ctx, r, st.progress)
	})
	handle(s, mux, verbAllow, func(_ context.Context, r allowRequest, _ *stream) (none, error) {
		return none{}, s.Engine.Allow(r.Files, r.Bytes)
	})
	handle(s, mux, verbTrash, func(ctx context.Context, _ none, _ *stream) ([]jobs.TrashEntry, error) {
		return s.Engine.Trash(ctx)
	})
	handle(s, mux, verbPurge, func(ctx context.Context, r purgeRequest, _ *stream) (purgeReply, error) {
		n, err := s.Engine.Purge(ctx, r.IDs)
		return purgeReply{n}, err
	})
	handle(s, mux, verbInventory, func(ctx context.Context, r inventoryRequest, st *stream) (none, error) {
		vault := r.Vault
		if vault == "" {
			vault = s.Info().Vault
		}
		return none{}, s.Engine.Inventory(ctx, vault, r.Wait, st.progress)
	})
	handle(s, mux, verbCheck, func(ctx context.Context, r checkRequest, st *stream) (none, error) {
		return none{}, s.Engine.Check(ctx, r.Inventory, r.Repair, st.report)
	})
	handle(s, mux, verbUnmount, func(ctx context.Context, r UnmountRequest, st *stream) (UnmountReply, error) {
		return s.Unmount(ctx, r, st.progress)
	})
	return mux
}

// handle registers a verb: decode, call, encode.
func handle[Req, Rep any](s *Server, mux *http.ServeMux, verb string, fn func(context.Context, Req, *stream) (Rep, error)) {
	mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) {
		st := &stream{w: w}
		s.begun()
		answered := sync.OnceFunc(s.answered)
		defer answered()
		defer func() {
			// A bug in one verb must not take the mount down, nor go unheard.
			if p := recover(); p != nil {
				s.Logger.Error("request crashed", "verb", verb, "panic", p, "stack", string(debug.Stack()))
				st.send(line{Error: &Error{Message: fmt.Sprintf("internal error in the running casfs: %v", p)}})
			}
		}()
		var req Req
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			st.send(line{Error: &Error{Message: "bad request: " + err.Error()}})
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		rep, err := fn(r.Context(), req, st)
		raw, jerr := json.Marshal(rep)
		if err == nil && jerr != nil {
			err = fmt.Errorf("encode reply: %w", jerr)
		}
		if err != nil {
			s.Logger.Debug("request failed", "verb", verb, "err", err)
			e := wireError(err)
			e.Partial = raw
			st.send(line{Error: e})
			return
		}
		st.send(line{Result: raw})
		if verb == verbUnmount {
			answered()
			<-s.closed // the end of the process, for the client to see
		}
	})
}

// stream writes the lines of one reply. Events may come from several goroutines.
type stream struct {
	w http.ResponseWriter

	mu   sync.Mutex
	last time.Time
}

// minInterval bounds how many progress lines a verb has to read.
const minInterval = 50 * time.Millisecond

func (s *stream) progress(p jobs.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := p.FilesDone >= p.FilesTotal && p.BytesDone >= p.BytesTotal
	if now := time.Now(); done || now.Sub(s.last) >= minInterval {
		s.last = now
		s.sendLocked(line{Progress: &p})
	}
}

func (s *stream) report(text string) { s.send(line{Report: text}) }

func (s *stream) send(l line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sendLocked(l)
}

// sendLocked ignores write errors: the client is gone, and the request's context says so to whoever works for it.
func (s *stream) sendLocked(l line) {
	b, err := json.Marshal(l)
	if err != nil {
		b, _ = json.Marshal(line{Error: &Error{Message: err.Error()}})
	}
	s.w.Write(append(b, '\n'))
	http.NewResponseController(s.w).Flush()
}
