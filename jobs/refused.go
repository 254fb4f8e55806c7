package jobs

import (
	"errors"
	"fmt"
	"slices"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// whatToDo says what ends a refusal, for people; "" when only the service's own words can tell.
func whatToDo(err error) string {
	switch {
	case errors.Is(err, errVaultGone):
		return "" // it says so itself, with the vault's name
	case errors.Is(err, cas.ErrLimit):
		return "the account is at a limit of the service: have it raised, or delete what is not needed"
	case errors.Is(err, cas.ErrAccessDenied):
		return "have this key allowed to upload to the vault, or mount with another"
	case errors.Is(err, cas.ErrCredentials):
		return "correct the credentials, and mount again"
	case errors.Is(err, cas.ErrClockSkew):
		return "set this machine's clock"
	}
	return ""
}

// refusalText is a refusal, and what ends it, for people.
func refusalText(err error) string {
	text := err.Error()
	if todo := whatToDo(err); todo != "" {
		text += "; " + todo
	}
	return text
}

// statusRefusals is how many files status names that the service refuses.
const statusRefusals = 20

// refusals says which files the service refuses for good, and what to do. Those that
// wait for a vault that is gone are one problem together.
func (e *Engine) refusals() ([]string, error) {
	e.problemsMu.Lock()
	why := make(map[uint64]string, len(e.failures))
	inos := make([]uint64, 0, len(e.failures))
	for ino, fl := range e.failures {
		why[ino] = fl.err
		inos = append(inos, ino)
	}
	e.problemsMu.Unlock()
	slices.Sort(inos)

	var names []string // of vaults that are gone
	waiting := map[string][]uint64{}
	var others []uint64
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for _, ino := range inos {
			i, err := tx.Inode(ino)
			if errors.Is(err, catalog.ErrNotExist) {
				continue // being deleted
			}
			if err != nil {
				return err
			}
			v, err := tx.Vault(i.Vault)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			if !v.Gone {
				others = append(others, ino)
				continue
			}
			if waiting[v.Name] == nil {
				names = append(names, v.Name)
			}
			waiting[v.Name] = append(waiting[v.Name], ino)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	again := fmt.Sprintf("it is tried again every %s, and at once by casfs sync", retryPermanent)
	var list []string
	for _, name := range names {
		what := fmt.Sprintf("%s and %d more files", e.path(waiting[name][0]), len(waiting[name])-1)
		if len(waiting[name]) == 1 {
			what = e.path(waiting[name][0])
		}
		list = append(list, fmt.Sprintf("%s cannot be uploaded, for the service does not have the vault %s any more; the bytes are kept on this machine. "+
			"Make the vault again (%s), or move the files to another; %s", what, name, e.createVault(name), again))
	}
	for i, ino := range others {
		if i == statusRefusals {
			list = append(list, fmt.Sprintf("%d more files cannot be uploaded; their bytes are kept on this machine", len(others)-i))
			break
		}
		list = append(list, fmt.Sprintf("%s cannot be uploaded: %s. Its bytes are kept on this machine; %s", e.path(ino), why[ino], again))
	}
	return list, nil
}
