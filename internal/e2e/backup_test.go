package e2e

import "testing"

func TestRestic(t *testing.T) {
	warmAndCold(t, []string{"restic", "rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.env = append(w.env, "RESTIC_PASSWORD=x", "RESTIC_REPOSITORY="+w.path("v/repo"), "RESTIC_CACHE_DIR="+w.home+"/restic-cache", "RESTIC_PROGRESS_FPS=0.1")
		w.tree()
		w.sh(`restic init -q; cd "$W" && restic backup -q src`)
		w.between()
		w.sh(`restic check -q --read-data`)
		w.between()
		w.sh(`seq 3000 > "$W/src/new"; rm "$W/src/over-a-mib"; cd "$W" && restic backup -q src; restic snapshots -q`)
		w.between()
		w.sh(`restic restore -q latest --target "$W/restored"`)
		w.sameTree(`"$W/src"`, `"$W/restored/src"`)
		w.between()
		// From the vault into the vault.
		w.sh(`restic restore -q latest --target "$V/restored"`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/restored/src"`)
		w.sh(`restic forget -q --keep-last 1 --prune --max-unused 0`)
		w.between()
		w.sh(`rm -r "$W/restic-cache"; restic check -q --read-data
cd "$V" && restic backup -q --exclude repo . && restic check -q && restic unlock -q`)
	})
}

func TestBorg(t *testing.T) {
	warmAndCold(t, []string{"borg", "rsync", "getfattr", "setfattr", "diff"}, func(t *testing.T, w *world) {
		w.env = append(w.env, "BORG_REPO="+w.path("v/repo"), "BORG_BASE_DIR="+w.home+"/borg", "BORG_PASSPHRASE=x",
			"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING=YES", "BORG_DELETE_I_KNOW_WHAT_I_AM_DOING=YES")
		w.tree()
		w.sh(`borg init -e repokey; cd "$W" && borg create ::one src`)
		w.between()
		w.sh(`borg check --verify-data`)
		w.between()
		w.sh(`seq 3000 > "$W/src/new"; rm "$W/src/over-a-mib"; cd "$W" && borg create ::two src; borg list`)
		w.between()
		w.sh(`mkdir "$W/out"; cd "$W/out" && borg extract ::two`)
		w.sameTree(`"$W/src"`, `"$W/out/src"`)
		w.between()
		w.sh(`borg delete ::one`)
		w.between()
		w.sh(`borg compact --threshold 0`)
		w.between()
		w.sh(`rm -rf "$W/borg/.cache"; borg check --verify-data; mkdir "$V/out"; cd "$V/out" && borg extract ::two`)
		w.between()
		w.sameTree(`"$W/src"`, `"$V/out/src"`)
		w.sh(`borg delete`)
	})
}
