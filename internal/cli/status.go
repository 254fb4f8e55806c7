package cli

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

func (a *app) statusCmd() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status [PATH]",
		Short: "show mounts, uploads, retrievals, waiting programs and space",
		Long: `Shows what the mount that PATH lies in is doing, or every mount of this user.
Mounts that were unmounted and are still archiving are listed, too.`,
		Args: positional(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) == 1 {
				path = args[0]
			}
			if !watch {
				return a.status(cmd.Context(), path)
			}
			return a.watchStatus(cmd.Context(), path, interval)
		},
	}
	interval = time.Second
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing it")
	cmd.Flags().Var(duration(&interval), "interval", "--watch: how often (default 1s)")
	addSettings(cmd.Flags(), &a.set, gState)
	a.addJSON(cmd)
	return cmd
}

// oneStatus is what is known about one mount; the daemon's status, or why there is none.
type oneStatus struct {
	jobs.Status
	Vault    string `json:"vault,omitempty"`
	Draining bool   `json:"draining"`
	Dead     bool   `json:"dead"` // its casfs has died
	Error    string `json:"error,omitempty"`
}

func (a *app) gather(ctx context.Context, path string) ([]oneStatus, error) {
	var ds []*daemon
	var dead []oneStatus
	if path != "" {
		abs, err := absolute(path)
		if err != nil {
			return nil, err
		}
		d, err := a.statusTarget(ctx, abs)
		if err != nil {
			return nil, err
		}
		ds = []*daemon{d}
	} else {
		var missing []unreached
		var err error
		if ds, missing, err = a.daemons(ctx); err != nil {
			return nil, err
		}
		for _, m := range missing {
			one := oneStatus{Status: jobs.Status{Mountpoint: m.point, Endpoint: m.source}, Error: m.err.Error()}
			switch {
			case errors.Is(m.err, fs.ErrStaleMount):
				one.Dead, one.Error = true, "its casfs has died; mount it again with --force, or casfs umount clears it away"
			case errors.Is(m.err, iofs.ErrPermission):
				one.Error = "mounted by another user"
			}
			dead = append(dead, one)
		}
	}
	out := []oneStatus{} // not null, in JSON
	for _, d := range ds {
		st, err := d.client.Status(ctx)
		d.client.Close()
		one := oneStatus{Status: st, Vault: d.info.Vault, Draining: d.info.Draining}
		if errors.Is(err, control.ErrGone) {
			continue // ended meanwhile
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			one.Mountpoint, one.PID, one.StateDir, one.Error = d.info.Mountpoint, d.info.PID, d.info.StateDir, err.Error()
		}
		for i := range one.Uploads {
			one.Uploads[i].Path = fromRoot(one.Uploads[i].Path)
		}
		for i := range one.Retrievals {
			one.Retrievals[i].Path = fromRoot(one.Retrievals[i].Path)
		}
		for i := range one.Waiters {
			one.Waiters[i].Path = fromRoot(one.Waiters[i].Path)
		}
		out = append(out, one)
	}
	out = append(out, dead...)
	for i := range out {
		noNulls(&out[i].Status)
	}
	return out, nil
}

// noNulls has lists that are empty stay lists in JSON.
func noNulls(s *jobs.Status) {
	s.Uploads, s.Retrievals = append([]jobs.UploadStatus{}, s.Uploads...), append([]jobs.RetrievalStatus{}, s.Retrievals...)
	s.Waiters, s.Problems = append([]jobs.WaiterStatus{}, s.Waiters...), append([]string{}, s.Problems...)
}

// statusTarget finds the daemon of a path, or the one that still drains what was mounted there.
func (a *app) statusTarget(ctx context.Context, path string) (*daemon, error) {
	_, missing := os.Lstat(path)
	if missing != nil && !errors.Is(missing, os.ErrNotExist) {
		return nil, missing
	}
	d, err := a.daemonAt(ctx, path)
	if !errors.Is(err, fs.ErrNotMounted) {
		return d, err
	}
	for _, d := range a.known(ctx) {
		if d.info.Mountpoint == path || d.info.Mountpoint == mountName(path) {
			return d, nil
		}
	}
	if missing != nil { // said only now: what is still archiving may have had its mount point removed
		return nil, fmt.Errorf("%s: %w", path, syscall.ENOENT)
	}
	return nil, advise(fmt.Errorf("%s is not inside a casfs mount", path), "casfs status lists the mounts")
}

func (a *app) status(ctx context.Context, path string) error {
	all, err := a.gather(ctx, path)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(all)
	}
	if len(all) == 0 {
		a.printf("no casfs mounts\n")
	}
	for i, s := range all {
		if i > 0 {
			a.printf("\n")
		}
		a.printf("%s", formatStatus(s, width(a.out), time.Now()))
	}
	return nil
}

func (a *app) watchStatus(ctx context.Context, path string, every time.Duration) error {
	if every < 100*time.Millisecond {
		return usagef("--interval is at least 100ms")
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	screen := isTerminal(a.out) && !a.json
	for {
		all, err := a.gather(ctx, path)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how one stops watching
		}
		if err != nil {
			return err
		}
		var b strings.Builder
		for i, s := range all {
			if i > 0 {
				b.WriteString("\n")
			}
			b.WriteString(formatStatus(s, width(a.out), time.Now()))
		}
		switch {
		case a.json:
			err = a.printJSON(all)
		case screen:
			a.printf("\x1b[H\x1b[J%s   casfs status, every %s; Ctrl-C ends it\n\n%s", time.Now().Format(time.TimeOnly), every, b.String())
		default:
			a.printf("%s\n%s\n", time.Now().Format(time.DateTime), b.String())
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// listMost bounds each list of the human status.
const listMost = 10

// formatStatus is the status for people.
func formatStatus(s oneStatus, cols int, now time.Time) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	head := shown(s.Mountpoint)
	if s.Endpoint != "" {
		head += "  (" + shown(s.Endpoint)
		if s.Vault != "" {
			head += ", vault " + shown(s.Vault)
		}
		head += ")"
	}
	line("%s", head)
	if s.Error != "" {
		line("  %s", oneLine(s.Error))
		return b.String()
	}
	up := fmt.Sprintf("pid %d", s.PID)
	if !s.Since.IsZero() {
		up += ", up " + dur(now.Sub(s.Since))
	}
	if s.Draining {
		up += ", unmounted, archiving what is left"
	}
	line("  %s", up)
	tw := newTable(&b)
	row := func(cells ...any) { tw.row(append([]any{"  " + fmt.Sprint(cells[0])}, cells[1:]...)...) }
	row("tree", fmt.Sprintf("%s, %s in %s", count(s.Files, "file"), sizeText(s.LiveBytes), count(int64(s.Vaults), "vault")))
	row("staging", space(s.Staging)+", only on this disk until archived")
	work := fmt.Sprintf("%d settling, %d queued, %d on the way", s.Settling, s.UploadsQueued, len(s.Uploads))
	if s.Settling+s.UploadsQueued+int64(len(s.Uploads)) == 0 {
		work = "nothing to archive"
	}
	row("uploads", work)
	row("cache", space(s.Cache)+", can be dropped")
	row("recalls", recalls(s))
	if s.Guard.FilesLimit > 0 || s.Guard.BytesLimit > 0 {
		row("guard", guard(s.Guard))
	}
	if s.Trash.Files > 0 {
		row("trash", fmt.Sprintf("%s, %s, deleted when that costs nothing", count(s.Trash.Files, "archive"), sizeText(s.Trash.Used)))
	}
	row("disk", sizeText(s.FreeBytes)+" free")
	row("state", s.StateDir)
	if s.Passthrough != "" {
		row("passthrough", s.Passthrough)
	}
	tw.flush()

	path := max(24, cols-44)
	why := func(t table, text string) { // below what it is about, for errors are long
		if text != "" {
			for _, l := range wrap(text, cols-path-18) {
				t.row("", "", "", l)
			}
		}
	}
	if len(s.Uploads) > 0 {
		line("  uploading")
		t := newTable(&b)
		for i, u := range s.Uploads {
			if i == listMost {
				t.row("    …", fmt.Sprintf("and %d more", len(s.Uploads)-i))
				break
			}
			note := ""
			switch {
			case u.Permanent:
				note = "refused for good"
			case u.Error != "":
				note = fmt.Sprintf("attempt %d", u.Attempts)
			}
			t.row("    "+progress(u.Done, u.Size), sizeText(u.Size), shorten(inMount(s.Vault, u.Path), path), note)
			why(t, u.Error)
		}
		t.flush()
	}
	if len(s.Retrievals) > 0 {
		line("  retrieving")
		t := newTable(&b)
		for i, r := range s.Retrievals {
			if i == listMost {
				t.row("    …", fmt.Sprintf("and %d more", len(s.Retrievals)-i))
				break
			}
			note := r.State
			if r.Tier != "" {
				note += ", " + strings.ToLower(r.Tier)
			}
			note += ", " + dur(now.Sub(r.Since)) + " ago"
			if r.ETA != nil {
				note += ", expected " + eta(*r.ETA, now)
			}
			t.row("    "+progress(r.Done, r.Size), sizeText(r.Size), shorten(inMount(s.Vault, r.Path), path), note)
			why(t, r.Error)
		}
		t.flush()
	}
	if s.RecallsWait != "" {
		for i, l := range wrap("recalls wait for "+s.RecallsWait, cols-4) {
			line("  %s%s", strings.Repeat("  ", min(i, 1)), l)
		}
	}
	if len(s.Waiters) > 0 {
		line("  waiting programs")
		t := newTable(&b)
		for i, w := range s.Waiters {
			if i == listMost {
				t.row("    …", fmt.Sprintf("and %d more", len(s.Waiters)-i))
				break
			}
			note := "for " + dur(now.Sub(w.Since))
			if w.ETA != nil {
				note += ", expected " + eta(*w.ETA, now)
			}
			t.row(fmt.Sprintf("    %s (%d)", w.Command, w.PID), shorten(inMount(s.Vault, w.Path), path), note)
		}
		t.flush()
	}
	if len(s.Problems) > 0 {
		line("  problems")
		for _, p := range s.Problems {
			for i, l := range wrap(shown(p), cols-6) {
				mark := "    "
				if i == 0 {
					mark = "  ! "
				}
				line("%s%s", mark, l)
			}
		}
	}
	return b.String()
}

// fromRoot is the form of paths in JSON: from the account's root, with no slash before them.
func fromRoot(p string) string {
	if p == "/" {
		return p
	}
	return strings.TrimPrefix(p, "/")
}

// inMount turns a path from the account's root into one from the mount point.
func inMount(vault, p string) string {
	p = strings.TrimPrefix(p, "/")
	if vault != "" {
		p = strings.TrimPrefix(p, vault+"/")
	}
	return p
}

func space(s jobs.Space) string {
	out := ""
	if s.Files > 0 {
		out = count(s.Files, "file") + ", "
	}
	out += sizeText(s.Used)
	if s.Limit > 0 {
		out += " of " + sizeText(s.Limit)
	}
	return out
}

func recalls(s oneStatus) string {
	if len(s.Retrievals) == 0 && len(s.Waiters) == 0 && s.RecallsQueued == 0 {
		return "none"
	}
	text := fmt.Sprintf("%s, %s waiting", count(int64(len(s.Retrievals)), "retrieval"), count(int64(len(s.Waiters)), "program"))
	if s.RecallsQueued > 0 {
		text += fmt.Sprintf(", %s to be asked for", count(s.RecallsQueued, "file"))
	}
	return text
}

func guard(g jobs.GuardStatus) string {
	of := func(used, limit string, limited bool) string {
		if !limited {
			return used + " (no limit)"
		}
		return used + " of " + limit
	}
	text := of(fmt.Sprint(g.Files), fmt.Sprint(g.FilesLimit)+" files", g.FilesLimit > 0) + ", " + of(sizeText(g.Bytes), sizeText(g.BytesLimit)+" in 24 h", g.BytesLimit > 0) + " recalled by reads"
	if g.Until != nil {
		text += ", until " + when(*g.Until)
	}
	return text
}

func progress(done, size int64) string {
	if size <= 0 {
		return "  0 %"
	}
	return fmt.Sprintf("%3.0f %%", float64(done)/float64(size)*100)
}

// eta is a moment to come, for people.
func eta(t, now time.Time) string {
	if d := t.Sub(now); d > 0 {
		return "in " + dur(d)
	}
	return "any moment"
}
