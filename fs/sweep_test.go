package fs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/jobs"
)

// sweepMount has n cold files of 64 bytes in 20 directories: somebody else's vault after its first inventory.
func sweepMount(t *testing.T, n int, delays local.Delays, change func(*jobs.Options)) *mounted {
	t.Helper()
	x := mountForTest(t, delays, func(j *jobs.Options, _ *Options) { change(j) })
	for i := range n {
		data := fmt.Sprintf("%-64s", fmt.Sprintf("needle in file %d", i))
		if _, err := x.client.UploadArchive(t.Context(), vault, fmt.Sprintf("d%d/f%d", i%20, i), strings.NewReader(data), cas.PartHash{}); err != nil {
			t.Fatal(err)
		}
	}
	x.inventory()
	return x
}

// swept is what a sweep of all files came to.
type swept struct{ found, remote, again, timedOut int }

// sweep runs a shell script in the vault and counts the files it found the needle in (its lines of output), and the errors. Messages of
// programs that run at once lie across each other.
func (x *mounted) sweep(script string) swept {
	x.t.Helper()
	// Not cmd.Dir: between fork and exec this process, which serves the mount, is held up.
	cmd := exec.Command("bash", "-c", `cd "$1" && shift && eval "$1"`, "bash", x.path(), script)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); !ok {
			x.t.Fatal(err)
		}
	}
	count := func(text string) int { return bytes.Count(errOut.Bytes(), []byte(text)) }
	return swept{bytes.Count(out.Bytes(), []byte("\n")),
		count("Object is remote"), count("Resource temporarily unavailable"), count("Connection timed out")}
}

// explains wants a reason for a refusal with a file, in the log, and from stat.
func (x *mounted) explains(what string) {
	x.t.Helper()
	if len(x.logs.grep("a read was refused to recall", what)) == 0 {
		x.t.Errorf("the log does not say %q", what)
	}
	found := 0
	filepath.WalkDir(x.path(), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var b [1000]byte
		if n, err := unix.Getxattr(path, "user.cas.error", b[:]); err == nil && strings.Contains(string(b[:n]), what) {
			found++
			if s, err := x.e.Stat(x.t.Context(), inoOf(x.t, path)); err != nil || !strings.Contains(s.Error, what) || s.State != "cold" {
				x.t.Errorf("stat of %s: %+v, %v", path, s, err)
			}
			return io.EOF
		}
		return nil
	})
	if found == 0 {
		x.t.Errorf("no file's user.cas.error says %q", what)
	}
}

// TestSweeps: programs that read everything start no more recalls than the guard allows, and are told why. 400 files, 10 000
// with CASFS_TEST_BIG.
func TestSweeps(t *testing.T) {
	n := 400
	if os.Getenv("CASFS_TEST_BIG") != "" {
		n = 10_000
	}
	want := func(t *testing.T, what string, got, want swept) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	t.Run("updatedb", func(t *testing.T) {
		x := sweepMount(t, n, local.Delays{}, func(j *jobs.Options) { j.DenyComm = []string{"plocate", "updatedb"} })
		want(t, "metadata", x.sweep("find . -type f -printf '%s %T@ %m\n'; find . -type f | xargs getfattr -n user.cas.state > /dev/null"), swept{found: n})
		updatedb := filepath.Join(t.TempDir(), "updatedb")
		sh(t, ".", "cp $(command -v grep) "+updatedb)
		want(t, "an indexer", x.sweep(updatedb+" -rl needle ."), swept{remote: n})
		x.wantRecalls(0)
		x.explains("programs named updatedb may not recall")
	})
	t.Run("serial grep", func(t *testing.T) {
		const allowed = 50
		x := sweepMount(t, n, local.Delays{}, func(j *jobs.Options) { j.GuardFiles, j.GuardBytes = 1, allowed*64 })
		want(t, "a sweep", x.sweep("grep -rl needle ."), swept{found: allowed, remote: n - allowed})
		x.wantRecalls(allowed)
		x.explains("--recall-guard-bytes")
		if err := x.e.Allow(0, 10*64); err != nil {
			t.Fatal(err)
		}
		want(t, "with an allowance", x.sweep("grep -rl needle ."), swept{found: allowed + 10, remote: n - allowed - 10})
		x.wantRecalls(allowed + 10)
	})
	t.Run("parallel grep, then queue mode", func(t *testing.T) {
		const allowed = 20
		x := sweepMount(t, n, local.Delays{Standard: time.Hour}, func(j *jobs.Options) { j.GuardFiles, j.RecallWait = allowed, time.Second })
		const grep = "find . -type f -print0 | xargs -0 -P 32 -n 20 grep -l needle"
		want(t, "a sweep", x.sweep(grep), swept{remote: n - allowed, timedOut: allowed})
		x.wantRecalls(allowed)
		x.explains("--recall-guard-files")
		x.stop()
		x.jobs.Recall = jobs.RecallQueue
		x.start()
		for range 2 {
			want(t, "queue mode", x.sweep(grep), swept{again: allowed, remote: n - allowed})
		}
		x.wantRecalls(allowed)
	})
}
