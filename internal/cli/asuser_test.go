package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/built"
)

// TestMountAsUser mounts as an ordinary user, who needs fusermount3: the story, a killed daemon, --allow-other with and
// without the machine's consent, and what root may do with such a mount. /dev/fuse and /etc/fuse.conf are given to the
// user in a mount namespace of the test's own; the processes are in one, too, and end with it.
func TestMountAsUser(t *testing.T) {
	built.Require(t, "fusermount3", "unshare", "setpriv")
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-eu", "-c", asRoot, "sh", filepath.Dir(t.TempDir()), program, asUser)
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// asRoot gets a directory that everybody can reach, the program, and what the user does.
const asRoot = `
mount -t tmpfs -o mode=755 none "$1"
cd "$1"
mkdir dev home roots
mknod -m 666 dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
: > fuse.conf
mount --bind fuse.conf /etc/fuse.conf
cp /etc/passwd passwd
echo "casfs-user:x:1234:1234::/:/bin/sh" >> passwd
mount --bind passwd /etc/passwd
cp "$2" casfs
chown 1234:1234 home
user() {
	env -i GORACE=atexit_sleep_ms=20 HOME="$1/home" PATH="$1:$PATH" setpriv --reuid 1234 --regid 1234 --clear-groups sh -eu -c "$2"
}
refused() { # code, words, command…
	code=$1 words=$2
	shift 2
	got=0
	"$@" >out 2>&1 || got=$?
	[ $got = $code ] && grep -qF -e "$words" out || { echo "exit $got, want $code and \"$words\": $*"; cat out; exit 1; }
}
user "$1" "$3"

# Root cannot look into a mount without --allow-other, and is told so.
export HOME="$1/nobody"
refused 1 "was mounted by another user" ./casfs umount home/mnt
refused 0 "mounted by another user" ./casfs status
user "$1" 'cd; casfs umount mnt'

echo user_allow_other > fuse.conf
user "$1" 'cd; casfs mount --daemon --allow-other --settle 1h --local store mnt; echo for all > mnt/v/all; echo mine > mnt/v/mine; chmod 600 mnt/v/mine'
[ "$(cat home/mnt/v/all)" = "for all" ]
[ "$(setpriv --reuid 4321 --clear-groups cat home/mnt/v/all)" = "for all" ]
refused 1 "Permission denied" setpriv --reuid 4321 --clear-groups cat home/mnt/v/mine
./casfs sync home/mnt
./casfs umount home/mnt
if grep -F "$1/home/mnt" /proc/self/mounts; then exit 1; fi
`

// asUser leaves a mount behind.
const asUser = `
cd
mkdir mnt other
casfs mount --daemon --settle 1h --standard 50ms --local store mnt
mkdir mnt/v
echo text > mnt/v/file
casfs sync mnt
casfs evict mnt/v/file
[ "$(cat mnt/v/file)" = text ]

refused() { # words, command…
	words=$1
	shift
	if "$@" 2>err; then echo "no failure: $*"; exit 1; fi
	grep -qF -e "$words" err || { echo "want \"$words\": $*"; cat err; exit 1; }
}
refused user_allow_other casfs mount --daemon --allow-other --state-dir elsewhere --local store other
refused "is in use by casfs, pid" casfs mount --daemon --local store other
refused "must be writable for you" casfs mount --daemon --local store ../roots
exec 3<mnt/v/file
refused --lazy casfs umount mnt
exec 3<&-

echo unsaved > mnt/v/unsaved
kill -9 "$(casfs status --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"
refused "has died" casfs mount --daemon --local store mnt
casfs mount --daemon --force --local store mnt
[ "$(cat mnt/v/unsaved)" = unsaved ]
casfs umount mnt
casfs mount --daemon --local store v mnt
[ "$(cat mnt/file mnt/unsaved)" = "$(printf 'text\nunsaved')" ]
`
