package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// user is somebody a test becomes; nobody on this machine need have these numbers.
type user struct {
	uid    uint32
	groups []uint32 // the first is the primary one
}

// sh runs a script in a directory of the mount as the user, and returns its output and exit status.
func (u user) sh(t *testing.T, dir, script string) (string, int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `cd "$1"; shift; umask 022; eval "$1"`, "sh", dir, script)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.groups[0], Groups: u.groups}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// requireRoot skips where only root could become somebody else, and fails there when CASFS_REQUIRE_FUSE is set, as it is in CI.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CASFS_REQUIRE_FUSE") != "" {
		t.Fatal("needs root to become somebody else")
	}
	t.Skip("needs root to become somebody else")
}

// usersMount is a mount that lets everybody in, and a plain directory to compare it with.
func usersMount(t *testing.T) (x *mounted, plain string) {
	t.Helper()
	requireRoot(t)
	plain = t.TempDir()
	x = mountForTest(t, local.Delays{}, func(j *jobs.Options, o *Options) {
		j.Settle = time.Hour
		o.AllowOther = true
	})
	for _, d := range []string{plain, x.dir} {
		for ; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return x, plain
}

// TestUsers does what several users do to each other's files here and in a plain
// directory, and wants the same to be allowed, refused and left behind.
func TestUsers(t *testing.T) {
	x, plain := usersMount(t)
	users := map[string]user{
		"owner":   {1000, []uint32{1000, 2000}},
		"member":  {1001, []uint32{1001, 2000, 3000}}, // of the files' group, by a supplementary group
		"primary": {1002, []uint32{2000}},
		"other":   {1003, []uint32{1003}},
	}
	scripts := []string{
		"cat $d/f", "cat $d/n", "cat $d/root", "ls $d", "ls -l $d | wc -l", "test -r $d/f", "test -w $d/f", "test -x $d/sub", "test -w $d",
		"echo x >> $d/f", "echo x >> $d/w", ": > $d/w", "truncate -s 2 $d/w", "echo x > $d/new", "mkdir $d/newdir", "mkfifo $d/fifo", "ln -s f $d/link",
		"rm -f $d/f", "rm -f $d/root", "rm -f $d/w", "rmdir $d/sub", "mv $d/f $d/moved", "mv -f $d/w $d/f", "mv $d/f $d/sub/f", "mv $d/sub open/sub2", "ln $d/f open/hard", "ln $d/w open/hard",
		"chmod 600 $d/f", "chmod 6755 $d/f", "chmod g+s $d/w", "chmod 2777 $d/sub", "chmod +t $d/w", "chgrp 2000 $d/w", "chgrp 3000 $d/w", "chgrp 1000 $d/f", "chown 1001 $d/w", "chown 1000 $d/f", "chgrp 2000 $d/sub",
		"touch $d/w", "touch -d 2001-01-01 $d/w", "touch -d 2001-01-01 $d/f",
		"echo x >> $d/s", ": > $d/s", "truncate -s 1 $d/s", "chgrp 2000 $d/s", "chown 1000 $d/s", "echo x >> $d/g", ": > $d/g", "truncate -s 1 $d/g", "fallocate -l 100 $d/g", "chmod 6777 $d/s", "touch $d/s",
		"setfattr -n user.a -v 1 $d/w", "setfattr -n user.a -v 1 $d/f", "setfattr -n user.a -v 1 $d", "setfattr -n trusted.a -v 1 $d/w", "getfattr -n user.a $d/n",
		"cd $d/sub && touch here", "rm -rf $d",
	}
	names := []string{"owner", "member", "primary", "other"}
	for i, script := range scripts {
		who := names[i%len(names) : i%len(names)+1] // all of them take minutes
		switch {
		case os.Getenv("CASFS_TEST_BIG") != "":
			who = names
		case strings.HasSuffix(script, "$d/g"):
			who = []string{"member", "other"}
		}
		for _, who := range who {
			var got [2]string
			for k, root := range []string{x.path(), plain} {
				dir := filepath.Join(root, fmt.Sprint(i, who))
				usersTree(t, dir)
				out, _ := users[who].sh(t, dir, fmt.Sprintf("for d in open sticky team private listed entered; do (%s) >/dev/null 2>&1; echo $d $?; done", script))
				got[k] = out + treeState(t, dir)
			}
			if got[0] != got[1] {
				t.Errorf("%s: %s:\n%s", who, script, lineDiff(got[0], got[1]))
			}
		}
	}
}

// usersTree makes a directory with directories of several kinds, each with files of several kinds.
func usersTree(t *testing.T, root string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Mkdir(root, 0o755))
	for dir, dirMode := range map[string]uint32{"open": 0o777, "sticky": 0o1777, "team": 0o2775, "private": 0o700, "listed": 0o744, "entered": 0o711} {
		dir := filepath.Join(root, dir)
		check(os.Mkdir(dir, 0o700))
		for name, mode := range map[string]uint32{"f": 0o640, "w": 0o666, "s": 0o6777, "g": 0o2666, "n": 0, "sub": 0o755, "root": 0o600} {
			p := filepath.Join(dir, name)
			if strings.Contains("sgn", name) && dirMode != 0o777 {
				continue
			}
			if name == "sub" {
				check(os.Mkdir(p, 0o700))
			} else {
				check(os.WriteFile(p, []byte("content of "+name), 0o600))
			}
			if name != "root" {
				check(os.Chown(p, 1000, 2000))
			}
			check(unix.Chmod(p, mode))
		}
		if dirMode != 0o777 && dirMode != 0o1777 {
			check(os.Chown(dir, 1000, 2000))
		}
		check(unix.Chmod(dir, dirMode))
	}
	check(unix.Chmod(root, 0o755))
}

// treeState is everything about a tree that must be the same in two places.
func treeState(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		s, st, err := describe(p)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s: %s\n", rel, s)
		if isFile(st.Mode) {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s: %q\n", rel, data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// lineDiff shows the lines that only one of two texts has.
func lineDiff(got, want string) string {
	var b strings.Builder
	in := func(text string) map[string]bool {
		m := map[string]bool{}
		for _, l := range strings.Split(text, "\n") {
			m[l] = true
		}
		return m
	}
	g, w := in(got), in(want)
	for _, l := range strings.Split(got, "\n") {
		if !w[l] {
			fmt.Fprintf(&b, "got  %s\n", l)
		}
	}
	for _, l := range strings.Split(want, "\n") {
		if !g[l] {
			fmt.Fprintf(&b, "want %s\n", l)
		}
	}
	return b.String()
}

// TestOthersStayOut: without allow_other nobody else sees the mount, root's included.
func TestOthersStayOut(t *testing.T) {
	requireRoot(t)
	x := mountForTest(t, local.Delays{}, nil)
	for d := x.dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.Chmod(x.path(), 0o777); err != nil {
		t.Fatal(err)
	}
	u := user{1000, []uint32{1000}}
	if out, code := u.sh(t, "/", fmt.Sprintf("ls '%s'", x.path())); code == 0 || !strings.Contains(out, "Permission denied") {
		t.Errorf("status %d: %s", code, out)
	}
	var st unix.Stat_t
	if err := unix.Lstat(x.path(), &st); err != nil || st.Mode&0o777 != 0o777 {
		t.Errorf("%v, mode %o", err, st.Mode)
	}
}

// TestSetuid: a write, truncation or change of owner by somebody without the privilege takes setuid and setgid away.
func TestSetuid(t *testing.T) {
	x := mountForTest(t, local.Delays{}, func(_ *jobs.Options, o *Options) { o.AllowOther = true })
	requireRoot(t)
	if err := os.Chmod(filepath.Dir(x.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for d := x.dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.Chmod(x.path(), 0o777); err != nil {
		t.Fatal(err)
	}
	nobody := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", `cd "$1"; shift; eval "$1"`, "sh", x.path(), script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
	for i, tt := range []struct {
		what string
		do   func(p string)
		want uint32
	}{
		{"write", func(string) { nobody("echo x >>f") }, 0o777},
		{"open with O_TRUNC", func(string) { nobody(": >f") }, 0o777},
		{"truncate", func(string) { nobody("truncate -s 3 f") }, 0o777},
		{"write by root", func(p string) { write(t, p, []byte("x")) }, 0o6777},
		{"chown by root", func(p string) { os.Chown(p, 1, 1) }, 0o777},
		{"reading", func(string) { nobody("cat f >/dev/null") }, 0o6777},
	} {
		p := x.path("f")
		os.Remove(p)
		write(t, p, []byte("content"))
		if i%2 == 1 {
			x.archive()
		}
		if err := unix.Chmod(p, 0o6777); err != nil {
			t.Fatal(err)
		}
		if got := stat(t, p).Mode & 0o7777; got != 0o6777 {
			t.Fatalf("mode %o", got)
		}
		tt.do(p)
		if got := stat(t, p).Mode & 0o7777; got != tt.want {
			t.Errorf("%s: mode %o, want %o", tt.what, got, tt.want)
		}
	}
	// Permissions are checked for everybody, by the kernel.
	write(t, x.path("secret"), []byte("x"))
	if err := os.Chmod(x.path("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody("! cat secret 2>/dev/null")
	nobody("touch mine && chmod 600 mine && ! chown 0 mine 2>/dev/null")
	if st := stat(t, x.path("mine")); st.Uid != 65534 || st.Gid != 65534 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	// A setgid directory passes its group on.
	sh(t, x.path(), "mkdir g; chown 0:1234 g; chmod 2777 g")
	nobody("touch g/f; mkdir g/d")
	if st := stat(t, x.path("g", "f")); st.Gid != 1234 {
		t.Errorf("group %d, want 1234", st.Gid)
	}
	if st := stat(t, x.path("g", "d")); st.Gid != 1234 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("group %d mode %o, want 1234 and setgid", st.Gid, st.Mode)
	}
	// Sticky.
	sh(t, x.path(), "mkdir -m 1777 s; touch s/root")
	nobody("! rm -f s/root 2>/dev/null")
}
