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

	unmountDone chan struct{} // closed when a umount verb is through with draining

	mu         sync.Mutex
	unmounting bool           // a umount verb has taken over
	left       []jobs.Pending // what it could not archive
	draining   bool           // detached; only archiving is left

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
	d.mu.Lock()
	defer d.mu.Unlock()
	return control.Info{PID: os.Getpid(), Mountpoint: d.args.mountpoint, StateDir: d.stateDir, Vault: d.args.vault,
		Version: version.Version(), Draining: d.draining}
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
	if workErr != nil {
		d.drain = "stop" // nobody would do the work
	}
	left, err := d.finish(gone)

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

// detach unmounts; when programs have files open, it takes the mount away from
// under its name and lets them finish.
func (d *mountDaemon) detach() {
	err := d.mnt.Unmount(false)
	if errors.Is(err, fs.ErrBusyMount) {
		d.log.Warn("files are open; detaching lazily")
		err = d.mnt.Unmount(true)
	}
	if err != nil {
		d.log.Error("unmount", "err", err)
	}
}

// finish waits for the end of the mount and archives what is left, as --drain says or a umount verb has done
// already. A signal ends the waiting.
func (d *mountDaemon) finish(gone chan struct{}) ([]jobs.Pending, error) {
	aborted := false
	select {
	case <-gone:
	case sig := <-d.signals:
		d.log.Warn("second signal; aborting the mount", "signal", sig.String())
		aborted = true
		if err := d.mnt.Abort(); err != nil {
			d.log.Error("abort", "err", err)
		} else {
			select {
			case <-gone:
			case sig := <-d.signals:
				d.log.Warn("not waiting for the mount's requests any longer", "signal", sig.String())
			}
		}
	}
	d.engine.StopAdmitting()
	d.mu.Lock()
	d.draining = true
	byVerb := d.unmounting
	d.mu.Unlock()
	if byVerb {
		select {
		case <-d.unmountDone:
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.left, nil
		case <-d.signals:
			aborted = true
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if d.drain == "stop" || aborted {
		cancel()
	}
	go func() {
		select {
		case sig := <-d.signals:
			d.log.Warn("not waiting for uploads any longer", "signal", sig.String())
			cancel()
		case <-ctx.Done():
		}
	}()
	last := time.Now()
	left, err := d.engine.Drain(ctx, func(p jobs.Progress) {
		if now := time.Now(); now.Sub(last) >= 10*time.Second {
			last = now
			d.log.Info("archiving what is left", "files", fmt.Sprintf("%d/%d", p.FilesDone, p.FilesTotal), "bytes", fmt.Sprintf("%d/%d", p.BytesDone, p.BytesTotal))
		}
	})
	if len(left) > 0 || errors.Is(err, context.Canceled) {
		err = nil // told by the list
	}
	return left, err
}

// unmount is the umount verb: archive while the mount still works, then
// unmount, then archive what was written meanwhile. A busy mount stays as it is.
func (d *mountDaemon) unmount(ctx context.Context, r control.UnmountRequest, progress func(jobs.Progress)) (control.UnmountReply, error) {
	d.mu.Lock()
	draining, taken := d.draining, d.unmounting
	d.mu.Unlock()
	if taken {
		return control.UnmountReply{}, errors.New("another casfs umount is at work on this mount")
	}
	limited := ctx
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, time.Duration(r.Timeout))
		defer cancel()
	}
	left, err := d.engine.Drain(limited, progress)
	if ctx.Err() != nil {
		return control.UnmountReply{}, ctx.Err() // the user gave up waiting: nothing was changed
	}
	if draining {
		return control.UnmountReply{Pending: left}, nil // unmounted before; the process ends by itself
	}
	if err != nil && len(left) == 0 && limited.Err() == nil {
		return control.UnmountReply{}, err
	}
	d.mu.Lock()
	draining, taken = d.draining, d.unmounting
	d.unmounting = !draining
	d.mu.Unlock()
	if draining {
		return control.UnmountReply{Pending: left}, nil
	}
	if taken {
		return control.UnmountReply{}, errors.New("another casfs umount is at work on this mount")
	}
	if err := d.mnt.Unmount(r.Lazy); err != nil {
		d.mu.Lock()
		d.unmounting = false
		d.mu.Unlock()
		if errors.Is(err, fs.ErrBusyMount) {
			err = fmt.Errorf("%w: %v", control.ErrBusy, err)
		}
		return control.UnmountReply{}, err
	}
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	defer close(d.unmountDone)
	d.mnt.Wait() // lazily: until the last file is closed
	d.engine.StopAdmitting()
	// The verb may be interrupted from here on; the daemon finishes what --drain says.
	left, err = d.engine.Drain(limited, progress)
	if limited.Err() != nil && ctx.Err() != nil && d.drain == "finish" {
		left, err = d.engine.Drain(context.Background(), nil)
	}
	d.mu.Lock()
	d.left = left
	d.mu.Unlock()
	if len(left) > 0 {
		err = nil
	}
	return control.UnmountReply{Pending: left}, err
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
