package local

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

const sweepEvery = 60 * 1000 // ms of the store's clock

// sweep drops what has expired. Every state follows from the clock, so nothing
// depends on when this runs; it only frees memory and disk.
func (s *Store) sweep() {
	if !s.sweepMu.TryLock() {
		return
	}
	defer s.sweepMu.Unlock()
	now := s.nowMillis()
	if d := now - s.lastSweep; 0 <= d && d < sweepEvery {
		return
	}
	s.lastSweep = now
	if s.there() != nil { // nothing is removed from another's directory
		return
	}
	s.mu.RLock()
	vaults := make([]*vault, 0, len(s.vaults))
	for _, v := range s.vaults {
		vaults = append(vaults, v)
	}
	s.mu.RUnlock()
	for _, v := range vaults {
		if err := v.sweep(now); err != nil {
			s.logger.Warn("sweep", "vault", v.name, "error", err)
		}
	}
}

// tombstoneLife is how long a deleted archive is remembered: for jobs started
// on it, and for inventories of an earlier moment.
func (s *Store) tombstoneLife() int64 {
	const day = 24 * 60 * 60 * 1000
	return 2*day + s.outputLife + 2*s.inventoryAge + s.delays.Inventory.Milliseconds()
}

func (v *vault) sweep(now int64) error {
	s := v.s
	var expired []*upload
	var jobs []string
	var files []string
	if err := v.log.there(); err != nil {
		return err
	}
	v.mu.Lock()
	if v.gone {
		v.mu.Unlock()
		return nil
	}
	for id, u := range v.uploads {
		switch {
		case u.done != 0 && now >= u.done+s.uploadLife:
			delete(v.uploads, id)
		case u.done == 0 && !u.open(now, s.uploadLife):
			expired = append(expired, u)
		}
	}
	for _, j := range v.jobs {
		if j.expired(now, s.outputLife) && j.settled == nil {
			jobs = append(jobs, j.ID)
		}
	}
	var ticket uint64
	for _, id := range jobs {
		t, err := v.commitLocked(&record{Type: "gone", ID: id}, "")
		if err != nil {
			v.mu.Unlock()
			return err
		}
		ticket = t
		files = append(files, v.outputPath(id))
	}
	old := 0
	for _, a := range v.order {
		if a.deleted == 0 {
			continue
		}
		if a.kept && !v.needed(a, now) {
			a.kept = false
			files = append(files, v.archivePath(a.shard, a.id))
		}
		if !a.kept && now >= a.deleted+s.tombstoneLife() {
			old++
		}
	}
	if old > 1000 && old > len(v.order)/4 { // worth the copy
		v.forgetLocked(now)
	}
	v.mu.Unlock()
	var err error
	if ticket != 0 {
		err = v.log.wait(ticket)
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		err = errors.Join(err, removeData(f))
	}
	for _, u := range expired {
		if e := v.abort(u); e != nil && asAPIError(e).status != 404 {
			err = errors.Join(err, e)
		}
	}
	return err
}

// needed reports whether a job still reads a deleted archive.
func (v *vault) needed(a *archive, now int64) bool {
	for _, j := range v.byArch[a.id] {
		if j.usable(now, v.s.outputLife) {
			return true
		}
	}
	return false
}

// forgetLocked drops old tombstones from the index.
func (v *vault) forgetLocked(now int64) {
	order := make([]*archive, 0, len(v.order))
	for _, a := range v.order {
		if a.deleted != 0 && !a.kept && now >= a.deleted+v.s.tombstoneLife() {
			delete(v.archives, a.id)
			continue
		}
		order = append(order, a)
	}
	v.order = order
}

// compact rewrites the log at Open when most of it is history. The index is
// what the log says; no lock is needed yet.
func (v *vault) compact(path string, lines int, damaged bool) error {
	now := v.s.nowMillis()
	for _, a := range v.order {
		a.kept = a.deleted != 0 && v.needed(a, now)
	}
	v.forgetLocked(now)
	for id, j := range v.jobs {
		if j.expired(now, v.s.outputLife) {
			v.dropJob(id)
		}
	}
	for id, u := range v.uploads {
		if u.done != 0 && now >= u.done+v.s.uploadLife || u.done == 0 && !u.open(now, v.s.uploadLife) {
			delete(v.uploads, id) // the files of an expired one are garbage now
		}
	}
	if lines < 2*v.recordCount()+1000 && !damaged {
		return nil
	}
	aside := path + ".damaged-" + newKey(8)
	if damaged {
		// Keep what could not be read, for whoever can.
		if err := os.Link(path, aside); err != nil {
			return err
		}
	}
	err := replaceWith(path, 0o600, !v.s.noSync, func(w *bufio.Writer) {
		var line []byte
		v.records(func(r record) {
			line = appendLine(line[:0], r.encode())
			w.Write(line) // its error comes with Flush
		})
	})
	if err != nil && damaged {
		return errors.Join(err, removeCopy(path, aside))
	}
	return err
}

// removeCopy removes a second name of a file, unless it is the only one by now.
func removeCopy(path, copy string) error {
	a, err := os.Stat(path)
	if err != nil {
		return err
	}
	b, err := os.Stat(copy)
	if err != nil || !os.SameFile(a, b) {
		return err
	}
	return os.Remove(copy)
}

// recordCount is about the length of records.
func (v *vault) recordCount() int {
	n := 3 + 2*len(v.order) - int(v.count) + 3*len(v.jobs)
	for _, u := range v.uploads {
		n += 1 + len(u.parts)
	}
	return n
}

// records calls emit for the shortest log of the vault's state.
func (v *vault) records(emit func(record)) {
	emit(record{Type: "vault", Seq: v.seq, Name: v.name, At: v.created, AppID: v.account.appID, SecretID: v.account.secretID})
	byArchive := map[string]*upload{}
	for _, u := range v.uploads {
		byArchive[u.archive] = u
		if u.done != 0 {
			continue
		}
		emit(record{Type: "mpu", Seq: u.seq, Upload: u.id, ID: u.archive, Shard: u.shard, PartSize: u.partSize, At: u.created, Desc: u.desc})
		for _, p := range u.sorted() {
			emit(record{Type: "part", Upload: u.id, Off: p.off, Size: p.size, Tree: p.tree, Overlay: p.overlay})
		}
	}
	for _, a := range v.order {
		put := record{Type: "put", Seq: a.seq, ID: a.id, Shard: a.shard, Size: a.size, Tree: a.tree, At: a.created, Desc: a.desc}
		if u := byArchive[a.id]; u != nil {
			put.Upload, put.Decl = u.id, u.declared
		}
		emit(put)
		if a.deleted != 0 {
			emit(record{Type: "del", Seq: a.delSeq, ID: a.id, At: a.deleted})
		}
	}
	for _, j := range v.jobs {
		emit(record{Type: "job", Job: &j.jobSpec})
		if j.end != nil {
			emit(record{Type: "end", ID: j.ID, End: j.end})
		}
		if j.told {
			emit(record{Type: "told", ID: j.ID})
		}
	}
	if v.policy != "" {
		emit(record{Type: "policy", Text: v.policy})
	}
	if v.notify != nil {
		emit(record{Type: "notify", At: v.notifyAt, Notify: v.notify})
	}
}

// collect removes every file that the log does not explain: bodies that were
// never acknowledged, parts of aborted uploads, archives whose deletion had
// been recorded. A log that has lost records explains too little: nothing is
// removed then, nor later as long as the copy of that log is there.
func (v *vault) collect() error {
	want := map[string]bool{}
	missing := map[string]*archive{}
	for _, a := range v.order {
		if a.deleted == 0 || a.kept {
			want[a.id] = true
			missing[a.id] = a
		}
	}
	for _, u := range v.uploads {
		if u.done != 0 {
			continue
		}
		want[u.archive] = true
		for _, p := range u.parts {
			if p.overlay != "" {
				want[u.archive+p.overlay] = true
			}
		}
	}
	for id := range v.jobs {
		want["job "+id] = true
	}
	var errs []error
	visit := func(dir, prefix string) {
		names, err := dirNames(dir)
		if err != nil {
			errs = append(errs, err)
		}
		for _, n := range names {
			key := prefix + strings.TrimSuffix(n, ".tree")
			if want[key] {
				delete(missing, n)
			} else if !v.damaged {
				errs = append(errs, os.RemoveAll(filepath.Join(dir, n)))
			}
		}
	}
	shards, err := dirNames(filepath.Join(v.dir, "archives"))
	errs = append(errs, err)
	for _, d := range shards {
		visit(filepath.Join(v.dir, "archives", d), "")
	}
	visit(filepath.Join(v.dir, "jobs"), "job ")
	errs = append(errs, removeNew(v.dir))
	for id := range missing {
		v.s.logger.Error("the bytes of an archive are missing", "vault", v.name, "archive", id)
	}
	return errors.Join(errs...)
}

func dirNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// removeNew removes what replaceFile left when it was interrupted.
func removeNew(dir string) error {
	left, err := withPrefix(dir, ".new-")
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// withPrefix returns the files of dir whose names begin with prefix. (Not by a pattern: dir may be called "[x".)
func withPrefix(dir, prefix string) (list []string, err error) {
	names, err := dirNames(dir)
	for _, n := range names {
		if strings.HasPrefix(n, prefix) {
			list = append(list, filepath.Join(dir, n))
		}
	}
	return list, err
}
