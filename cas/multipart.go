package cas

import (
	"context"
	"iter"
	"time"
)

// UploadInfo is a multipart upload in progress.
type UploadInfo struct {
	UploadID     string
	Description  string
	CreationDate time.Time
	PartSize     int64
	VaultQCS     string
}

// PartInfo is a part the service has acknowledged.
type PartInfo struct {
	Range    Range
	TreeHash Hash
}

// PartPage is one page of parts, sorted by offset, with the upload they belong to.
type PartPage struct {
	Upload UploadInfo
	Parts  []PartInfo
	Marker string
}

// UploadPage is one page of uploads, oldest first.
type UploadPage struct {
	Uploads []UploadInfo
	Marker  string
}

// InitiateUpload opens a multipart upload and returns its ID, which lives 24 h.
// A lost reply leaves an empty upload that expires by itself, so it is retried.
func (c *Client) InitiateUpload(ctx context.Context, vault, description string, partSize int64) (string, error) {
	panic("unimplemented")
}

// UploadPart sends the part that begins at off. h must be the hashes of body.
// Sending a part again replaces it, so every failure is retried. Errors:
// ErrNotFound when the upload has expired, ErrDigest after bounded retries.
func (c *Client) UploadPart(ctx context.Context, vault, uploadID string, off int64, body Body, h PartHash) error {
	panic("unimplemented")
}

// CompleteUpload turns the parts into an archive and returns its ID. Repeating
// it shortly after success gives the same ID, so it is retried; ErrNotFound
// after a lost reply means "unknown", and callers must look in List Parts and inventory before uploading again.
func (c *Client) CompleteUpload(ctx context.Context, vault, uploadID string, size int64, tree Hash) (string, error) {
	panic("unimplemented")
}

// AbortUpload drops an upload; one that is gone already is no error.
func (c *Client) AbortUpload(ctx context.Context, vault, uploadID string) error {
	panic("unimplemented")
}

// ListParts returns one page. Errors: ErrNotFound.
func (c *Client) ListParts(ctx context.Context, vault, uploadID string, p Page) (PartPage, error) {
	panic("unimplemented")
}

// Parts iterates over all parts.
func (c *Client) Parts(ctx context.Context, vault, uploadID string) iter.Seq2[PartInfo, error] {
	panic("unimplemented")
}

// ListUploads returns one page of uploads in progress.
func (c *Client) ListUploads(ctx context.Context, vault string, p Page) (UploadPage, error) {
	panic("unimplemented")
}

// Uploads iterates over all uploads in progress.
func (c *Client) Uploads(ctx context.Context, vault string) iter.Seq2[UploadInfo, error] {
	panic("unimplemented")
}
