package local

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// brokenVault is a directory whose vault cannot be opened. It is listed as far
// as its name is known and refuses every request, saying why, so that one damaged log does
// not take the store's other vaults along. Nothing in it is changed.
type brokenVault struct {
	name string // "" when the directory does not tell
	dir  string
	why  error

	advice string
}

// openVault opens the vault in a directory below DIR/vaults.
func (s *Store) openVault(base string) {
	dir := filepath.Join(s.dir, "vaults", base)
	if _, err := os.Stat(dir); err != nil { // a link to a disk that is not there
		s.refuseVault(base, fmt.Errorf("%w: %w", errMissing, err), missingAdvice)
		return
	}
	v, err := loadVault(s, dir)
	if err != nil {
		s.refuseVault(base, err, brokenAdvice)
		return
	}
	s.vaults[v.name] = v
	if err := v.collect(); err != nil {
		s.logger.Warn("garbage not removed", "vault", v.name, "error", err)
	}
}

func (s *Store) refuseVault(base string, why error, advice string) {
	b := &brokenVault{dir: filepath.Join(s.dir, "vaults", base), why: why, advice: advice}
	b.name, _ = s.vaultName(base)
	s.broken[base] = b
	s.logger.Error("a vault cannot be opened", "vault", b.name, "directory", b.dir, "error", why, "advice", advice)
}

// findMissing refuses vaults that were there when the mark was written, were not deleted since, and are not there now. If they were unknown
// instead, clients would take their archives for lost, and make them anew. Of one that could not be read before, somebody was told to move it away.
func (s *Store) findMissing() {
	for base, m := range s.marks {
		dir := filepath.Join(s.dir, "vaults", base)
		if _, err := os.Lstat(dir); os.IsNotExist(err) && m.name != "" && m.seq != math.MaxUint64 {
			s.refuseVault(base, fmt.Errorf("%w: %s", errMissing, dir), missingAdvice)
		}
	}
}

var errMissing = errors.New("its directory is missing")

const missingAdvice = "Stop the store; put the directory back, or a copy of it; or, when the vault is to be given up, " +
	"remove the file mark in the store's directory; then start the store"

const brokenAdvice = "Nothing in it was changed. Stop the store; put a copy of the log back, or move the directory out of vaults/ " +
	"and create the vault again (the bytes of its archives stay there in archives/, each named by its ID); then start the store"

// refusal answers every request for the vault: it is there, and may be again.
func (b *brokenVault) refusal() error {
	return unavailable(fmt.Errorf("the vault cannot be opened: %w. %s", b.why, b.advice))
}

// unknownDate is when a vault was created whose log does not tell. A later one than the true one would make clients believe
// that the vault was deleted and made anew, and its archives with it.
const unknownDate = 0

// describe is what can be said of the vault.
func (b *brokenVault) describe(s *Store) vaultJSON {
	return vaultJSON{CreationDate: formatTime(unknownDate), VaultQCS: s.qcs(b.name), VaultName: b.name}
}

// noRecord says in what state a log is that holds no vault.
func noRecord(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.Size() == 0:
		return fmt.Errorf("%s is empty", path)
	}
	return fmt.Errorf("none of the %d bytes of %s is a record", st.Size(), path)
}

// vaultName returns the name of the vault whose directory is called base. The directory of a name of more than 100
// characters does not tell it; the mark does.
func (s *Store) vaultName(base string) (name string, ok bool) {
	if name = s.marks[base].name; name != "" && vaultDir(name) == base {
		return name, true
	}
	rest, ok := strings.CutPrefix(base, "v-")
	i := strings.LastIndexByte(rest, '-')
	if !ok || i < 0 {
		return "", false
	}
	if name = rest[:i]; !validVaultName(name) || vaultDir(name) != base {
		return "", false
	}
	return name, true
}

// adopt gives a vault whose first record is lost the name of its directory. What the log still
// says of its archives is as good as ever.
func (v *vault) adopt(path string) error {
	name, ok := v.s.vaultName(filepath.Base(v.dir))
	if !ok {
		return errors.New(path + " has lost the record of the vault's name, and the directory does not tell it")
	}
	v.name, v.created = name, unknownDate
	v.s.logger.Error("a vault's first record is lost; its name is taken from its directory", "vault", name, "file", path)
	return nil
}
