package cli

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBadUsage(t *testing.T) {
	u := newUser(t)
	store := u.path("store")
	u.ok("vault", "create", "v", "--local", store)
	empty := u.path("empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	small := u.randomFile("small", 100, 1)
	mnt := u.path("mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	local := "--local=" + store
	id := "-" + strings.Repeat("A1_-", 16)
	for _, c := range []struct {
		args string // separated by |
		code int
		want string // in the first line of standard error
	}{
		{"frobnicate", 2, `unknown verb "frobnicate"`},
		{"statsu", 2, "did you mean status"},
		{"foo", 2, `unknown verb "foo"`},
		{"help|foo", 2, `unknown verb "foo"`},
		{"help|vault|foo", 2, `casfs vault has no verb "foo"`},
		{"--frobnicate", 2, "unknown flag: --frobnicate"},
		{"vault", 2, "a verb is missing: list, create"},
		{"vault|frob", 2, `there is no verb "frob"`},
		{"vault|create", 2, "missing VAULT (usage: casfs vault create VAULT)"},
		{"vault|create|a|b", 2, `too many arguments: "b"`},
		{"vault|create|a/b|" + local, 2, `vault name "a/b": only A-Z a-z 0-9`},
		{"vault|create|cas://|" + local, 2, "1 to 255 characters"},
		{"vault|list|--limit|0|" + local, 2, "--limit is between 1 and 1000"},
		{"vault|list|--limit|x|" + local, 2, "--limit"},
		{"vault|list", 2, "which service?"},
		{"vault|list|--endpoint|http://127.0.0.1:1|" + local, 2, "exclude each other"},
		{"vault|list|--region|x|" + local, 2, "--local and --region exclude each other"},
		{"vault|list|--endpoint|ftp://x", 1, "no credentials"},
		{"vault|list|--config-file|/nonexistent", 1, "/nonexistent: no such file"},
		{"vault|list|--local|/proc/nothing", 1, "there is no store in"},
		{"vault|show|nope|" + local, 1, "ResourceNotFoundException"},
		{"vault|policy|get|nope|" + local, 1, "ResourceNotFoundException"},
		{"archive|upload|v", 2, "missing FILE"},
		{"archive|upload|v|/nonexistent|" + local, 1, "no such file"},
		{"archive|upload|v|" + empty + "|" + local, 1, "at least one byte"},
		{"archive|upload|v|" + mnt + "|" + local, 1, "no regular file"},
		{"archive|upload|v|" + small + "|--desc|a\nb|" + local, 2, "a description with control characters"},
		{"archive|delete|v|a/b|" + local, 2, `"a/b" is no archive id`},
		{"upload|start|v|1K|" + local, 2, "a part size of 1024 bytes"},
		{"upload|start|v|3M|" + local, 2, "PART-SIZE is a power of two, as 2.0 MiB or 4.0 MiB"},
		{"archive|upload|v|" + small + "|-p|3M|" + local, 2, "--part-size is a power of two, as 2.0 MiB or 4.0 MiB"},
		{"archive|upload|v|" + small + "|-p|3X|" + local, 2, "is not a size"},
		{"archive|upload|v|" + small + "|-p|1K|" + local, 2, "--part-size lies between"},
		{"archive|upload|v|" + small + "|--desc|" + strings.Repeat("x", 1025) + "|" + local, 2, "at most 1024 bytes"},
		{"archive|upload|nope|" + small + "|" + local, 1, "ResourceNotFoundException"},
		{"job|show|v|" + id + "|" + local, 1, "ResourceNotFoundException"},
		{"job|show|v|--|" + id, 2, "which service?"},
		{"job|show|v|-short|" + local, 2, "unknown shorthand flag"},
		{"job|fetch|v|" + id + "|" + small + "|" + local, 1, "file already exists"},
		{"job|fetch|v|" + id + "|-|--range|5-1|" + local, 2, "ends before it begins"},
		{"job|fetch|v|" + id + "|-|--range|0-1|--start|1|" + local, 2, "--range excludes"},
		{"job|start|v|--tier|Bulk|" + local, 2, "--tier needs an ARCHIVE"},
		{"job|start|v|" + id + "|--limit|5|" + local, 2, "belongs to inventories"},
		{"job|start|v|" + id + "|--tier|fast|" + local, 2, "is not one of Expedited, Standard, Bulk"},
		{"job|start|v|" + id + "|--start|1M|" + local, 2, "--start needs --size"},
		{"job|start|v|" + id + "|--start|0|" + local, 2, "--start needs --size"},
		{"job|start|v|" + id + "|--range|0-|" + local, 2, "the end of a retrieval's range must be given"},
		{"job|start|v|--start-date|yesterday|" + local, 2, "is not a time"},
		{"job|start|v|--limit|10001|" + local, 2, "between 1 and 10000"},
		{"job|start|v|" + id + "|--to-cos|x|" + local, 2, "is not BUCKET/OBJECT"},
		{"upload|resume|v|" + id + "|" + small + "|" + local, 1, "ResourceNotFoundException"},
		{"upload|part|v|" + id + "|" + small + "|0|200|" + local, 2, "beyond the file's last byte"},
		{"upload|complete|v|" + id + "|10|abc|" + local, 2, "64 hexadecimal digits"},
		{"treehash|" + small + "|0", 2, "missing END"},
		{"treehash|/nonexistent", 1, "no such file"},
		{"serve", 2, "missing --dir"},
		{"serve|--dir|" + u.path("s2") + "|--tls-cert|x", 2, "go together"},
		{"serve|--dir|" + u.path("s2") + "|--tls-cert|x|--tls-key|y", 1, "certificate: open x: no such file"},
		{"serve|--dir|" + u.path("s2") + "|--listen|256.0.0.1:x", 1, "listen tcp"},
		{"serve|--dir|" + u.path("s2") + "|--standard|soon", 2, "is not a duration"},
		{"mount", 2, "missing MOUNTPOINT"},
		{"mount|a|b|c", 2, "too many arguments"},
		{"mount|" + mnt, 2, "which service?"},
		{"mount|a b|" + mnt + "|" + local, 2, "vault name"},
		{"mount|" + mnt + "|--settle|never|" + local, 2, "is not a duration"},
		{"mount|" + mnt + "|--cache-size|200%|" + local, 2, "is not a percentage"},
		{"mount|" + mnt + "|--tier|warp|" + local, 2, "is not one of"},
		{"mount|" + mnt + "|--trash|sometimes|" + local, 2, "--trash is min-age"},
		{"mount|" + mnt + "|--segment-size|100|" + local, 2, "multiple of 1M"},
		{"mount|" + mnt + "|--recall-deny-comm|[|" + local, 2, "not a pattern"},
		{"mount|" + u.path("store/mnt") + "|" + local, 2, "must not lie in one another"},
		{"mount|" + u.home + "|" + local, 2, "must not lie in one another"},
		{"mount|" + mnt + "|--state-dir|" + mnt + "/state|" + local, 2, "must not lie in one another"},
		{"mount|" + u.path("missing") + "|" + local, 1, "missing"},
		{"mount|" + small + "|" + local, 1, "small"},
		{"umount|" + mnt, 1, "is no casfs mount point"},
		{"status|" + mnt, 1, "not inside a casfs mount"},
		{"status|/nonexistent", 1, "/nonexistent: no such file or directory"},
		{"stat|" + small, 1, "not inside a casfs mount"},
		{"stat|/nonexistent", 1, "no such file"},
		{"sync", 2, "missing PATH"},
		{"evict|" + mnt, 1, "not inside a casfs mount"},
		{"recall", 2, "missing PATH"},
		{"recall|x|--range|5", 2, "not a range"},
		{"recall|x|-0", 2, "--from-file"},
		{"recall|--from-file|/nonexistent", 1, "no such file"},
		{"trash|purge", 2, "--all"},
		{"allow|--files|-3", 2, "is not a number"},
		{"allow|--mount|" + mnt, 1, "not inside a casfs mount"},
		{"completion|tcsh", 2, "only for bash"},
	} {
		args := strings.Split(c.args, "|")
		r := u.casfs(args...)
		first, _, _ := strings.Cut(r.err, "\n")
		if r.code != c.code || !strings.Contains(first, c.want) || !strings.HasPrefix(first, "casfs") {
			t.Errorf("want exit %d and %q in the first line; got %v", c.code, c.want, r)
		}
		if lines := strings.Count(r.err, "\n"); lines > 2 {
			t.Errorf("%d lines on standard error: %v", lines, r)
		}
		if r.out != "" {
			t.Errorf("something on standard output: %v", r)
		}
	}
	if left, _ := os.ReadDir(mnt); len(left) > 0 {
		t.Errorf("bad usage left things in the mount point: %v", left)
	}
	if _, err := os.Stat(filepath.Join(u.home, "state")); err == nil {
		t.Error("bad usage made a state directory")
	}
}

// TestHelp: every way to ask prints the same, and no verb explains flags of another.
func TestHelp(t *testing.T) {
	u := newUser(t)
	for _, verb := range [][]string{nil, {"mount"}, {"trash", "list"}, {"serve"}, {"help"}} {
		if a, b := u.ok(append([]string{"help"}, verb...)...), u.ok(append(verb, "--help")...); a != b || a == "" {
			t.Errorf("casfs help %v:\n%s\n--help:\n%s", verb, a, b)
		}
	}
	if out := u.ok("help", "serve"); strings.Contains(out, "--daemon") {
		t.Errorf("serve has no --daemon:\n%s", out)
	}
	if out := u.ok("help", "mount"); !strings.Contains(out, "with --daemon, a file in the state directory") {
		t.Errorf("mount does not say where it logs:\n%s", out)
	}
	dir := u.path("share/man")
	u.ok("man", dir)
	if _, err := os.Stat(filepath.Join(dir, "casfs-mount.1")); err != nil {
		t.Error(err)
	}
}

func TestSettingsPrecedence(t *testing.T) {
	u := newUser(t)
	value := func(name string, extra []string, args ...string) (string, string) {
		t.Helper()
		v := &user{t: t, home: u.home, env: append(append([]string{}, u.env...), extra...), limit: u.limit}
		var out struct {
			Settings []struct{ Name, Value, From string }
		}
		v.json(&out, append([]string{"config", "show"}, args...)...)
		for _, s := range out.Settings {
			if s.Name == name {
				return s.Value, s.From
			}
		}
		t.Fatalf("no setting %s", name)
		return "", ""
	}
	check := func(name, want, from string, extra []string, args ...string) {
		t.Helper()
		if got, src := value(name, extra, args...); got != want || src != from {
			t.Errorf("%s: got %q from %s, want %q from %s", name, got, src, want, from)
		}
	}
	check("settle", "30s", "default", nil)
	dir := filepath.Join(u.home, ".config", "casfs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "config.ini")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(conf, "[casfs]\nsettle = 10s\nread-only = yes\n")
	write(filepath.Join(u.home, ".cascmd_credentials"), "[CASCredentials]\nendpoint = cas.example.com\nappid = 125\nsecretid = AKIDexample\nsecretkey = a#b;c=d\n")
	check("settle", "10s", "file", nil)
	check("read-only", "yes", "file", nil)
	check("endpoint", "cas.example.com", "file", nil)
	check("appid", "125", "file", nil)
	check("secret id", "AKIDexample", filepath.Join(u.home, ".cascmd_credentials"), nil)
	check("secret key", "(hidden)", filepath.Join(u.home, ".cascmd_credentials"), nil)
	check("settle", "5s", "environment", []string{"CASFS_SETTLE=5s"})
	check("settle", "1s", "flag", []string{"CASFS_SETTLE=5s"}, "--settle", "1s")
	check("secret id", "other", "environment", []string{"TENCENTCLOUD_SECRET_ID=other", "TENCENTCLOUD_SECRET_KEY=k"})
	if out := u.ok("config", "show"); strings.Contains(out, "a#b") {
		t.Error("the secret key is shown")
	}

	v := &user{t: t, home: u.home, env: append(append([]string{}, u.env...), "CASFS_SETTLE=never"), limit: u.limit}
	if r := v.casfs("config", "show"); r.code != 2 || !strings.Contains(r.err, "CASFS_SETTLE") {
		t.Errorf("a wrong value must name its source:\n%v", r)
	}
	write(conf, "[casfs]\nsetle = 10s\n")
	if r := u.casfs("config", "show"); r.code != 2 || !strings.Contains(r.err, conf) || !strings.Contains(r.err, "setle") {
		t.Errorf("an unknown setting must name its file:\n%v", r)
	}
	os.Remove(conf)
	if err := os.Chmod(filepath.Join(u.home, ".cascmd_credentials"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := u.casfs("config", "show"); r.code != 0 || !strings.Contains(r.err, "chmod 600") {
		t.Errorf("a key that others can read must be warned about:\n%v", r)
	}
}

func TestConfig(t *testing.T) {
	u := newUser(t)
	if r := u.casfsIn("AKIDx\nsecret\n", "config", "--region", "ap-chengdu", "--appid", "1250000000"); r.code != 0 {
		t.Fatal(r)
	}
	name := filepath.Join(u.home, ".config", "casfs", "config.ini")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(name)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", st.Mode())
	}
	for _, want := range []string{"[CASCredentials]", "cas.ap-chengdu.myqcloud.com", "1250000000", "AKIDx", "secret"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in\n%s", want, b)
		}
	}
	if r := u.casfsIn("a\nb\n", "config", "--region", "x"); r.code != 1 || !strings.Contains(r.err, "--force") {
		t.Errorf("an account must not be overwritten without --force:\n%v", r)
	}
	other := u.path("new/other.ini")
	if r := u.casfsIn("AKIDy\nkey\n", "config", "--endpoint", "http://127.0.0.1:1", "--config-file", other); r.code != 0 {
		t.Fatal(r)
	}
	var shown struct{ Files []string }
	if u.json(&shown, "config", "show", "--config-file", other); len(shown.Files) != 1 || shown.Files[0] != other {
		t.Errorf("config show reads %q, want what config wrote to %s", shown.Files, other)
	}
	if r := u.casfsIn("a\n", "config", "--region", "x", "--force"); r.code != 2 || !strings.Contains(r.err, "secret key") {
		t.Errorf("half an account:\n%v", r)
	}
}

// TestInstall runs make install and make uninstall, and looks at what a shell and man will find.
func TestInstall(t *testing.T) {
	u := newUser(t)
	dest := u.path("dest")
	run := func(target string) {
		t.Helper()
		cmd := exec.Command("make", "-C", "../..", "--no-print-directory", target, "DESTDIR="+dest, "PREFIX=/opt/casfs")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	run("install")
	root := filepath.Join(dest, "opt/casfs")
	pages := map[string]string{}
	names, err := filepath.Glob(filepath.Join(root, "share/man/man1/*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(name)] = string(b)
		for l := range strings.Lines(string(b)) {
			// Lines that begin with a dot are requests: a text must not make any.
			if word, _, _ := strings.Cut(strings.TrimSpace(l), " "); strings.HasPrefix(l, ".") && !strings.Contains(" .TH .nh .ad .SH .TP .PP .RS .RE .EX .EE ", " "+word+" ") {
				t.Errorf("%s: the request %q", name, l)
			}
		}
	}
	for page, want := range map[string]string{
		"casfs.1":                  ".TP\n\\fBcasfs\\-mount\\fP(1)\nmount all vaults",
		"casfs-mount.1":            ".EX\ncasfs mount \\-\\-local ~/store ~/archive",
		"casfs-vault-policy-set.1": "\\fBcasfs vault policy set\\fP [\\fIflags\\fP] VAULT FILE",
		"casfs-recall.1":           ".TP\n\\fB\\-0\\fP, \\fB\\-\\-null\\fP",
		"casfs-job-fetch.1":        "\\fB\\-\\-parallel\\fP \\fIint\\fP\nranges in flight (default 4)",
	} {
		if !strings.Contains(pages[page], want) {
			t.Errorf("%s: want %q in\n%s", page, want, pages[page])
		}
	}
	if p := pages["casfs-man.1"] + pages["casfs-find-mount.1"]; p != "" {
		t.Errorf("pages of hidden verbs: %s", p)
	}
	for _, name := range []string{"share/bash-completion/completions/casfs", "share/zsh/site-functions/_casfs", "share/fish/vendor_completions.d/casfs.fish"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || !strings.Contains(string(b), "casfs") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if out, err := exec.Command(filepath.Join(root, "bin/casfs"), "--version").Output(); err != nil || !strings.HasPrefix(string(out), "casfs ") {
		t.Errorf("casfs --version: %q, %v", out, err)
	}
	run("uninstall")
	filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if out := u.ok("version"); !strings.HasPrefix(out, "casfs ") {
		t.Errorf("version: %q", out)
	}
}

// TestCompletion: what a shell is told when somebody presses TAB, the number of cobra's directive last.
func TestCompletion(t *testing.T) {
	u := newUser(t)
	m := u.mount()
	for _, v := range []string{"photos", "papers", "music"} {
		if err := os.Mkdir(filepath.Join(m.point, v), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const files, noFiles = "\n:0\n", "\n:4\n"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"mount", "--tier", ""}, "standard\nbulk\nexpedited\nauto" + noFiles},
		{[]string{"recall", "--tier", ""}, "standard\nbulk\nexpedited\nauto" + noFiles},
		{[]string{"job", "start", "v", "x", "--tier", ""}, "Expedited\nStandard\nBulk" + noFiles},
		{[]string{"mount", "--recall", ""}, "auto\nqueue\ndeny" + noFiles},
		{[]string{"mount", "--trash", ""}, "min-age\noff" + noFiles},
		{[]string{"mount", "--drain="}, "finish\nstop" + noFiles},
		{[]string{"umount", m.point[:len(m.point)-1]}, m.point + files},
		{[]string{"umount", "./"}, files[1:]},
		{[]string{"inventory", "p"}, "papers\nphotos" + files},
		{[]string{"inventory", "mnt/"}, files[1:]},
	} {
		if out := u.ok(append([]string{"__complete"}, c.args...)...); out != c.want {
			t.Errorf("%q: got %q, want %q", c.args, out, c.want)
		}
	}
	u.ok("umount", m.point)
}

// TestTheMountOneStandsIn: verbs that are about a mount take the one they are run in, whichever others there are; and say plainly what
// does not exist.
func TestTheMountOneStandsIn(t *testing.T) {
	u := newUser(t)
	other := newUser(t)
	other.env = u.env // one user
	m, n := u.mount(), other.mount()
	v := filepath.Join(n.point, "v")
	if err := os.Mkdir(v, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := u.casfs("trash", "list"); r.code != exitUsage || !strings.Contains(r.err, "which mount?") {
		t.Errorf("%v", r)
	}
	u.home = v // where it is run
	for _, args := range [][]string{{"trash", "list"}, {"check"}, {"allow"}, {"trash", "purge", "--all"}, {"inventory", "v"}} {
		if r := u.casfs(args...); r.code != exitOK || strings.Contains(r.out, m.point) {
			t.Errorf("%v", r)
		}
	}
	u.home = other.home
	for _, c := range []struct{ arg, want string }{
		{filepath.Join(v, "nope"), filepath.Join(v, "nope") + ": no such file or directory"},
		{"nope", "there is no vault nope"},
	} {
		if r := u.casfs("inventory", "--mount", n.point, c.arg); r.code != exitFailed || !strings.Contains(r.err, c.want) {
			t.Errorf("want %q: %v", c.want, r)
		}
	}
	if out := u.ok("status", "--json", n.point); strings.Contains(out, "null") {
		t.Errorf("a list that is null:\n%s", out)
	}
	u.ok("umount", n.point)
	u.ok("umount", m.point)
}

// TestTheMountOneStandsInIsDead: no verb is about another mount than the one it is run in.
func TestTheMountOneStandsInIsDead(t *testing.T) {
	u := newUser(t)
	other := newUser(t)
	other.env = u.env // one user
	m, n := u.mount(), other.mount()
	c := exec.Command("sh", "-c", `cd "$1" && echo there && read _ && shift && exec "$@"`, "sh", n.point, program, "trash", "purge", "--all")
	c.Env = u.env
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	c.Stderr = &errOut
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != "there\n" {
		t.Fatalf("%q, %v", line, err)
	}
	n.kill()
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(said)
	if c.Wait(); c.ProcessState.ExitCode() != exitFailed || len(rest) > 0 || !strings.Contains(errOut.String(), n.point) {
		t.Errorf("exit %d\n%s%s", c.ProcessState.ExitCode(), rest, errOut.Bytes())
	}
	u.ok("umount", m.point)
}
