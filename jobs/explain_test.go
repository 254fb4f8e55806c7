package jobs

import (
	"strings"
	"testing"

	"github.com/casfs/casfs/cache/catalog"
)

// Directories, vaults and the root are told apart, and one entry is no entries.
func TestExplainDirectories(t *testing.T) {
	r := newRig(t, nil)
	explain := func(ino uint64) string {
		t.Helper()
		s, err := r.e.Stat(bg, ino)
		r.must(err)
		return s.Explain
	}
	a, err := r.e.Mkdir(bg, someone, r.vault, "d", 0o755)
	r.must(err)
	for ino, want := range map[uint64]string{
		catalog.RootIno: "The account, 1 vault.",
		r.vault:         "A vault of the account, 1 entry at its top.",
		a.Ino:           "A directory of 0 entries; directories live in the catalog only.",
	} {
		if got := explain(ino); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
