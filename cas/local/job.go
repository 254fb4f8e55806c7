package local

import (
	"context"
	"slices"
	"time"
)

const maxExpedited = 256 << 20 // bytes of the largest range that Expedited takes

// jobSpec is what a job was asked to do. First and End bound the retrieved
// range of the archive.
type jobSpec struct {
	ID    string `json:"id"`
	Type  string `json:"type"`
	At    int64  `json:"at"`
	Ready int64  `json:"ready"` // when it finishes
	Desc  string `json:"desc,omitempty"`
	URL   string `json:"url,omitempty"`

	Archive   string `json:"archive,omitempty"`
	Dead      bool   `json:"dead,omitempty"` // the archive was deleted before
	Size      int64  `json:"size,omitempty"`
	Tree      digest `json:"tree,omitzero"`
	First     int64  `json:"first,omitempty"`
	End       int64  `json:"end,omitempty"`
	RangeTree digest `json:"rtree,omitzero"` // zero: the range is not tree-aligned
	Tier      string `json:"tier,omitempty"`

	Format string `json:"format,omitempty"`
	Start  int64  `json:"start,omitempty"` // creation dates; 0: unset
	Until  int64  `json:"until,omitempty"`
	Limit  int    `json:"limit,omitempty"`
	Marker string `json:"marker,omitempty"`

	Bucket      string            `json:"bucket,omitempty"`
	Object      string            `json:"object,omitempty"`
	COSRange    string            `json:"range,omitempty"`
	Condition   map[string]string `json:"condition,omitempty"`
	ArchiveDesc string            `json:"adesc,omitempty"`
}

// jobEnd is what became of a job.
type jobEnd struct {
	At      int64  `json:"at"`
	Fail    string `json:"fail,omitempty"`    // reason; "": succeeded
	Size    int64  `json:"size,omitempty"`    // inventory: bytes of the output; pull: of the archive
	Marker  string `json:"marker,omitempty"`  // inventory: where the next begins
	Archive string `json:"archive,omitempty"` // pull: the archive made
}

// job is a job in memory. Whether it has finished follows from the clock: no
// timer has to fire for a retrieval to be done. The others have work to do when
// they are due, which the timer or the first look starts, whichever comes first.
type job struct {
	jobSpec
	end     *jobEnd
	told    bool
	checked bool          // the archive's leaf file was, since the store was opened
	settled chan struct{} // closed when the work that is running has ended; nil: none is
	timer   *time.Timer
}

func (v *vault) applyJob(spec *jobSpec) {
	j := &job{jobSpec: *spec}
	v.jobs[j.ID] = j
	v.jobIDs = nil
	if j.Archive != "" {
		v.byArch[j.Archive] = append(v.byArch[j.Archive], j)
	}
}

func (v *vault) dropJob(id string) {
	j := v.jobs[id]
	if j == nil {
		return
	}
	j.stopTimer()
	delete(v.jobs, id)
	v.jobIDs = nil
	js := slices.DeleteFunc(v.byArch[j.Archive], func(o *job) bool { return o == j })
	if len(js) == 0 {
		delete(v.byArch, j.Archive)
	} else {
		v.byArch[j.Archive] = js
	}
}

func (j *job) stopTimer() {
	if j.timer != nil {
		j.timer.Stop()
	}
}

// due reports whether the job's time is over at now. One that began more than a day later than now did so by a clock that has been
// put back since, and would be waited for until that time comes.
func (j *job) due(now int64) bool {
	const day = 24 * 60 * 60 * 1000
	return now >= j.Ready || j.At > now+day
}

// outcome says whether the job has finished at now, and when and how.
func (j *job) outcome(now int64) (done bool, at int64, fail string) {
	switch {
	case !j.due(now):
	case j.end != nil:
		return true, j.end.At, j.end.Fail
	case j.Dead:
		return true, j.Ready, "the archive was deleted"
	case j.Type == "archive-retrieval":
		return true, j.Ready, ""
	}
	return false, 0, ""
}

// needsWork reports whether the job is due and not done.
func (j *job) needsWork(now int64) bool {
	done, _, _ := j.outcome(now)
	return !done && j.due(now)
}

// expired reports whether the job is void: a day after it finished.
func (j *job) expired(now, life int64) bool {
	done, at, _ := j.outcome(now)
	return done && now >= at+life
}

// usable reports whether the job still needs its archive's bytes at now.
func (j *job) usable(now int64, life int64) bool {
	if j.Dead || j.end != nil {
		return false
	}
	return j.Type != "archive-retrieval" || now < j.Ready+life
}

func noJob(id string) error { return notFound("job %.80s does not exist", id) }

// liveJob finds a job that has not expired, having done what was due.
func (v *vault) liveJob(ctx context.Context, id string) (*job, error) {
	v.mu.Lock()
	j := v.jobs[id]
	v.mu.Unlock()
	if j == nil {
		return nil, noJob(id)
	}
	v.observe(ctx, j)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone || v.jobs[id] != j || j.expired(v.s.nowMillis(), v.s.outputLife) {
		return nil, noJob(id)
	}
	return j, nil
}

// arm sets the timer that does the job's work, and its callbacks, when nobody looks.
func (v *vault) arm(j *job) {
	now := v.s.nowMillis()
	v.mu.Lock()
	defer v.mu.Unlock()
	idle := j.end != nil || j.Dead || j.Type == "archive-retrieval" // the clock alone finishes it
	if v.gone || v.s.ctx.Err() != nil || idle && (j.told || len(v.targets(j, now)) == 0) {
		return
	}
	wait := time.Duration(max(0, j.Ready-now)) * time.Millisecond
	if j.due(now) {
		wait = 0
	}
	j.timer = time.AfterFunc(wait, func() { v.begin(j) })
}

func (v *vault) armAll() {
	v.mu.Lock()
	jobs := make([]*job, 0, len(v.jobs))
	for _, j := range v.jobs {
		jobs = append(jobs, j)
	}
	v.mu.Unlock()
	for _, j := range jobs {
		v.arm(j)
	}
}

// settleWait is how long a look at a job waits for work that is due: enough
// for what takes no time in the model, not so long that a client gives up.
const settleWait = 5 * time.Second

// observe starts what the job has to do and waits for it for a while.
func (v *vault) observe(ctx context.Context, j *job) {
	settled := v.begin(j)
	if settled == nil {
		return
	}
	t := time.NewTimer(settleWait)
	defer t.Stop()
	select {
	case <-settled:
	case <-t.C:
	case <-ctx.Done():
	case <-v.s.ctx.Done():
	}
}

// begin starts the work of a job that is due, and its callbacks, once. It
// returns a channel that is closed when the work is done; nil: there is none.
func (v *vault) begin(j *job) <-chan struct{} {
	now := v.s.nowMillis()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone || v.jobs[j.ID] != j {
		return nil
	}
	if j.settled != nil {
		return j.settled
	}
	work := j.needsWork(now)
	if !work && (j.told || !j.due(now) || len(v.targets(j, now)) == 0) {
		return nil
	}
	settled := make(chan struct{})
	started := v.s.work.start(func() {
		if work {
			v.settle(j)
		}
		v.mu.Lock()
		j.settled = nil
		tell := !j.told
		v.mu.Unlock()
		close(settled)
		if tell {
			v.tell(j)
		}
	})
	if !started {
		return nil
	}
	j.settled = settled
	return settled
}

// settle does the work of a job and records the outcome. When the store is
// closed meanwhile, or its directory or the vault's is not there, nothing is recorded, and the next Open, or the next look at the job, starts over.
func (v *vault) settle(j *job) {
	var end *jobEnd
	err := v.there()
	if err != nil {
		v.s.logger.Warn("job waits", "vault", v.name, "job", j.ID, "type", j.Type, "error", err)
		return
	}
	switch j.Type {
	case "inventory-retrieval":
		end, err = v.takeInventory(j)
	case "push-to-cos":
		err = v.push(j)
	case "pull-from-cos":
		err = v.pull(j)
	}
	if v.s.ctx.Err() != nil || v.there() != nil {
		return
	}
	if end == nil {
		end = &jobEnd{}
	}
	if err != nil {
		v.s.logger.Warn("job failed", "vault", v.name, "job", j.ID, "type", j.Type, "error", err)
		end.Fail = err.Error()
	}
	end.At = j.Ready
	if j.Type != "inventory-retrieval" {
		end.At = max(j.Ready, v.s.nowMillis())
	}
	v.mu.Lock()
	if v.gone || j.end != nil {
		v.mu.Unlock()
		return
	}
	t, err := v.commitLocked(&record{Type: "end", ID: j.ID, End: end}, "")
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err != nil {
		v.s.logger.Error("job's end not recorded", "vault", v.name, "job", j.ID, "error", err)
	}
}
