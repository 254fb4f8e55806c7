package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/casfs/casfs/cas/local"
)

// stateBase is the directory that holds one state directory per service and account.
func (s *settings) stateBase() (string, error) {
	switch {
	case s.StateDir != "":
		return absolute(s.StateDir)
	case os.Geteuid() == 0:
		return "/var/lib/casfs", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "casfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", advise(err, "give --state-dir")
	}
	return filepath.Join(home, ".local", "state", "casfs"), nil
}

// stateName names the state of one account at one service, so that the
// catalogs of two can never be mixed up: the host and the account number, or an embedded store's own key.
func stateName(svc *service) string {
	if svc.local != nil {
		// By its generated key, not its path: a store that was moved keeps its state, and
		// a new one in the same place does not inherit the state of the old.
		sum := sha256.Sum256([]byte(svc.appID + "\n" + svc.secretID))
		return "local-" + hex.EncodeToString(sum[:5])
	}
	host := svc.endpoint
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	if u, err := url.Parse(host); err == nil {
		if u.Scheme == "unix" {
			sum := sha256.Sum256([]byte(u.Path))
			host = "unix-" + hex.EncodeToString(sum[:5])
		} else {
			host = u.Hostname()
			if p := u.Port(); p != "" && p != "80" && p != "443" {
				host += "-" + p
			}
		}
	}
	account := svc.appID
	if account == "" || account == "-" {
		account = "own"
	}
	return safeName(host) + "-" + account
}

func safeName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r) {
			return r
		}
		return '_'
	}, s)
	s = strings.Trim(s, ".")
	if len(s) > 60 {
		s = s[:60]
	}
	if s == "" {
		s = "store"
	}
	return s
}

// account is what a state directory belongs to, kept in it: without an
// account number in the settings only the key tells accounts apart.
type account struct {
	Endpoint string `json:"endpoint"`
	AppID    string `json:"appid"`
	SecretID string `json:"secret_id"`
}

func (svc *service) account() account { return account{svc.endpoint, svc.appID, svc.secretID} }

// same reports whether two are one account: by its number, or by the key.
func (a account) same(b account) bool {
	return a.numbered() && a.AppID == b.AppID || a.SecretID != "" && a.SecretID == b.SecretID
}

func (a account) numbered() bool { return a.AppID != "" && a.AppID != "-" }

// accountFile holds, in a state directory, the account it belongs to.
const accountFile = "account"

// stateOf finds the state directory of an account below base, or base itself when that is one: then the user has said that
// it is this account's, whatever address the service had.
func stateOf(base string, svc *service) string {
	if isStateDir(base) {
		return base
	}
	return filepath.Join(base, stateName(svc))
}

func isStateDir(dir string) bool {
	for _, name := range []string{accountFile, "format"} { // the second is the catalog's: the user may have removed the first
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// storeIsGone refuses to make a store where state directories below base say that there was one: its disk may not be mounted, and
// with an empty one in its place a mount would show nothing of what the user has.
func storeIsGone(base, store string) error {
	if store == "" {
		return nil
	}
	if there, err := local.Exists(store); there || err != nil {
		return err
	}
	names, _ := filepath.Glob(filepath.Join(globEscape(base), "*", accountFile))
	for _, name := range append(names, filepath.Join(base, accountFile)) {
		raw, err := os.ReadFile(name)
		var have account
		if err != nil || json.Unmarshal(raw, &have) != nil || have.Endpoint != localEndpoint(store) {
			continue
		}
		return advise(fmt.Errorf("there is no store in %s any more, and %s is the state of one", store, filepath.Dir(name)),
			"is its disk mounted? Who wants an empty one in its place makes it: casfs vault create --local %s VAULT", shellWord(store))
	}
	return nil
}

// forgotten is a state directory of the same account that nobody works on and that has staged files.
type forgotten struct{ dir, endpoint string }

// forgottenStates finds the state directories beside dir that the same account left under another address of its service,
// and that hold bytes which are in no vault yet. Of a directory that cannot be read nothing is said.
func forgottenStates(ctx context.Context, dir string, svc *service) []forgotten {
	var out []forgotten
	names, _ := filepath.Glob(filepath.Join(globEscape(filepath.Dir(dir)), "*", accountFile))
	for _, name := range names {
		other := filepath.Dir(name)
		raw, err := os.ReadFile(name)
		var have account
		if other == dir || err != nil || json.Unmarshal(raw, &have) != nil || !have.same(svc.account()) || !hasStaged(other) {
			continue
		}
		if d := dialState(ctx, other); d != nil {
			d.client.Close()
			continue // mounted, or archiving what is left
		}
		out = append(out, forgotten{other, have.Endpoint})
	}
	return out
}

// hasStaged reports whether a state directory holds bytes that are only there: a file by the number of its content, in one
// of 256 directories. Empty ones are none: empty files live in the catalog, and some are made ahead.
func hasStaged(dir string) bool {
	names, _ := filepath.Glob(filepath.Join(globEscape(dir), "staging", "??", strings.Repeat("?", 16)))
	return slices.ContainsFunc(names, func(name string) bool {
		st, err := os.Lstat(name)
		return err == nil && st.Mode().IsRegular() && st.Size() > 0
	})
}

// warnForgotten says where bytes wait that this mount, with the state directory dir, will not show.
func (a *app) warnForgotten(ctx context.Context, dir string, svc *service) {
	for _, f := range forgottenStates(ctx, dir, svc) {
		a.warn("files that are not in the vault yet are in %s, which belongs to the same account at %s; this mount does not show them", f.dir, f.endpoint)
		fmt.Fprintf(a.errOut, "  a mount of %s goes on with them; if the service has only got another address: casfs umount, then mount with --state-dir %s\n",
			oneLine(f.endpoint), shellWord(f.dir))
	}
}

// claimState makes the state directory, or checks that the one there belongs to the same account.
func claimState(dir string, svc *service) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	name := filepath.Join(dir, accountFile)
	want := svc.account()
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		raw, _ = json.Marshal(want)
		if err := writeDurably(name, append(raw, '\n')); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var have account
	if err := json.Unmarshal(raw, &have); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	named := filepath.Base(dir) == stateName(svc) // the name tells numbered accounts and embedded stores apart
	if named && svc.local == nil && !want.numbered() && have.SecretID != want.SecretID || !named && !have.same(want) {
		return advise(fmt.Errorf("state directory %s belongs to the key %s, not to %s", dir, have.SecretID, want.SecretID),
			"if both keys are of one account, remove %s and mount again; else tell the accounts apart with --appid", name)
	}
	if svc.local != nil && have.Endpoint != want.Endpoint {
		// The store was moved: it will be missed where it is now. On a full disk that is no reason not to mount.
		have.Endpoint = want.Endpoint
		raw, _ = json.Marshal(have)
		if err := writeDurably(name, append(raw, '\n')); err != nil && !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	return nil
}

// writeDurably makes a file that power loss leaves whole or not at all.
func writeDurably(name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// overlap reports whether one of two directories lies in the other, after following symlinks.
func overlap(a, b string) bool {
	a, b = realPath(a), realPath(b)
	in := func(inner, outer string) bool {
		return inner == outer || strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
	}
	return in(a, b) || in(b, a)
}

// realPath follows symlinks of the part of p that exists.
func realPath(p string) string {
	for rest := ""; ; {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(r, rest)
		}
		dir := filepath.Dir(p)
		if dir == p {
			return filepath.Join(p, rest)
		}
		rest = filepath.Join(filepath.Base(p), rest)
		p = dir
	}
}
