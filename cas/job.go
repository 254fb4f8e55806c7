package cas

import (
	"context"
	"io"
	"iter"
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
func (j Job) OutputSize() int64 { panic("unimplemented") }

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
	panic("unimplemented")
}

// DescribeJob returns one job. Errors: ErrNotFound also when it has expired.
func (c *Client) DescribeJob(ctx context.Context, vault, jobID string) (Job, error) {
	panic("unimplemented")
}

// ListJobs returns one page of running and recently finished jobs.
func (c *Client) ListJobs(ctx context.Context, vault string, f JobFilter) (JobPage, error) {
	panic("unimplemented")
}

// Jobs iterates over all jobs that match f.
func (c *Client) Jobs(ctx context.Context, vault string, f JobFilter) iter.Seq2[Job, error] {
	panic("unimplemented")
}

// JobOutput opens the output, or r of it (relative to the output's start; zero
// Len: everything). Errors: ErrNotReady, ErrExpired, ErrNotFound.
func (c *Client) JobOutput(ctx context.Context, vault, jobID string, r Range) (*Output, error) {
	panic("unimplemented")
}

// FetchRange reads one tree-aligned range of an archive job's output into buf
// (len(buf) == r.Len), verifies it against the range's tree hash and retries
// breaks and mismatches within the retry policy, resuming where a break
// happened. Errors: ErrDigest, ErrExpired, ErrNotFound.
func (c *Client) FetchRange(ctx context.Context, vault, jobID string, r Range, buf []byte) error {
	panic("unimplemented")
}
