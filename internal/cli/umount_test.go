package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Unmounting says 0 only when everything is in the vault: of a mount whose process has died nobody knows.
func TestUmountOfADeadMount(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.point, "v", "file")
	data := []byte("not in the vault")
	for _, json := range []bool{false, true} {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		m.kill()
		args := []string{"umount", m.point}
		if json {
			args = append(args, "--json")
		}
		r := u.casfs(args...)
		if r.code != 3 || !json && !strings.Contains(r.err, "next mount") || json && !strings.Contains(r.out, `"stale": true`) {
			t.Errorf("%q: %v", args, r)
		}
		if r := u.casfs("umount", m.point); r.code != 1 {
			t.Errorf("it is still mounted: %v", r)
		}
		m.start()
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	u.ok("umount", m.point)
}

// TestUmountAgain: a umount verb that comes after the mount is gone waits for the same end as the one before it, and ends as that one
// would have.
func TestUmountAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		gone bool // the vault is
		args []string
		code int
		out  string
		err  string
	}{
		{"all is archived", false, nil, exitOK, "", "is unmounted; waiting until programs have closed"},
		{"lazily again", false, []string{"--lazy"}, exitOK, "", "not in the vault yet: casfs status shows more"},
		{"something is refused", true, nil, exitPartial, "", "v/open"},
		{"the time is up", false, []string{"--timeout", "100ms"}, exitPartial, "", "v/open"},
		{"in JSON", true, []string{"--json"}, exitPartial, `"path": "v/open"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUser(t)
			m := u.mount("--settle", "1h")
			if err := os.Mkdir(filepath.Join(m.point, "v"), 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(m.point, "v", "open"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			daemon, err := unix.PidfdOpen(m.pid(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(daemon)
			first := u.cmd("umount", "--lazy", m.point)
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "the mount to vanish", func() bool { return !isMounted(m.point) })
			first.Process.Signal(os.Interrupt)
			first.Wait()
			if _, err := f.WriteString("da"); err != nil {
				t.Fatal(err)
			}

			second := u.cmd(append([]string{"umount", m.point}, c.args...)...)
			var out, errOut bytes.Buffer
			second.Stdout, second.Stderr = &out, &errOut
			if err := second.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- second.Wait() }()
			select {
			case err := <-ended:
				t.Fatalf("it does not wait: %v\n%s%s", err, out.Bytes(), errOut.Bytes())
			case <-time.After(lazyGrace + time.Second):
			}
			if c.gone {
				u.ok("vault", "delete", "v", "--local", u.path("store"))
			}
			if _, err := f.WriteString("ta"); err != nil {
				t.Error(err)
			}
			f.Close()
			<-ended
			m.awaitExit(daemon)
			if code := second.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit %d, want %d\n%s%s", code, c.code, out.Bytes(), errOut.Bytes())
			}
			if !strings.Contains(out.String(), c.out) || !strings.Contains(errOut.String(), c.err) {
				t.Errorf("want %q and %q in\n%s%s", c.out, c.err, out.Bytes(), errOut.Bytes())
			}
		})
	}
}
