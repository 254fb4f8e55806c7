package cli

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestServiceMoved: casfs serve comes back at another address, which is another service as far as a mount knows. It says where
// the bytes are that only the state of the old one has, and goes on with that when told.
func TestServiceMoved(t *testing.T) {
	u := newUser(t)
	s := u.serve(u.path("served"), "--standard", "50ms")
	u.ok("vault", "create", "v", s.config())
	m := u.mountServed(s, "--settle", "1h")
	precious := filepath.Join(m.point, "v", "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := s.endpoint
	s.kill(syscall.SIGKILL)
	if r := u.casfs("umount", m.point, "--timeout", "1s"); r.code != exitPartial {
		t.Fatal(r)
	}
	states, _ := filepath.Glob(u.path("state/*"))
	if len(states) != 1 {
		t.Fatalf("states: %q", states)
	}
	s.start("127.0.0.1:0")
	if s.endpoint == old {
		t.Skip("the same port again")
	}
	mount := append(append([]string{"mount", "--daemon"}, m.flags...), m.point)
	for range 2 { // also when it has a state of its own by now
		r := u.casfs(mount...)
		if r.code != 0 || !strings.Contains(r.err, "not in the vault yet") || !strings.Contains(r.err, old) || !strings.Contains(r.err, "--state-dir "+states[0]+"\n") {
			t.Errorf("a mount that does not show staged files must say where they are: %v", r)
		}
		u.ok("umount", m.point)
	}
	// Somebody else's state is not taken.
	key := &user{t: t, home: u.home, env: u.env, limit: u.limit}
	if r := key.casfs("mount", "--local", u.path("store"), "--state-dir", states[0], m.point); r.code != exitFailed || !strings.Contains(r.err, "belongs to the key") {
		t.Errorf("the state of another account: %v", r)
	}
	m.flags = append(m.flags, "--state-dir", states[0])
	m.start()
	if out := u.ok("status", "--state-dir", states[0]); !strings.Contains(out, states[0]) {
		t.Errorf("status: %s", out)
	}
	u.ok("sync", m.point)
	u.evict(precious)
	if b, err := os.ReadFile(precious); string(b) != "data" {
		t.Errorf("got %q, %v", b, err)
	}
	u.ok("umount", m.point)
	// Nothing waits there any more.
	m.flags = m.flags[:len(m.flags)-2]
	if r := u.casfs(mount...); r.code != 0 || r.err != "" {
		t.Errorf("nothing is staged elsewhere: %v", r)
	}
	u.ok("umount", m.point)
}

// TestStoreWithoutCredentials: a store whose credentials file was lost goes on with the state directories it had, those of this machine's
// mounts and of others'.
func TestStoreWithoutCredentials(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "1h")
	v := filepath.Join(m.point, "v")
	if err := os.Mkdir(v, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"archived", "empty"} { // an empty one is in the state directory only
		if err := os.WriteFile(filepath.Join(v, name), []byte(strings.Repeat("data", len(name)-5)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u.ok("sync", m.point)
	u.evict("-r", m.point)
	if err := os.Remove(u.path("store/credentials")); err != nil {
		t.Fatal(err)
	}
	if r := u.casfs("vault", "list", "--local", u.path("store")); r.code != exitFailed || !strings.Contains(r.err, "when the process that has it open ends") {
		t.Errorf("while it is mounted: %v", r)
	}
	u.ok("umount", m.point)
	if out := u.ok("vault", "list", "--local", u.path("store")); !strings.Contains(out, "v") {
		t.Errorf("vaults: %q", out)
	}
	if err := os.Remove(u.path("store/credentials")); err != nil {
		t.Fatal(err)
	}
	m.start()
	if b, err := os.ReadFile(filepath.Join(v, "archived")); string(b) != "datadatadata" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(v, "empty")); err != nil {
		t.Error(err)
	}
	if states, _ := filepath.Glob(u.path("state/*")); len(states) != 1 {
		t.Errorf("states: %q", states)
	}
	u.ok("umount", m.point)
}

// TestStoreIsGone: a mount of a store that is not where it was (its disk is not mounted, say) makes no empty one in its place.
func TestStoreIsGone(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "0")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.point, "v", "f"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.ok("umount", m.point)
	store, away := u.path("store"), u.path("away")
	if err := os.Rename(store, away); err != nil {
		t.Fatal(err)
	}
	mount := append(append([]string{"mount", "--daemon"}, m.flags...), m.point)
	for _, empty := range []bool{false, true} { // as a mount point without its disk is
		if empty {
			if err := os.Mkdir(store, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		r := u.casfs(mount...)
		if r.code != exitFailed || !strings.Contains(r.err, "there is no store in "+store+" any more") || !strings.Contains(r.err, "casfs vault create --local "+store) {
			t.Errorf("%v", r)
		}
		if left, _ := os.ReadDir(store); len(left) > 0 {
			t.Errorf("it has made %v", left)
		}
	}
	if states, _ := filepath.Glob(u.path("state/*")); len(states) != 1 {
		t.Errorf("states: %q", states)
	}
	if err := os.Remove(store); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, store); err != nil {
		t.Fatal(err)
	}
	m.start()
	if b, err := os.ReadFile(filepath.Join(m.point, "v", "f")); string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	u.ok("umount", m.point)
	// Who wants a new one all the same says so.
	if err := os.Rename(store, away); err != nil {
		t.Fatal(err)
	}
	u.ok("vault", "create", "v", "--local", store)
	m.start()
	u.ok("umount", m.point)
}

// TestMovedStoreIsGone: a store that was moved is missed where it is now, not where it was.
func TestMovedStoreIsGone(t *testing.T) {
	u := newUser(t)
	m := u.mount("--settle", "0")
	if err := os.Mkdir(filepath.Join(m.point, "v"), 0o755); err != nil {
		t.Fatal(err)
	}
	u.ok("umount", m.point)
	first, second, away := m.flags[1], u.path("second"), u.path("away")
	if err := os.Rename(first, second); err != nil {
		t.Fatal(err)
	}
	m.flags[1] = second
	m.start()
	if _, err := os.Stat(filepath.Join(m.point, "v")); err != nil {
		t.Error(err)
	}
	u.ok("umount", m.point)
	if err := os.Rename(second, away); err != nil {
		t.Fatal(err)
	}
	if r := u.casfs(append(append([]string{"mount", "--daemon"}, m.flags...), m.point)...); r.code != exitFailed || !strings.Contains(r.err, "there is no store in "+second+" any more") {
		t.Errorf("%v", r)
	}
	m.flags[1] = first
	m.start()
	u.ok("umount", m.point)
}
