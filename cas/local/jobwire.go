package local

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

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
	// Work that is due is waited for, but not for each job anew.
	ctx, cancel := context.WithTimeout(r.http.Context(), settleWait)
	defer cancel()
	i, _ := slices.BinarySearch(ids, marker)
	for _, id := range ids[i:] {
		j, err := v.liveJob(ctx, id)
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
