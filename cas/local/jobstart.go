package local

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"
)

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
	if deleted {
		return delay, nil
	}
	if _, err = os.Stat(v.archivePath(a.shard, a.id)); err == nil && treeAligned(j.First, j.End, j.Size) {
		j.RangeTree, err = v.rangeTree(a, j.First, j.End, nil)
	}
	v.mu.Lock()
	deleted = a.deleted != 0 // meanwhile: the job will fail
	v.mu.Unlock()
	switch {
	case err == nil, deleted:
		return delay, nil
	case os.IsNotExist(err): // what is gone for good is nothing to wait for
		if err := v.log.there(); err != nil {
			return 0, err
		}
		s.logger.Error("the bytes of an archive are missing", "vault", v.name, "archive", a.id, "error", err)
		return 0, notFound("the bytes of archive %.160s are lost", q.ArchiveId)
	case errors.Is(err, errDamaged):
		s.logger.Error("an archive and its leaf hashes are damaged", "vault", v.name, "archive", a.id, "error", err)
		return 0, notFound("the bytes of archive %.160s are damaged, and its leaf hashes lost", q.ArchiveId)
	}
	return 0, err
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
