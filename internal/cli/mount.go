package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/fs"
	"github.com/casfs/casfs/internal/control"
	"github.com/casfs/casfs/jobs"
)

// mountArgs are what only one mount is told, besides the settings.
type mountArgs struct {
	vault      string
	mountpoint string
	daemon     bool
	force      bool
	offline    bool
	debug      bool
	profile    string
}

func (a *app) mountCmd() *cobra.Command {
	var m mountArgs
	cmd := &cobra.Command{
		Use:   "mount [VAULT] MOUNTPOINT",
		Short: "mount all vaults of an account, or one, as a directory",
		Long: `Mounts the account's vaults as directories below MOUNTPOINT, or the content of
VAULT as MOUNTPOINT itself. It stays in the foreground until it is unmounted,
and with --daemon returns as soon as the mount answers.

  casfs mount --local ~/store ~/archive                 the embedded store
  casfs mount --region ap-guangzhou photos ~/photos     one vault in the cloud

What was written and is not yet in the vault lives in the state directory; it
must not be deleted. casfs umount waits until everything is in the vault.
After a plain umount or SIGTERM the process goes on until then, or with --drain=stop begins nothing more;
a second signal ends it, and the next mount goes on where it stopped.`,
		Args: positional(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m.mountpoint = args[len(args)-1]
			if len(args) == 2 {
				var err error
				if m.vault, err = parseVault(args[0]); err != nil {
					return err
				}
			}
			return a.mount(cmd.Context(), m)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&m.daemon, "daemon", false, "return when the mount answers; log to a file")
	fl.BoolVar(&m.force, "force", false, "clear away a mount whose casfs died")
	fl.BoolVar(&m.offline, "offline", false, "mount although the service cannot be reached")
	fl.BoolVar(&m.debug, "debug-fuse", false, "log every request of the kernel")
	fl.MarkHidden("debug-fuse")
	fl.StringVar(&m.profile, "cpu-profile", "", "write a CPU profile of the mount's life to this file")
	fl.MarkHidden("cpu-profile")
	addSettings(fl, &a.set, gService|gDelays|gState|gMount|gLog)
	return cmd
}

// jobsOptions turns the settings into the engine's. Zero there means the default, so that an explicit zero becomes "none".
func (a *app) jobsOptions(log *slog.Logger, client *cas.Client, vault, stateDir, cacheDir string) (jobs.Options, error) {
	s := &a.set
	none := func(d time.Duration) time.Duration {
		if d == 0 {
			return -1
		}
		return d
	}
	noLimit := func(n int64) int64 {
		if n == 0 {
			return -1
		}
		return n
	}
	o := jobs.Options{
		StateDir: stateDir, CacheDir: cacheDir, Client: client, Vault: vault, ReadOnly: s.ReadOnly, Logger: log,
		Settle: none(s.Settle), FsyncVault: s.Fsync == "vault",
		SegmentSize: s.SegmentSize, StreamAbove: s.StreamAbove, Uploads: s.Uploads, Parts: s.Parts,
		BandwidthUp: s.BwlimitUp, BandwidthDown: s.BwlimitDown, StagingWait: s.StagingWait,
		Recall: jobs.RecallMode(s.Recall), Tier: s.Tier, RecallWait: s.RecallWait,
		GuardFiles: int(noLimit(int64(s.RecallGuardFiles))), GuardBytes: noLimit(s.RecallGuardBytes),
		DenyComm: s.RecallDenyComm, Stub: noLimit(s.Stub), Fetches: s.Fetches, VaultRefresh: s.VaultRefresh,
	}
	if s.SegmentSize < 1<<20 || s.SegmentSize%(1<<20) != 0 {
		return o, usagef("--segment-size is a multiple of 1M")
	}
	if s.Uploads < 1 || s.Parts < 1 || s.Fetches < 1 {
		return o, usagef("--uploads, --parts and --fetches are at least 1")
	}
	for _, p := range s.RecallDenyComm {
		if _, err := path.Match(p, "x"); err != nil {
			return o, usagef("--recall-deny-comm: %q is not a pattern", p)
		}
	}
	switch s.Trash {
	case "", "min-age":
	case "off":
		o.TrashAge = -1
	default:
		d, err := parseDuration(s.Trash)
		if err != nil {
			return o, usagef("--trash is min-age, off, or a duration such as 30d")
		}
		o.TrashAge, o.TrashFromDelete = none(d), true
	}
	cacheTotal, err := diskSize(cacheDir)
	if err != nil {
		return o, err
	}
	stateTotal, err := diskSize(stateDir)
	if err != nil {
		return o, err
	}
	o.StagingSize, o.CacheSize, o.MinFree = s.StagingSize.of(stateTotal), s.CacheSize.of(cacheTotal), s.MinFree.of(stateTotal)
	return o, nil
}

// diskSize is the size of the file system dir is or will be on.
func diskSize(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Blocks) * st.Bsize, nil
		}
		if up := filepath.Dir(dir); errors.Is(err, unix.ENOENT) && up != dir {
			dir = up
			continue
		}
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
}

// mount is the whole life of a mount: a list of steps, undone in reverse. Nothing is changed or mounted before
// everything that can be wrong has been looked at.
func (a *app) mount(ctx context.Context, m mountArgs) error {
	s := &a.set
	var err error
	if m.mountpoint, err = absolute(m.mountpoint); err != nil {
		return err
	}
	base, err := s.stateBase()
	if err != nil {
		return err
	}
	cacheBase, err := absolute(s.CacheDir)
	if err != nil {
		return err
	}
	localDir, err := absolute(s.Local)
	if err != nil {
		return err
	}
	s.Local = localDir
	if s.LogFile, err = absolute(s.LogFile); err != nil {
		return err
	}
	for _, d := range []struct{ what, dir string }{{"the state directory", base}, {"the cache directory", cacheBase}, {"the store", localDir}} {
		if d.dir != "" && overlap(d.dir, m.mountpoint) {
			return usagef("%s (%s) and the mount point (%s) must not lie in one another", d.what, d.dir, m.mountpoint)
		}
	}
	if cacheBase != "" && localDir != "" && overlap(cacheBase, localDir) || localDir != "" && overlap(base, localDir) {
		return usagef("the store (%s) must not lie in the state or cache directory, nor they in it", localDir)
	}
	if _, err := a.jobsOptions(nil, nil, m.vault, base, base); err != nil {
		return err // wrong values, before anything is opened
	}

	fuse := fs.Options{Mountpoint: m.mountpoint, AllowOther: s.AllowOther, ReadOnly: s.ReadOnly, Debug: m.debug, Passthrough: s.Passthrough}
	if err := a.checkMountpoint(ctx, fuse, m.force); err != nil {
		return err
	}
	if s.from["local"] > max(s.from["endpoint"], s.from["region"]) {
		if err := storeIsGone(base, localDir); err != nil {
			return err
		}
	}
	m.mountpoint = realPath(m.mountpoint) // as the mount table will show it
	fuse.Mountpoint = m.mountpoint
	if m.daemon && !isDaemon() {
		return a.spawn(ctx)
	}

	stopProfile, err := profile()
	if err != nil {
		return err
	}
	defer stopProfile()

	// From here on signals mean "unmount", not "give up".
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	// The service: endpoint, key and clock are right, the vault is there.
	svcLog := &lateHandler{}
	a.makeStore = true
	svc, err := a.connect(slog.New(svcLog))
	if err != nil {
		return err
	}
	unreachable := svc.probe(ctx, m.vault)
	if unreachable != nil && (!m.offline || !errors.Is(unreachable, cas.ErrUnavailable)) {
		return unreachable
	}

	// Logging: to the terminal, or for daemons to a file that stands beside the state.
	stateDir := stateOf(base, svc)
	cacheDir := stateDir
	if cacheBase != "" {
		cacheDir = filepath.Join(cacheBase, filepath.Base(stateDir))
	}
	logFile := s.LogFile
	if logFile == "" && m.daemon {
		logFile = filepath.Join(stateDir, "log")
	}
	log, closeLog, err := s.openLog(a.errOut, logFile)
	if err != nil {
		return err
	}
	defer closeLog()
	svcLog.set(log.Handler())
	fuse.Logger = log

	// The state directory: one daemon each.
	if err := claimState(stateDir, svc); err != nil {
		return err
	}
	a.warnForgotten(ctx, stateDir, svc)
	options, err := a.jobsOptions(log, svc.client, m.vault, stateDir, cacheDir)
	if err != nil {
		return err
	}
	options.ServiceFlags = svc.flags
	if svc.local != nil {
		options.JobTime = svc.local.jobTime()
	}
	if cacheBase != "" {
		if err := os.MkdirAll(cacheDir, 0o700); err != nil {
			return fmt.Errorf("cache directory: %w", err)
		}
	} else {
		options.CacheDir = ""
	}
	engine, err := jobs.Open(options)
	if errors.Is(err, catalog.ErrInUse) {
		if d := dialState(ctx, stateDir); d != nil {
			where := "mounted on " + d.info.Mountpoint
			if d.info.Draining {
				where = "which was unmounted and is still archiving"
			}
			return advise(fmt.Errorf("state directory %s is in use by casfs, pid %d, %s", stateDir, d.info.PID, where),
				"one state directory serves one mount: casfs umount %s ends it; --state-dir starts an independent one", d.info.Mountpoint)
		}
	}
	if err != nil {
		return err
	}
	d := &mountDaemon{
		log: log, engine: engine, args: m, stateDir: stateDir, source: svc.endpoint, drain: s.Drain,
		signals: signals, end: newEnding(),
	}
	defer d.closeEngine()

	if unreachable != nil {
		log.Warn("the service cannot be reached; mounting offline", "err", unreachable)
	} else if err := engine.Probe(ctx); err != nil {
		return err
	}

	// The control socket, then the mount, then the work.
	sock := filepath.Join(stateDir, controlSocket)
	l, err := control.Listen(sock)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	fuse.Control = sock
	fuse.FSName = fsName(svc, m.vault)
	if m.profile != "" {
		f, err := os.Create(m.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if isDaemon() {
		os.Chdir("/") // a daemon must not hold the directory it was started in
	}
	mnt, err := fs.New(engine, fuse)
	if err != nil {
		l.Close()
		return err
	}
	d.mnt, d.control = mnt, l
	return d.run(func(line string) { a.ready(line, logFile) })
}

func fsName(svc *service, vault string) string {
	name := svc.endpoint
	if svc.local == nil && svc.appID != "" && svc.appID != "-" {
		name += "/" + svc.appID
	}
	if vault != "" {
		name += "/" + vault
	}
	return name
}

// checkMountpoint looks at the mount point, and clears away a dead mount with the user's consent.
func (a *app) checkMountpoint(ctx context.Context, o fs.Options, force bool) error {
	err := fs.Check(o)
	if errors.Is(err, fs.ErrStaleMount) && force {
		if err := fs.CleanStale(o.Mountpoint); err != nil {
			return fmt.Errorf("clear the dead mount on %s: %w", o.Mountpoint, err)
		}
		fmt.Fprintf(a.errOut, "casfs: cleared the dead mount on %s\n", o.Mountpoint)
		err = fs.Check(o)
	}
	if errors.Is(err, fs.ErrStaleMount) {
		return fmt.Errorf("%w: %s", fs.ErrStaleMount, o.Mountpoint) // advice says the rest
	}
	if errors.Is(err, fs.ErrBusyMount) {
		if d, derr := a.daemonAt(ctx, o.Mountpoint); derr == nil {
			return advise(fmt.Errorf("%s is in use by casfs, pid %d", o.Mountpoint, d.info.PID), "casfs umount %s unmounts it", o.Mountpoint)
		}
	}
	return err
}
