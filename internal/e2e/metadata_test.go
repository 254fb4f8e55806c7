package e2e

import (
	"testing"

	"github.com/casfs/casfs/internal/built"
)

// Looking at a tree where everything is cold contacts nobody and brings nothing back.
func TestMetadataIsLocal(t *testing.T) {
	t.Parallel()
	built.Require(t, "find", "rsync", "getfattr", "setfattr")
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	w := newWorld(t, "0")
	w.tree()
	w.sh(`cp -a "$W/src" "$V/tree"; for i in $(seq 100); do echo $i > "$V/tree/file $i"; done`)
	for _, again := range []string{"at once", "after a remount"} {
		w.evict()
		if again != "at once" {
			w.remount()
		}
		for _, look := range []string{
			`find "$MNT"`,
			`find "$MNT" -ls`,
			`find "$MNT" -newer "$W/src/over-a-mib" -size +1k -perm /u+r -links +1 -printf '%i %b %s %T@ %C@ %l\n'`,
			`ls -lR "$MNT"`,
			`ls -laiRZ --full-time "$MNT"`,
			`du -a "$MNT"; du -s --apparent-size "$MNT"; df "$MNT"`,
			`getfattr -Rhd -m - "$MNT"`,
			`for f in "$V"/tree/file*; do stat "$f"; getfattr --only-values -n user.cas.state "$f"; test -r "$f"; done`,
			`rsync -aHXn "$V/tree/" "$W/nowhere/"`,
			`mkdir "$V/new"; mv "$V"/tree/file* "$V/new/"; chmod -R a+r "$V/new"; touch "$V"/new/*; mv "$V"/new/* "$V/tree/"; rmdir "$V/new"`,
		} {
			w.quiet(look, func() { w.sh(look) })
		}
		for _, name := range []string{"v/tree/one", "v/tree/over-a-mib", "v/tree/file 7"} {
			if s := w.state(name); s != "cold" {
				t.Errorf("%s: %s is %s", again, name, s)
			}
		}
	}
	// Counting counts: reading a byte asks.
	before := len(w.store.asked())
	w.sh(`head -c 1 "$V/tree/over-a-mib" > "$W/byte"; cmp -n 1 "$W/byte" "$W/src/over-a-mib"`)
	if len(w.store.asked()) == before {
		t.Error("reading a cold file asked nobody: the counter counts nothing")
	}
}
