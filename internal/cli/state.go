package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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

// claimState makes the state directory, or checks that the one there belongs to the same account.
func claimState(dir string, svc *service) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	name := filepath.Join(dir, "account")
	want := account{svc.endpoint, svc.appID, svc.secretID}
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
	unnumbered := svc.appID == "" || svc.appID == "-"
	if svc.local == nil && unnumbered && have.SecretID != want.SecretID {
		return advise(fmt.Errorf("state directory %s belongs to the key %s, not to %s", dir, have.SecretID, want.SecretID),
			"if both keys are of one account, remove %s and mount again; else tell the accounts apart with --appid", name)
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
