package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/casfs/casfs/internal/cli/version"
)

// manCmd writes the man pages, for make install.
func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "write the man pages into a directory",
		Hidden: true,
		Args:   positional(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeMan(cmd.Root(), args[0])
		},
	}
}

// writeMan writes the pages of cmd and of every verb below it.
func writeMan(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	f, err := os.Create(filepath.Join(dir, manName(cmd)+".1"))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	manPage(w, cmd)
	err = w.Flush()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	for _, c := range cmd.Commands() {
		if err == nil {
			err = writeMan(c, dir)
		}
	}
	return err
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage writes one verb's page. Its text is the verb's help; lines that begin with blanks are kept as they are.
func manPage(w io.Writer, cmd *cobra.Command) {
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	ver, _, _ := strings.Cut(version.Version(), "+")
	if strings.HasPrefix(ver, "v0.0.0-") {
		ver = "development version" // of a commit, too long for a header
	}
	line(`.TH "%s" "1" "%s" "casfs %s" "casfs"`, strings.ToUpper(manName(cmd)), time.Now().Format("January 2006"), ver)
	line(".nh\n.ad l") // names and paths are not hyphenated
	line(".SH NAME\n%s \\- %s", roff(manName(cmd)), roff(cmd.Short))
	line(".SH SYNOPSIS")
	synopsis := cmd.CommandPath()
	_, args, _ := strings.Cut(cmd.Use, " ")
	if cmd.HasAvailableSubCommands() {
		args = "VERB …"
	}
	line("\\fB%s\\fP [\\fIflags\\fP] %s", roff(synopsis), roff(args))
	line(".SH DESCRIPTION")
	text := cmd.Long
	if text == "" {
		text = strings.ToUpper(cmd.Short[:1]) + cmd.Short[1:] + "."
	}
	manText(w, text)
	if cmd.HasAvailableSubCommands() {
		line(".SH VERBS")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.Name() != "help" {
				line(".TP\n\\fB%s\\fP(1)\n%s", roff(manName(c)), roff(c.Short))
			}
		}
	}
	cmd.InitDefaultHelpFlag()
	if cmd.HasAvailableFlags() {
		line(".SH OPTIONS")
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				manFlag(w, f)
			}
		})
	}
	if !cmd.HasParent() {
		line(".SH FILES")
		for _, f := range [][2]string{
			{"~/.config/casfs/config.ini", "the account, and in its section [casfs] any setting by the name of its flag"},
			{"~/.cascmd_credentials", "cascmd's file, read as it is"},
			{"/var/lib/casfs, ~/.local/state/casfs", "the state of root's and of other users' mounts (--state-dir): precious, but for content/ in it"},
		} {
			line(".TP\n%s\n%s", roff(f[0]), roff(f[1]))
		}
		line(".SH ENVIRONMENT")
		line(".TP\nTENCENTCLOUD_SECRET_ID, TENCENTCLOUD_SECRET_KEY\nthe account's key")
		line(".TP\nCASFS_…\nany setting: CASFS_STATE_DIR is \\-\\-state\\-dir")
	}
	if parent := cmd.Parent(); parent != nil {
		var also []string
		for _, c := range append([]*cobra.Command{parent}, parent.Commands()...) {
			if c != cmd && !c.Hidden && c.Name() != "help" {
				also = append(also, roff(manName(c))+"(1)")
			}
		}
		line(".SH SEE ALSO\n%s", strings.Join(also, ",\n"))
	}
}

// manText writes paragraphs, and blocks of lines that begin with blanks verbatim.
func manText(w io.Writer, text string) {
	verbatim, first := false, true
	for l := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		switch {
		case l == "":
			if verbatim {
				fmt.Fprintln(w, ".EE\n.RE")
				verbatim = false
			}
			fmt.Fprintln(w, ".PP")
			first = true
			continue
		case strings.HasPrefix(l, "  ") && first && !verbatim:
			fmt.Fprintln(w, ".RS 2\n.EX")
			verbatim = true
		}
		first = false
		if verbatim {
			l = strings.TrimPrefix(l, "  ")
		}
		fmt.Fprintln(w, roff(l))
	}
	if verbatim {
		fmt.Fprintln(w, ".EE\n.RE")
	}
}

func manFlag(w io.Writer, f *pflag.Flag) {
	name, usage := pflag.UnquoteUsage(f)
	fmt.Fprint(w, ".TP\n")
	if f.Shorthand != "" {
		fmt.Fprintf(w, "\\fB\\-%s\\fP, ", roff(f.Shorthand))
	}
	fmt.Fprintf(w, "\\fB\\-\\-%s\\fP", roff(f.Name))
	if name != "" {
		fmt.Fprintf(w, " \\fI%s\\fP", roff(name))
	}
	if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "[]" && !strings.Contains(usage, "(default") {
		usage += " (default " + d + ")"
	}
	fmt.Fprintf(w, "\n%s\n", roff(usage))
}

// roff escapes a text: backslashes, hyphens (to be copied as such), and what would be a request at a line's beginning.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
