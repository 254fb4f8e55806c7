package fs

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// Options configure a mount.
type Options struct {
	Mountpoint    string
	FSName        string // first column of /proc/mounts
	AllowOther    bool
	ReadOnly      bool
	Debug         bool
	MaxBackground int  // 0: 256
	Passthrough   bool // offer it; false switches it off
	Logger        *slog.Logger
	// Control is the control socket's path, told by the virtual xattr user.cas.control on any inode.
	Control string

	maxWrite int // 0: maxWrite; less in tests, where the race detector makes the buffers of requests expensive
}

// Mount is a mounted tree.
type Mount struct {
	engine  *jobs.Engine
	log     *slog.Logger
	dir     string // as the mount table shows it
	minor   int    // of the mount's device
	control string
	rootIno uint64
	server  *fuse.Server
	tree    *tree
	notify  *notifier
	served  chan struct{} // closed when nothing more will be served and everything open was given back
	abort   *os.File      // the connection's file in fusectl; nil where that is not mounted

	asked bool // Options.Passthrough

	mu          sync.Mutex
	passthrough bool          // worth trying
	refusal     syscall.Errno // why not
	through     bool          // the kernel has taken a file
	ways        map[uint64]ways
	stale       map[uint64]int // inodes whose pages the kernel is being told to drop
}

const (
	maxWrite      = 1 << 20
	maxBackground = 256 // more than anyone will leave waiting inside a page fault
	readAheadKiB  = 1024
)

// New mounts the engine's tree and returns when the kernel answers requests. It
// becomes e's observer. Errors name what to do: /dev/fuse missing, mount point missing, busy or stale (ErrStaleMount), fusermount3 missing.
func New(e *jobs.Engine, o Options) (*Mount, error) {
	if err := Check(o); err != nil {
		return nil, err
	}
	dir, err := realDir(o.Mountpoint)
	if err != nil {
		return nil, err
	}
	rootIno, err := e.RootIno()
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mount{
		engine:  e,
		log:     o.Logger,
		dir:     dir,
		control: o.Control,
		rootIno: rootIno,
		asked:   o.Passthrough,
		served:  make(chan struct{}),
		ways:    make(map[uint64]ways),
		stale:   make(map[uint64]int),
	}
	m.notify = newNotifier(m)

	m.tree = newTree(m)
	m.server, err = fuse.NewServer(m.tree, dir, m.options(o))
	if err != nil {
		return nil, explain(dir, err)
	}
	m.passthrough = o.Passthrough && m.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH != 0
	m.notify.start()
	e.SetObserver(m.notify)
	go func() {
		m.server.Serve()
		m.notify.stop()
		close(m.served)
	}()
	if err := m.server.WaitMount(); err != nil {
		detach(dir)
		return nil, fmt.Errorf("the mount on %s does not answer: %w", dir, err)
	}
	entry, _, err := mountAt(dir)
	if err != nil {
		detach(dir)
		return nil, err
	}
	m.minor = entry.minor
	if f, err := os.OpenFile(filepath.Join(connections, strconv.Itoa(m.minor), "abort"), os.O_WRONLY, 0); err != nil {
		m.log.Debug("fusectl is out of reach", "reason", err)
	} else {
		m.abort = f
		go func() {
			<-m.served
			f.Close()
		}()
	}
	if err := raiseReadAhead(entry); err != nil && os.Geteuid() == 0 {
		m.log.Debug("read-ahead not raised", "reason", err)
	}
	warnRequestTimeout(m.log)
	return m, nil
}

// options says how to mount. Each line has its reason in what was measured:
// cached reads that wait must be interruptible (SyncRead), must not use up the
// slots of others (MaxBackground), and every write must not be preceded by a question for
// security.capability (KILLPRIV_V2).
func (m *Mount) options(o Options) *fuse.MountOptions {
	opts := &fuse.MountOptions{
		FsName:        o.FSName,
		Name:          subtype,
		AllowOther:    o.AllowOther,
		Options:       []string{"default_permissions"},
		MaxWrite:      cmp.Or(o.maxWrite, maxWrite),
		MaxBackground: maxBackground,
		SyncRead:      true,
		DisableSplice: true, // requests of this size do not fit a pipe; the library would try and complain each time
		// Not CAP_READDIRPLUS_AUTO: find, du and rsync read all names of a directory before
		// they stat the first, so the kernel would ask for each entry by itself.
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ATOMIC_O_TRUNC |
			fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		DirectMountStrict: os.Geteuid() == 0,
		Debug:             o.Debug,
		Logger:            log.New(kernelLog{m.log}, "", 0),
		PanicHandler: func(v any) fuse.Status {
			m.log.Error("bug: panic in a system call", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
	if o.MaxBackground > 0 {
		opts.MaxBackground = o.MaxBackground
	}
	if o.ReadOnly {
		opts.Options = append(opts.Options, "ro")
	}
	return opts
}

// kernelLog takes the library's lines.
type kernelLog struct{ log *slog.Logger }

func (k kernelLog) Write(p []byte) (int, error) {
	k.log.Debug("fuse", "line", strings.TrimSpace(string(p)))
	return len(p), nil
}

// explain says what can be done about a mount that failed although Check saw no obstacle.
func explain(dir string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: mounting on %s is not permitted; in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN … (%v)", ErrNoFuse, dir, err)
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the kernel knows no FUSE; sudo modprobe fuse (%v)", ErrNoFuse, err)
	}
	return fmt.Errorf("mounting on %s: %w", dir, err)
}

// nodeID returns the kernel's number of an inode: its own, but the root's is always 1.
func (m *Mount) nodeID(ino uint64) uint64 {
	if ino == m.rootIno {
		return fuse.FUSE_ROOT_ID
	}
	return ino
}

// Wait blocks until the file system is unmounted, by anyone, and everything
// that was open in it has been given back to the engine.
func (m *Mount) Wait() { <-m.served }

// there reports whether this very mount is still in the mount table.
func (m *Mount) there() bool {
	e, mounted, err := mountAt(m.dir)
	return err != nil || mounted && e.fsType == fsType && e.minor == m.minor
}

// Unmount detaches the mount. With open files it fails with ErrBusyMount unless lazy,
// which detaches at once and lets open descriptors work on until Wait returns.
func (m *Mount) Unmount(lazy bool) error {
	select {
	case <-m.served:
		// Unmounted by somebody else, or aborted: then the mount point is still taken.
		lazy = true
	default:
	}
	if !m.there() {
		return nil
	}
	if lazy {
		return detach(m.dir)
	}
	err := m.server.Unmount()
	if err == nil {
		<-m.served
		return nil
	}
	if !m.there() {
		return nil // somebody else was faster
	}
	return fmt.Errorf("%w: %s: %w", ErrBusyMount, m.dir, err)
}

// Abort ends everything at once (second signal): programs inside get errors, waiting handlers are cancelled, and the mount
// point is freed. It needs the fusectl file system, or root.
func (m *Mount) Abort() error {
	there := m.there()
	if !there {
		select {
		case <-m.served:
			return nil
		default: // detached, and files in it are still open
		}
	}
	err := m.abortConnection()
	if !there {
		return err // nothing else leads there
	}
	if err != nil {
		if ferr := unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH); ferr != nil {
			return fmt.Errorf("abort %s: %w; by hand, as root: umount -f %s", m.dir, err, quote(m.dir))
		}
		return nil
	}
	return detach(m.dir)
}

// connections is where fusectl is mounted; tests have their own.
var connections = "/sys/fs/fuse/connections"

// abortConnection has the kernel answer everything with an error. The file is open since the mount began: its name is the
// device's number, which another mount gets when this one has ended, while what was opened stays this connection's
// (fuse_ctl_remove_conn in the kernel's fs/fuse/control.c).
func (m *Mount) abortConnection() error {
	if m.abort == nil {
		return fmt.Errorf("fusectl is not mounted on %s, or not open to this user", connections)
	}
	_, err := m.abort.Write([]byte("1"))
	return err
}

// raiseReadAhead lets cached reads come in pieces of MaxWrite instead of the
// default 128 KiB. The mount table tells the device: a stat of one's own mount can deadlock.
func raiseReadAhead(e mountEntry) error {
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", e.major, e.minor)
	return os.WriteFile(file, []byte(strconv.Itoa(readAheadKiB)), 0)
}

// warnRequestTimeout warns of the sysctls with which the kernel ends a whole
// mount because one request is old: here a read may wait for hours.
func warnRequestTimeout(log *slog.Logger) {
	for _, name := range []string{"default_request_timeout", "max_request_timeout"} {
		b, err := os.ReadFile("/proc/sys/fs/fuse/" + name)
		if err != nil {
			continue
		}
		if v, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && v > 0 {
			log.Warn("the kernel will abort this mount when a program waits longer for a recall; set the sysctl to 0",
				"sysctl", "fs.fuse."+name, "seconds", v)
		}
	}
}
