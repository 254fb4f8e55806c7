package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// mountEntry is one line of mountinfo that is ours.
type mountEntry struct {
	point, source string
	uid           int // of who mounted it; -1 unknown
}

// casfsMounts lists the casfs mounts this process can see, oldest first.
func casfsMounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var out []mountEntry
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		// 36 35 98:0 /root /point options [optional…] - type source superoptions
		head, tail, ok := strings.Cut(in.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 2 || t[0] != "fuse.casfs" {
			continue
		}
		m := mountEntry{point: unescapeMount(h[4]), source: unescapeMount(t[1]), uid: -1}
		for _, o := range strings.Split(t[len(t)-1], ",") {
			if v, ok := strings.CutPrefix(o, "user_id="); ok {
				m.uid, _ = strconv.Atoi(v)
			}
		}
		out = append(out, m)
	}
	return out, in.Err()
}

// unescapeMount undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// controlSocket is the control socket's name in a state directory.
const controlSocket = "control"

// daemon is a running casfs.
type daemon struct {
	client *control.Client
	info   control.Info
}

// dialState asks the daemon of a state directory; nil when none answers.
func dialState(ctx context.Context, stateDir string) *daemon {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, info, err := control.Dial(ctx, filepath.Join(stateDir, controlSocket))
	if err != nil {
		return nil
	}
	return &daemon{c, info}
}

// known finds the daemons with state below the state directory in force,
// mounted or still draining. It does not touch any mount.
func (a *app) known(ctx context.Context) []*daemon {
	base, err := a.set.stateBase()
	if err != nil {
		return nil
	}
	var out []*daemon
	sockets, _ := filepath.Glob(filepath.Join(globEscape(base), "*", controlSocket))
	if isStateDir(base) {
		sockets = append(sockets, filepath.Join(base, controlSocket))
	}
	for _, s := range sockets {
		if d := dialState(ctx, filepath.Dir(s)); d != nil {
			out = append(out, d)
		}
	}
	return out
}

// unreached is a mount whose daemon cannot be talked to, and why.
type unreached struct {
	mountEntry
	err error
}

// daemons finds every casfs of this user: the known ones, and those mounted with another state directory.
func (a *app) daemons(ctx context.Context) ([]*daemon, []unreached, error) {
	out := a.known(ctx)
	seen := map[string]bool{}
	for _, d := range out {
		seen[d.info.Mountpoint] = true
	}
	mounts, err := casfsMounts()
	if err != nil {
		return nil, nil, err
	}
	var missing []unreached
	for _, m := range mounts {
		if seen[m.point] || m.uid >= 0 && m.uid != os.Geteuid() && os.Geteuid() != 0 {
			continue
		}
		seen[m.point] = true
		d, err := a.probeMount(ctx, m.point)
		if err != nil {
			missing = append(missing, unreached{m, err})
			continue
		}
		out = append(out, d)
	}
	return out, missing, nil
}

// probeTime is how long a mount may take to name its control socket.
const probeTime = 5 * time.Second

// probeMount finds a mount's daemon through a process of its own: a call into a mount whose
// daemon hangs cannot be ended, not even by SIGKILL, and would keep this process from exiting.
func (a *app) probeMount(ctx context.Context, point string) (*daemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "find-mount", "--", point)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	go cmd.Wait()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Now()) })
	defer stop()
	var found mountFound
	if err := json.NewDecoder(r).Decode(&found); err != nil {
		cmd.Process.Kill()
		return nil, errHung
	}
	switch {
	case found.Stale:
		return nil, fs.ErrStaleMount
	case found.Denied:
		return nil, notYours(point)
	case found.Error != "":
		return nil, errors.New(found.Error)
	}
	c, info, err := control.Dial(ctx, found.Control)
	if errors.Is(err, iofs.ErrPermission) {
		return nil, notYours(point)
	}
	if err != nil {
		return nil, err
	}
	return &daemon{c, info}, nil
}

// notYours is the failure to talk to a mount of another user. It matches io/fs.ErrPermission.
func notYours(point string) error {
	return advise(&notYoursError{point}, "run this as the user who mounted it, or, for a mount with --allow-other, as root")
}

type notYoursError struct{ point string }

func (e *notYoursError) Error() string { return e.point + " was mounted by another user" }
func (e *notYoursError) Unwrap() error { return iofs.ErrPermission }

var errHung = errors.New("the mount does not answer")

// mountFound is what find-mount tells.
type mountFound struct {
	Control string `json:"control,omitempty"`
	Stale   bool   `json:"stale,omitempty"`
	Denied  bool   `json:"denied,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (a *app) findMountCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "find-mount PATH",
		Hidden: true,
		Args:   positional(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var found mountFound
			if errors.Is(fs.Check(fs.Options{Mountpoint: args[0]}), fs.ErrStaleMount) {
				found.Stale = true
			} else if _, socket, err := fs.Find(cmd.Context(), args[0]); err != nil {
				found.Error, found.Denied = err.Error(), errors.Is(err, iofs.ErrPermission)
			} else {
				found.Control = socket
			}
			return a.printJSON(found)
		},
	}
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// daemonAt finds the daemon of the mount that path lies in.
func (a *app) daemonAt(ctx context.Context, path string) (*daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	point, socket, err := fs.Find(ctx, path)
	if errors.Is(err, iofs.ErrPermission) {
		return nil, notYours(path)
	}
	if err != nil {
		return nil, err
	}
	c, info, err := control.Dial(ctx, socket)
	if errors.Is(err, iofs.ErrPermission) {
		return nil, notYours(point)
	}
	if err != nil {
		return nil, fmt.Errorf("the casfs mounted on %s does not answer: %w", point, err)
	}
	return &daemon{c, info}, nil
}

// target is a path the user named and the inode behind it.
type target struct {
	path string
	ino  uint64
	dir  bool
}

// mountTargets are the targets in one mount.
type mountTargets struct {
	*daemon
	targets []target
}

func (m *mountTargets) inos() []uint64 {
	out := make([]uint64, len(m.targets))
	for i, t := range m.targets {
		out[i] = t.ino
	}
	return out
}

// absolute turns the paths that the mount's engine tells into those of this machine.
func (m *mountTargets) absolute(list []jobs.Skipped) []jobs.Skipped {
	out := make([]jobs.Skipped, len(list))
	for i, s := range list {
		if !strings.HasPrefix(s.Path, "#") && !strings.HasPrefix(s.Path, "inode ") { // else it has no name any more
			s.Path = filepath.Join(m.info.Mountpoint, inMount(m.info.Vault, s.Path))
		}
		out[i] = s
	}
	return out
}

// mountResult is what a verb's work in one mount came to.
type mountResult[T any] struct {
	*mountTargets
	last   jobs.Progress
	result T
	err    error
}

// inAllMounts has several mounts work at once, for none is to wait for another, and shows their progress together.
func inAllMounts[T any](groups []*mountTargets, b *bar, do func(g *mountTargets, progress func(jobs.Progress)) (T, error)) []mountResult[T] {
	all := make([]mountResult[T], len(groups))
	var mu sync.Mutex // guards last of all
	var wg sync.WaitGroup
	for i, g := range groups {
		all[i].mountTargets = g
		wg.Go(func() {
			all[i].result, all[i].err = do(g, func(p jobs.Progress) {
				mu.Lock()
				defer mu.Unlock()
				all[i].last = p
				var sum jobs.Progress
				for j := range all {
					sum.FilesDone += all[j].last.FilesDone
					sum.FilesTotal += all[j].last.FilesTotal
					sum.BytesDone += all[j].last.BytesDone
					sum.BytesTotal += all[j].last.BytesTotal
				}
				b.engine(sum)
			})
		})
	}
	wg.Wait()
	return all
}

// resolve finds inode and daemon of each path, grouped by mount in order of first appearance.
func (a *app) resolve(ctx context.Context, paths []string) ([]*mountTargets, error) {
	var groups []*mountTargets
	byDev := map[uint64]*mountTargets{}
	for _, p := range paths {
		if err := a.resolveOne(ctx, p, byDev, &groups); err != nil {
			return nil, err
		}
	}
	return groups, nil
}

// resolveEach is resolve that leaves out paths that cannot be resolved, and tells why; when none can, it fails like resolve.
func (a *app) resolveEach(ctx context.Context, paths []string) (groups []*mountTargets, failed []jobs.Skipped, err error) {
	byDev := map[uint64]*mountTargets{}
	for _, p := range paths {
		if e := a.resolveOne(ctx, p, byDev, &groups); e != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			if err == nil {
				err = e
			}
			_, why, ok := strings.Cut(e.Error(), p+": ")
			if !ok {
				why = strings.TrimPrefix(e.Error(), p+" ")
			}
			failed = append(failed, jobs.Skipped{Path: p, Reason: why})
		}
	}
	if len(groups) == 0 && len(failed) == 1 {
		return nil, nil, err
	}
	return groups, failed, nil
}

// pathError is a failure with the path as the user gave it.
func pathError(p string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", p, pe.Err)
	}
	return err
}

// resolveOne adds a path to the groups.
func (a *app) resolveOne(ctx context.Context, p string, byDev map[uint64]*mountTargets, groups *[]*mountTargets) error {
	abs, err := absolute(p)
	if err != nil {
		return err
	}
	st, err := os.Lstat(abs)
	if err != nil {
		if errors.Is(err, syscall.ENOTCONN) {
			return advise(fmt.Errorf("%s: the casfs mounted here has died", p), "mount it again with --force; what was written is in its state directory")
		}
		return pathError(p, err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	g := byDev[sys.Dev]
	if g == nil {
		// Only a directory can be asked for its mount without following it elsewhere.
		where := abs
		if !st.IsDir() {
			where = filepath.Dir(abs)
		}
		d, err := a.daemonAt(ctx, where)
		if errors.Is(err, fs.ErrNotMounted) {
			return advise(fmt.Errorf("%s is not inside a casfs mount", p), "casfs status lists the mounts")
		}
		if err != nil {
			return err
		}
		g = &mountTargets{daemon: d}
		byDev[sys.Dev] = g
		*groups = append(*groups, g)
	}
	g.targets = append(g.targets, target{path: p, ino: sys.Ino, dir: st.IsDir()})
	return nil
}
