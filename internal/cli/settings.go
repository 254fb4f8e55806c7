package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/ini.v1"
)

// settings is the one configuration of the program.
type settings struct {
	// Which service, and as whom.
	Local      string
	Endpoint   string
	Region     string
	AppID      string
	ConfigFile string

	// How the embedded store behaves.
	Expedited, Standard, Bulk, Inventory time.Duration
	Realistic                            bool

	// The state of mounts.
	StateDir, CacheDir string

	// A mount.
	Settle           time.Duration
	Fsync            string
	SegmentSize      int64
	StreamAbove      int64
	Uploads          int
	Parts            int
	StagingSize      limit
	StagingWait      time.Duration
	CacheSize        limit
	MinFree          limit
	Trash            string
	Recall           string
	RecallWait       time.Duration
	RecallGuardFiles int
	RecallGuardBytes int64
	RecallDenyComm   []string
	Tier             string
	Stub             int64
	Fetches          int
	BwlimitUp        int64
	BwlimitDown      int64
	Drain            string
	AllowOther       bool
	ReadOnly         bool
	Passthrough      bool
	VaultRefresh     time.Duration

	// Output.
	LogLevel string
	LogFile  string

	// Where each setting's value came from; absent: its default.
	from map[string]origin
	// credentials' keys of the configuration files, by cascmd's names.
	file map[string]fileKey
	// files that were read.
	files []string
	// makesFile: the verb writes the configuration file, so --config-file need not exist.
	makesFile bool
	// warnings to show once logging or printing is possible.
	warnings []string
}

type fileKey struct{ value, file string }

// origin says who set a setting; a later constant wins over an earlier one.
type origin int

const (
	byDefault origin = iota
	byFile
	byEnv
	byFlag
)

// Groups of settings: a verb takes the groups it needs.
const (
	gService = 1 << iota // the service and the account
	gDelays              // the embedded store's delays
	gState               // where mounts keep their state
	gMount               // mount only
	gLog
)

// denyComm are programs that read every file of a machine to index it.
const denyComm = "updatedb*,plocate*,mlocate*,tracker*,localsearch*,baloo*,tumblerd,*thumbnailer*,clam*,recoll*"

type setting struct {
	group   int
	name    string
	initial string
	help    string
	value   func(*settings) pflag.Value
}

var settingsTable = []setting{
	{gService, "local", "", "use the embedded store in this directory instead of the cloud", func(s *settings) pflag.Value { return pathValue(&s.Local) }},
	{gService, "endpoint", "", "service `address`: host, host:port, http://…, https://… or unix:///socket", func(s *settings) pflag.Value { return str(&s.Endpoint) }},
	{gService, "region", "", "region of the service, for the endpoint cas.REGION.myqcloud.com", func(s *settings) pflag.Value { return str(&s.Region) }},
	{gService, "appid", "", "account number; - is the account the key belongs to", func(s *settings) pflag.Value { return str(&s.AppID) }},
	{gService | gState, "config-file", "", "read this file only, not the ones in the home directory", func(s *settings) pflag.Value { return pathValue(&s.ConfigFile) }},

	{gDelays, "expedited", "1s", "embedded store: how long an expedited retrieval takes", func(s *settings) pflag.Value { return duration(&s.Expedited) }},
	{gDelays, "standard", "3s", "embedded store: how long a standard retrieval takes", func(s *settings) pflag.Value { return duration(&s.Standard) }},
	{gDelays, "bulk", "5s", "embedded store: how long a bulk retrieval takes", func(s *settings) pflag.Value { return duration(&s.Bulk) }},
	{gDelays, "inventory", "1s", "embedded store: how long an inventory takes", func(s *settings) pflag.Value { return duration(&s.Inventory) }},
	{gDelays, "realistic", "false", "embedded store: the delays of the real service (hours)", func(s *settings) pflag.Value { return boolean(&s.Realistic) }},

	{gState, "state-dir", "", "where mounts keep catalog and staged data, or one state directory made there (default /var/lib/casfs for root, else $XDG_STATE_HOME/casfs)", func(s *settings) pflag.Value { return pathValue(&s.StateDir) }},
	{gMount, "cache-dir", "", "where copies of archived bytes are kept (default: in the state directory)", func(s *settings) pflag.Value { return pathValue(&s.CacheDir) }},

	{gMount, "settle", "30s", "quiet time after the last close before a file is uploaded", func(s *settings) pflag.Value { return duration(&s.Settle) }},
	{gMount, "fsync", "local", "what fsync waits for: stable local disk, or the vault", func(s *settings) pflag.Value { return oneOf(&s.Fsync, "local", "vault") }},
	{gMount, "segment-size", "64G", "files above this become several archives", func(s *settings) pflag.Value { return size(&s.SegmentSize) }},
	{gMount, "stream-above", "1G", "files written beyond this are uploaded while still open", func(s *settings) pflag.Value { return size(&s.StreamAbove) }},
	{gMount, "uploads", "8", "files uploading at once", func(s *settings) pflag.Value { return number(&s.Uploads) }},
	{gMount, "parts", "8", "16 MiB parts in memory at once", func(s *settings) pflag.Value { return number(&s.Parts) }},
	{gMount, "staging-size", "25%", "limit of bytes not yet in the vault; writers wait above it", func(s *settings) pflag.Value { return share(&s.StagingSize) }},
	{gMount, "staging-wait", "10m", "how long a writer waits for room before ENOSPC", func(s *settings) pflag.Value { return duration(&s.StagingWait) }},
	{gMount, "cache-size", "25%", "limit of local copies of archived bytes", func(s *settings) pflag.Value { return share(&s.CacheSize) }},
	{gMount, "min-free", "", "keep this much of the disk free (default 1 GiB or 5 %, whichever is less)", func(s *settings) pflag.Value { return share(&s.MinFree) }},
	{gMount, "trash", "min-age", "how long a deleted archive stays: min-age (until 90 days after upload), a duration, or off", func(s *settings) pflag.Value { return offer(str(&s.Trash), "min-age", "off") }},
	{gMount, "recall", "auto", "what reading a cold file does: wait, fail with EAGAIN while it is fetched, or fail", func(s *settings) pflag.Value { return oneOf(&s.Recall, "auto", "queue", "deny") }},
	{gMount, "recall-wait", "24h", "how long a read waits for a recall", func(s *settings) pflag.Value { return duration(&s.RecallWait) }},
	{gMount, "recall-guard-files", "100", "reads may have this many retrievals outstanding (0: no limit)", func(s *settings) pflag.Value { return number(&s.RecallGuardFiles) }},
	{gMount, "recall-guard-bytes", "100G", "reads may ask for this many bytes in 24 h (0: no limit)", func(s *settings) pflag.Value { return size(&s.RecallGuardBytes) }},
	{gMount, "recall-deny-comm", denyComm, "patterns of command names that may not recall", func(s *settings) pflag.Value { return list(&s.RecallDenyComm) }},
	{gMount, "tier", "standard", "how fast, and how dear, recalls are", func(s *settings) pflag.Value { return oneOf(&s.Tier, "standard", "bulk", "expedited", "auto") }},
	{gMount, "stub", "64K", "head and tail of a file that automatic eviction keeps (0: none)", func(s *settings) pflag.Value { return size(&s.Stub) }},
	{gMount, "fetches", "4", "ranges downloading at once", func(s *settings) pflag.Value { return number(&s.Fetches) }},
	{gMount, "bwlimit-up", "0", "upload limit in bytes per second (0: none)", func(s *settings) pflag.Value { return size(&s.BwlimitUp) }},
	{gMount, "bwlimit-down", "0", "download limit in bytes per second (0: none)", func(s *settings) pflag.Value { return size(&s.BwlimitDown) }},
	{gMount, "drain", "finish", "after SIGTERM or a plain umount: finish uploading, or stop and go on at the next mount", func(s *settings) pflag.Value { return oneOf(&s.Drain, "finish", "stop") }},
	{gMount, "allow-other", "false", "let other users in, under the usual permissions", func(s *settings) pflag.Value { return boolean(&s.AllowOther) }},
	{gMount, "read-only", "false", "refuse every change", func(s *settings) pflag.Value { return boolean(&s.ReadOnly) }},
	{gMount, "passthrough", "true", "let the kernel read local files by itself where it can", func(s *settings) pflag.Value { return boolean(&s.Passthrough) }},
	{gMount, "vault-refresh", "1h", "how often the list of vaults is asked for", func(s *settings) pflag.Value { return duration(&s.VaultRefresh) }},

	{gLog, "log-level", "info", "what is logged", func(s *settings) pflag.Value { return oneOf(&s.LogLevel, "debug", "info", "warn", "error") }},
	{gLog, "log-file", "", "log here (default: standard error; with --daemon, a file in the state directory)", func(s *settings) pflag.Value { return pathValue(&s.LogFile) }},
}

// annotation marks a flag as a setting, so that environment and file apply.
const annotation = "casfs-setting"

// addSettings adds the flags of some groups to a verb.
func addSettings(fl *pflag.FlagSet, s *settings, groups int) {
	for _, d := range settingsTable {
		if d.group&groups == 0 {
			continue
		}
		v := d.value(s)
		if d.initial != "" {
			if err := v.Set(d.initial); err != nil {
				panic("default of --" + d.name + ": " + err.Error())
			}
		}
		f := fl.VarPF(v, d.name, "", d.help)
		if v.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
		f.Annotations = map[string][]string{annotation: {"true"}}
	}
}

// load fills the settings that no flag gave, from the environment and the
// configuration files. Wrong values are usage errors that name their source.
func (s *settings) load(fl *pflag.FlagSet) error {
	s.from = map[string]origin{}
	s.file = map[string]fileKey{}
	fl.Visit(func(f *pflag.Flag) {
		if f.Annotations[annotation] != nil {
			s.from[f.Name] = byFlag
		}
	})
	if fl.Lookup("config-file") == nil {
		return nil
	}
	if s.from["config-file"] == byDefault {
		if v := os.Getenv("CASFS_CONFIG_FILE"); v != "" {
			s.ConfigFile = v
			s.from["config-file"] = byEnv
		}
	}
	values, err := s.readFiles()
	if err != nil {
		return err
	}
	var firstErr error
	fl.VisitAll(func(f *pflag.Flag) {
		if f.Annotations[annotation] == nil || s.from[f.Name] != byDefault || firstErr != nil {
			return
		}
		env := "CASFS_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(env); ok && v != "" {
			if err := f.Value.Set(v); err != nil {
				firstErr = usagef("%s: %v", env, err)
				return
			}
			s.from[f.Name] = byEnv
		} else if v, ok := values[f.Name]; ok {
			if err := f.Value.Set(v.value); err != nil {
				firstErr = usagef("%s: %s: %v", v.file, f.Name, err)
				return
			}
			s.from[f.Name] = byFile
		}
	})
	return firstErr
}

// configFiles are read when --config-file is not given; the first that has a key wins.
func configFiles() []string {
	var out []string
	if dir, err := os.UserConfigDir(); err == nil {
		out = append(out, filepath.Join(dir, "casfs", "config.ini"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		out = append(out, filepath.Join(home, ".cascmd_credentials"))
	}
	return out
}

// cascmdSection and its keys are what cascmd and the embedded store write.
const cascmdSection = "CASCredentials"

func (s *settings) readFiles() (map[string]fileKey, error) {
	files, must := configFiles(), false
	if s.from["config-file"] != byDefault {
		files, must = []string{s.ConfigFile}, true
	}
	values := map[string]fileKey{}
	for _, name := range files {
		st, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) && (!must || s.makesFile) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration file: %w", err)
		}
		in, err := ini.LoadSources(ini.LoadOptions{IgnoreInlineComment: true}, name)
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: %w", name, err)
		}
		s.files = append(s.files, name)
		secret := false
		for _, key := range in.Section(cascmdSection).Keys() {
			k := strings.ToLower(key.Name())
			if _, dup := s.file[k]; !dup {
				s.file[k] = fileKey{strings.TrimSpace(key.Value()), name}
			}
			secret = secret || k == "secretkey"
			if k == "endpoint" || k == "appid" {
				if _, dup := values[k]; !dup && key.Value() != "" {
					values[k] = fileKey{strings.TrimSpace(key.Value()), name}
				}
			}
		}
		for _, key := range in.Section("casfs").Keys() {
			k := key.Name()
			known := slices.ContainsFunc(settingsTable, func(d setting) bool { return d.name == k && k != "config-file" })
			if !known {
				return nil, usagef("%s: section [casfs] has no setting %q", name, k)
			}
			if _, dup := values[k]; !dup {
				values[k] = fileKey{strings.TrimSpace(key.Value()), name}
			}
		}
		if secret && st.Mode().Perm()&0o077 != 0 {
			s.warnings = append(s.warnings, fmt.Sprintf("%s holds a secret key and can be read by others (mode %04o); run: chmod 600 %s", name, st.Mode().Perm(), name))
		}
	}
	return values, nil
}
