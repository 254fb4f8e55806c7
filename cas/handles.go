package cas

import (
	"context"
	"io"
	"iter"
	"time"
)

// The types in this file are the counterpart of the official SDK's classes:
// names with methods. They hold no state beyond what was last seen of the service.

// Vault is a vault by name, with what the service said of it last.
type Vault struct {
	VaultInfo
	c *Client
}

// Vault finds a vault by name. Errors: ErrNotFound.
func (c *Client) Vault(ctx context.Context, name string) (*Vault, error) {
	info, err := c.DescribeVault(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Vault{info, c}, nil
}

// NewVault creates a vault, or finds the one of that name.
func (c *Client) NewVault(ctx context.Context, name string) (*Vault, error) {
	if _, err := c.CreateVault(ctx, name); err != nil {
		return nil, err
	}
	return c.Vault(ctx, name)
}

// Refresh asks the service for v's record again.
func (v *Vault) Refresh(ctx context.Context) error {
	info, err := v.c.DescribeVault(ctx, v.Name)
	if err == nil {
		v.VaultInfo = info
	}
	return err
}

// Delete removes the vault, which must be empty. Errors: ErrNotEmpty, ErrNotFound.
func (v *Vault) Delete(ctx context.Context) error { return v.c.DeleteVault(ctx, v.Name) }

// Archive names an archive of the vault; it asks nothing, the service knows no single archive.
func (v *Vault) Archive(id string) *Archive { return &Archive{ID: id, v: v} }

// UploadFile makes an archive of a file, see Client.UploadFile.
func (v *Vault) UploadFile(ctx context.Context, path string, o UploadOptions) (UploadResult, error) {
	return v.c.UploadFile(ctx, v.Name, path, o)
}

// Upload makes an archive of size bytes of r, see Client.Upload.
func (v *Vault) Upload(ctx context.Context, r io.ReaderAt, size int64, o UploadOptions) (UploadResult, error) {
	return v.c.Upload(ctx, v.Name, r, size, o)
}

// Uploads iterates over the multipart uploads in progress.
func (v *Vault) Uploads(ctx context.Context) iter.Seq2[*MultipartUpload, error] {
	return func(yield func(*MultipartUpload, error) bool) {
		for info, err := range v.c.Uploads(ctx, v.Name) {
			var m *MultipartUpload
			if err == nil {
				m = &MultipartUpload{info, v}
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// MultipartUpload finds an upload in progress by its ID. Errors: ErrNotFound.
func (v *Vault) MultipartUpload(ctx context.Context, id string) (*MultipartUpload, error) {
	p, err := v.c.ListParts(ctx, v.Name, id, Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	p.Upload.UploadID = id
	return &MultipartUpload{p.Upload, v}, nil
}

// Job finds a job by its ID. Errors: ErrNotFound, also when it has expired.
func (v *Vault) Job(ctx context.Context, id string) (*JobHandle, error) {
	j, err := v.c.DescribeJob(ctx, v.Name, id)
	if err != nil {
		return nil, err
	}
	return &JobHandle{j, v}, nil
}

// Jobs iterates over running and recently finished jobs that match f.
func (v *Vault) Jobs(ctx context.Context, f JobFilter) iter.Seq2[*JobHandle, error] {
	return func(yield func(*JobHandle, error) bool) {
		for j, err := range v.c.Jobs(ctx, v.Name, f) {
			var h *JobHandle
			if err == nil {
				h = &JobHandle{j, v}
			}
			if !yield(h, err) {
				return
			}
		}
	}
}

// RetrieveOptions narrow a retrieval.
type RetrieveOptions struct {
	Description string
	Range       Range // of the archive, MiB aligned; zero: all of it
	Tier        Tier  // "": Standard
	CallBackURL string
}

// InventoryOptions narrow an inventory. Zero fields are unset.
type InventoryOptions struct {
	Description        string
	StartDate, EndDate time.Time // of the archives' creation
	Limit              int       // at most 10 000, which is also the default
	Marker             string    // Job.InventoryMarker of the finished job before
	Format             string    // "JSON" (default) or "CSV"
	CallBackURL        string
}

// RetrieveInventory starts an inventory job (3–5 hours). Errors: those of InitiateJob.
func (v *Vault) RetrieveInventory(ctx context.Context, o InventoryOptions) (*JobHandle, error) {
	return v.start(ctx, JobRequest{
		Type: InventoryRetrieval, Description: o.Description, StartDate: o.StartDate, EndDate: o.EndDate,
		Limit: o.Limit, Marker: o.Marker, Format: o.Format, CallBackURL: o.CallBackURL,
	})
}

// start initiates a job; when it cannot be described at once, the handle has its ID, type and description only.
func (v *Vault) start(ctx context.Context, r JobRequest) (*JobHandle, error) {
	id, err := v.c.InitiateJob(ctx, v.Name, r)
	if err != nil {
		return nil, err
	}
	// The job exists and is billed: from here on its ID must reach the caller.
	h := &JobHandle{Job{
		ID: id, Type: r.Type, Description: r.Description, StatusCode: "InProgress",
		ArchiveID: r.ArchiveID, ArchiveSize: -1, Range: r.Range, Tier: r.Tier, InventorySize: -1,
	}, v}
	if j, err := v.c.DescribeJob(ctx, v.Name, id); err == nil {
		h.Job = j
	}
	return h, nil
}

// Archive is an archive by ID.
type Archive struct {
	ID string
	v  *Vault
}

// Delete deletes the archive; one that is gone already is no error.
func (a *Archive) Delete(ctx context.Context) error {
	return a.v.c.DeleteArchive(ctx, a.v.Name, a.ID)
}

// Retrieve starts a retrieval (minutes to hours, by tier). Errors: those of InitiateJob.
func (a *Archive) Retrieve(ctx context.Context, o RetrieveOptions) (*JobHandle, error) {
	return a.v.start(ctx, JobRequest{
		Type: ArchiveRetrieval, ArchiveID: a.ID, Description: o.Description, Range: o.Range, Tier: o.Tier, CallBackURL: o.CallBackURL,
	})
}

// MultipartUpload is an upload in progress.
type MultipartUpload struct {
	UploadInfo
	v *Vault
}

// Parts iterates over the parts the service has.
func (m *MultipartUpload) Parts(ctx context.Context) iter.Seq2[PartInfo, error] {
	return m.v.c.Parts(ctx, m.v.Name, m.UploadID)
}

// ResumeFile sends what is missing of a file and completes the upload, see Client.UploadFile.
func (m *MultipartUpload) ResumeFile(ctx context.Context, path string, o UploadOptions) (UploadResult, error) {
	o.UploadID = m.UploadID
	return m.v.c.UploadFile(ctx, m.v.Name, path, o)
}

// Resume sends what is missing of r and completes the upload, see Client.Upload.
func (m *MultipartUpload) Resume(ctx context.Context, r io.ReaderAt, size int64, o UploadOptions) (UploadResult, error) {
	o.UploadID = m.UploadID
	return m.v.c.Upload(ctx, m.v.Name, r, size, o)
}

// Abort drops the upload; one that is gone already is no error.
func (m *MultipartUpload) Abort(ctx context.Context) error {
	return m.v.c.AbortUpload(ctx, m.v.Name, m.UploadID)
}

// JobHandle is a job, with what the service said of it last.
type JobHandle struct {
	Job
	v *Vault
}

// Poll refreshes the job without waiting. Errors: ErrNotReady, ErrJobFailed, ErrNotFound.
func (j *JobHandle) Poll(ctx context.Context) error {
	return j.update(j.v.c.PollJob(ctx, j.v.Name, j.ID))
}

// Wait blocks until the job has finished, see Client.WaitJob.
func (j *JobHandle) Wait(ctx context.Context, interval time.Duration) error {
	return j.update(j.v.c.WaitJob(ctx, j.v.Name, j.ID, interval))
}

func (j *JobHandle) update(now Job, err error) error {
	if now.ID != "" {
		j.Job = now
	}
	return err
}

// FetchFile fetches the output to a file, see Client.FetchJobFile.
func (j *JobHandle) FetchFile(ctx context.Context, path string, o FetchOptions) (FetchResult, error) {
	return j.v.c.FetchJobFile(ctx, j.v.Name, j.ID, path, o)
}

// FetchRange writes r of the output to w, see Client.FetchJobRange.
func (j *JobHandle) FetchRange(ctx context.Context, r Range, w io.Writer, o FetchOptions) (FetchResult, error) {
	return j.v.c.FetchJobRange(ctx, j.v.Name, j.ID, r, w, o)
}

// Inventory decodes the output of a finished inventory job, see DecodeInventory.
func (j *JobHandle) Inventory(ctx context.Context, each func(InventoryEntry) error) (InventoryHeader, error) {
	return j.v.c.Inventory(ctx, j.v.Name, j.ID, each)
}
