package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/jobs"
)

// pathWork is what a verb has to do, by mount, and what became of it.
type pathWork struct {
	groups []*mountTargets
	failed []jobs.Skipped // paths that cannot be resolved, and what else could not be done
	done   bool           // something was done
	hints  []string       // what to do about failures
}

// pathVerb makes a verb on files of running mounts. run goes through the mounts and prints the result.
func (a *app) pathVerb(use, short string, run func(ctx context.Context, w *pathWork) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: positional(1, -1)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, failed, err := a.resolveEach(cmd.Context(), args)
		if err != nil {
			return err
		}
		w := &pathWork{groups: groups, failed: failed}
		if err := run(cmd.Context(), w); err != nil {
			return err
		}
		switch {
		case len(w.failed) == 0:
			return nil
		case w.done:
			return quietly(exitPartial)
		}
		return quietly(exitFailed)
	}
	a.addJSON(cmd)
	return cmd
}

// fail notes that a mount has done nothing for its paths, so that the verb can see to the others. It returns the error where that
// ends the verb: when it was interrupted, and when there is nothing else to tell of.
func (w *pathWork) fail(ctx context.Context, g *mountTargets, err error) error {
	if ctx.Err() != nil || len(w.groups) == 1 && len(w.failed) == 0 {
		return err
	}
	for _, t := range g.targets {
		w.failed = append(w.failed, jobs.Skipped{Path: t.path, Reason: err.Error()})
	}
	w.hint(advice(err))
	return nil
}

// hint notes what to do, once.
func (w *pathWork) hint(text string) {
	if text != "" && !slices.Contains(w.hints, text) {
		w.hints = append(w.hints, text)
	}
}

// printFailed says what failed, and what to do about it.
func (a *app) printFailed(w *pathWork) {
	a.printSkipped("failed:", w.failed)
	a.printHints(w)
}

func (a *app) printHints(w *pathWork) {
	for _, h := range w.hints {
		fmt.Fprintf(a.errOut, "  %s\n", h)
	}
}

// missingPaths ends the help of every pathVerb.
const missingPaths = `

Paths that do not exist, or lie in no mount, are named, and so is what a mount cannot do; the others are
seen to all the same (exit code 3; 1 when nothing was done).`

func (a *app) evictCmd() *cobra.Command {
	var recursive bool
	cmd := a.pathVerb("evict PATH…", "drop the local copies of archived files", func(ctx context.Context, w *pathWork) error {
		if err := needRecursive(w.groups, recursive); err != nil {
			return err
		}
		var sum jobs.EvictResult
		for _, g := range w.groups {
			r, err := g.client.Evict(ctx, g.inos(), recursive)
			if err != nil {
				if err := w.fail(ctx, g, err); err != nil {
					return err
				}
				continue
			}
			w.done = true
			sum.Files += r.Files
			sum.Bytes += r.Bytes
			sum.Skipped = append(sum.Skipped, g.absolute(r.Skipped)...)
		}
		if a.json {
			if err := a.printJSON(map[string]any{"files": sum.Files, "bytes": sum.Bytes, "skipped": viewSkipped(sum.Skipped), "failures": viewSkipped(w.failed)}); err != nil {
				return err
			}
		} else {
			a.printf("dropped the local copy of %s, %s\n", count(sum.Files, "file"), sizeText(sum.Bytes))
			a.printSkipped("kept", sum.Skipped)
			a.printFailed(w)
		}
		if len(sum.Skipped) > 0 {
			return quietly(exitPartial)
		}
		return nil
	})
	cmd.Long = `Frees the space of files that are in the vault. The files stay in the tree;
reading one brings it back, which takes minutes to hours. Files that are not
in the vault yet, open, pinned, or being recalled are kept and named (exit code 3).` + missingPaths
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "everything below directories")
	return cmd
}

// skippedView is a file that a verb left out, in JSON.
type skippedView struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// viewSkipped never returns nil, which would be null.
func viewSkipped(list []jobs.Skipped) []skippedView {
	out := make([]skippedView, 0, len(list))
	for _, s := range list {
		out = append(out, skippedView(s))
	}
	return out
}

func (a *app) printSkipped(verb string, skipped []jobs.Skipped) {
	fmt.Fprint(a.errOut, skippedText(verb, skipped))
}

func skippedText(verb string, skipped []jobs.Skipped) string {
	var b strings.Builder
	for i, s := range skipped {
		if i == 20 {
			fmt.Fprintf(&b, "casfs: … and %d more\n", len(skipped)-i)
			break
		}
		fmt.Fprintf(&b, "casfs: %s %s: %s\n", verb, shown(s.Path), oneLine(s.Reason))
	}
	return b.String()
}

func needRecursive(groups []*mountTargets, recursive bool) error {
	for _, g := range groups {
		for _, t := range g.targets {
			if t.dir && !recursive {
				return usagef("%s is a directory; add -r for everything below it", t.path)
			}
		}
	}
	return nil
}

func (a *app) statCmd() *cobra.Command {
	cmd := a.pathVerb("stat PATH…", "explain the state of files in plain words", func(ctx context.Context, w *pathWork) error {
		all := []jobs.FileStatus{} // not null, in JSON
		for _, g := range w.groups {
			files, err := g.client.Stat(ctx, g.inos())
			for i, f := range files {
				if f.Path = fromRoot(f.Path); f.Path == "" {
					f.Path = g.targets[i].path
				}
				if !a.json {
					if len(all) > 0 {
						a.printf("\n")
					}
					a.printFile(g.targets[i].path, f)
				}
				all, w.done = append(all, f), true
			}
			if err != nil {
				rest := &mountTargets{daemon: g.daemon, targets: g.targets[len(files):]}
				if err := w.fail(ctx, rest, err); err != nil {
					return err
				}
			}
		}
		a.printFailed(w) // also with --json, which lists files
		if a.json {
			return a.printJSON(all)
		}
		return nil
	})
	cmd.Long = "Explains the state of files in plain words." + missingPaths
	return cmd
}

func (a *app) printFile(path string, f jobs.FileStatus) {
	a.printf("%s\n", shown(path))
	state := f.State
	if state == "" {
		state = f.Type
	}
	if f.Explain != "" {
		state += ": " + f.Explain
	}
	for _, l := range wrap(shown(state), width(a.out)-2) {
		a.printf("  %s\n", l)
	}
	t := newTable(a.out)
	row := func(name string, v any) { t.row("  "+name, v) }
	if f.Type == "file" {
		row("size", sizeAndBytes(f.Size))
		row("local", fmt.Sprintf("%s (%s)", sizeText(f.LocalBytes), percent(f.LocalBytes, f.Size)))
	}
	row("inode", fmt.Sprintf("%d, version %d", f.Ino, f.Version))
	if f.Pinned {
		row("pinned", "automatic eviction leaves it alone")
	}
	if f.UploadedAt != nil {
		row("archived", when(*f.UploadedAt))
	}
	if f.TreeHash != "" {
		row("tree hash", f.TreeHash)
	}
	for _, ar := range f.Archives {
		name := "archive"
		if len(f.Archives) > 1 {
			name = fmt.Sprintf("archive of %d-%d", ar.Off, ar.Off+ar.Size-1)
		}
		row(name, ar.ID)
		if ar.TreeHash != "" && ar.TreeHash != f.TreeHash {
			row("  its tree hash", ar.TreeHash)
		}
		if ar.Description != "" {
			row("  description", ar.Description)
		}
	}
	if f.Job != "" {
		row("job", f.Job)
	}
	if f.Progress > 0 && f.Progress < 1 {
		row("progress", fmt.Sprintf("%.0f %%", f.Progress*100))
	}
	if f.ETA != nil {
		row("expected", when(*f.ETA))
	}
	if f.Error != "" {
		row("error", f.Error)
	}
	t.flush()
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "all"
	}
	if part >= whole {
		return "all"
	}
	if part <= 0 {
		return "none"
	}
	return fmt.Sprintf("%.1f %%", float64(part)/float64(whole)*100)
}

// wrap breaks a text into lines of at most n characters where it can.
func wrap(s string, n int) []string {
	var out []string
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > n {
			out = append(out, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(out, line)
}
