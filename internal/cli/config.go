package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"gopkg.in/ini.v1"

	"github.com/casfs/casfs/cas/local"
)

func (a *app) configCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "write a configuration file with the account's key",
		Long: `Writes the account into a configuration file, mode 0600, in the format that
cascmd reads, too. Secret id and key are asked for, or read from standard
input as two lines; they are never given on the command line. The file is
--config-file, or ~/.config/casfs/config.ini. A section [casfs] in it may hold
any setting by the name of its flag, as "settle = 10s".

casfs config show prints the settings in force and where each comes from.`,
		Args: positional(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error { return a.configWrite(force) },
	}
	addSettings(cmd.Flags(), &a.set, gService)
	cmd.Flags().MarkHidden("local")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace an existing account")
	show := &cobra.Command{
		Use:   "show",
		Short: "print the settings in force and where each comes from",
		Args:  positional(0, 0),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.configShow(cmd) },
	}
	addSettings(show.Flags(), &a.set, gService|gDelays|gState|gMount|gLog)
	a.addJSON(show)
	cmd.AddCommand(show)
	return cmd
}

func (a *app) configWrite(force bool) error {
	name := a.set.ConfigFile
	if name == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return advise(err, "give --config-file")
		}
		name = filepath.Join(dir, "casfs", "config.ini")
	}
	name, err := absolute(name)
	if err != nil {
		return err
	}
	if a.set.AppID != "" && a.set.AppID != "-" && !isDecimal(a.set.AppID) {
		return usagef("--appid is a number, or - for the key's own account")
	}
	file := ini.Empty()
	if _, err := os.Stat(name); err == nil {
		if file, err = ini.LoadSources(ini.LoadOptions{IgnoreInlineComment: true}, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if file.HasSection(cascmdSection) && !force {
			return &failure{code: exitFailed, err: fmt.Errorf("%s has an account already", name), advice: "add --force to replace it"}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	endpoint := a.set.Endpoint
	if a.set.Region != "" && a.set.from["endpoint"] < byFlag {
		endpoint = "cas." + a.set.Region + ".myqcloud.com"
	}
	if a.set.from["endpoint"] == byFile && a.set.Region == "" {
		endpoint = ""
	}
	if endpoint == "" {
		if endpoint, err = a.ask(in, "Endpoint (as cas.ap-guangzhou.myqcloud.com): ", false); err != nil {
			return err
		}
	}
	appid := a.set.AppID
	if a.set.from["appid"] < byEnv {
		appid = "-"
	}
	id, err := a.ask(in, "Secret id: ", false)
	if err != nil {
		return err
	}
	key, err := a.ask(in, "Secret key (not shown): ", true)
	if err != nil {
		return err
	}
	sec := file.Section(cascmdSection)
	for _, kv := range [][2]string{{"endpoint", endpoint}, {"appid", appid}, {"secretid", id}, {"secretkey", key}} {
		if kv[1] == "" || strings.ContainsAny(kv[1], "\r\n\x00") {
			return usagef("%s is missing", kv[0])
		}
		sec.Key(kv[0]).SetValue(kv[1])
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".config-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = file.WriteTo(tmp); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return err
	}
	a.printf("wrote %s\n", name)
	return nil
}

// ask reads one line, with a prompt on a terminal.
func (a *app) ask(in *bufio.Reader, prompt string, secret bool) (string, error) {
	if isTerminal(os.Stdin) {
		fmt.Fprint(a.errOut, prompt)
		if secret {
			b, err := term.ReadPassword(int(os.Stdin.Fd()))
			fmt.Fprintln(a.errOut)
			return strings.TrimSpace(string(b)), err
		}
	}
	text, err := in.ReadString('\n')
	if err != nil && text == "" {
		return "", usagef("%s missing on standard input", strings.TrimSuffix(strings.ToLower(prompt), ": "))
	}
	return strings.TrimSpace(text), nil
}

func (a *app) configShow(cmd *cobra.Command) error {
	type shownSetting struct {
		Name  string `json:"name"`
		Value string `json:"value"`
		From  string `json:"from"`
	}
	names := map[origin]string{byDefault: "default", byFile: "file", byEnv: "environment", byFlag: "flag"}
	var out []shownSetting
	for _, d := range settingsTable {
		if f := cmd.Flags().Lookup(d.name); f != nil {
			out = append(out, shownSetting{d.name, f.Value.String(), names[a.set.from[d.name]]})
		}
	}
	id, key := "", ""
	if creds, err := a.set.credentials(); err == nil {
		id, key = creds.SecretID, "(hidden)"
	}
	out = append(out, shownSetting{"secret id", id, a.set.credentialsFrom()}, shownSetting{"secret key", key, a.set.credentialsFrom()})
	if a.json {
		return a.printJSON(map[string]any{"files": a.set.files, "settings": out})
	}
	for _, f := range a.set.files {
		a.printf("read %s\n", f)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].From != "default" && out[j].From == "default" })
	t := newTable(a.out)
	for _, s := range out {
		t.row(s.Name, s.From, s.Value) // values can be long
	}
	t.flush()
	return nil
}

// readCredentials reads the account of an embedded store that another process holds.
func readCredentials(name string) (local.Credentials, error) {
	file, err := ini.LoadSources(ini.LoadOptions{IgnoreInlineComment: true}, name)
	if err != nil {
		return local.Credentials{}, fmt.Errorf("credentials of the embedded store: %w", err)
	}
	sec := file.Section(cascmdSection)
	return local.Credentials{AppID: sec.Key("appid").String(), SecretID: sec.Key("secretid").String(), SecretKey: sec.Key("secretkey").String()}, nil
}
