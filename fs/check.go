package fs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Check looks at the mount point before anything is opened: missing, not a
// directory, not empty, already a mount (ErrBusyMount), stale (ErrStaleMount); and at the machine:
// /dev/fuse or fusermount3 missing (ErrNoFuse, with the command that helps). It
// changes nothing and never blocks on another file system's daemon for long.
func Check(o Options) error {
	if err := checkMountpoint(o.Mountpoint); err != nil {
		return err
	}
	return checkFuse(o.AllowOther)
}

// realDir returns the mount point as the mount table will show it. Only the
// directories above it are looked at: the mount point itself may be a dead mount.
func realDir(mountpoint string) (string, error) {
	abs, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", err
	}
	if _, mounted, err := mountAt(abs); err != nil || mounted {
		return abs, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", missing(mountpoint, err)
	}
	dir := filepath.Join(parent, filepath.Base(abs))
	if _, mounted, err := mountAt(dir); err != nil || mounted {
		return dir, err
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return "", missing(mountpoint, err)
	}
	return dir, nil
}

func missing(mountpoint string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount point %s does not exist; create it with: mkdir -p %s", mountpoint, quote(mountpoint))
	}
	return fmt.Errorf("mount point %s: %w", mountpoint, err)
}

func checkMountpoint(mountpoint string) error {
	if mountpoint == "" {
		return errors.New("no mount point given")
	}
	dir, err := realDir(mountpoint)
	if err != nil {
		return err
	}
	e, mounted, err := mountAt(dir)
	if err != nil {
		return err
	}
	if mounted {
		return checkMounted(dir, e)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return missing(mountpoint, err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("mount point %s is not a directory", mountpoint)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	defer f.Close()
	if names, err := f.Readdirnames(1); err == nil {
		return fmt.Errorf("%w: %s is not empty (it holds %q), and a mount would hide what is in it", ErrBusyMount, mountpoint, names[0])
	} else if err != io.EOF {
		return fmt.Errorf("mount point: %w", err)
	}
	if os.Geteuid() != 0 {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			return fmt.Errorf("mount point %s must be writable for you: %w", mountpoint, err)
		}
	}
	return nil
}

// answerTime is how long a mount of somebody else's may take to answer.
const answerTime = 2 * time.Second

// checkMounted says what kind of mount is in the way.
func checkMounted(dir string, e mountEntry) error {
	if e.fsType == fsType {
		answer := make(chan error, 1) // the goroutine stays behind when the mount hangs
		go func() {
			var st unix.Statfs_t // not stat: the kernel may have the attributes and answer for the dead
			answer <- unix.Statfs(dir, &st)
		}()
		select {
		case err := <-answer:
			if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
				return fmt.Errorf("%s: %w (--force clears it away; what was written goes on with the next mount)", dir, ErrStaleMount)
			}
		case <-time.After(answerTime):
			return fmt.Errorf("%w: a casfs mount on %s does not answer", ErrBusyMount, dir)
		}
		return fmt.Errorf("%w: casfs is mounted on %s already; unmount it with: casfs umount %s", ErrBusyMount, dir, quote(dir))
	}
	return fmt.Errorf("%w: a file system of type %s is mounted on %s", ErrBusyMount, e.fsType, dir)
}

func checkFuse(allowOther bool) error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %v; on a host: sudo modprobe fuse; in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN …", ErrNoFuse, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %v; in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN …; on a host: run as root, or sudo chmod 666 /dev/fuse", ErrNoFuse, err)
	default:
		return fmt.Errorf("%w: %v", ErrNoFuse, err)
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if _, err := fusermount(); err != nil {
		return fmt.Errorf("%w: mounting as an ordinary user needs fusermount3; install it with: sudo apt-get install fuse3", ErrNoFuse)
	}
	if allowOther {
		b, _ := os.ReadFile("/etc/fuse.conf")
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) == "user_allow_other" {
				return nil
			}
		}
		return errors.New("--allow-other as an ordinary user needs a line user_allow_other in /etc/fuse.conf")
	}
	return nil
}

// fusermount finds the setuid helper.
func fusermount() (string, error) {
	if p, err := exec.LookPath("fusermount3"); err == nil {
		return p, nil
	}
	return exec.LookPath("fusermount")
}

// CleanStale lazily unmounts a dead casfs mount. Programs that still have
// files of it open keep getting errors; nothing on disk is touched.
func CleanStale(mountpoint string) error {
	dir, err := realDir(mountpoint)
	if err != nil {
		return err
	}
	e, mounted, err := mountAt(dir)
	if err != nil {
		return err
	}
	if !mounted {
		return nil
	}
	if err := checkMounted(dir, e); !errors.Is(err, ErrStaleMount) {
		return err
	}
	return detach(dir)
}

// detach takes the mount out of the tree at once; what is open stays served.
func detach(dir string) error {
	if os.Geteuid() == 0 {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	}
	bin, err := fusermount()
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if out, err := exec.Command(bin, "-u", "-z", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// quote makes a path safe to paste into a shell.
func quote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !(r == '/' || r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
