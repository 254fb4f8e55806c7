package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Tier is how fast, and how dear, a retrieval is.
type Tier string

// The service's tiers.
const (
	Expedited Tier = "Expedited" // 1–5 min, only below 256 MB
	Standard  Tier = "Standard"  // 3–5 h
	Bulk      Tier = "Bulk"      // 5–12 h
)

// MaxExpedited is the first size in bytes that Expedited refuses.
const MaxExpedited = 256 << 20

// JobType names what Initiate Job starts.
type JobType string

// The service's job types.
const (
	ArchiveRetrieval   JobType = "archive-retrieval"
	InventoryRetrieval JobType = "inventory-retrieval"
	PushToCOS          JobType = "push-to-cos"
	PullFromCOS        JobType = "pull-from-cos"
)

// JobRequest is the body of Initiate Job; fields that do not belong to Type must be zero.
type JobRequest struct {
	Type        JobType
	Description string
	CallBackURL string

	ArchiveID string // archive, push
	Range     Range  // archive, push; zero Len: the whole archive
	Tier      Tier   // archive, push; "": Standard

	Format    string    // inventory: "JSON" (default) or "CSV"
	StartDate time.Time // inventory; zero: unset
	EndDate   time.Time
	Limit     int
	Marker    string

	Bucket, Object     string // push, pull
	COSRange           string // pull: "bytes=0-"
	Condition          map[string]string
	ArchiveDescription string // pull
}

// Job is the service's record of a job. Times are zero and numbers -1 where the service says null.
type Job struct {
	ID             string
	Type           JobType
	VaultQCS       string
	Description    string
	CallBackURL    string
	CreationDate   time.Time
	CompletionDate time.Time
	Completed      bool
	StatusCode     string // "InProgress", "Succeeded", "Failed"
	StatusMessage  string

	ArchiveID       string
	ArchiveSize     int64
	ArchiveTreeHash Hash
	Range           Range // of the archive; archive and push jobs
	TreeHash        Hash  // of Range; zero when the service tells none
	Tier            Tier

	InventorySize      int64
	InventoryFormat    string
	InventoryMarker    string // of a finished inventory job: where the next must start; "" complete
	StartDate, EndDate time.Time
	Limit              int

	Bucket, Object               string
	COSRange, ArchiveDescription string
	Condition                    map[string]string
}

// Succeeded reports whether the output can be fetched (until 24 h after CompletionDate).
func (j Job) Succeeded() bool { return j.Completed && j.StatusCode == "Succeeded" }

// Failed reports whether the job ended without output.
func (j Job) Failed() bool { return j.Completed && j.StatusCode != "Succeeded" }

// OutputSize returns the bytes of the job's output, -1 when not known yet.
func (j Job) OutputSize() int64 {
	switch {
	case j.Type == InventoryRetrieval && j.Completed:
		return j.InventorySize
	case j.Type == ArchiveRetrieval && j.Range.Len > 0:
		return j.Range.Len
	case j.Type == ArchiveRetrieval:
		return j.ArchiveSize
	}
	return -1
}

// wireJob is the one flat shape that all jobs have.
type wireJob struct {
	Action              flexString
	JobID               flexString `json:"JobId"`
	VaultQCS            flexString
	JobDescription      flexString
	CallBackURL         flexString `json:"CallBackUrl"`
	JobCallBackURL      flexString `json:"JobCallBackUrl"` // live captures
	CreationDate        flexTime
	CompletionDate      flexTime
	Completed           flexBool
	StatusCode          flexString
	StatusMessage       flexString
	ArchiveID           flexString `json:"ArchiveId"`
	ArchiveSizeInBytes  flexInt
	ArchiveTreeHash     flexHash `json:"ArchiveSHA256TreeHash"`
	RetrievalByteRange  flexString
	SHA256TreeHash      flexHash
	Tier                flexString
	InventorySize       flexInt `json:"InventorySizeInBytes"`
	InventoryParameters *struct {
		Format, Marker               flexString
		StartDate, StatDate, EndDate flexTime // StatDate is a misprint in the documents
		Limit                        flexInt
	} `json:"InventoryRetrievalParameters"`
	Bucket, Object     flexString
	Range              flexString
	ArchiveDescription flexString
	Condition          json.RawMessage
}

var jobActions = map[string]JobType{
	"archiveretrieval": ArchiveRetrieval, "archive-retrieval": ArchiveRetrieval,
	"inventoryretrieval": InventoryRetrieval, "inventory-retrieval": InventoryRetrieval,
	"pushtocos": PushToCOS, "push-to-cos": PushToCOS,
	"pullfromcos": PullFromCOS, "pull-from-cos": PullFromCOS,
}

func (w *wireJob) job() (Job, error) {
	j := Job{
		ID: string(w.JobID), VaultQCS: string(w.VaultQCS), Description: string(w.JobDescription),
		CallBackURL:  string(w.CallBackURL),
		CreationDate: w.CreationDate.Time, CompletionDate: w.CompletionDate.Time,
		Completed: bool(w.Completed), StatusCode: string(w.StatusCode), StatusMessage: string(w.StatusMessage),
		ArchiveID: string(w.ArchiveID), ArchiveSize: w.ArchiveSizeInBytes.or(-1), ArchiveTreeHash: w.ArchiveTreeHash.Hash,
		TreeHash: w.SHA256TreeHash.Hash, Tier: Tier(w.Tier), InventorySize: w.InventorySize.or(-1),
		Bucket: string(w.Bucket), Object: string(w.Object),
		COSRange: string(w.Range), ArchiveDescription: string(w.ArchiveDescription),
	}
	if j.ID == "" {
		return Job{}, errors.New("a job without an id")
	}
	if j.CallBackURL == "" {
		j.CallBackURL = string(w.JobCallBackURL)
	}
	var ok bool
	if j.Type, ok = jobActions[lowerASCII(string(w.Action))]; !ok {
		j.Type = JobType(w.Action)
	}
	if p := w.InventoryParameters; p != nil {
		j.InventoryFormat, j.InventoryMarker = string(p.Format), string(p.Marker)
		j.StartDate, j.EndDate, j.Limit = p.StartDate.Time, p.EndDate.Time, int(p.Limit.or(0))
		if j.StartDate.IsZero() {
			j.StartDate = p.StatDate.Time
		}
		if j.Type == ArchiveRetrieval && j.ArchiveID == "" {
			j.Type = InventoryRetrieval // the documents' tables name both actions alike
		}
	}
	if s := string(w.RetrievalByteRange); s != "" {
		r, err := ParseRange(s, j.ArchiveSize)
		if err != nil {
			return Job{}, err
		}
		j.Range = r
	}
	j.Condition = conditions(w.Condition)
	return j, nil
}

// conditions takes an object or, as some documents have it, an array of objects.
func conditions(raw json.RawMessage) map[string]string {
	var many []map[string]flexString
	var one map[string]flexString
	if json.Unmarshal(raw, &one) == nil {
		many = append(many, one)
	} else if json.Unmarshal(raw, &many) != nil {
		return nil
	}
	var out map[string]string
	for _, m := range many {
		for k, v := range m {
			if out == nil {
				out = make(map[string]string)
			}
			out[k] = string(v)
		}
	}
	return out
}

// wireJobRequest is the body of Initiate Job. Limit is a string, as the
// official SDK sends it.
type wireJobRequest struct {
	Type               JobType
	Description        string `json:",omitempty"`
	CallBackUrl        string `json:",omitempty"`
	ArchiveId          string `json:",omitempty"`
	RetrievalByteRange string `json:",omitempty"`
	Tier               Tier   `json:",omitempty"`
	Format             string `json:",omitempty"`

	InventoryRetrievalParameters *wireInventoryRequest `json:",omitempty"`

	Bucket             string            `json:",omitempty"`
	Object             string            `json:",omitempty"`
	Range              string            `json:",omitempty"`
	Condition          map[string]string `json:",omitempty"`
	ArchiveDescription string            `json:",omitempty"`
}

type wireInventoryRequest struct {
	StartDate string `json:",omitempty"`
	EndDate   string `json:",omitempty"`
	Limit     string `json:",omitempty"`
	Marker    string `json:",omitempty"`
}

func (r JobRequest) wire() (*wireJobRequest, error) {
	const op = OpInitiateJob
	archive := r.ArchiveID != "" || r.Range != Range{} || r.Tier != ""
	inventory := r.Format != "" || !r.StartDate.IsZero() || !r.EndDate.IsZero() || r.Limit != 0 || r.Marker != ""
	cos := r.Bucket != "" || r.Object != ""
	pull := r.COSRange != "" || len(r.Condition) > 0 || r.ArchiveDescription != ""
	var okArchive, okInventory, okCOS, okPull bool
	switch r.Type {
	case ArchiveRetrieval:
		okArchive = true
	case InventoryRetrieval:
		okInventory = true
	case PushToCOS:
		okArchive, okCOS = true, true
	case PullFromCOS:
		okCOS, okPull = true, true
	default:
		return nil, invalid(op, "%q is no type of job", string(r.Type))
	}
	switch {
	case archive && !okArchive, inventory && !okInventory, cos && !okCOS, pull && !okPull:
		return nil, invalid(op, "fields are set that do not belong to %s", r.Type)
	case okCOS && (r.Bucket == "" || r.Object == ""):
		return nil, invalid(op, "%s needs bucket and object", r.Type)
	case r.Range.Off < 0 || r.Range.Len < 0 || r.Range.Len == 0 && r.Range.Off != 0:
		return nil, invalid(op, "bad range %+v", r.Range)
	}
	if okArchive {
		if err := checkID(op, "archive id", r.ArchiveID); err != nil {
			return nil, err
		}
	}
	w := &wireJobRequest{
		Type: r.Type, Description: r.Description, CallBackUrl: r.CallBackURL,
		ArchiveId: r.ArchiveID, RetrievalByteRange: r.Range.String(), Tier: r.Tier, Format: r.Format,
		Bucket: r.Bucket, Object: r.Object, Range: r.COSRange, Condition: r.Condition, ArchiveDescription: r.ArchiveDescription,
	}
	if okInventory {
		p := &wireInventoryRequest{Marker: r.Marker}
		if !r.StartDate.IsZero() {
			p.StartDate = r.StartDate.UTC().Format(timeFormat)
		}
		if !r.EndDate.IsZero() {
			p.EndDate = r.EndDate.UTC().Format(timeFormat)
		}
		if r.Limit != 0 {
			p.Limit = strconv.Itoa(r.Limit)
		}
		w.InventoryRetrievalParameters = p
	}
	return w, nil
}

// outputLife is how long the service keeps outputs.
const outputLife = 24 * time.Hour

// JobFilter narrows List Jobs.
type JobFilter struct {
	Completed  *bool
	StatusCode string
	Page
}

// JobPage is one page of jobs.
type JobPage struct {
	Jobs   []Job
	Marker string
}

// Output is the reply of Get Job Output. The caller must close Body, which
// returns io.ErrUnexpectedEOF when the connection breaks early. Nothing is verified here.
type Output struct {
	Body        io.ReadCloser
	Range       Range // of the output that Body holds
	Total       int64 // bytes of the whole output, -1 when the service did not tell
	TreeHash    Hash  // of the bytes in Body; zero when not aligned
	ContentType string
}

// InitiateJob starts a job and returns its ID. A lost reply may leave a second
// job running (and billed): it is not retried after the request was sent;
// such an error matches ErrUnknown and callers look in ListJobs.
func (c *Client) InitiateJob(ctx context.Context, vault string, r JobRequest) (string, error) {
	const op = OpInitiateJob
	if err := checkVault(op, vault); err != nil {
		return "", err
	}
	w, err := r.wire()
	if err != nil {
		return "", err
	}
	body, err := jsonBody(w)
	if err != nil {
		return "", invalid(op, "%v", err)
	}
	rep, err := c.do(ctx, &request{
		op: op, method: http.MethodPost, path: "/vaults/" + vault + "/jobs", body: body, once: true, bare: true,
	})
	if err != nil {
		return "", err
	}
	id := rep.id("x-cas-job-id")
	if checkID(op, "job id", id) != nil {
		return "", fmt.Errorf("cas: %s: %w: %w: success without a job id", op, ErrUnknown, ErrProtocol)
	}
	return id, nil
}

func jobPath(op, vault, jobID string) (string, error) {
	if err := checkVault(op, vault); err != nil {
		return "", err
	}
	if err := checkID(op, "job id", jobID); err != nil {
		return "", err
	}
	return "/vaults/" + vault + "/jobs/" + jobID, nil
}

// DescribeJob returns one job. Errors: ErrNotFound also when it has expired.
func (c *Client) DescribeJob(ctx context.Context, vault, jobID string) (Job, error) {
	const op = OpDescribeJob
	path, err := jobPath(op, vault, jobID)
	if err != nil {
		return Job{}, err
	}
	rep, err := c.do(ctx, &request{op: op, method: http.MethodGet, path: path})
	if err != nil {
		return Job{}, err
	}
	var w wireJob
	if err := rep.decode(op, &w); err != nil {
		return Job{}, err
	}
	j, err := w.job()
	if err != nil {
		return Job{}, badReply(op, "%v", err)
	}
	return j, nil
}

// ListJobs returns one page of running and recently finished jobs. Jobs that
// cannot be understood are left out, with a warning in the log.
func (c *Client) ListJobs(ctx context.Context, vault string, f JobFilter) (JobPage, error) {
	const op = OpListJobs
	if err := checkVault(op, vault); err != nil {
		return JobPage{}, err
	}
	q := append(pageQuery(f.Page), pair{"statuscode", f.StatusCode})
	if f.Completed != nil {
		q = append(q, pair{"completed", strconv.FormatBool(*f.Completed)})
	}
	rep, err := c.do(ctx, &request{op: op, method: http.MethodGet, path: "/vaults/" + vault + "/jobs", query: q})
	if err != nil {
		return JobPage{}, err
	}
	page, err := decodeJobs(rep.body)
	if err == nil {
		return page, nil
	}
	var w struct {
		Marker  flexString
		JobList []json.RawMessage
	}
	if err := rep.decode(op, &w); err != nil {
		return JobPage{}, err
	}
	page = JobPage{Marker: string(w.Marker)}
	for _, raw := range w.JobList {
		var wj wireJob
		err := json.Unmarshal(raw, &wj)
		var j Job
		if err == nil {
			j, err = wj.job()
		}
		if err != nil {
			// One odd job must not hide all others.
			c.log.WarnContext(ctx, "a job in the list makes no sense", "vault", vault, "job", string(wj.JobID), "error", err)
			continue
		}
		page.Jobs = append(page.Jobs, j)
	}
	return page, nil
}

// decodeJobs reads a page in which all jobs make sense.
func decodeJobs(body []byte) (page JobPage, err error) {
	var w struct {
		Marker  flexString
		JobList []wireJob
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return JobPage{}, err
	}
	page = JobPage{Jobs: make([]Job, len(w.JobList)), Marker: string(w.Marker)}
	for i := range w.JobList {
		if page.Jobs[i], err = w.JobList[i].job(); err != nil {
			return JobPage{}, err
		}
	}
	return page, nil
}

// Jobs iterates over all jobs that match f.
func (c *Client) Jobs(ctx context.Context, vault string, f JobFilter) iter.Seq2[Job, error] {
	marker := f.Marker
	return each(OpListJobs, func(m string) ([]Job, string, error) {
		if f.Marker = m; m == "" {
			f.Marker = marker
		}
		p, err := c.ListJobs(ctx, vault, f)
		return p.Jobs, p.Marker, err
	})
}

// JobOutput opens the output, or r of it (relative to the output's start; zero
// Len: everything). Opening is retried, reading is not; ctx must live until Body is closed. Errors: ErrNotReady, ErrJobFailed, ErrExpired, ErrNotFound,
// ErrInvalid for a range outside the output. A job the service does not know may be
// an expired one, so ErrNotFound always comes with ErrExpired.
func (c *Client) JobOutput(ctx context.Context, vault, jobID string, r Range) (*Output, error) {
	const op = OpJobOutput
	path, err := jobPath(op, vault, jobID)
	if err != nil {
		return nil, err
	}
	q := &request{op: op, method: http.MethodGet, path: path + "/output", stream: true}
	if r != (Range{}) {
		if r.Off < 0 || r.Len <= 0 || r.End() < 0 {
			return nil, invalid(op, "bad range %+v", r)
		}
		q.header = []pair{{"range", "bytes=" + r.String()}}
	}
	rep, err := c.do(ctx, q)
	for asked := 1; err != nil; asked++ {
		done, why := c.whyNoOutput(ctx, vault, jobID, err)
		if !done || asked > 1 {
			return nil, why
		}
		rep, err = c.do(ctx, q) // the job may have finished since the refusal
	}
	out, err := rep.output(r)
	if err != nil {
		rep.stream.Close()
		return nil, err
	}
	return out, nil
}

// whyNoOutput looks at the job: the service does not say which of its states
// is behind a refusal. done: by now its output should be there.
func (c *Client) whyNoOutput(ctx context.Context, vault, jobID string, err error) (done bool, why error) {
	var e *Error
	switch {
	case errors.Is(err, ErrNotFound):
		return false, fmt.Errorf("%w: %w", ErrExpired, err)
	case !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || e.Status == http.StatusRequestedRangeNotSatisfiable:
		return false, err
	}
	j, derr := c.DescribeJob(ctx, vault, jobID)
	switch {
	case errors.Is(derr, ErrNotFound):
		return false, fmt.Errorf("%w: %w", ErrExpired, err)
	case derr != nil:
		return false, err
	case !j.Completed:
		return false, fmt.Errorf("%w: %w", ErrNotReady, err)
	case j.Failed():
		return false, fmt.Errorf("%w: %s: %w", ErrJobFailed, oneLine(j.StatusMessage), err)
	case !j.CompletionDate.IsZero() && e.Date.Sub(j.CompletionDate) >= outputLife:
		return false, fmt.Errorf("%w: %w", ErrExpired, err)
	}
	return true, err
}

// output checks that the reply is what was asked for, before anyone trusts a byte.
func (r *reply) output(asked Range) (*Output, error) {
	const op = OpJobOutput
	out := &Output{Range: Range{0, r.length}, Total: r.length, ContentType: r.header.Get("Content-Type")}
	var err error
	if out.TreeHash, err = ParseHash(r.header.Get("x-cas-sha256-tree-hash")); err != nil {
		return nil, badReply(op, "%v", err)
	}
	if r.status == http.StatusPartialContent {
		if out.Range, out.Total, err = parseContentRange(r.header.Get("Content-Range")); err != nil {
			return nil, badReply(op, "%v", err)
		}
		if r.length >= 0 && r.length != out.Range.Len {
			return nil, badReply(op, "%d bytes for the range %s", r.length, out.Range)
		}
	}
	if asked.Len > 0 && (out.Range.Off != asked.Off || out.Range.Len > asked.Len || out.Range.Len < 0) {
		return nil, badReply(op, "the range %s for %s", out.Range, asked)
	}
	out.Body = &outputBody{r: r.stream, left: out.Range.Len}
	return out, nil
}

// parseContentRange reads "bytes first-last/total"; total may be "*".
func parseContentRange(s string) (r Range, total int64, err error) {
	bad := fmt.Errorf("Content-Range %.80q", s)
	unit, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	span, all, ok := strings.Cut(rest, "/")
	if !strings.EqualFold(unit, "bytes") || !ok {
		return Range{}, 0, bad
	}
	total = -1
	if all != "*" {
		if total, err = parseOffset(all); err != nil {
			return Range{}, 0, bad
		}
	}
	if r, err = ParseRange(strings.TrimSpace(span), 0); err != nil || total >= 0 && r.End() > total {
		return Range{}, 0, bad
	}
	return r, total, nil
}

// outputBody ends exactly after left bytes (-1: where the reply ends).
type outputBody struct {
	r    io.ReadCloser
	left int64
}

func (b *outputBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.r.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	switch {
	case err == nil || err == io.EOF && b.left <= 0:
		return n, err
	case b.left == 0:
		return n, io.EOF
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return n, io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
}

func (b *outputBody) Close() error { return b.r.Close() }
