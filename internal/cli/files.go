package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/jobs"
)

// pathVerb makes a verb on files of running mounts. Of the paths that cannot be resolved run is told; it ends with an error if it
// cannot do its work for the others, and prints the result.
func (a *app) pathVerb(use, short string, run func(ctx context.Context, groups []*mountTargets, failed []jobs.Skipped) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: positional(1, -1)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, failed, err := a.resolveEach(cmd.Context(), args)
		if err != nil {
			return err
		}
		if err := run(cmd.Context(), groups, failed); err != nil {
			return err
		}
		switch {
		case len(groups) == 0:
			return quietly(exitFailed)
		case len(failed) > 0:
			return quietly(exitPartial)
		}
		return nil
	}
	a.addJSON(cmd)
	return cmd
}

// missingPaths ends the help of every pathVerb.
const missingPaths = `

Paths that do not exist, or lie in no mount, are named; the others are seen to all the same (exit code 3).`

func (a *app) syncCmd() *cobra.Command {
	cmd := a.pathVerb("sync PATH…", "wait until files, or everything below directories, are in the vault", func(ctx context.Context, groups []*mountTargets, failed []jobs.Skipped) error {
		if !a.json {
			a.printSkipped("failed:", failed) // before the wait, which may end otherwise
		}
		var sum jobs.Progress
		for _, g := range groups {
			b := a.newBar("archiving", 0, true)
			var last jobs.Progress
			err := g.client.Sync(ctx, g.inos(), func(p jobs.Progress) { last = p; b.engine(p) })
			b.done()
			sum.FilesDone += last.FilesDone
			sum.BytesDone += last.BytesDone
			if errors.Is(err, jobs.ErrUpload) {
				return advise(err, "casfs status and casfs stat tell why; the data is safe in the state directory")
			}
			if err != nil && ctx.Err() != nil {
				return advise(err, "what is not in the vault yet is on its way: casfs status shows it")
			}
			if err != nil {
				return err
			}
		}
		if a.json {
			return a.printJSON(map[string]any{"files": sum.FilesDone, "bytes": sum.BytesDone, "failures": viewSkipped(failed)})
		}
		return nil
	})
	cmd.Long = `Uploads at once whatever is not yet in the vault, without waiting for files to
settle, and returns when each archive is confirmed and recorded.` + missingPaths
	return cmd
}

func (a *app) evictCmd() *cobra.Command {
	var recursive bool
	cmd := a.pathVerb("evict PATH…", "drop the local copies of archived files", func(ctx context.Context, groups []*mountTargets, failed []jobs.Skipped) error {
		if err := needRecursive(groups, recursive); err != nil {
			return err
		}
		var sum jobs.EvictResult
		for _, g := range groups {
			r, err := g.client.Evict(ctx, g.inos(), recursive)
			if err != nil {
				return err
			}
			sum.Files += r.Files
			sum.Bytes += r.Bytes
			sum.Skipped = append(sum.Skipped, r.Skipped...)
		}
		if a.json {
			if err := a.printJSON(map[string]any{"files": sum.Files, "bytes": sum.Bytes, "skipped": viewSkipped(sum.Skipped), "failures": viewSkipped(failed)}); err != nil {
				return err
			}
		} else {
			a.printf("dropped the local copy of %s, %s\n", count(sum.Files, "file"), sizeText(sum.Bytes))
			a.printSkipped("kept", sum.Skipped)
			a.printSkipped("failed:", failed)
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
	for i, s := range skipped {
		if i == 20 {
			fmt.Fprintf(a.errOut, "casfs: … and %d more\n", len(skipped)-i)
			return
		}
		fmt.Fprintf(a.errOut, "casfs: %s %s: %s\n", verb, shown(s.Path), oneLine(s.Reason))
	}
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
	cmd := a.pathVerb("stat PATH…", "explain the state of files in plain words", func(ctx context.Context, groups []*mountTargets, failed []jobs.Skipped) error {
		all := []jobs.FileStatus{} // not null, in JSON
		for _, g := range groups {
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
				all = append(all, f)
			}
			if err != nil {
				return err
			}
		}
		a.printSkipped("failed:", failed) // also with --json, which lists files
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
