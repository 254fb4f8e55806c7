package e2e

import (
	"fmt"
	"testing"
)

func TestRsync(t *testing.T) {
	warmAndCold(t, []string{"rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.tree()
		const again = `rsync -aHAX --itemize-changes "$W/src/" "$V/dst/"`
		w.sh(again)
		w.between()
		w.quiet("a second rsync", func() { w.silent("a second rsync transferred", again) })
		w.remount()
		w.quiet("rsync after a remount", func() { w.silent("rsync after a remount transferred", again) })
		w.sameTree(`"$W/src"`, `"$V/dst"`)
		w.between()
		// And back.
		w.sh(`rsync -aHAX "$V/dst/" "$W/back/"`)
		w.sameTree(`"$W/src"`, `"$W/back"`)
	})
}

func TestRsyncChanges(t *testing.T) {
	warmAndCold(t, []string{"rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.tree()
		w.sh(`rsync -aHX "$W/src/" "$V/dst/"`)
		w.between()
		// rsync takes equal sizes and times, to the second, for equal files; so each change gets a time of its own.
		year := 2020
		changed := func(files string) string {
			year++
			return fmt.Sprintf("; (cd \"$W/src\"; touch -d %d-01-01 %s; find . -type d -exec touch -d %d-01-02 {} +)\n", year, files, year)
		}

		// In place: bytes in the middle of an archived file change, by delta or whole.
		w.sh(`printf CHANGED | dd of="$W/src/sub dir/中文 名字.bin" bs=1 seek=1500000 conv=notrunc status=none` + changed(`"sub dir/中文 名字.bin"`) + `
rsync -aHX --inplace --no-whole-file "$W/src/" "$V/dst/"`)
		w.sameTree(`"$W/src"`, `"$V/dst"`)
		w.between()
		w.sh(`printf AGAIN | dd of="$W/src/sub dir/中文 名字.bin" bs=1 seek=77 conv=notrunc status=none` + changed(`"sub dir/中文 名字.bin"`) + `
rsync -aHX --inplace --whole-file "$W/src/" "$V/dst/"`)
		w.between()

		// Appended.
		w.sh(`head -c 700000 /dev/urandom >> "$W/src/over-a-mib"; printf 'one more\n' >> "$W/src/sub dir/deeper/seq 4.txt"` + changed(`over-a-mib "sub dir/deeper/seq 4.txt"`) + `
rsync -aHX --append "$W/src/" "$V/dst/"`)
		w.sameTree(`"$W/src"`, `"$V/dst"`)
		w.between()
		w.sh(`head -c 100 /dev/urandom >> "$W/src/over-a-mib"` + changed("over-a-mib") + `
rsync -aHX --append-verify "$W/src/" "$V/dst/"`)
		w.between()

		// Shorter, gone, of another type, renamed.
		w.sh(`cd "$W/src"
truncate -s 12345 over-a-mib
rm -r "sub dir/deeper" link
mkdir link; printf 'now a directory\n' > link/file
rm -r "empty dir"; printf 'now a file\n' > "empty dir"
mv under-a-page "renamed page"` + changed("over-a-mib link/file 'empty dir'") + `
rsync -aHX --delete --fuzzy --delay-updates "$W/src/" "$V/dst/"`)
		w.sameTree(`"$W/src"`, `"$V/dst"`)
		w.between()
		w.silent("rsync after --delete transferred", `rsync -aHX --delete --itemize-changes "$W/src/" "$V/dst/"`)

		// Sparse.
		w.sh(`rsync -aHX --sparse "$W/src/" "$V/sparse/"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/sparse"`)
		w.sh(`rsync -aHX --sparse --inplace --ignore-times "$W/src/" "$V/sparse/"`)
		w.between()
		w.sh(`rsync -aHX --sparse "$V/sparse/" "$W/back/"`)
		w.sameTree(`"$W/src"`, `"$W/back"`)
		w.sh(`test "$(du -k "$W/back/sparse" | cut -f1)" -lt 1000`)

		// Hard-linked generations, as backups are kept.
		w.sh(`rsync -aHX --link-dest="$V/dst" "$W/src/" "$V/gen2/"`)
		w.sh(`test "$(stat -c %i "$V/dst/one")" = "$(stat -c %i "$V/gen2/one")"`)
		w.between()
		w.sh(`rm -r "$V/dst"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/gen2"`)
	})
}
