package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completeValues lets the shell offer the values of flags that have few.
func completeValues(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		v, ok := f.Value.(*value[string])
		if !ok || len(v.choices) == 0 {
			return
		}
		if err := cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(v.choices, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	})
	for _, c := range cmd.Commands() {
		completeValues(c)
	}
}

// completeMounts offers the mount points of this user, without a call into any mount.
func completeMounts(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	mounts, _ := casfsMounts()
	var names []string
	for _, m := range mounts {
		if m.uid < 0 || m.uid == os.Geteuid() || os.Geteuid() == 0 {
			names = append(names, m.point)
		}
	}
	return offered(names, begun)
}

// completeVaults offers the vaults that running mounts know; the service is not asked.
func (a *app) completeVaults(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.set.load(cmd.Flags()) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var names []string
	for _, d := range a.known(ctx) { // those that answer: a look into one that hangs would hang the shell
		d.client.Close()
		if d.info.Vault != "" {
			names = append(names, d.info.Vault)
		} else if !d.info.Draining {
			entries, _ := os.ReadDir(d.info.Mountpoint)
			for _, e := range entries {
				names = append(names, e.Name())
			}
		}
	}
	return offered(names, begun)
}

// offered are the names that begin as what was typed. The shell offers files when there is none, or none as it reads
// what was typed (~/mnt).
func offered(names []string, begun string) ([]string, cobra.ShellCompDirective) {
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, begun) })
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveDefault
}
