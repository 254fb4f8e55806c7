package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// ending is the end of a mount, whoever began it: signals, umount verbs, others. From when it is off its mount point
// until its process ends one goroutine, that of run, archives what is left; umount verbs join it.
type ending struct {
	turn     chan struct{} // held by who unmounts
	detached chan struct{} // closed when the mount is off its mount point; programs may have files open
	cut      chan struct{} // closed when nobody wants to wait for uploads any longer
	over     chan struct{} // closed when all is done; left and err are set then
	left     []jobs.Pending
	err      error

	mu       sync.Mutex // guards closing detached and cut, and:
	verbs    int        // umount verbs at work
	watchers map[chan jobs.Progress]struct{}
}

func newEnding() *ending {
	return &ending{
		turn: make(chan struct{}, 1), detached: make(chan struct{}), cut: make(chan struct{}), over: make(chan struct{}),
		watchers: map[chan jobs.Progress]struct{}{},
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// set closes detached or cut.
func (e *ending) set(c chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !isClosed(c) {
		close(c)
	}
}

// tell passes progress on to those who watch, and waits for none of them.
func (e *ending) tell(p jobs.Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.watchers {
		select {
		case <-w:
		default:
		}
		w <- p
	}
}

// join counts a umount verb; leave ends that and tells how many are left.
func (e *ending) join() (w chan jobs.Progress, leave func() int) {
	w = make(chan jobs.Progress, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.verbs++
	e.watchers[w] = struct{}{}
	return w, func() int {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.verbs--
		delete(e.watchers, w)
		return e.verbs
	}
}

func (e *ending) joined() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.verbs > 0
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
		return
	}
	d.end.set(d.end.detached)
}

// finish waits for the end of the mount and archives what is left, as --drain says, or all of it while a umount verb waits
// for that. A signal ends the waiting. stopped: the engine does nothing any more.
func (d *mountDaemon) finish(gone chan struct{}, stopped bool) (left []jobs.Pending, err error) {
	aborted := stopped
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
	d.end.set(d.end.detached)
	d.engine.StopAdmitting()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if aborted || d.drain == "stop" && !d.end.joined() {
		cancel()
	}
	go func() {
		select {
		case sig := <-d.signals:
			d.log.Warn("not waiting for uploads any longer", "signal", sig.String())
			cancel()
		case <-d.end.cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	last := time.Now()
	left, err = d.engine.Drain(ctx, func(p jobs.Progress) {
		d.end.tell(p)
		if now := time.Now(); now.Sub(last) >= 10*time.Second {
			last = now
			d.log.Info("archiving what is left", "files", fmt.Sprintf("%d/%d", p.FilesDone, p.FilesTotal), "bytes", fmt.Sprintf("%d/%d", p.BytesDone, p.BytesTotal))
		}
	})
	if len(left) > 0 || errors.Is(err, context.Canceled) {
		err = nil // told by the list
	}
	d.end.left, d.end.err = left, err
	close(d.end.over)
	return left, err
}

// unmount is the umount verb: archive while the mount still works, then unmount, then wait until what was written meanwhile is
// archived, too. A busy mount stays as it is; of one that is off its mount point already the end is waited for.
func (d *mountDaemon) unmount(ctx context.Context, r control.UnmountRequest, progress func(jobs.Progress)) (control.UnmountReply, error) {
	news, leave := d.end.join()
	defer func() {
		// With --drain=stop uploads go on only for verbs that wait for them.
		if others := leave(); others == 0 && ctx.Err() != nil && d.drain == "stop" && isClosed(d.end.detached) {
			d.end.set(d.end.cut)
		}
	}()
	limited := ctx
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, time.Duration(r.Timeout))
		defer cancel()
	}
	if err := d.unmountFirst(ctx, limited, r.Lazy, progress); err != nil {
		return control.UnmountReply{}, err
	}
	var expired <-chan struct{}
	if r.Timeout > 0 {
		expired = limited.Done()
	}
	for {
		select {
		case <-d.end.over:
			return control.UnmountReply{Pending: d.end.left}, d.end.err
		case p := <-news:
			progress(p)
		case <-ctx.Done():
			if isClosed(d.end.over) {
				continue // what is over ends the contexts of all verbs
			}
			return control.UnmountReply{}, ctx.Err()
		case <-expired:
			if ctx.Err() == nil {
				d.end.set(d.end.cut)
			}
			expired = nil
		}
	}
}

// unmountFirst archives and unmounts, unless somebody else has unmounted, or does so meanwhile.
func (d *mountDaemon) unmountFirst(ctx, limited context.Context, lazy bool, progress func(jobs.Progress)) error {
	if isClosed(d.end.detached) {
		return nil
	}
	drain, stop := context.WithCancel(limited)
	defer stop()
	go func() {
		select {
		case <-d.end.detached:
			stop()
		case <-drain.Done():
		}
	}()
	left, err := d.engine.Drain(drain, progress)
	if ctx.Err() != nil {
		return ctx.Err() // the user gave up waiting: nothing was changed
	}
	if err != nil && len(left) == 0 && drain.Err() == nil {
		return err
	}
	select {
	case d.end.turn <- struct{}{}:
		defer func() { <-d.end.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if isClosed(d.end.detached) {
		return nil
	}
	if err := d.mnt.Unmount(lazy); err != nil {
		if errors.Is(err, fs.ErrBusyMount) {
			err = fmt.Errorf("%w: %v", control.ErrBusy, err)
		}
		return err
	}
	d.end.set(d.end.detached)
	return nil
}
