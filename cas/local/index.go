package local

import (
	"fmt"
	"os"
	"path/filepath"
)

// archive is an archive's record, kept for a while after its deletion: jobs on
// it end as failed instead of unknown, and inventories of an earlier moment still list it.
type archive struct {
	id      string
	desc    string
	tree    digest
	size    int64
	created int64
	seq     uint64
	shard   int
	deleted int64  // 0: live
	delSeq  uint64 // tie-break within a millisecond
	kept    bool   // deleted, but its bytes still serve finished jobs
}

// apply changes the index as the record says. Replay and live operation both
// come through here, under mu, in the order of the log.
func (v *vault) apply(r *record) {
	v.seq = max(v.seq, r.Seq)
	switch r.Type {
	case "vault":
		v.name, v.created = r.Name, r.At
		if r.AppID != "" {
			v.account = account{r.AppID, r.SecretID}
		}
	case "put":
		v.applyPut(r)
	case "del":
		v.applyDelete(r)
	case "mpu":
		v.uploads[r.Upload] = &upload{
			id: r.Upload, archive: r.ID, shard: r.Shard, seq: r.Seq, created: r.At, partSize: r.PartSize,
			desc: r.Desc, parts: map[int64]part{}, busy: map[int64]*inPlace{},
		}
		v.useShard(r.Shard)
	case "part":
		if u := v.uploads[r.Upload]; u != nil && u.done == 0 {
			u.parts[r.Off] = part{off: r.Off, size: r.Size, tree: r.Tree, overlay: r.Overlay}
		}
	case "abort":
		delete(v.uploads, r.Upload)
	case "job":
		v.applyJob(r.Job)
	case "end":
		if j := v.jobs[r.ID]; j != nil {
			j.end = r.End
		}
	case "told":
		if j := v.jobs[r.ID]; j != nil {
			j.told = true
		}
	case "gone":
		v.dropJob(r.ID)
	case "policy":
		v.policy = r.Text
	case "notify":
		v.notify, v.notifyAt = r.Notify, r.At
	}
}

func (v *vault) applyPut(r *record) {
	if v.archives[r.ID] != nil {
		return
	}
	a := &archive{id: r.ID, desc: r.Desc, tree: r.Tree, size: r.Size, created: r.At, seq: r.Seq, shard: r.Shard}
	v.archives[a.id] = a
	v.order = append(v.order, a)
	v.count++
	v.bytes += a.size
	if j := v.jobs[r.JobID]; j != nil { // pull-from-cos
		j.end = &jobEnd{At: max(j.Ready, r.At), Archive: a.id, Size: a.size}
	}
	if r.Upload == "" {
		v.useShard(r.Shard)
		return
	}
	u := v.uploads[r.Upload]
	if u == nil { // compacted: the upload is only remembered for repeats of Complete
		u = &upload{id: r.Upload, archive: r.ID, seq: r.Seq, created: r.At}
		v.uploads[r.Upload] = u
		v.useShard(r.Shard)
	}
	u.done, u.size, u.parts = r.At, r.Size, nil
	if u.declared = r.Decl; u.declared.isZero() {
		u.declared = r.Tree
	}
}

func (v *vault) applyDelete(r *record) {
	a := v.archives[r.ID]
	if a == nil || a.deleted != 0 {
		return
	}
	a.deleted, a.delSeq = r.At, r.Seq
	v.count--
	v.bytes -= a.size
	// What had been copied by then stays downloadable; what was still being copied fails.
	for _, j := range v.byArch[a.id] {
		if j.end == nil && j.Ready > r.At {
			j.end = &jobEnd{At: j.Ready, Fail: "the archive was deleted before the job finished"}
		} else if j.usable(r.At, v.s.outputLife) {
			a.kept = true
		}
	}
}

func (v *vault) useShard(n int) {
	if n > v.shard {
		v.shard, v.inShard = n, 0
	}
	if n == v.shard {
		v.inShard++
	}
}

// placeLocked chooses the directory of a new archive.
func (v *vault) placeLocked() (int, error) {
	if v.inShard >= shardSize {
		v.shard, v.inShard = v.shard+1, 0
	}
	if v.inShard == 0 {
		dir := v.shardDir(v.shard)
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return 0, err
		}
		if err := v.s.syncDir(filepath.Dir(dir)); err != nil {
			return 0, err
		}
	}
	v.inShard++
	return v.shard, nil
}

func (v *vault) shardDir(n int) string {
	return filepath.Join(v.dir, "archives", fmt.Sprintf("%04d", n))
}

// archivePath is where an archive's bytes are; the leaves of its tree are in
// the same path with ".tree".
func (v *vault) archivePath(shard int, id string) string {
	return filepath.Join(v.shardDir(shard), id)
}
