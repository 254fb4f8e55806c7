package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
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

// outcome says whether the job has finished at now, and when and how.
func (j *job) outcome(now int64) (done bool, at int64, fail string) {
	switch {
	case now < j.Ready:
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
	return !done && now >= j.Ready
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

// jobRequest is the body of Initiate Job.
type jobRequest struct {
	Type               string
	Description        string
	CallBackUrl        string
	ArchiveId          string
	RetrievalByteRange string
	Tier               string
	Format             string

	InventoryRetrievalParameters struct {
		StartDate, EndDate string
		Limit              number
		Marker             string
	}

	Bucket, Object     string
	Range              string
	Condition          conditions
	ArchiveDescription string
}

// number takes 5 and "5"; the SDK sends the latter.
type number string

func (n *number) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*n = number(s) // a null leaves it empty
		return nil
	}
	var i int64
	if err := json.Unmarshal(b, &i); err != nil {
		return err
	}
	*n = number(strconv.FormatInt(i, 10))
	return nil
}

// conditions takes an object or, as the documents also say, an array of objects.
type conditions map[string]string

func (c *conditions) UnmarshalJSON(b []byte) error {
	var list []map[string]string
	if json.Unmarshal(b, &list) != nil {
		list = make([]map[string]string, 1)
		if err := json.Unmarshal(b, &list[0]); err != nil {
			return err
		}
	}
	for _, m := range list {
		for k, v := range m {
			if *c == nil {
				*c = conditions{}
			}
			(*c)[k] = v
		}
	}
	return nil
}

func (s *Store) initiateJob(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	var q jobRequest
	if err := r.decodeJSON(&q); err != nil {
		return err
	}
	if q.Type == "" {
		return missing("Type")
	}
	if q.CallBackUrl != "" {
		if err := checkCallback(q.CallBackUrl); err != nil {
			return err
		}
	}
	if q.Description, err = cleanDescription(q.Description); err != nil {
		return err
	}
	j := &jobSpec{ID: newID(shortIDLen), Type: q.Type, Desc: q.Description, URL: q.CallBackUrl}
	var delay time.Duration
	switch q.Type {
	case "archive-retrieval", "push-to-cos":
		if delay, err = s.archiveJob(v, j, &q); err == nil && q.Type == "push-to-cos" {
			err = cosTarget(j, &q)
		}
	case "inventory-retrieval":
		delay = s.delays.Inventory
		err = inventoryJob(j, &q)
	case "pull-from-cos":
		delay = s.delays.Standard
		if err = cosTarget(j, &q); err == nil {
			err = pullJob(j, &q)
		}
	default:
		err = invalid("unknown job type %.64q", q.Type)
	}
	if err != nil {
		return err
	}
	if err := v.start(j, delay); err != nil {
		return err
	}
	r.location("jobs", j.ID)
	r.header("X-Cas-Job-Id", j.ID)
	r.reply(http.StatusAccepted)
	return nil
}

// archiveJob checks the fields of jobs that read an archive.
func (s *Store) archiveJob(v *vault, j *jobSpec, q *jobRequest) (delay time.Duration, err error) {
	if q.ArchiveId == "" {
		return 0, missing("ArchiveId")
	}
	j.Archive, j.Tier = q.ArchiveId, q.Tier
	switch q.Tier {
	case "", "Standard":
		j.Tier, delay = "Standard", s.delays.Standard
	case "Expedited":
		delay = s.delays.Expedited
	case "Bulk":
		delay = s.delays.Bulk
	default:
		return 0, invalid("Tier must be Expedited, Standard or Bulk")
	}
	v.mu.Lock()
	a := v.archives[q.ArchiveId]
	if a != nil && a.deleted != 0 && s.nowMillis() >= a.deleted+24*60*60*1000 {
		a = nil
	}
	deleted := a != nil && a.deleted != 0
	v.mu.Unlock()
	if a == nil {
		return 0, notFound("archive %.160s does not exist", q.ArchiveId)
	}
	j.Size, j.Tree, j.First, j.End = a.size, a.tree, 0, a.size
	if q.RetrievalByteRange != "" {
		first, last, ok := parseFirstLast(q.RetrievalByteRange, true)
		if last < 0 {
			last = a.size - 1 // cascmd's "FIRST-"
		}
		switch {
		case !ok || first > last:
			return 0, invalid("RetrievalByteRange must be FIRST-LAST")
		case last >= a.size:
			return 0, invalid("RetrievalByteRange %s is outside of the archive's %d bytes", q.RetrievalByteRange, a.size)
		case first%mib != 0 || (last+1)%mib != 0 && last != a.size-1:
			return 0, invalid("RetrievalByteRange must begin and end at multiples of 1 MiB, or end with the archive")
		}
		j.First, j.End = first, last+1
	}
	if j.Tier == "Expedited" && j.End-j.First > maxExpedited {
		return 0, invalid("Expedited takes at most %d bytes", maxExpedited)
	}
	if !deleted && treeAligned(j.First, j.End, j.Size) {
		if j.RangeTree, err = v.rangeTree(a, j.First, j.End); err != nil {
			return 0, err
		}
	}
	return delay, nil
}

// start records the job and arms its timer.
func (v *vault) start(spec *jobSpec, delay time.Duration) error {
	if err := v.log.broken(); err != nil {
		return err
	}
	v.mu.Lock()
	if v.gone {
		v.mu.Unlock()
		return noVault(v.name)
	}
	spec.At = v.s.nowMillis()
	spec.Ready = spec.At + delay.Milliseconds()
	if a := v.archives[spec.Archive]; spec.Archive != "" && (a == nil || a.deleted != 0) {
		spec.Dead = true
	}
	t, err := v.commitLocked(&record{Type: "job", Job: spec}, "")
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err != nil {
		return err
	}
	v.mu.Lock()
	j := v.jobs[spec.ID]
	v.mu.Unlock()
	if j != nil {
		v.arm(j)
	}
	return nil
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
	j.timer = time.AfterFunc(time.Duration(max(0, j.Ready-now))*time.Millisecond, func() { v.begin(j) })
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
	if !work && (j.told || now < j.Ready || len(v.targets(j, now)) == 0) {
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
// closed meanwhile nothing is recorded, and the next Open starts over.
func (v *vault) settle(j *job) {
	var end *jobEnd
	var err error
	switch j.Type {
	case "inventory-retrieval":
		end, err = v.takeInventory(j)
	case "push-to-cos":
		err = v.push(j)
	case "pull-from-cos":
		err = v.pull(j)
	}
	if v.s.ctx.Err() != nil {
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

func (s *Store) describeJob(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	j, err := v.liveJob(r.http.Context(), r.item)
	if err != nil {
		return err
	}
	v.mu.Lock()
	o := v.jobJSON(j, s.nowMillis())
	v.mu.Unlock()
	return r.replyJSON(http.StatusOK, o)
}

func (s *Store) listJobs(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	limit, err := r.limit(1000)
	if err != nil {
		return err
	}
	status := r.param("statuscode")
	switch status {
	case "", "InProgress", "Succeeded", "Failed":
	default:
		return invalid("statuscode must be InProgress, Succeeded or Failed")
	}
	completed := strings.ToLower(r.param("completed"))
	switch completed {
	case "", "true", "false":
	default:
		return invalid("completed must be true or false")
	}
	marker := r.param("marker")
	list := struct {
		JobList []*jobJSON
		Marker  *string
	}{JobList: []*jobJSON{}}

	v.mu.Lock()
	if v.jobIDs == nil {
		v.jobIDs = make([]string, 0, len(v.jobs))
		for id := range v.jobs {
			v.jobIDs = append(v.jobIDs, id)
		}
		slices.Sort(v.jobIDs)
	}
	ids := v.jobIDs // replaced, never changed
	v.mu.Unlock()
	i, _ := slices.BinarySearch(ids, marker)
	for _, id := range ids[i:] {
		j, err := v.liveJob(r.http.Context(), id)
		if err != nil {
			continue // expired
		}
		v.mu.Lock()
		o := v.jobJSON(j, s.nowMillis())
		v.mu.Unlock()
		if status != "" && o.StatusCode != status || completed != "" && completed != strconv.FormatBool(o.Completed) {
			continue
		}
		if len(list.JobList) == limit {
			list.Marker = &id
			break
		}
		list.JobList = append(list.JobList, o)
	}
	return r.replyJSON(http.StatusOK, list)
}

// jobJSON is the wire form of a job: one flat shape with every key present.
type jobJSON struct {
	Action                       string
	ArchiveId                    *string
	ArchiveSHA256TreeHash        *digest
	ArchiveSizeInBytes           *int64
	Bucket                       *string
	CallBackUrl                  *string
	Completed                    bool
	CompletionDate               *string
	CreationDate                 string
	InventoryRetrievalParameters *inventoryJSON
	InventorySizeInBytes         *int64
	JobCallBackUrl               *string // the same, as live replies were seen to spell it
	JobDescription               string
	JobId                        string
	Object                       *string
	RetrievalByteRange           *string
	SHA256TreeHash               *digest
	StatusCode                   string
	StatusMessage                string
	Tier                         *string
	VaultQCS                     string

	// Only of pull-from-cos.
	Range              *string           `json:",omitempty"`
	Condition          map[string]string `json:",omitempty"`
	ArchiveDescription *string           `json:",omitempty"`
}

type inventoryJSON struct {
	EndDate   *string
	Format    string
	Limit     int
	Marker    *string
	StartDate *string
}

var actions = map[string]string{
	"archive-retrieval":   "ArchiveRetrieval",
	"inventory-retrieval": "InventoryRetrieval",
	"push-to-cos":         "PushToCOS",
	"pull-from-cos":       "PullFromCOS",
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// jobJSON renders a job; mu is held.
func (v *vault) jobJSON(j *job, now int64) *jobJSON {
	o := &jobJSON{
		Action: actions[j.Type], CallBackUrl: orNull(j.URL), JobCallBackUrl: orNull(j.URL),
		CreationDate: formatTime(j.At), JobDescription: j.Desc, JobId: j.ID, VaultQCS: v.qcs(),
		StatusCode: "InProgress", StatusMessage: "InProgress",
		Bucket: orNull(j.Bucket), Object: orNull(j.Object),
	}
	done, at, fail := j.outcome(now)
	if done {
		o.Completed, o.CompletionDate = true, timeOrNull(at)
		o.StatusCode, o.StatusMessage = "Succeeded", "Succeeded"
		if fail != "" {
			o.StatusCode, o.StatusMessage = "Failed", fail
		}
	}
	succeeded := done && fail == ""
	switch j.Type {
	case "archive-retrieval", "push-to-cos":
		rng := fmt.Sprintf("%d-%d", j.First, j.End-1)
		o.ArchiveId, o.ArchiveSizeInBytes, o.RetrievalByteRange, o.Tier = &j.Archive, &j.Size, &rng, &j.Tier
		if j.Type == "push-to-cos" {
			break
		}
		o.ArchiveSHA256TreeHash = &j.Tree
		switch {
		case j.First == 0 && j.End == j.Size:
			o.SHA256TreeHash = &j.Tree
		case succeeded && !j.RangeTree.isZero():
			o.SHA256TreeHash = &j.RangeTree
		}
	case "inventory-retrieval":
		size := int64(0)
		marker := j.Marker
		if succeeded {
			size, marker = j.end.Size, j.end.Marker
		}
		o.InventorySizeInBytes = &size
		o.InventoryRetrievalParameters = &inventoryJSON{
			EndDate: timeOrNull(j.Until), StartDate: timeOrNull(j.Start), Format: j.Format, Limit: j.Limit, Marker: orNull(marker),
		}
	case "pull-from-cos":
		o.Range, o.Condition, o.ArchiveDescription = &j.COSRange, j.Condition, &j.ArchiveDesc
		if succeeded {
			o.ArchiveId, o.ArchiveSizeInBytes = &j.end.Archive, &j.end.Size
		}
	}
	return o
}
