package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/casfs/casfs/internal/cli/version"
)

// app is one run of the program.
type app struct {
	out, errOut io.Writer
	set         settings
	json        bool
	makeStore   bool     // --local may create the store
	started     bool     // a verb has begun: failures are no longer usage errors
	closers     []func() // run in reverse before the program ends
}

// Main runs the program and returns its exit code.
func Main() int {
	// The first Ctrl-C ends what the verb waits for, in order; the second ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop()
	}()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: out, errOut: errOut}
	root := a.root()
	root.SetArgs(shieldIDs(args, root))
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	for i := len(a.closers) - 1; i >= 0; i-- {
		a.closers[i]()
	}
	if err == nil {
		return exitOK
	}
	if !a.started && !isUsage(err) {
		err = usagef("%s", unshield(err.Error()))
	}
	a.complain(ctx, cmd, err)
	return exitCode(err)
}

// onExit registers fn to be run when the verb is over.
func (a *app) onExit(fn func()) { a.closers = append(a.closers, fn) }

func (a *app) root() *cobra.Command {
	cobra.EnableCommandSorting = false // the order below is the order of importance
	root := &cobra.Command{
		Use:     "casfs",
		Version: version.Version(),
		Short:   "mount cold-archive vaults as directories",
		Long: `casfs mounts archive vaults (Tencent CAS, a Glacier-like service) as ordinary
directories. What is written there becomes archives in the background; reading
a file whose bytes are only in the vault starts a retrieval and waits for it.
Without a cloud account the same program runs on an embedded store: --local DIR.

  casfs mount --local ~/store ~/archive      mount an embedded store
  casfs status                               what is going on
  casfs umount ~/archive                     archive what is left and unmount

Every setting may also come from the environment (CASFS_STATE_DIR for
--state-dir) or from the section [casfs] of the configuration file.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 75 not finished yet.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				msg := fmt.Sprintf("unknown verb %q", args[0])
				// Anything short is near to something.
				if near := cmd.SuggestionsFor(args[0]); len(near) > 0 && len(args[0]) > 3 {
					msg += "; did you mean " + strings.Join(near, " or ") + "?"
				}
				return usagef("%s", msg)
			}
			return cmd.Help()
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate("casfs {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s", unshield(err.Error()))
	})
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		a.started = true
		for i := range args {
			args[i] = unshield(args[i])
		}
		var err error
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if strings.HasPrefix(f.Value.String(), shield) && err == nil {
				err = f.Value.Set(unshield(f.Value.String()))
			}
		})
		if err != nil {
			return usagef("%v", err)
		}
		a.set.makesFile = cmd.CommandPath() == "casfs config"
		if err := a.set.load(cmd.Flags()); err != nil {
			return err
		}
		for _, w := range a.set.warnings {
			a.warn("%s", w)
		}
		return nil
	}
	root.AddGroup(
		&cobra.Group{ID: "mounts", Title: "Mounts:"},
		&cobra.Group{ID: "files", Title: "Files in a mount:"},
		&cobra.Group{ID: "service", Title: "The service:"},
	)
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("mounts", a.mountCmd(), a.umountCmd(), a.statusCmd(), a.inventoryCmd(), a.checkCmd(), a.allowCmd(), a.trashCmd())
	group("files", a.syncCmd(), a.recallCmd(), a.evictCmd(), a.statCmd())
	group("service", a.serveCmd(), a.vaultCmd(), a.archiveCmd(), a.uploadCmd(), a.jobCmd(), a.treehashCmd())
	root.AddCommand(a.configCmd(), a.completionCmd(), a.versionCmd(), a.manCmd(), a.findMountCmd())
	setUsage(root)
	completeValues(root)
	root.SetHelpCommand(helpCmd())
	return root
}

// helpCmd replaces cobra's, which knows no unknown verbs: the root takes any argument.
func helpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]…",
		Short: "print the help of a verb",
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil:
				return usagef("%v", err)
			case len(rest) > 0 && verb.HasParent():
				return usagef("%s has no verb %q", verb.CommandPath(), rest[0])
			case len(rest) > 0:
				return usagef("unknown verb %q", rest[0])
			}
			verb.InitDefaultHelpFlag()
			verb.InitDefaultVersionFlag()
			return verb.Help()
		},
	}
}

// setUsage makes every family of verbs without a verb a usage error, and keeps flags in the order of their table.
func setUsage(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	for _, c := range cmd.Commands() {
		setUsage(c)
	}
	if cmd.HasParent() && cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, c := range cmd.Commands() {
				if !c.Hidden {
					names = append(names, c.Name())
				}
			}
			if len(args) > 0 {
				return usagef("there is no verb %q, only %s", args[0], strings.Join(names, ", "))
			}
			return usagef("a verb is missing: %s", strings.Join(names, ", "))
		}
	}
}

// addJSON gives a verb --json.
func (a *app) addJSON(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON")
}

// positional checks the number of arguments; the words of the verb's usage line name what is missing.
func positional(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		words := strings.Fields(cmd.Use)[1:]
		if len(args) < least {
			var names []string // of what must be given
			for _, w := range words {
				if !strings.HasPrefix(w, "[") {
					names = append(names, strings.Trim(w, ".…"))
				}
			}
			missing := "an argument"
			if n := len(args); n < len(names) {
				missing = names[n]
			}
			return usagef("missing %s (usage: %s)", missing, usageLine(cmd))
		}
		if most >= 0 && len(args) > most {
			return usagef("too many arguments: %q (usage: %s)", unshield(args[most]), usageLine(cmd))
		}
		return nil
	}
}

func usageLine(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.Use, " ")
	return strings.TrimSpace(cmd.CommandPath() + " " + rest)
}

// shield marks an argument that begins with "-" but is an ID, so that pflag takes it for a value.
const shield = "\x00id:"

// shieldIDs finds IDs that begin with "-" (the service makes such IDs): at
// least 20 characters of the ID alphabet that are no flag's name.
func shieldIDs(args []string, root *cobra.Command) []string {
	names := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, fl := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			fl.VisitAll(func(f *pflag.Flag) { names["--"+f.Name] = true })
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = arg
		if arg == "--" {
			copy(out[i:], args[i:])
			break
		}
		if len(arg) >= 20 && arg[0] == '-' && !names[arg] && isID(arg) {
			out[i] = shield + arg
		}
	}
	return out
}

func isID(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func unshield(s string) string { return strings.ReplaceAll(s, shield, "") }

// absolute makes a path the user gave independent of the working directory.
func absolute(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", errors.New("the working directory is gone: give absolute paths")
	}
	return abs, nil
}
