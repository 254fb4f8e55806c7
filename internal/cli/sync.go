package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/jobs"
)

func (a *app) syncCmd() *cobra.Command {
	cmd := a.pathVerb("sync PATH…", "wait until files, or everything below directories, are in the vault", a.sync)
	cmd.Long = `Uploads at once whatever is not yet in the vault, without waiting for files to
settle, and returns when each archive is confirmed and recorded. Files that the service refuses are
named; the others are waited for all the same.` + missingPaths
	return cmd
}

// sync names what a mount cannot archive as soon as that is known: another may take long.
func (a *app) sync(ctx context.Context, w *pathWork) error {
	b := a.newBar("archiving", 0, true)
	defer b.done()
	say := func(failed []jobs.Skipped) {
		if !a.json {
			b.note(a.errOut, "%s", skippedText("failed:", failed))
		}
	}
	say(w.failed)
	all := inAllMounts(w.groups, b, func(g *mountTargets, progress func(jobs.Progress)) ([]jobs.Skipped, error) {
		failures, err := g.client.Sync(ctx, g.inos(), progress)
		failures = g.absolute(failures)
		say(failures)
		return failures, err
	})
	b.done()
	var sum jobs.Progress
	for _, r := range all {
		sum.FilesDone += r.last.FilesDone
		sum.BytesDone += r.last.BytesDone
		switch {
		case r.err == nil:
			w.done = true
		case ctx.Err() != nil:
			return advise(r.err, "what is not in the vault yet is on its way: casfs status shows it")
		case len(r.result) > 0:
			w.done = w.done || r.last.FilesDone > 0
			w.failed = append(w.failed, r.result...)
			w.hint("casfs status and casfs stat tell why; the data is safe in the state directory")
		default:
			told := len(w.failed)
			if err := w.fail(ctx, r.mountTargets, r.err); err != nil {
				return err
			}
			say(w.failed[told:])
		}
	}
	if a.json {
		return a.printJSON(map[string]any{"files": sum.FilesDone, "bytes": sum.BytesDone, "failures": viewSkipped(w.failed)})
	}
	a.printHints(w)
	return nil
}
