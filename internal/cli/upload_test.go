package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/built"
)

// TestBandwidthFlags: the units of --bwlimit-up and --bwlimit-down are what --help says of sizes, and reach the engine as bytes per second.
func TestBandwidthFlags(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	dir := t.TempDir()
	parse := func(args ...string) (up, down int64) {
		t.Helper()
		a := &app{}
		mount, _, err := a.root().Find([]string{"mount"})
		if err == nil {
			err = mount.ParseFlags(args)
		}
		if err == nil {
			err = a.set.load(mount.Flags())
		}
		if err != nil {
			t.Fatal(err)
		}
		o, err := a.jobsOptions(nil, nil, "", dir, dir)
		if err != nil {
			t.Fatal(err)
		}
		return o.BandwidthUp, o.BandwidthDown
	}
	for in, want := range map[string]int64{"0": 0, "1000": 1000, "250K": 250 << 10, "16m": 16 << 20, "1.5M": 3 << 19, "2MiB": 2 << 20, "1G": 1 << 30} {
		if up, down := parse("--bwlimit-up", in); up != want || down != 0 {
			t.Errorf("--bwlimit-up %s: %d up, %d down", in, up, down)
		}
		if up, down := parse("--bwlimit-down=" + in); up != 0 || down != want {
			t.Errorf("--bwlimit-down %s: %d up, %d down", in, up, down)
		}
	}
	t.Setenv("CASFS_BWLIMIT_UP", "3M")
	if up, _ := parse(); up != 3<<20 {
		t.Errorf("from the environment: %d", up)
	}
	if up, _ := parse("--bwlimit-up", "1M"); up != 1<<20 {
		t.Errorf("the flag before the environment: %d", up)
	}
}

// TestBandwidthUpOfAMount: 448 KiB at 256 KiB/s, of which 64 KiB may come at once.
func TestBandwidthUpOfAMount(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h", "--bwlimit-up", "256K")
	dir := filepath.Join(m.point, "v")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		sh(t, "cp %s %s", u.randomFile(name, 224<<10, 1), dir)
	}
	began := time.Now()
	u.ok("sync", m.point)
	if took := time.Since(began); took < 1400*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

// command finds the command that a message tells to run, and runs it as typed.
func (u *user) command(text, verb string) {
	u.t.Helper()
	_, cmd, _ := strings.Cut(text, "("+verb)
	cmd, _, ok := strings.Cut(verb+cmd, ")")
	if !ok {
		u.t.Fatalf("no command %s in\n%s", verb, text)
	}
	c := exec.CommandContext(u.t.Context(), "sh", "-c", cmd)
	c.Env = append(u.env, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	c.Dir = "/" // wherever that is
	if out, err := c.CombinedOutput(); err != nil {
		u.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// TestVaultGoneOfALocalStore: the store's directory was named by a relative path and the environment, and is quoted.
func TestVaultGoneOfALocalStore(t *testing.T) {
	u := newUser(t)
	u.env = append(u.env, "CASFS_LOCAL=my store", "CASFS_CONFIG_FILE=")
	built.Require(t)
	m := &mounted{u: u, point: u.path("mnt"), flags: []string{"--settle", "1h"}}
	if err := os.Mkdir(m.point, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clean)
	m.start()
	v := filepath.Join(m.point, "-v")
	if err := os.Mkdir(v, 0o755); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(v, "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.ok("vault", "delete", "--", "-v")
	r := u.casfs("sync", m.point)
	if r.code != exitFailed {
		t.Errorf("exit code of\n%v", r)
	}
	for i, kv := range u.env {
		if strings.HasPrefix(kv, "CASFS_LOCAL=") {
			u.env = append(u.env[:i:i], u.env[i+1:]...) // another shell has not got it
			break
		}
	}
	u.command(r.err, "casfs vault create")
	u.ok("sync", m.point)
	u.evict(precious)
	if b, err := os.ReadFile(precious); string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	u.ok("umount", m.point)
}

// TestVaultGoneShows: somebody deletes the vault while files wait to be uploaded to it. Every verb says so, with what to
// do; nothing is lost; and all goes on when that is done.
func TestVaultGoneShows(t *testing.T) {
	u := newUser(t)
	s := u.serve(u.path("served"), "--standard", "50ms")
	u.ok("vault", "create", "v", s.config())
	m := u.mountServed(s, "--settle", "1h")
	precious := filepath.Join(m.point, "v", "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.ok("vault", "delete", "v", s.config())

	says := func(where, text string) {
		t.Helper()
		text = strings.Join(strings.Fields(strings.ReplaceAll(text, "\n", " ")), " ") // however it is wrapped
		for _, want := range []string{"precious", "does not have the vault", "casfs vault create " + strings.Replace(s.config(), "=", " ", 1) + " v"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q:\n%s", where, want, text)
			}
		}
	}
	r := u.casfs("sync", m.point)
	if r.code != exitFailed {
		t.Errorf("exit code of\n%v", r)
	}
	says("sync", r.err)
	says("status", u.ok("status", m.point))
	says("stat", u.ok("stat", precious))
	r = u.casfs("umount", m.point)
	if r.code != exitPartial {
		t.Errorf("exit code of\n%v", r)
	}
	says("umount", r.err)

	m.start()
	says("status of the next mount", u.ok("status", m.point))
	if b, err := os.ReadFile(precious); string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	u.command(r.err, "casfs vault create")
	u.ok("sync", m.point)
	if out := u.ok("status", m.point); strings.Contains(out, "problems") {
		t.Errorf("status:\n%s", out)
	}
	u.evict("-r", m.point)
	if b, err := os.ReadFile(precious); string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	u.ok("umount", m.point)
}
