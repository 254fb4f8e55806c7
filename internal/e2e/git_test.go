package e2e

import "testing"

func TestGit(t *testing.T) {
	warmAndCold(t, []string{"git", "diff"}, func(t *testing.T, w *world) {
		w.env = append(w.env, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.org")
		w.sh(`git config --global init.defaultBranch main; git config --global gc.auto 0; git config --global core.fsync all
git config --global --add safe.directory '*'
git init -q "$W/origin"; cd "$W/origin"
for i in 1 2 3 4 5 6; do
	mkdir -p dir$i; seq $i 300 > dir$i/numbers; head -c 20000 /dev/urandom > dir$i/random; ln -sf numbers dir$i/link
	git add -A; git commit -qm "commit $i"
done
printf '#!/bin/sh\n' > run; chmod +x run; git add run; git commit -qm run; git tag v1`)
		w.sh(`git clone -q --no-local "$W/origin" "$V/clone"`)
		w.between()
		clean := func() {
			w.t.Helper()
			w.silent("git status", `cd "$V/clone" && git status --porcelain`)
		}
		clean()
		w.sh(`cd "$V/clone" && git fsck --strict --full`)
		w.between()
		w.sh(`cd "$V/clone"
git checkout -qb work; seq 1000 > dir1/numbers; git mv dir2 moved; rm dir3/random
git add -A; git commit -qm change; echo more >> moved/numbers; git commit -qam more`)
		w.between()
		w.sh(`cd "$V/clone" && git checkout -q main && git merge -q --no-ff -m merged work && git stash list && git log --stat --oneline > "$W/log" && test "$(wc -l < "$W/log")" -gt 10`)
		w.between()
		w.sh(`cd "$V/clone" && echo dirty >> run && git stash -q && git stash pop -q && git checkout -q run
git gc -q --prune=now; test "$(find .git/objects -name '*.pack' | wc -l)" = 1`)
		clean()
		w.between()
		w.sh(`cd "$V/clone" && git fsck --strict --full && git rebase -q HEAD~1 2>&1 && git reset -q --hard v1`)
		clean()
		w.between()
		w.sh(`git clone -q "$V/clone" "$W/again"; git -C "$W/again" checkout -q v1; diff -r --no-dereference -x .git "$W/again" "$V/clone"
cd "$W/again" && git checkout -q -b pushed && echo pushed > pushed && git add pushed && git commit -qm pushed && git push -q origin pushed`)
		w.between()
		w.sh(`cd "$V/clone" && git repack -qad && git fsck --full && git show pushed:pushed | grep -qx pushed
git worktree add -q "$V/tree" pushed && cat "$V/tree/pushed" && git clone -q "$V/clone" "$V/local" && git -C "$V/local" fsck`)
	})
}
