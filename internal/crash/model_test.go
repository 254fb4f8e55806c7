package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// node is what a worker knows of one name.
type node struct {
	dir      bool
	link     string // target of a symbolic link
	data     []byte
	mode     fs.FileMode // 0: any
	mtime    int64       // ns; 0: any
	synced   bool        // fsync has said so
	archived bool        // casfs sync, or fsync with --fsync=vault, has said so
}

// tree is what a worker knows of its directory, by path.
type tree map[string]*node

// pending is the operation that was under way when the mount died: what each
// name it touches may be, and what they may be together.
type pending struct {
	what  string
	names map[string]func(got *node) bool // got is nil when the name is not there
	joint func(got tree) bool             // nil: nothing more
	sync  bool                            // what was done before it is durable when it is done
	extra string                          // names that begin with it may be there, whatever they hold
}

// same reports whether got keeps every promise made of want; nil is a name that is not there.
func same(want, got *node) string {
	switch {
	case want == nil && got == nil:
		return ""
	case want == nil:
		return "is there and must not be"
	case got == nil:
		return "is not there"
	case want.dir != got.dir || want.link != got.link:
		return "is of another type"
	case !bytes.Equal(want.data, got.data):
		n := 0
		for n < len(want.data) && n < len(got.data) && want.data[n] == got.data[n] {
			n++
		}
		return fmt.Sprintf("has %d bytes, not %d; the first other one is at %d", len(got.data), len(want.data), n)
	case want.mode != 0 && want.mode != got.mode:
		return fmt.Sprintf("has mode %v, not %v", got.mode, want.mode)
	case want.mtime != 0 && want.mtime != got.mtime:
		return fmt.Sprintf("has mtime %d, not %d", got.mtime, want.mtime)
	case want.archived && !got.archived:
		return "is not in the vault"
	}
	return ""
}

// is allows exactly one of several states; a nil among them is absence.
func is(states ...*node) func(*node) bool {
	return func(got *node) bool {
		for _, s := range states {
			if same(s, got) == "" {
				return true
			}
		}
		return false
	}
}

// or allows what any of several functions allows.
func or(list ...func(*node) bool) func(*node) bool {
	return func(got *node) bool {
		for _, f := range list {
			if f(got) {
				return true
			}
		}
		return false
	}
}

// prefixOf allows a file that is being written from its beginning.
func prefixOf(data []byte) func(*node) bool {
	return func(got *node) bool {
		return got != nil && !got.dir && got.link == "" && bytes.HasPrefix(data, got.data)
	}
}

// mixed allows a file of which [off, off+len) is being written over: each byte old or new.
func mixed(old, data []byte, off int) func(*node) bool {
	return func(got *node) bool {
		if got == nil || got.dir || len(got.data) < len(old) || len(got.data) > max(len(old), off+len(data)) {
			return false
		}
		for i, b := range got.data {
			isOld := i < len(old) && b == old[i] || i >= len(old) && b == 0
			isNew := i >= off && i < off+len(data) && b == data[i-off]
			if !isOld && !isNew {
				return false
			}
		}
		return true
	}
}

// look reads what is below dir. Files that cannot be read go to bad, if there is one.
func look(dir string, bad map[string]error) (tree, error) {
	got := tree{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		n := &node{dir: d.IsDir(), mode: st.Mode().Perm(), mtime: st.ModTime().UnixNano()}
		got[name] = n
		switch {
		case d.IsDir():
		case d.Type()&fs.ModeSymlink != 0:
			n.link, err = os.Readlink(p)
		default:
			// The state first: reading does not change what the vault has.
			n.archived = inVault(p)
			n.data, err = os.ReadFile(p)
			if err != nil && bad != nil {
				bad[name], err = err, nil
			} else if err == nil && int64(len(n.data)) != st.Size() {
				err = fmt.Errorf("%s: stat says %d bytes, reading gives %d", p, st.Size(), len(n.data))
			}
		}
		return err
	})
	return got, err
}

// state is the file's user.cas.state.
func state(path string) string {
	b := make([]byte, 64)
	n, err := unix.Getxattr(path, "user.cas.state", b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

func inVault(path string) bool {
	switch state(path) {
	case "resident", "partial", "cold", "recalling":
		return true
	}
	return false
}

// check holds what is there against what was acknowledged, and takes over how the pending operation came out.
// extra gets the names nobody knows that the operation may have left.
func (tr tree) check(got tree, p *pending, c *counts, extra *[]string) error {
	var bad []error
	names := map[string]bool{}
	for n := range tr {
		names[n] = true
	}
	for n := range got {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	if p != nil && p.joint != nil && !p.joint(got) {
		bad = append(bad, fmt.Errorf("%s was not atomic", p.what))
	}
	for _, n := range sorted {
		if p != nil {
			if allowed := p.names[n]; allowed != nil {
				if !allowed(got[n]) {
					why := same(tr[n], got[n])
					bad = append(bad, fmt.Errorf("%s: during %q: neither old nor new nor between: %s", n, p.what, why))
				}
				if got[n] == nil {
					delete(tr, n)
				} else {
					tr[n] = &node{dir: got[n].dir, link: got[n].link, data: got[n].data}
				}
				c.add("changes under way: old, new or between", 1)
				continue
			}
			if tr[n] == nil && p.extra != "" && strings.HasPrefix(n, p.extra) {
				*extra = append(*extra, n)
				continue
			}
		}
		if why := same(tr[n], got[n]); why != "" {
			bad = append(bad, fmt.Errorf("%s %s", n, why))
			continue
		}
		w := tr[n]
		switch {
		case w.dir || w.link != "":
			c.add("directories and links as acknowledged", 1)
		case w.synced:
			c.add("files intact after fsync", 1)
		default:
			c.add("files intact after close", 1)
		}
		if w.mode != 0 || w.mtime != 0 {
			c.add("modes and times", 1)
		}
		if w.archived {
			c.add("files in the vault as acknowledged", 1)
		}
	}
	return errors.Join(bad...)
}
