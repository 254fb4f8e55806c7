package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// theMount finds the mount a verb without a path means: the only one of this
// user, or the one that --mount names.
func (a *app) theMount(ctx context.Context, path string) (*daemon, error) {
	return a.mountNamed(ctx, path, "--mount")
}

// mountNamed is theMount for a verb that takes the path by another argument.
func (a *app) mountNamed(ctx context.Context, path, argument string) (*daemon, error) {
	if path != "" {
		groups, err := a.resolve(ctx, []string{path})
		if err != nil {
			return nil, err
		}
		return groups[0].daemon, nil
	}
	all, missing, err := a.daemons(ctx)
	if err != nil {
		return nil, err
	}
	if here, err := around(); err != nil {
		return nil, err
	} else if here != "" {
		for _, d := range all {
			if d.info.Mountpoint == here {
				return d, nil
			}
		}
		for _, m := range missing {
			if m.point == here {
				return nil, fmt.Errorf("%s, where you are: %w", here, m.err)
			}
		}
		return nil, notYours(here)
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("no casfs mount is running")
	case len(all) > 1:
		var names []string
		for _, d := range all {
			names = append(names, d.info.Mountpoint)
		}
		return nil, usagef("which mount? %s is one of %s", argument, strings.Join(names, ", "))
	}
	return all[0], nil
}

// around returns the mount point of the casfs mount that the working directory lies in, "" when it is in none. It asks the kernel alone: a
// call into the mount may hang.
func around() (point string, err error) {
	here, err := unix.Getwd()
	if err != nil {
		return "", nil // it was removed, or is in what is mounted no more
	}
	mounts, err := casfsMounts()
	for _, m := range mounts {
		if rel, err := filepath.Rel(m.point, here); err == nil && filepath.IsLocal(rel) && len(m.point) > len(point) {
			point = m.point
		}
	}
	return point, err
}

func (a *app) mountFlag(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "mount", "", "the mount, by any `PATH` inside it (default: the one you are in, or the only one)")
	addSettings(cmd.Flags(), &a.set, gState)
}

func (a *app) inventoryCmd() *cobra.Command {
	var wait bool
	var mount string
	cmd := &cobra.Command{
		Use:   "inventory VAULT|PATH",
		Short: "list a vault and merge what is unknown into the mounted tree",
		Long: `Starts an inventory of a vault, named or given by a path in a mount (3 to 5
hours at the real service). Archives the mount does not know become files;
known ones are confirmed. With --wait it returns when the list is merged.`,
		Args:              positional(1, 1),
		ValidArgsFunction: a.completeVaults,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			d, vault, err := a.vaultOf(ctx, args[0], mount)
			if err != nil {
				return err
			}
			b := a.newBar("inventory", 0, false)
			err = d.client.Inventory(ctx, vault, wait, func(p jobs.Progress) { b.set(p.FilesDone, p.FilesTotal) })
			b.done()
			if err != nil {
				return err
			}
			state := "started"
			if wait {
				state = "merged"
			}
			if a.json {
				return a.printJSON(map[string]string{"vault": vault, "inventory": state})
			}
			a.printf("inventory of %s %s\n", vault, state)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait until the list is merged")
	a.mountFlag(cmd, &mount)
	a.addJSON(cmd)
	return cmd
}

// vaultOf finds mount and vault of an argument that is a vault's name or a path in a mount.
func (a *app) vaultOf(ctx context.Context, arg, mount string) (*daemon, string, error) {
	if !strings.HasPrefix(arg, "cas://") {
		_, missing := os.Lstat(arg)
		if missing != nil && strings.Contains(arg, "/") {
			return nil, "", pathError(arg, missing)
		}
		if missing == nil && (strings.Contains(arg, "/") || mount == "") {
			groups, err := a.resolve(ctx, []string{arg})
			if err == nil {
				d := groups[0].daemon
				if d.info.Vault != "" {
					return d, d.info.Vault, nil
				}
				abs, _ := absolute(arg)
				rel, err := filepath.Rel(d.info.Mountpoint, realPath(abs))
				if err != nil || rel == "." || strings.HasPrefix(rel, "..") {
					return nil, "", usagef("%s is not inside a vault", arg)
				}
				name, _, _ := strings.Cut(rel, "/")
				return d, name, nil
			}
			if strings.Contains(arg, "/") {
				return nil, "", err
			}
		}
	}
	vault, err := parseVault(arg)
	if err != nil {
		return nil, "", err
	}
	d, err := a.theMount(ctx, mount)
	if err != nil {
		return nil, "", err
	}
	if d.info.Vault != "" && d.info.Vault != vault {
		return nil, "", fmt.Errorf("the mount on %s holds only the vault %s", d.info.Mountpoint, d.info.Vault)
	}
	return d, vault, nil
}

func (a *app) checkCmd() *cobra.Command {
	var inventory, repair bool
	cmd := &cobra.Command{
		Use:   "check [PATH]",
		Short: "compare a mount's catalog, staged data and cache with each other",
		Long: `Compares what a running mount has recorded with what is on its disk, and with
--inventory with what is in the vaults. Problems are listed (exit code 1). --repair
mends what can be mended without losing anything, and uploads again what is complete
on this machine and gone from its vault.`,
		Args: positional(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) == 1 {
				path = args[0]
			}
			d, err := a.mountNamed(cmd.Context(), path, "PATH")
			if err != nil {
				return err
			}
			problems := []string{}
			err = d.client.Check(cmd.Context(), inventory, repair, func(p string) {
				problems = append(problems, p)
				if !a.json {
					a.printf("%s\n", shown(p))
				}
			})
			if err != nil {
				return err
			}
			if a.json {
				if err := a.printJSON(map[string]any{"mountpoint": d.info.Mountpoint, "problems": problems}); err != nil {
					return err
				}
			} else if len(problems) == 0 {
				a.printf("%s: no problems\n", d.info.Mountpoint)
			}
			if len(problems) > 0 && !repair {
				return quietly(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&inventory, "inventory", false, "compare with the vaults, too (takes as long as an inventory)")
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what loses nothing")
	addSettings(cmd.Flags(), &a.set, gState)
	a.addJSON(cmd)
	return cmd
}

func (a *app) allowCmd() *cobra.Command {
	var files int
	var n int64
	var mount string
	cmd := &cobra.Command{
		Use:   "allow",
		Short: "let reads recall more than the guard permits",
		Long: `The guard stops programs that would recall very much by just reading. allow adds
to what reads may recall today; without --files and --bytes, as much as the
limits again.`,
		Args: positional(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.theMount(cmd.Context(), mount)
			if err != nil {
				return err
			}
			if err := d.client.Allow(cmd.Context(), files, n); err != nil {
				return err
			}
			s, err := d.client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"mountpoint": d.info.Mountpoint, "guard": s.Guard})
			}
			a.printf("%s: reads may recall more: now %s\n", d.info.Mountpoint, guard(s.Guard))
			return nil
		},
	}
	cmd.Flags().Var(number(&files), "files", "this many retrievals more")
	cmd.Flags().Var(size(&n), "bytes", "this many bytes more")
	a.mountFlag(cmd, &mount)
	a.addJSON(cmd)
	return cmd
}

func (a *app) trashCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "trash", Short: "archives of deleted and overwritten files: list, purge"}
	cmd.AddCommand(a.trashListCmd(), a.trashPurgeCmd())
	return cmd
}

type trashView struct {
	Vault     string    `json:"vault"`
	ArchiveID string    `json:"archive_id"`
	Path      string    `json:"path"`
	Size      int64     `json:"size"`
	Uploaded  time.Time `json:"uploaded"`
	Deadline  time.Time `json:"deadline"`
}

func (a *app) trashListCmd() *cobra.Command {
	var mount string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list archives that wait to be deleted",
		Args:  positional(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.theMount(cmd.Context(), mount)
			if err != nil {
				return err
			}
			entries, err := d.client.Trash(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				views := make([]trashView, 0, len(entries))
				for _, e := range entries {
					v := trashView(e)
					v.Path = fromRoot(v.Path)
					views = append(views, v)
				}
				return a.printJSON(views)
			}
			if len(entries) == 0 {
				a.printf("the trash is empty\n")
				return nil
			}
			t := newTable(a.out)
			t.row("DELETED AFTER", "UPLOADED", "SIZE", "FILE", "ARCHIVE")
			for _, e := range entries {
				t.row(when(e.Deadline), when(e.Uploaded), sizeText(e.Size), dash(inMount(d.info.Vault, e.Path)), e.ArchiveID)
			}
			t.flush()
			return nil
		},
	}
	a.mountFlag(cmd, &mount)
	a.addJSON(cmd)
	return cmd
}

func (a *app) trashPurgeCmd() *cobra.Command {
	var mount string
	var all bool
	cmd := &cobra.Command{
		Use:   "purge [ARCHIVE…]",
		Short: "delete archives of the trash now, whatever it costs",
		Long: `Deletes archives from the vault for ever. Those younger than 90 days are billed for
the days that are left.`,
		Args: positional(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("name ARCHIVEs (casfs trash list shows them), or give --all")
			}
			d, err := a.theMount(cmd.Context(), mount)
			if err != nil {
				return err
			}
			slices.Sort(args)
			args = slices.Compact(args)
			n, err := d.client.Purge(cmd.Context(), args)
			if err == nil && n < len(args) {
				err = advise(fmt.Errorf("not in the trash: %s of those named", count(int64(len(args)-n), "archive")), "casfs trash list shows what there is")
			}
			if err != nil {
				if n > 0 {
					return &failure{code: exitPartial, err: fmt.Errorf("deleted %d, then: %w", n, err)}
				}
				return err
			}
			if a.json {
				return a.printJSON(map[string]int{"deleted": n})
			}
			a.printf("deleted %s\n", count(int64(n), "archive"))
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "everything in the trash")
	a.mountFlag(cmd, &mount)
	a.addJSON(cmd)
	return cmd
}
