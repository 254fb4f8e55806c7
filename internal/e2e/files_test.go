package e2e

import "testing"

func TestZip(t *testing.T) {
	warmAndCold(t, []string{"zip", "unzip", "diff"}, func(t *testing.T, w *world) {
		w.sh(`mkdir -p "$W/z/sub"; cd "$W/z"; seq 20000 > numbers; head -c 1500000 /dev/urandom > sub/random; : > sub/empty; ln -s numbers link
cd "$W" && zip -qry z.zip z && cd "$V" && unzip -q "$W/z.zip"`)
		w.between()
		w.sh(`diff -r --no-dereference "$W/z" "$V/z"`)
		w.between()
		w.sh(`cd "$V" && zip -qry made.zip z`)
		w.between()
		w.sh(`cd "$V" && unzip -l made.zip && unzip -tq made.zip`)
		w.between()
		w.sh(`echo more > "$W/more"; cd "$W" && zip -qg "$V/made.zip" more && zip -qd "$V/made.zip" z/numbers`)
		w.between()
		w.sh(`mkdir "$W/out"; cd "$W/out" && unzip -q "$V/made.zip" && cmp z/sub/random "$W/z/sub/random" && cmp more "$W/more" && test ! -e z/numbers
cd "$V" && unzip -qo made.zip`)
		w.between()
		w.sh(`diff -r --no-dereference "$W/z" "$V/z"; cmp "$V/more" "$W/more"`)
	})
}

func TestCopyAndMove(t *testing.T) {
	warmAndCold(t, []string{"rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.tree()
		w.sh(`cp -a "$W/src" "$V/one"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/one"`)
		w.between()
		w.sh(`cp -a "$V/one" "$V/two"; cp -a --reflink=auto "$V/one/over-a-mib" "$V/reflinked"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/two"`)
		w.sh(`cmp "$V/reflinked" "$W/src/over-a-mib"; cp -al "$V/two" "$V/linked"; cp -au "$W/src/." "$V/two/"; cp -ab --suffix=.old "$W/src/one" "$V/two/one"`)
		w.between()
		w.silent("cp -al", `diff -r --no-dereference --exclude=fifo --exclude=null "$W/src" "$V/linked"
rsync -aXn --checksum --delete --itemize-changes "$W/src/" "$V/linked/"; test "$(stat -c %h "$V/two/over-a-mib")" = 2`)
		// Within the vault a rename, which touches no byte.
		w.between()
		w.quiet("mv within a vault", func() { w.sh(`mv "$V/one" "$V/linked/moved"; mv "$V/linked/moved" "$V/three"`) })
		w.sameTree(`"$W/src"`, `"$V/three"`)
		// Across vaults a copy.
		w.between()
		w.sh(`mkdir "$MNT/other"; mv "$V/three" "$MNT/other/three"; test ! -e "$V/three"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$MNT/other/three"`)
		w.between()
		w.sh(`mv "$MNT/other/three" "$W/back"; rmdir "$MNT/other" || ls -la "$MNT/other"`)
		w.sameTree(`"$W/src"`, `"$W/back"`)
		w.sh(`rm -rf "$V/two" "$V/linked"; test "$(ls "$V")" = reflinked`)
	})
}

// How editors and shells save.
func TestSaving(t *testing.T) {
	warmAndCold(t, []string{"sed", "cmp", "flock"}, func(t *testing.T, w *world) {
		w.sh(`seq 100000 > "$W/ref"; cp "$W/ref" "$V/f"; ln "$V/f" "$V/name2"`)
		same := func() { w.t.Helper(); w.between(); w.sh(`cmp "$W/ref" "$V/f"`); w.between() }
		same()
		// Temporary file, fsync, rename over.
		w.sh(`sed -i s/77/seventy-seven/ "$W/ref" "$V/f"; test "$(stat -c %h "$V/name2")" = 1`)
		same()
		w.sh(`seq 100000 | cmp - "$V/name2"`)
		// Backup by rename, new file; backup by copy, truncate and write.
		w.sh(`cd "$V"; mv f f~; sed s/1/one/ f~ > f; sed -i s/1/one/ "$W/ref"; rm f~`)
		same()
		w.sh(`cd "$V"; cp -p f f~; sed s/2/two/ f~ > f; sed -i s/2/two/ "$W/ref"; rm f~`)
		same()
		// Appends, also by several at once, also to what is no longer local.
		w.sh(`for f in "$W/ref" "$V/f"; do echo 'a line' >> "$f"; { echo more; sh -c 'echo from a child'; echo end; } >> "$f"; done`)
		same()
		w.sh(`for p in 1 2 3 4; do ( for i in 1 2 3 4 5 6 7 8 9 10; do echo "line $i of $p" >> "$V/log"; done ) & done; wait; test "$(sort -u "$V/log" | wc -l)" = 40`)
		w.between()
		w.sh(`test "$(wc -l < "$V/log")" = 40; echo last >> "$V/log"; test "$(tail -n1 "$V/log")" = last; test "$(wc -l < "$V/log")" = 41`)
		// Opened for append by a logger while it is archived, evicted and read.
		w.sh(`exec 5>> "$V/log"; echo a >&5; "$CASFS" sync "$V"; echo b >&5; test "$(tail -n2 "$V/log" | tr -d '\n')" = ab; "$CASFS" sync "$V"; echo c >&5; exec 5>&-`)
		w.between()
		w.sh(`test "$(tail -n3 "$V/log" | tr -d '\n')" = abc`)
		// In place, in the middle, past the end, shorter, longer.
		w.between()
		w.sh(`for f in "$W/ref" "$V/f"; do
	printf PATCH | dd of="$f" bs=1 seek=300000 conv=notrunc status=none
	printf PAST | dd of="$f" bs=1 seek=2500000 conv=notrunc status=none; done`)
		same()
		w.sh(`truncate -s 1048576 "$W/ref" "$V/f"`)
		same()
		w.sh(`truncate -s 1048577 "$W/ref" "$V/f"; for f in "$W/ref" "$V/f"; do : >> "$f"; done`)
		same()
		w.sh(`truncate -s 10 "$W/ref" "$V/f"; truncate -s 4000 "$W/ref" "$V/f"`)
		same()
		// Read and written through one descriptor; written by one while read by another.
		w.sh(`for f in "$W/ref" "$V/f"; do exec 6<> "$f"; head -c 5 <&6 > "$W/h"; printf MIDDLE >&6; exec 6>&-; done`)
		same()
		// Deleted while open.
		w.sh(`cp "$W/ref" "$V/gone"`)
		w.between()
		w.sh(`exec 7< "$V/gone"; rm "$V/gone"; cmp - "$W/ref" <&7; exec 7<&-; test ! -e "$V/gone"`)
		// Locks.
		w.sh(`flock "$V/f" -c "! flock -n $V/f true && flock -n $V/name2 true"`)
		// Emptied by the shell.
		w.sh(`: > "$V/f"; test ! -s "$V/f"; : > "$W/ref"`)
		same()
	})
}
