package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// account is whose a vault is. Each vault's log tells it, for the day the credentials file is lost: clients know what they
// have of the store by both. The key itself is in that file only.
type account struct{ appID, secretID string }

// Exists reports whether there is a store in dir, with its credentials or without.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, "credentials"))
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	vaults, err := dirNames(filepath.Join(dir, "vaults"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(vaults) > 0, err
}

// noteAccount records the account in the logs that do not tell it, as those of older programs.
func (s *Store) noteAccount() {
	is := account{s.creds.AppID, s.creds.SecretID}
	for _, v := range s.vaults {
		if v.account == is {
			continue
		}
		err := v.update(&record{Type: "vault", Name: v.name, At: v.created, AppID: is.appID, SecretID: is.secretID})
		if err != nil {
			s.logger.Warn("the account is not noted in a log", "vault", v.name, "error", err)
		}
	}
}

// loggedAccount returns the account that the vaults' logs tell; the zero one when there never were vaults. appID, unless "", chooses
// among several, and says the number when none is told.
func (s *Store) loggedAccount(path, appID string) (account, error) {
	dirs, err := dirNames(filepath.Join(s.dir, "vaults"))
	if err != nil || len(dirs)+len(s.marks) == 0 {
		return account{}, err
	}
	told := map[string][]string{} // secret IDs by account number
	for _, d := range dirs {
		var a account
		_, err := replay(filepath.Join(s.dir, "vaults", d, "log"), slog.New(slog.DiscardHandler), func(b []byte) error {
			var r record
			if err := json.Unmarshal(b, &r); err != nil {
				return err
			}
			if r.Type == "vault" && r.AppID != "" {
				a = account{r.AppID, r.SecretID}
			}
			return nil
		})
		if err != nil {
			s.logger.Warn("a log does not tell the account", "directory", d, "error", err)
		}
		if a.appID != "" && !slices.Contains(told[a.appID], a.secretID) {
			told[a.appID] = append(told[a.appID], a.secretID)
		}
	}
	numbers := slices.Sorted(maps.Keys(told))
	if appID != "" && appID != "-" {
		numbers = []string{appID}
	}
	switch len(numbers) {
	case 0:
		return account{}, fmt.Errorf("%s is missing, and the logs of the vaults there do not tell the account. Put a copy of it back, or write "+
			`one with appid, secretid and secretkey: the first two as in the file "account" of casfs's state directory, where they are called appid and secret_id; the key may be any`, path)
	case 1:
	default:
		return account{}, fmt.Errorf("%s is missing, and the vaults there are of several accounts: %s. Put a copy of it back, or write "+
			"one with appid, secretid and secretkey, of which the key may be any", path, strings.Join(numbers, ", "))
	}
	a := account{appID: numbers[0]}
	switch ids := told[a.appID]; len(ids) {
	case 0:
	case 1:
		a.secretID = ids[0]
	default:
		return account{}, fmt.Errorf("%s is missing, and the vaults there tell several keys of the account %s: %s. Put a copy of it back, or write "+
			"one with appid, secretid and secretkey, of which the key may be any", path, a.appID, strings.Join(ids, ", "))
	}
	s.logger.Warn("the credentials file is lost; the account has a new key", "file", path, "account", a.appID)
	return a, nil
}
