package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// node is an inode of the model: a tree of pointers, with the rules written down a second time.
type node struct {
	mode         uint32
	gid          uint32
	vault        *node
	parent       *node // directories
	kids         map[string]*node
	links        int
	mtime, ctime int64
	xattr        map[string]string
}

func (n *node) dir() bool { return n.mode&sIFMT == sIFDIR }

func (n *node) nlink() uint32 {
	if !n.dir() {
		return uint32(n.links)
	}
	c := uint32(2)
	for _, k := range n.kids {
		if k.dir() {
			c++
		}
	}
	return c
}

// model is what the catalog should hold.
type model struct {
	root    *node
	orphans int
}

func newModel() *model {
	return &model{root: &node{mode: sIFDIR | 0o755, kids: map[string]*node{}, xattr: map[string]string{}}}
}

// op is a change described by names, so that it can be repeated elsewhere.
type op struct {
	Kind         string
	Dir, Name    string
	Dir2, Name2  string
	Mode, GID    uint32
	Flags        uint32
	Key, Value   string
	Create, Repl bool
	Now          int64
}

func (o op) String() string {
	return fmt.Sprintf("%s %s:%s %s:%s mode %o flags %d %s=%s", o.Kind, o.Dir, o.Name, o.Dir2, o.Name2, o.Mode, o.Flags, o.Key, o.Value)
}

// randomOp draws from few names, so that most of them meet.
func randomOp(r *rand.Rand, now int64) op {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	dir := func() string {
		return pick("", "v", "v", "v", "w", "v/a", "v/a", "v/b", "v/a/a", "v/a/b", "w/a", "w/b", "v/a/a/a", "v/c")
	}
	name := func() string {
		if r.IntN(60) == 0 {
			return pick("", ".", "..", "x/y", "x\x00y", strings.Repeat("n", 256), strings.Repeat("n", 255))
		}
		return pick("a", "b", "c", "d", "v", "w")
	}
	return op{
		Kind: pick("create", "create", "create", "mkdir", "mkdir", "link", "unlink", "rmdir", "rename", "rename", "rename", "setxattr", "removexattr"),
		Dir:  dir(), Name: name(), Dir2: dir(), Name2: name(),
		Mode:  []uint32{0o644, 0o755, 0o2755}[r.IntN(3)],
		GID:   uint32(r.IntN(3)),
		Flags: []uint32{0, 0, 0, 0, RenameNoReplace, RenameExchange, RenameExchange, 3, 4}[r.IntN(9)],
		Key:   pick("user.a", "user.b"), Value: pick("", "x", "y"),
		Create: r.IntN(4) == 0, Repl: r.IntN(4) == 0,
		Now: now,
	}
}

func (m *model) find(path string) *node {
	n := m.root
	if path == "" {
		return n
	}
	for _, name := range strings.Split(path, "/") {
		if n = n.kids[name]; n == nil {
			return nil
		}
	}
	return n
}

func modelName(name string) error {
	switch {
	case len(name) > 255:
		return ErrNameTooLong
	case name == "", name == ".", name == "..", strings.Contains(name, "/"), strings.Contains(name, "\x00"):
		return ErrInvalid
	}
	return nil
}

// apply changes the model and returns the error the catalog should give.
func (m *model) apply(o op) error {
	d := m.find(o.Dir)
	if d == nil {
		return ErrNotExist
	}
	switch o.Kind {
	case "create", "mkdir":
		if !d.dir() {
			return ErrNotDir
		}
		if err := modelName(o.Name); err != nil {
			return err
		}
		if d.kids[o.Name] != nil {
			return ErrExist
		}
		n := &node{mode: sIFREG | o.Mode, gid: o.GID, vault: d.vault, links: 1, mtime: o.Now, ctime: o.Now, xattr: map[string]string{}}
		if o.Kind == "mkdir" {
			n.mode, n.kids, n.parent = sIFDIR|o.Mode, map[string]*node{}, d
			if d == m.root {
				n.vault = n
			}
		} else if d == m.root {
			return ErrPerm
		}
		if d.mode&sISGID != 0 {
			n.gid = d.gid
			if n.dir() {
				n.mode |= sISGID
			}
		}
		d.kids[o.Name] = n
		d.mtime, d.ctime = o.Now, o.Now
		return nil
	case "link":
		if !d.dir() {
			return ErrNotExist
		}
		n := d.kids[o.Name]
		e := m.find(o.Dir2)
		switch {
		case n == nil || e == nil:
			return ErrNotExist
		case !e.dir():
			return ErrNotDir
		case modelName(o.Name2) != nil:
			return modelName(o.Name2)
		case e.kids[o.Name2] != nil:
			return ErrExist
		case n.dir() || e == m.root:
			return ErrPerm
		case n.vault != e.vault:
			return ErrXDev
		}
		e.kids[o.Name2] = n
		n.links++
		n.ctime, e.mtime, e.ctime = o.Now, o.Now, o.Now
		return nil
	case "unlink", "rmdir":
		if !d.dir() {
			return ErrNotDir
		}
		if err := modelName(o.Name); err != nil {
			return err
		}
		n := d.kids[o.Name]
		switch {
		case n == nil:
			return ErrNotExist
		case o.Kind == "unlink" && n.dir():
			return ErrIsDir
		case o.Kind == "rmdir" && !n.dir():
			return ErrNotDir
		case len(n.kids) > 0:
			return ErrNotEmpty
		}
		m.remove(d, o.Name, o.Now)
		return nil
	case "rename":
		return m.rename(d, o)
	case "setxattr", "removexattr":
		_, has := d.xattr[o.Key]
		switch {
		case o.Kind == "setxattr" && o.Create && has:
			return ErrExist
		case o.Kind == "setxattr" && o.Repl && !has, o.Kind == "removexattr" && !has:
			return ErrNoAttr
		}
		if o.Kind == "setxattr" {
			d.xattr[o.Key] = o.Value
		} else {
			delete(d.xattr, o.Key)
		}
		return nil
	}
	panic(o.Kind)
}

func (m *model) remove(d *node, name string, now int64) {
	n := d.kids[name]
	delete(d.kids, name)
	d.mtime, d.ctime, n.ctime = now, now, now
	if !n.dir() {
		if n.links--; n.links == 0 {
			m.orphans++
		}
	}
}

func (m *model) rename(d *node, o op) error {
	if o.Flags > 2 {
		return ErrInvalid
	}
	if !d.dir() {
		return ErrNotDir
	}
	if err := modelName(o.Name); err != nil {
		return err
	}
	n := d.kids[o.Name]
	e := m.find(o.Dir2)
	if n == nil || e == nil {
		return ErrNotExist
	}
	if !e.dir() {
		return ErrNotDir
	}
	if err := modelName(o.Name2); err != nil {
		return err
	}
	old := e.kids[o.Name2]
	below := func(x, top *node) bool {
		for ; x != nil; x = x.parent {
			if x == top {
				return true
			}
		}
		return false
	}
	switch {
	case o.Flags == RenameNoReplace && old != nil:
		return ErrExist
	case o.Flags == RenameExchange && old == nil:
		return ErrNotExist
	case d == m.root || e == m.root:
		return ErrPerm
	case d.vault != e.vault:
		return ErrXDev
	case old == n:
		return nil
	case n.dir() && below(e, n):
		return ErrLoop
	}
	if o.Flags == RenameExchange {
		if old.dir() && below(d, old) {
			return ErrLoop
		}
		d.kids[o.Name], e.kids[o.Name2] = old, n
		if n.dir() {
			n.parent = e
		}
		if old.dir() {
			old.parent = d
		}
		for _, x := range []*node{d, e} {
			x.mtime, x.ctime = o.Now, o.Now
		}
		n.ctime, old.ctime = o.Now, o.Now
		return nil
	}
	if old != nil {
		switch {
		case n.dir() && !old.dir():
			return ErrNotDir
		case !n.dir() && old.dir():
			return ErrIsDir
		case len(old.kids) > 0:
			return ErrNotEmpty
		}
		m.remove(e, o.Name2, o.Now)
	}
	delete(d.kids, o.Name)
	e.kids[o.Name2] = n
	if n.dir() {
		n.parent = e
	}
	for _, x := range []*node{d, e} {
		x.mtime, x.ctime = o.Now, o.Now
	}
	n.ctime = o.Now
	return nil
}

// walk finds the inode number of a path, 0 for none.
func walk(tx *Tx, path string) (uint64, error) {
	ino := uint64(RootIno)
	if path == "" {
		return ino, nil
	}
	for _, name := range strings.Split(path, "/") {
		d, err := tx.Lookup(ino, name)
		if err != nil {
			return 0, err
		}
		ino = d.Ino
	}
	return ino, nil
}

// applyTx makes the same change in the catalog.
func applyTx(tx *Tx, o op) error {
	dir, err := walk(tx, o.Dir)
	if err != nil {
		return err
	}
	switch o.Kind {
	case "create":
		_, err = tx.Create(dir, o.Name, Inode{Mode: sIFREG | o.Mode, GID: o.GID}, o.Now)
	case "mkdir":
		_, err = tx.Create(dir, o.Name, Inode{Mode: sIFDIR | o.Mode, GID: o.GID}, o.Now)
	case "link":
		var d Dirent
		if d, err = tx.Lookup(dir, o.Name); err != nil {
			return err
		}
		var dir2 uint64
		if dir2, err = walk(tx, o.Dir2); err == nil {
			_, err = tx.Link(d.Ino, dir2, o.Name2, o.Now)
		}
	case "unlink":
		_, err = tx.Unlink(dir, o.Name, o.Now)
	case "rmdir":
		_, err = tx.Rmdir(dir, o.Name, o.Now)
	case "rename":
		var dir2 uint64
		if dir2, err = walk(tx, o.Dir2); err != nil {
			// A directory that is not there has no number; one never used stands for it, so that the order of checks shows.
			dir2 = 1 << 60
		}
		_, _, err = tx.Rename(dir, o.Name, dir2, o.Name2, o.Flags, o.Now)
	case "setxattr":
		err = tx.SetXattr(dir, o.Key, []byte(o.Value), o.Create, o.Repl)
	case "removexattr":
		err = tx.RemoveXattr(dir, o.Key)
	}
	return err
}

// equal compares the whole catalog with the model.
func (m *model) equal(c *Catalog) error {
	return c.View(func(tx *Tx) error {
		inos := map[*node]uint64{}
		var visit func(n *node, ino uint64, path string) error
		visit = func(n *node, ino uint64, path string) error {
			if was, ok := inos[n]; ok {
				if was != ino {
					return fmt.Errorf("%s: inode %d, another link has %d", path, ino, was)
				}
			} else {
				inos[n] = ino
			}
			i, err := tx.Inode(ino)
			if err != nil {
				return fmt.Errorf("%s: inode %d: %w", path, ino, err)
			}
			want := i
			want.Mode, want.Nlink, want.Entries = n.mode, n.nlink(), int64(len(n.kids))
			if n != m.root {
				want.GID, want.Mtime, want.Ctime, want.Vault = n.gid, n.mtime, n.ctime, inos[n.vault]
				if n.dir() {
					want.Parent = inos[n.parent]
				}
			}
			if i != want {
				return fmt.Errorf("%s: %+v, want %+v", path, i, want)
			}
			names, err := tx.Xattrs(ino)
			if err != nil || len(names) != len(n.xattr) {
				return fmt.Errorf("%s: xattrs %v, want %v (%v)", path, names, n.xattr, err)
			}
			for k, v := range n.xattr {
				if b, err := tx.Xattr(ino, k); err != nil || string(b) != v {
					return fmt.Errorf("%s: xattr %s = %q, %v; want %q", path, k, b, err, v)
				}
			}
			parents, err := tx.Parents(ino)
			if err != nil || n != m.root && len(parents) != n.links {
				return fmt.Errorf("%s: parents %v, want %d (%v)", path, parents, n.links, err)
			}
			if !n.dir() {
				return nil
			}
			var listed []string
			for cookie := uint64(0); ; {
				list, err := tx.ReadDir(ino, cookie, 2)
				if err != nil {
					return err
				}
				if len(list) == 0 {
					break
				}
				for _, d := range list {
					if d.Cookie <= cookie || d.Parent != ino {
						return fmt.Errorf("%s: %+v after cookie %d", path, d, cookie)
					}
					cookie = d.Cookie
					if l, err := tx.Lookup(ino, d.Name); err != nil || l != d {
						return fmt.Errorf("%s: look-up of %s: %+v, %v; listed %+v", path, d.Name, l, err, d)
					}
					listed = append(listed, d.Name)
					k := n.kids[d.Name]
					if k == nil || k.mode&sIFMT != d.Type {
						return fmt.Errorf("%s: unexpected %+v", path, d)
					}
					if err := visit(k, d.Ino, strings.TrimPrefix(path+"/"+d.Name, "/")); err != nil {
						return err
					}
				}
			}
			if len(listed) != len(n.kids) {
				return fmt.Errorf("%s: listed %v, want %d", path, listed, len(n.kids))
			}
			return nil
		}
		if err := visit(m.root, RootIno, ""); err != nil {
			return err
		}
		orphans, err := tx.Orphans()
		if err != nil || len(orphans) != m.orphans {
			return fmt.Errorf("orphans %v, want %d (%v)", orphans, m.orphans, err)
		}
		s, err := countAll(tx)
		if err != nil {
			return err
		}
		if got := c.Stats(); got.Inodes != s.Inodes || got.Files != s.Files || got.LiveBytes != s.LiveBytes {
			return fmt.Errorf("stats %+v, counted %+v", got, s)
		}
		if want := int64(len(inos) + m.orphans); s.Inodes != want {
			return fmt.Errorf("%d inodes, want %d", s.Inodes, want)
		}
		return nil
	})
}

func tempDir(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "catalog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestTreeModel makes random changes in the catalog and in the model, several
// to an Update, with Updates that fail, reopening, crashes and snapshots in between.
func TestTreeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := tempDir(t)
		o := small(dir)
		o.SnapshotEvery = 1 << 20
		c, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { c.Close() }()
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		m := newModel()
		for _, v := range []string{"v", "w"} {
			m.apply(op{Kind: "mkdir", Name: v, Mode: 0o755})
			if _, err := c.Update(func(tx *Tx) error { return applyTx(tx, op{Kind: "mkdir", Name: v, Mode: 0o755}) }); err != nil {
				t.Fatal(err)
			}
		}
		for now := int64(1); now < 250; {
			switch n := r.IntN(100); {
			case n < 1:
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				if c, err = Open(o); err != nil || c.Rebuilt() != "" {
					t.Fatal(err, c.Rebuilt())
				}
			case n < 2:
				crash(t, c)
				if c, err = Open(o); err != nil || c.Rebuilt() == "" {
					t.Fatal(err)
				}
			case n < 3:
				if err := c.Snapshot(); err != nil {
					t.Fatal(err)
				}
			case n < 6:
				boom := errors.New("boom")
				x := randomOp(r, now)
				if _, err := c.Update(func(tx *Tx) error { applyTx(tx, x); return boom }); err != boom {
					t.Fatal(err)
				}
			default:
				_, err := c.Update(func(tx *Tx) error {
					for range 1 + r.IntN(4) {
						x := randomOp(r, now)
						now++
						want, got := m.apply(x), applyTx(tx, x)
						if want == nil != (got == nil) || want != nil && !errors.Is(got, want) {
							return fmt.Errorf("%v: %v, want %v", x, got, want)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := m.equal(c); err != nil {
			t.Fatal(err)
		}
		crash(t, c)
		if c, err = Open(o); err != nil {
			t.Fatal(err)
		}
		if err := m.equal(c); err != nil {
			t.Fatal("after rebuilding:", err)
		}
		if err := c.Check(context.Background(), false, func(p string) { t.Error(p) }); err != nil {
			t.Fatal(err)
		}
	})
}
