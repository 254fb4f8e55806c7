package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/jobs"
)

func (a *app) recallCmd() *cobra.Command {
	var req jobs.RecallRequest
	var span, fromFile string
	var nul bool
	cmd := &cobra.Command{
		Use:   "recall PATH…",
		Short: "bring files back from the vault ahead of their use",
		Long: `Starts the retrievals of cold files and returns; with --wait, when the files
are local. Many files are asked for in waves, so that what becomes ready can be
fetched in time, and wait while the disk has no room for them. Interrupting a waiting recall leaves it going; --cancel
drops what was not yet asked of the service.

Paths that do not exist count as failed; the others are recalled all the same.

Exit codes: 0 all local, 75 still running, 3 some failed, 1 all failed.
With --cancel: 0 done, 3 some paths do not exist.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if fromFile != "" {
				more, err := pathsFrom(fromFile, nul)
				if err != nil {
					return err
				}
				args = append(args, more...)
			} else if nul {
				return usagef("-0 belongs to --from-file")
			}
			if len(args) == 0 && fromFile == "" {
				return usagef("missing PATH (usage: %s)", usageLine(cmd))
			}
			if req.Cancel && (req.Wait || span != "") {
				return usagef("--cancel excludes --wait and --range")
			}
			if span != "" {
				first, last, err := parseSpan(span)
				if err != nil {
					return usagef("--range: %v", err)
				}
				req.Off = first
				if last >= 0 {
					req.Len = last - first + 1
				} else if first > 0 {
					req.Len = 1<<62 - first
				}
			}
			groups, missing, err := a.resolveEach(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := needRecursive(groups, req.Recursive); err != nil {
				return err
			}
			return a.recall(cmd.Context(), groups, missing, req)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&req.Recursive, "recursive", "r", false, "everything below directories")
	fl.BoolVarP(&req.Wait, "wait", "w", false, "wait until the files are local")
	fl.Var(oneOf(&req.Tier, "standard", "bulk", "expedited", "auto"), "tier", "how fast, and how dear (default: the mount's)")
	fl.StringVar(&span, "range", "", "only bytes `A-B` of each file, as 0-64M")
	fl.StringVar(&fromFile, "from-file", "", "read paths from `FILE`, one per line (- for standard input)")
	fl.BoolVarP(&nul, "null", "0", false, "--from-file: paths end with a NUL byte (find -print0)")
	fl.BoolVar(&req.Cancel, "cancel", false, "drop recalls not yet asked of the service")
	a.addJSON(cmd)
	return cmd
}

func (a *app) recall(ctx context.Context, groups []*mountTargets, missing []jobs.Skipped, req jobs.RecallRequest) error {
	sum := jobs.RecallResult{Failed: int64(len(missing))}
	b := a.newBar("recalling", 0, true)
	all := inAllMounts(groups, b, func(g *mountTargets, progress func(jobs.Progress)) (jobs.RecallResult, error) {
		req := req
		req.Inos = g.inos()
		told := false
		r, err := g.client.Recall(ctx, req, func(p jobs.Progress) {
			if p.Waits != "" && req.Wait && !told && !a.json {
				told = true
				b.note(a.errOut, "casfs: waiting for %s (interrupting this ends only the wait)\n", p.Waits)
			}
			progress(p)
		})
		if r.Waits != "" && !told && !a.json {
			b.note(a.errOut, "casfs: not asked of the service yet, for it waits for %s\n  make room, or casfs recall --cancel ends it\n", r.Waits)
		}
		return r, err
	})
	b.done()
	var done jobs.Progress
	w := &pathWork{groups: groups, failed: missing}
	for _, r := range all {
		done.FilesDone += r.last.FilesDone
		done.FilesTotal += r.last.FilesTotal
		if r.err != nil && (ctx.Err() == nil || req.Cancel) {
			if err := w.fail(ctx, r.mountTargets, r.err); err != nil {
				return err
			}
			sum.Failed += int64(len(r.targets))
			continue
		}
		sum.Local += r.result.Local
		sum.Pending += r.result.Pending
		sum.Failed += r.result.Failed
		sum.Bytes += r.result.Bytes
		sum.Waits = cmp.Or(sum.Waits, r.result.Waits)
		w.failed = append(w.failed, r.absolute(r.result.Failures)...)
	}
	sum.Failures = w.failed
	if ctx.Err() != nil && !req.Cancel {
		so := ""
		if done.FilesTotal > 0 {
			so = fmt.Sprintf(" with %d of %s done", done.FilesDone, count(done.FilesTotal, "file"))
		}
		fmt.Fprintf(a.errOut, "casfs: interrupted%s; what was asked for goes on (casfs status shows it, casfs recall --cancel ends it)\n", so)
		return quietly(exitPending)
	}
	code := exitOK
	switch {
	case req.Cancel && sum.Failed == 0:
	case req.Cancel:
		code = exitPartial
	case sum.Failed > 0 && sum.Local+sum.Pending == 0:
		code = exitFailed
	case sum.Failed > 0:
		code = exitPartial
	case sum.Pending > 0:
		code = exitPending
	}
	if a.json {
		if err := a.printJSON(map[string]any{"local": sum.Local, "pending": sum.Pending, "failed": sum.Failed, "bytes": sum.Bytes, "waits": sum.Waits, "failures": viewSkipped(sum.Failures)}); err != nil {
			return err
		}
		return codeOnly(code)
	}
	switch {
	case req.Cancel:
		a.printf("cancelled; asked of the service already: %s\n", count(sum.Pending, "file"))
	case sum.Pending > 0:
		a.printf("%s local, %s on the way (%s asked for); casfs status shows when\n", count(sum.Local, "file"), count(sum.Pending, "file"), sizeText(sum.Bytes))
	default:
		a.printf("%s local\n", count(sum.Local, "file"))
	}
	a.printFailed(w)
	return codeOnly(code)
}

func codeOnly(code int) error {
	if code == exitOK {
		return nil
	}
	return quietly(code)
}

// pathsFrom reads a list of paths.
func pathsFrom(name string, nul bool) ([]string, error) {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	end := byte('\n')
	if nul {
		end = 0
	}
	var out []string
	r := bufio.NewReader(in)
	for {
		p, err := r.ReadString(end)
		if p = strings.TrimSuffix(p, string(end)); p != "" {
			out = append(out, p)
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
