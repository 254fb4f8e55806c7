package e2e

import "testing"

func TestTar(t *testing.T) {
	warmAndCold(t, []string{"tar", "rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.tree()
		// Into the mount, compared, and an archive of what is in the mount.
		w.sh(`tar -C "$W" --xattrs --sparse -cf "$W/src.tar" src
cd "$V" && tar --xattrs --same-owner --same-permissions -xf "$W/src.tar"`)
		w.between()
		w.silent("tar -d", `tar -C "$V" --xattrs -df "$W/src.tar" 2>&1`)
		w.sameTree(`"$W/src"`, `"$V/src"`)
		w.between()
		w.sh(`tar -C "$V" --xattrs -cf "$V/made.tar" src`)
		w.between()
		w.silent("tar -d of an archive in the mount", `tar -C "$V" --xattrs -df "$V/made.tar" 2>&1`)
		w.between()
		w.sh(`mkdir "$W/out"; tar -C "$W/out" --xattrs --same-owner -xpf "$V/made.tar"`)
		w.sameTree(`"$W/src"`, `"$W/out/src"`)

		// Appended to, compressed, incremental.
		w.between()
		w.sh(`printf 'one more\n' > "$W/src/more"; tar -C "$W" -rf "$V/made.tar" src/more`)
		w.between()
		w.sh(`tar -C "$W/out" -xf "$V/made.tar" src/more; cmp "$W/src/more" "$W/out/src/more"
tar -C "$V" -czf "$V/made.tgz" src; tar -tzf "$V/made.tgz" > "$W/names"; test "$(wc -l < "$W/names")" -gt 20
tar -C "$V" -g "$W/snar" -cf "$W/level0.tar" src`)
		w.between()
		// What tar remembers of the tree, inode numbers and ctimes included, still holds: level 1 holds no file.
		w.silent("incremental tar took", `tar -C "$V" -g "$W/snar" -cf "$W/level1.tar" src; tar -tf "$W/level1.tar" | grep -v '/$' || true`)
	})
}

// Programs that look for holes never take coldness for one.
func TestSparse(t *testing.T) {
	warmAndCold(t, []string{"tar", "cmp"}, func(t *testing.T, w *world) {
		w.sh(`cd "$W"
head -c 3000001 /dev/urandom > dense
head -c 100 /dev/urandom > small
truncate -s 6M holes; printf start | dd of=holes conv=notrunc status=none; head -c 1000000 /dev/urandom | dd of=holes bs=1000000 seek=3 conv=notrunc status=none
truncate -s 2M hole
head -c 2097152 /dev/zero > zeros
sha256sum dense small holes hole zeros > sums
mkdir "$V/d"; cp dense small holes hole zeros "$V/d/"`)
		sums := func(dir string) { w.t.Helper(); w.sh(`cd ` + dir + ` && sha256sum --quiet -c "$W/sums"`) }
		w.between()
		w.sh(`for f in "$V"/d/*; do test "$(stat -c %b "$f")" -gt 0; done
tar -C "$V" -Scf "$W/s.tar" d; mkdir "$W/s"; tar -C "$W/s" -xf "$W/s.tar"`)
		sums(`"$W/s/d"`)
		w.between()
		w.sh(`tar -C "$V" -Scf "$W/r.tar" --hole-detection=raw d; mkdir "$W/r"; tar -C "$W/r" -xf "$W/r.tar"`)
		sums(`"$W/r/d"`)
		for _, how := range []string{"always", "auto", "never"} {
			w.between()
			w.sh(`cp -r --sparse=` + how + ` "$V/d" "$W/cp-` + how + `"`)
			sums(`"$W/cp-` + how + `"`)
			w.between()
			w.sh(`cp -r --sparse=` + how + ` "$V/d" "$V/cp-` + how + `"`)
			w.between()
			sums(`"$V/cp-` + how + `"`)
		}
		w.between()
		// As dd and qemu write them.
		w.sh(`dd if="$V/d/holes" of="$V/dd" bs=64k conv=sparse status=none; cmp "$V/dd" "$W/holes"
tar -C "$V" -xf "$W/s.tar" d/holes; cmp "$V/d/holes" "$W/holes"
fallocate -d "$V/d/zeros" 2>/dev/null || true
fallocate -l 3000000 "$V/allocated"; test "$(stat -c %s "$V/allocated")" = 3000000`)
		w.between()
		sums(`"$V/d"`)
		w.sh(`head -c 3000000 /dev/zero | cmp - "$V/allocated"`)
	})
}
