package local

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	maxVaults = 1000
	shardSize = 1024 // archives per directory
)

// vault is a vault in memory: the whole index, rebuilt from the log at Open.
type vault struct {
	s       *Store
	name    string
	dir     string
	created int64
	account account // the zero one: the log does not tell it
	log     *metaLog
	damaged bool // the log has lost records: nothing unknown is collected

	mu       sync.Mutex
	gone     bool // deleted
	writers  int  // requests that are writing data
	seq      uint64
	archives map[string]*archive // live ones and tombstones
	order    []*archive          // by seq
	count    int64               // live
	bytes    int64               // live
	uploads  map[string]*upload
	jobs     map[string]*job
	byArch   map[string][]*job // jobs on an archive
	jobIDs   []string          // sorted; nil: to be made
	policy   string
	notify   *notification
	notifyAt int64
	shard    int // where new archives go
	inShard  int // archives there
	snap     snapshot
}

// snapshot caches counts as of a stock-taking.
type snapshot struct{ at, count, bytes int64 }

// vaultDir maps a vault's name to a directory name. "." and ".." are legal
// names, and names that differ in case only may not share a directory on any
// file system, hence the prefix and the hash.
func vaultDir(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "v-" + name[:min(len(name), 100)] + "-" + hex.EncodeToString(sum[:6])
}

func newVault(s *Store, dir string) *vault {
	return &vault{
		s: s, dir: dir, archives: map[string]*archive{}, uploads: map[string]*upload{},
		jobs: map[string]*job{}, byArch: map[string][]*job{},
	}
}

func (v *vault) qcs() string { return v.s.qcs(v.name) }

func (s *Store) qcs(name string) string {
	return "qcs:id/0:cas:" + s.region + ":uid/" + s.creds.AppID + ":vaults/" + name
}

// loadVault rebuilds a vault from its log.
func loadVault(s *Store, dir string) (*vault, error) {
	v := newVault(s, dir)
	path := filepath.Join(dir, "log")
	if err := s.settleLog(path); err != nil {
		return nil, err
	}
	lines := 0
	found, err := replay(path, s.logger, func(b []byte) error {
		var r record
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		lines++
		v.apply(&r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	damaged := found.damaged
	switch {
	case lines == 0:
		return nil, noRecord(path)
	case v.name == "":
		if err := v.adopt(path); err != nil {
			return nil, err
		}
		damaged = true
	case vaultDir(v.name) != filepath.Base(dir):
		return nil, fmt.Errorf("%s is the log of the vault %s, whose directory is %s", path, v.name, vaultDir(v.name))
	}
	if s.marks[filepath.Base(dir)].behind(v) {
		s.logger.Error("a log has lost its end, or is an older copy; files it does not know are kept", "vault", v.name, "file", path, "record", v.seq)
		damaged = true
	}
	if found.torn > 0 && !damaged {
		s.logger.Warn("torn tail removed", "file", path, "offset", found.good, "bytes", found.torn)
		if err := os.Truncate(path, found.good); err != nil {
			return nil, err
		}
	}
	copies, err := withPrefix(dir, "log.damaged-")
	if err != nil {
		return nil, err
	}
	v.damaged = damaged || len(copies) > 0
	if err := v.compact(path, lines, damaged); err != nil {
		if damaged {
			return nil, err
		}
		s.logger.Warn("log not made shorter", "file", path, "error", err) // it is as good as before
	}
	if v.log, err = openLog(path, !s.noSync); err != nil {
		return nil, err
	}
	v.log.note = s.markLater
	return v, nil
}

// commitLocked applies r and queues it for the log. The caller unlocks mu and
// then calls v.log.wait with the ticket before it tells anyone. dir is a
// directory whose new entries the record relies on.
func (v *vault) commitLocked(r *record, dir string) (uint64, error) {
	r.Seq = v.seq + 1
	t, err := v.log.enqueue(r.encode(), dir, r.keeps())
	if err != nil {
		return 0, err
	}
	v.apply(r)
	return t, nil
}

// update commits one record that depends on nothing but the vault's existence.
func (v *vault) update(r *record) error {
	v.mu.Lock()
	if v.gone {
		v.mu.Unlock()
		return noVault(v.name)
	}
	t, err := v.commitLocked(r, "")
	v.mu.Unlock()
	if err != nil {
		return err
	}
	return v.log.wait(t)
}

// beginWrite keeps the vault from being deleted until the returned function is called.
func (v *vault) beginWrite() (func(), error) {
	if err := v.log.broken(); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return nil, noVault(v.name)
	}
	v.writers++
	return func() {
		v.mu.Lock()
		v.writers--
		v.mu.Unlock()
	}, nil
}

func noVault(name string) error { return notFound("vault %s does not exist", name) }

// vault finds a vault by name.
func (s *Store) vault(name string) (*vault, error) {
	if !validVaultName(name) {
		return nil, invalid("a vault name has 1 to 255 characters of A-Z a-z 0-9 _ - .")
	}
	s.mu.RLock()
	v := s.vaults[name]
	s.mu.RUnlock()
	if v != nil {
		err := v.log.there() // with nothing locked: its disk may not answer
		if err != nil {
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.gone { // it is being deleted
				err = noVault(name)
			}
		}
		return v, err
	}
	if b := s.broken[vaultDir(name)]; b != nil {
		return nil, b.refusal()
	}
	return nil, noVault(name)
}

func (s *Store) createVault(r *request) error {
	if !validVaultName(r.vault) {
		return invalid("a vault name has 1 to 255 characters of A-Z a-z 0-9 _ - .")
	}
	// Creation and deletion exclude each other; nothing else waits for them.
	s.vaultOps.Lock()
	defer s.vaultOps.Unlock()
	s.mu.RLock()
	v, n := s.vaults[r.vault], len(s.vaults)+len(s.broken)
	s.mu.RUnlock()
	if b := s.broken[vaultDir(r.vault)]; b != nil {
		return b.refusal()
	}
	if v == nil {
		if n >= maxVaults {
			return refuse(http.StatusBadRequest, "LimitExceededException", "an account has at most %d vaults", maxVaults)
		}
		v, err := s.makeVault(r.vault)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.vaults[r.vault] = v
		s.mu.Unlock()
	} else if err := v.log.there(); err != nil {
		return err
	}
	r.header("Location", "/"+r.uid+"/vaults/"+r.vault)
	r.reply(http.StatusCreated)
	return nil
}

// makeVault builds a vault's directory aside and renames it into place, so
// that a vault is there completely or not at all.
func (s *Store) makeVault(name string) (*vault, error) {
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "vault-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"archives", "jobs"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return nil, err
		}
	}
	rec := record{Type: "vault", Seq: 1, Name: name, At: s.nowMillis(), AppID: s.creds.AppID, SecretID: s.creds.SecretID}
	if err := replaceFile(filepath.Join(tmp, "log"), appendLine(nil, rec.encode()), 0o600, !s.noSync); err != nil {
		return nil, err
	}
	v := newVault(s, filepath.Join(s.dir, "vaults", vaultDir(name)))
	v.apply(&rec)
	if err := os.Rename(tmp, v.dir); err != nil {
		return nil, err
	}
	if err = s.syncDir(filepath.Dir(v.dir)); err == nil {
		if v.log, err = openLog(filepath.Join(v.dir, "log"), !s.noSync); err == nil {
			v.log.note = s.markLater
			s.markLater()
		}
	}
	if err != nil { // else the directory would be in the way of the next attempt
		return nil, errors.Join(err, os.Rename(v.dir, tmp))
	}
	return v, nil
}

func (s *Store) deleteVault(r *request) error {
	s.vaultOps.Lock()
	defer s.vaultOps.Unlock()
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	files, err := v.keptAside()
	if err != nil {
		return err
	}
	v.mu.Lock()
	now := s.nowMillis()
	open, unknown := 0, 0
	for _, f := range files {
		if id, _, _ := strings.Cut(f, "."); v.archives[id] == nil {
			unknown++
		}
	}
	for _, u := range v.uploads {
		if u.open(now, s.uploadLife) {
			open++
		}
	}
	switch {
	case v.count > 0:
		err = badRequest("vault is not empty, only empty vault can be delete")
	case open > 0 || v.writers > 0:
		err = badRequest("vault is not empty, an archive is being uploaded to it")
	case unknown > 0:
		err = badRequest("vault is not empty, its log has lost records: %d files in %s are of archives that it does not know. "+
			"When none of them is needed, remove log.damaged-* there first", unknown, v.dir)
	default:
		v.gone = true
		for _, j := range v.jobs {
			j.stopTimer()
		}
	}
	v.mu.Unlock()
	if err != nil {
		return err
	}
	trash := filepath.Join(s.dir, "tmp", "deleted-"+newKey(16))
	err = s.forgetMark(filepath.Base(v.dir))
	if err == nil {
		err = os.Rename(v.dir, trash)
	}
	if err != nil {
		v.mu.Lock()
		v.gone = false
		v.mu.Unlock()
		return err
	}
	s.mu.Lock()
	delete(s.vaults, v.name)
	s.mu.Unlock()
	if err := s.syncDir(filepath.Dir(v.dir)); err != nil {
		return err
	}
	if err := errors.Join(v.log.close(), os.RemoveAll(trash)); err != nil {
		s.logger.Warn("deleted vault not removed completely", "vault", v.name, "error", err)
	}
	r.reply(http.StatusNoContent)
	return nil
}

// keptAside returns the files below archives/ when the log has lost records: what it does not know may be archives.
func (v *vault) keptAside() (files []string, err error) {
	copies, err := withPrefix(v.dir, "log.damaged-")
	if err != nil || len(copies) == 0 {
		return nil, err
	}
	shards, err := dirNames(filepath.Join(v.dir, "archives"))
	for _, d := range shards {
		names, e := dirNames(filepath.Join(v.dir, "archives", d))
		files, err = append(files, names...), errors.Join(err, e)
	}
	return files, err
}

// vaultJSON is the wire form of a vault.
type vaultJSON struct {
	CreationDate      string
	LastInventoryDate *string
	NumberOfArchives  *int64
	SizeInBytes       *int64
	VaultQCS          string
	VaultName         string
}

// describe returns the vault's record as of its last stock-taking.
func (v *vault) describe(now int64) vaultJSON {
	v.mu.Lock()
	defer v.mu.Unlock()
	o := vaultJSON{CreationDate: formatTime(v.created), VaultQCS: v.qcs(), VaultName: v.name}
	at, live := v.stockTaking(now)
	if at == 0 {
		return o
	}
	count, size := v.count, v.bytes
	if !live {
		if now := v.s.nowMillis(); v.snap.at != at {
			v.snap = snapshot{at: at}
			for _, a := range v.order {
				if a.listedAt(at, now) {
					v.snap.count++
					v.snap.bytes += a.size
				}
			}
		}
		count, size = v.snap.count, v.snap.bytes
	}
	o.LastInventoryDate, o.NumberOfArchives, o.SizeInBytes = timeOrNull(at), &count, &size
	return o
}

// stockTaking returns the moment as of which inventories made at now are: now
// itself when inventories are live, else the last multiple of InventoryAge since
// the vault's creation, 0 before the first.
func (v *vault) stockTaking(now int64) (at int64, live bool) {
	age := v.s.inventoryAge
	if age <= 0 {
		return now, true
	}
	n := (now - v.created) / age
	if n < 1 {
		return 0, false
	}
	return v.created + n*age, false
}

// listedAt reports whether the archive existed at the given moment. What was made or deleted later than now, by a clock that has
// been put back since, counts as before.
func (a *archive) listedAt(at, now int64) bool {
	before := func(t int64) bool { return t <= at || t > now }
	return before(a.created) && (a.deleted == 0 || !before(a.deleted))
}

func (s *Store) describeVault(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	return r.replyJSON(http.StatusOK, v.describe(s.nowMillis()))
}

func (s *Store) listVaults(r *request) error {
	limit, err := r.limit(1000)
	if err != nil {
		return err
	}
	marker := r.param("marker")
	s.mu.RLock()
	names := make([]string, 0, len(s.vaults))
	for n := range s.vaults {
		if s.qcs(n) >= marker {
			names = append(names, n)
		}
	}
	for _, b := range s.broken {
		if b.name != "" && s.qcs(b.name) >= marker {
			names = append(names, b.name)
		}
	}
	slices.Sort(names) // the order of QCS names: they share all but the vault's
	list := struct {
		Marker    *string
		VaultList []vaultJSON
	}{VaultList: []vaultJSON{}}
	if len(names) > limit {
		m := s.qcs(names[limit])
		list.Marker = &m
		names = names[:limit]
	}
	vs := make([]*vault, len(names))
	for i, n := range names {
		vs[i] = s.vaults[n]
	}
	s.mu.RUnlock()
	now := s.nowMillis()
	for i, v := range vs {
		if v == nil {
			list.VaultList = append(list.VaultList, s.broken[vaultDir(names[i])].describe(s))
			continue
		}
		list.VaultList = append(list.VaultList, v.describe(now))
	}
	return r.replyJSON(http.StatusOK, list)
}

// limit reads the limit parameter, 1 to most, which is also the default.
func (r *request) limit(most int) (int, error) {
	s := r.param("limit")
	if s == "" {
		return most, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, invalid("limit must be between 1 and %d", most)
	}
	return n, nil
}
