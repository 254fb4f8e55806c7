package e2e

import (
	"strings"
	"testing"
)

func TestSQLite(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "persist"} {
		t.Run(mode, func(t *testing.T) {
			warmAndCold(t, []string{"sqlite3"}, func(t *testing.T, w *world) {
				sql := func(script string) string {
					w.t.Helper()
					return strings.TrimSpace(w.sh(`cd "$V" && sqlite3 -bail db <<'SQL'
.timeout 60000
` + script + `
SQL`))
				}
				check := func() {
					w.t.Helper()
					if got := sql(`PRAGMA integrity_check;`); got != "ok" {
						w.t.Fatalf("integrity_check: %s", got)
					}
				}
				got := sql(`PRAGMA page_size=4096; PRAGMA journal_mode=` + mode + `; PRAGMA synchronous=FULL;
CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB); CREATE INDEX ik ON t(k);`)
				if !strings.HasSuffix(got, mode) {
					t.Fatalf("journal_mode: %s", got)
				}
				w.between()
				sql(`PRAGMA journal_mode=` + mode + `;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000)
INSERT INTO t SELECT i, 'key' || i, randomblob(300) FROM n;`)
				check()
				w.between()
				check()
				w.between()
				sql(`PRAGMA journal_mode=` + mode + `;
BEGIN; UPDATE t SET v=randomblob(500) WHERE id%7=0; DELETE FROM t WHERE id%5=0; COMMIT;
BEGIN; DELETE FROM t; ROLLBACK;`)
				w.between()
				check()
				if got := sql(`SELECT count(*) FROM t;`); got != "1600" {
					t.Errorf("count: %s", got)
				}
				// Several writers at once.
				w.sh(`cd "$V"
for p in 1 2 3; do
	( for i in 1 2 3 4 5; do sqlite3 -bail db ".timeout 60000" "INSERT INTO t(k) VALUES('p$p-$i');" || exit 1; done ) & pids="${pids:-} $!"
done
for p in $pids; do wait $p; done`)
				check()
				w.between()
				if got := sql(`SELECT count(*) FROM t;`); got != "1615" {
					t.Errorf("count after several writers: %s", got)
				}
				// A writer killed in the middle of a transaction leaves a journal behind, which may be cold by the time it is needed.
				w.sh(`cd "$V"; mkfifo "$W/in"
sqlite3 db < "$W/in" & pid=$!
exec 3> "$W/in"
printf '%s\n' '.timeout 60000' 'PRAGMA cache_size=5;' 'BEGIN IMMEDIATE; UPDATE t SET v=randomblob(900);' ".shell touch $W/begun" >&3
until test -e "$W/begun"; do sleep 0.05; done
kill -9 $pid; wait $pid || true`)
				w.between()
				check()
				sql(`VACUUM;`)
				w.remount()
				check()
				if got := sql(`SELECT count(*), count(v) FROM t;`); got != "1615|1600" {
					t.Errorf("count after a killed writer: %s", got)
				}
			})
		})
	}
}
