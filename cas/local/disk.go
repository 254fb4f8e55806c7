package local

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// openDir takes the lock, reads the account and every vault, and removes what
// crashes left behind.
func (s *Store) openDir(o Options) error {
	for _, d := range []string{"", "vaults", "cos", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	if err := errors.Join(emptyDir(filepath.Join(s.dir, "tmp")), removeNew(s.dir), s.syncDir(s.dir)); err != nil {
		return err
	}
	s.readMarks()
	if err := s.readCredentials(o.AppID); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "vaults"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() || e.Type()&os.ModeSymlink != 0 { // a vault may be on another disk
			s.openVault(e.Name())
		}
	}
	s.findMissing()
	s.noteAccount()
	s.setMarks(slices.Collect(maps.Values(s.vaults)))
	return nil
}

// takeLock holds DIR/lock until unlock; the kernel drops it with the process.
func (s *Store) takeLock() error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		if pid := strings.TrimSpace(string(b[:n])); pid != "" {
			return fmt.Errorf("%w by process %s", ErrInUse, pid)
		}
		return fmt.Errorf("%w by another process", ErrInUse)
	}
	s.lock = f
	if s.lockInfo, err = f.Stat(); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func (s *Store) unlock() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
}

// readCredentials reads the account of DIR/credentials and completes the file.
func (s *Store) readCredentials(appID string) error {
	path := filepath.Join(s.dir, "credentials")
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	had := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, "="); ok {
			had[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
		}
	}
	if err == nil {
		err = s.completeAccount(path, had)
	} else {
		var a account
		a, err = s.loggedAccount(path, appID)
		had["appid"], had["secretid"] = a.appID, a.secretID
	}
	if err != nil {
		return err
	}
	s.endpoint = had["endpoint"]
	s.creds = Credentials{AppID: had["appid"], SecretID: had["secretid"], SecretKey: had["secretkey"]}
	if appID != "" {
		s.creds.AppID = appID
	}
	if s.creds.AppID == "" || s.creds.AppID == "-" {
		s.creds.AppID = "125" + digits(7)
	}
	if _, ok := parseDecimal(s.creds.AppID); !ok {
		return fmt.Errorf("the account must be a decimal number, not %q", s.creds.AppID)
	}
	if s.creds.SecretID == "" {
		s.creds.SecretID, s.creds.SecretKey = "AKID"+newKey(32), ""
	}
	if s.creds.SecretKey == "" {
		s.creds.SecretKey = newKey(32)
	}
	if s.endpoint == "" {
		s.endpoint = "localhost"
	}
	return s.writeCredentials()
}

// completeAccount refuses an account with something missing once there are vaults: clients know what they have of them by the account, and
// with a new key they would not find it again.
func (s *Store) completeAccount(path string, had map[string]string) error {
	vaults, err := dirNames(filepath.Join(s.dir, "vaults"))
	if err != nil || len(vaults)+len(s.marks) == 0 {
		return err
	}
	for _, k := range []string{"appid", "secretid", "secretkey"} {
		if had[k] == "" {
			return fmt.Errorf("%s has no %s. Put a copy of it back, or remove it: the account then gets a new key", path, k)
		}
	}
	return nil
}

func (s *Store) writeCredentials() error {
	text := fmt.Sprintf("[CASCredentials]\nendpoint = %s\nappid = %s\nsecretid = %s\nsecretkey = %s\n",
		s.endpoint, s.creds.AppID, s.creds.SecretID, s.creds.SecretKey)
	path := filepath.Join(s.dir, "credentials")
	if b, err := os.ReadFile(path); err == nil && string(b) == text {
		return os.Chmod(path, 0o600) // the disk may be full
	}
	return replaceFile(path, []byte(text), 0o600, !s.noSync)
}

// SetEndpoint records the address in DIR/credentials, for users and tests to read.
func (s *Store) SetEndpoint(endpoint string) error {
	if strings.ContainsAny(endpoint, "\r\n") {
		return fmt.Errorf("local: endpoint %q", endpoint)
	}
	s.credMu.Lock()
	defer s.credMu.Unlock()
	s.endpoint = endpoint
	if err := s.there(); err != nil {
		return err
	}
	return s.writeCredentials()
}

// names are host names a client may have signed whatever it sent as Host.
func (s *Store) names() []string {
	s.credMu.Lock()
	defer s.credMu.Unlock()
	e := s.endpoint
	if i := strings.Index(e, "://"); i >= 0 {
		e = e[i+3:]
	}
	if h, _, err := net.SplitHostPort(e); err == nil {
		return []string{e, h, "localhost"}
	}
	return []string{e, "localhost"}
}

func digits(n int) string {
	var sb strings.Builder
	for sb.Len() < n {
		for _, c := range newID(n) {
			if '0' <= c && c <= '9' && sb.Len() < n {
				sb.WriteRune(c)
			}
		}
	}
	return sb.String()
}

// emptyDir removes everything in dir.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func (s *Store) syncDir(dir string) error {
	if s.noSync {
		return nil
	}
	return syncDir(dir)
}

func (s *Store) syncFile(f *os.File) error {
	if s.noSync {
		return nil
	}
	return f.Sync()
}
