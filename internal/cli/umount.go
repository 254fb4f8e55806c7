package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
)

func (a *app) umountCmd() *cobra.Command {
	var timeout time.Duration
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "archive what is left, unmount, and wait for the end",
		Long: `Waits until everything written is in the vault, unmounts, and returns when the
mount's process is gone. Interrupted before it has unmounted, it leaves the mount as it is.

With --lazy it unmounts also while programs have files open. The mount's process ends when they have closed them and
what they wrote is archived; the verb waits for that, too, and interrupting it ends only the wait: the same verb
once more goes on waiting, and ends as the first would have.

With --timeout it unmounts when the time is up; what is not in the vault by then
is listed (exit code 3), stays in the state directory, and goes on with the next mount. A mount whose process
has died is cleared away, also with exit code 3: what that process had not archived goes on with the next mount.`,
		Args:              positional(1, 1),
		ValidArgsFunction: completeMounts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.umount(cmd.Context(), args[0], timeout, lazy)
		},
	}
	cmd.Flags().Var(duration(&timeout), "timeout", "wait at most this long for uploads")
	cmd.Flags().BoolVar(&lazy, "lazy", false, "detach even if programs have files open")
	addSettings(cmd.Flags(), &a.set, gState)
	a.addJSON(cmd)
	return cmd
}

type pendingView struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

func (a *app) umount(ctx context.Context, arg string, timeout time.Duration, lazy bool) error {
	point, err := absolute(arg)
	if err != nil {
		return err
	}
	d, err := a.daemonOf(ctx, point)
	if err != nil {
		return err
	}
	if d == nil { // the dead mount was cleared away
		if a.json {
			if err := a.printJSON(map[string]any{"mountpoint": point, "stale": true, "pending": []pendingView{}}); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(a.errOut, "casfs: %s: its casfs had died; the mount is cleared away\n"+
				"  what was not in the vault yet is safe in its state directory; the next mount goes on\n", point)
		}
		return quietly(exitPartial) // nobody knows that everything is in the vault
	}
	b := a.newBar("archiving", 0, true)
	detached := func() {}
	if (lazy || d.info.Draining) && !a.json {
		detached = a.sayDetached(ctx, d, b)
	}
	rep, err := d.client.Unmount(ctx, control.UnmountRequest{Lazy: lazy, Timeout: int64(timeout)}, b.engine)
	detached()
	b.done()
	switch {
	case errors.Is(err, control.ErrBusy):
		return advise(fmt.Errorf("%s is in use by other programs", d.info.Mountpoint), "close their files (fuser -vm %s lists them), or add --lazy", d.info.Mountpoint)
	case err != nil && ctx.Err() != nil && !isMounted(d.info.Mountpoint):
		return advise(err, "%s is unmounted; its process ends when no file is open and its uploads are done: casfs status shows it", d.info.Mountpoint)
	case err != nil && ctx.Err() != nil:
		return advise(err, "%s stays mounted, and what is not in the vault yet is on its way: casfs status shows it", d.info.Mountpoint)
	case err != nil:
		return err
	}
	pending := make([]pendingView, 0, len(rep.Pending))
	for _, p := range rep.Pending {
		p.Path = fromRoot(p.Path)
		pending = append(pending, pendingView(p))
	}
	if a.json {
		if err := a.printJSON(map[string]any{"mountpoint": d.info.Mountpoint, "stale": false, "pending": pending}); err != nil {
			return err
		}
	}
	if len(pending) == 0 {
		return nil
	}
	if !a.json {
		fmt.Fprintf(a.errOut, "casfs: unmounted, but %s not in the vault yet:\n", count(int64(len(pending)), "file"))
		t := newTable(a.errOut)
		for i, p := range rep.Pending {
			if i == 20 {
				t.row("  …", fmt.Sprintf("and %d more", len(pending)-i))
				break
			}
			t.row("  "+sizeText(p.Size), inMount(d.info.Vault, p.Path), p.State, p.Error)
		}
		t.flush()
		fmt.Fprintf(a.errOut, "  they are safe in %s; the next mount goes on\n", d.info.StateDir)
	}
	return quietly(exitPartial)
}

// isMounted reports whether a casfs mount has this name; true when nobody knows.
func isMounted(names ...string) bool {
	mounts, err := casfsMounts()
	return err != nil || slices.ContainsFunc(mounts, func(m mountEntry) bool { return slices.Contains(names, m.point) })
}

// lazyGrace is how long a lazy umount may take after the mount is gone until it says what it waits for.
const lazyGrace = time.Second

// sayDetached says, when the mount has gone from its mount point and the verb goes on waiting, what for. The function it
// returns ends that.
func (a *app) sayDetached(ctx context.Context, d *daemon, b *bar) (stop func()) {
	point := d.info.Mountpoint
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for left := lazyGrace; left > 0; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !isMounted(point) {
				left -= 100 * time.Millisecond
			}
		}
		left := ""
		if st, err := d.client.Status(ctx); err == nil && st.Staging.Files > 0 {
			left = fmt.Sprintf("\n  %s, %s, not in the vault yet: casfs status shows more", count(st.Staging.Files, "file"), sizeText(st.Staging.Used))
		}
		b.note(a.errOut, "casfs: %s is unmounted; waiting until programs have closed their files in it and these are archived (interrupting this ends only the wait)%s\n", point, left)
	}()
	return func() { cancel(); <-ended }
}

// daemonOf finds the daemon that mounts, or has just unmounted, a mount point;
// nil when it has died and its mount was cleared away.
func (a *app) daemonOf(ctx context.Context, point string) (*daemon, error) {
	real := mountName(point)
	for _, d := range a.known(ctx) {
		// Also one that was unmounted by other means and is still archiving.
		if d.info.Mountpoint == point || d.info.Mountpoint == real {
			return d, nil
		}
	}
	if !isMounted(point, real) {
		return nil, advise(fmt.Errorf("%s is no casfs mount point", point), "casfs status lists the mounts")
	}
	d, err := a.probeMount(ctx, real)
	switch {
	case errors.Is(err, fs.ErrStaleMount):
		if err := fs.CleanStale(real); err != nil {
			return nil, fmt.Errorf("clear the dead mount on %s: %w", point, err)
		}
		return nil, nil
	case errors.Is(err, errHung):
		return nil, advise(fmt.Errorf("%s: %w", point, err), "fusermount3 -uz %s detaches it; what was written is in its state directory", point)
	}
	return d, err
}

// mountName is a mount point as the mount table shows it, found without a call into the mount, which may hang or be dead.
func mountName(point string) string {
	for range 40 { // as many symlinks as the kernel follows
		point = filepath.Join(realPath(filepath.Dir(point)), filepath.Base(point))
		to, err := os.Readlink(point)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(point), to)
		}
		point = to
	}
	return point
}
