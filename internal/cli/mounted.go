package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/cli/version"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// mountDaemon is a mount from the moment it stands until it is gone.
type mountDaemon struct {
	log      *slog.Logger
	engine   *jobs.Engine
	mnt      *fs.Mount
	args     mountArgs
	stateDir string
	source   string
	drain    string
	control  net.Listener
	server   *control.Server
	signals  chan os.Signal
	end      *ending

	closeOnce sync.Once
}

func (d *mountDaemon) closeEngine() {
	d.closeOnce.Do(func() {
		if err := d.engine.Close(); err != nil {
			d.log.Error("close state", "err", err)
		}
	})
}

func (d *mountDaemon) info() control.Info {
	return control.Info{PID: os.Getpid(), Mountpoint: d.args.mountpoint, StateDir: d.stateDir, Vault: d.args.vault,
		Version: version.Version(), Draining: isClosed(d.end.detached)}
}

// run works until the mount is gone and what it must still do is done.
func (d *mountDaemon) run(ready func(string)) error {
	work, stopWork := context.WithCancel(context.Background())
	defer stopWork()
	worked := make(chan error, 1)
	go func() { worked <- d.engine.Run(work) }()

	d.server = &control.Server{
		Engine: d.engine, Info: d.info, Logger: d.log, Unmount: d.unmount,
		Describe: func(st *jobs.Status) {
			st.Mountpoint, st.StateDir, st.PID, st.Endpoint = d.args.mountpoint, d.stateDir, os.Getpid(), d.source
			st.Passthrough = d.mnt.PassthroughState()
		},
	}
	go func() {
		if err := d.server.Serve(d.control); err != nil {
			d.log.Error("control socket", "err", err)
		}
	}()

	what := "all vaults"
	if d.args.vault != "" {
		what = "vault " + d.args.vault
	}
	d.log.Info("ready", "mountpoint", d.args.mountpoint, "service", d.source, "state", d.stateDir, "pid", os.Getpid())
	ready(fmt.Sprintf("mounted %s of %s on %s", what, d.source, d.args.mountpoint))

	gone := make(chan struct{})
	go func() { d.mnt.Wait(); close(gone) }()

	var workErr error
	select {
	case <-gone:
	case workErr = <-worked:
		// The engine cannot go on: nothing can be archived or recalled any more.
		d.log.Error("engine stopped; unmounting", "err", workErr)
		d.engine.StopAdmitting()
		d.detach()
		worked <- workErr
	case sig := <-d.signals:
		d.log.Info("unmounting", "signal", sig.String())
		d.engine.StopAdmitting()
		d.detach()
	}
	left, err := d.finish(gone, workErr != nil)

	// The control socket is removed while this process still holds the state
	// directory, so that it cannot be the next mount's; connections live until the process ends.
	d.control.Close()
	d.server.Finish(5 * time.Second)
	stopWork()
	if werr := <-worked; werr != nil && !errors.Is(werr, context.Canceled) && workErr == nil {
		workErr = werr
	}
	d.closeEngine()
	if err == nil {
		err = workErr
	}
	if err == nil && len(left) > 0 {
		d.log.Warn("not everything is in the vault; the next mount goes on", "files", len(left), "state", d.stateDir)
		err = &failure{code: exitPartial, err: fmt.Errorf("%s not in the vault yet; the next mount goes on with the state in %s", count(int64(len(left)), "file"), d.stateDir)}
	}
	d.log.Info("stopped")
	return err
}

// lateHandler passes records on to a handler that is known later.
type lateHandler struct {
	mu sync.Mutex
	h  slog.Handler
}

func (l *lateHandler) set(h slog.Handler) { l.mu.Lock(); l.h = h; l.mu.Unlock() }
func (l *lateHandler) get() slog.Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.h == nil {
		return slog.DiscardHandler
	}
	return l.h
}
func (l *lateHandler) Enabled(ctx context.Context, v slog.Level) bool  { return l.get().Enabled(ctx, v) }
func (l *lateHandler) Handle(ctx context.Context, r slog.Record) error { return l.get().Handle(ctx, r) }
func (l *lateHandler) WithAttrs(as []slog.Attr) slog.Handler           { return l.get().WithAttrs(as) }
func (l *lateHandler) WithGroup(name string) slog.Handler              { return l.get().WithGroup(name) }
