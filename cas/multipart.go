package cas

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"strconv"
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
	const op = OpInitiateUpload
	if err := checkVault(op, vault); err != nil {
		return "", err
	}
	description, err := checkDescription(op, description)
	if err != nil {
		return "", err
	}
	if partSize < MinPartSize || partSize > MaxPartSize {
		return "", invalid(op, "a part size of %d bytes", partSize)
	}
	rep, err := c.do(ctx, &request{
		op: op, method: http.MethodPost, path: "/vaults/" + vault + "/multipart-uploads", bare: true,
		header: []pair{{"x-cas-part-size", strconv.FormatInt(partSize, 10)}, {"x-cas-archive-description", description}},
	})
	if err != nil {
		return "", err
	}
	id := rep.id("x-cas-multipart-upload-id")
	if checkID(op, "upload id", id) != nil {
		return "", badReply(op, "no upload id")
	}
	return id, nil
}

func uploadPath(op, vault, uploadID string) (string, error) {
	if err := checkVault(op, vault); err != nil {
		return "", err
	}
	if err := checkID(op, "upload id", uploadID); err != nil {
		return "", err
	}
	return "/vaults/" + vault + "/multipart-uploads/" + uploadID, nil
}

// UploadPart sends the part that begins at off. h must be the hashes of body;
// zero hashes are computed here. The bytes belong to the client until it returns. Sending a part again replaces it, so every failure is retried. Errors:
// ErrNotFound when the upload has expired, ErrDigest after bounded retries.
func (c *Client) UploadPart(ctx context.Context, vault, uploadID string, off int64, body Body, h PartHash) error {
	return c.uploadPart(ctx, vault, uploadID, off, body, h, nil)
}

func (c *Client) uploadPart(ctx context.Context, vault, uploadID string, off int64, body Body, h PartHash, m *meter) error {
	const op = OpUploadPart
	path, err := uploadPath(op, vault, uploadID)
	if err != nil {
		return err
	}
	r := Range{off, body.Size()}
	if r.Len > MaxPartSize || !r.within(MaxArchiveSize) {
		return invalid(op, "a part of %d bytes at %d", r.Len, off)
	}
	if h, err = completeHash(op, body, h); err != nil {
		return err
	}
	rep, err := c.do(ctx, &request{
		op: op, method: http.MethodPut, path: path,
		header: []pair{
			{"x-cas-content-sha256", h.Linear.String()},
			{"x-cas-sha256-tree-hash", h.Tree.String()},
		},
		unsigned: []pair{{"Content-Range", "bytes " + r.String() + "/*"}, {"Content-Type", "application/octet-stream"}},
		body:     body, upload: true, hash: &h, slow: true, bare: true, meter: m,
	})
	if err != nil {
		return err
	}
	return sameTree(op, rep, h.Tree)
}

// CompleteUpload turns the parts into an archive and returns its ID. Repeating
// it shortly after success gives the same ID, so it is retried; ErrNotFound
// after a lost reply means "unknown", and callers must look in List Parts and inventory before uploading again.
func (c *Client) CompleteUpload(ctx context.Context, vault, uploadID string, size int64, tree Hash) (string, error) {
	const op = OpCompleteUpload
	path, err := uploadPath(op, vault, uploadID)
	if err != nil {
		return "", err
	}
	if err := checkSize(size); err != nil {
		return "", err
	}
	if tree.IsZero() {
		return "", invalid(op, "the tree hash is missing")
	}
	rep, err := c.do(ctx, &request{
		op: op, method: http.MethodPost, path: path, slow: true, bare: true,
		header: []pair{{"x-cas-archive-size", strconv.FormatInt(size, 10)}, {"x-cas-sha256-tree-hash", tree.String()}},
	})
	if err != nil {
		return "", err
	}
	id := rep.id("x-cas-archive-id")
	if checkID(op, "archive id", id) != nil {
		return "", fmt.Errorf("cas: %s: %w: %w: success without an archive id", op, ErrUnknown, ErrProtocol)
	}
	return id, nil
}

// AbortUpload drops an upload; one that is gone already is no error.
func (c *Client) AbortUpload(ctx context.Context, vault, uploadID string) error {
	path, err := uploadPath(OpAbortUpload, vault, uploadID)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, &request{op: OpAbortUpload, method: http.MethodDelete, path: path, bare: true})
	return c.goneOrNoVault(ctx, vault, err)
}

type wireUpload struct {
	ArchiveDescription flexString
	CreationDate       flexTime
	MultipartUploadID  flexString `json:"MultipartUploadId"`
	PartSizeInBytes    flexInt
	VaultQCS           flexString
}

func (w wireUpload) info() UploadInfo {
	return UploadInfo{
		UploadID: string(w.MultipartUploadID), Description: string(w.ArchiveDescription),
		CreationDate: w.CreationDate.Time, PartSize: w.PartSizeInBytes.or(-1), VaultQCS: string(w.VaultQCS),
	}
}

// ListParts returns one page. Errors: ErrNotFound.
func (c *Client) ListParts(ctx context.Context, vault, uploadID string, p Page) (PartPage, error) {
	const op = OpListParts
	path, err := uploadPath(op, vault, uploadID)
	if err != nil {
		return PartPage{}, err
	}
	rep, err := c.do(ctx, &request{op: op, method: http.MethodGet, path: path, query: pageQuery(p)})
	if err != nil {
		return PartPage{}, err
	}
	var w struct {
		wireUpload
		Marker flexString
		Parts  []struct {
			RangeInBytes   flexString
			SHA256TreeHash flexHash
		}
	}
	if err := rep.decode(op, &w); err != nil {
		return PartPage{}, err
	}
	page := PartPage{Upload: w.info(), Marker: string(w.Marker)}
	for _, p := range w.Parts {
		r, err := ParseRange(string(p.RangeInBytes), 0)
		if err != nil {
			return PartPage{}, badReply(op, "part %.40q", string(p.RangeInBytes))
		}
		page.Parts = append(page.Parts, PartInfo{Range: r, TreeHash: p.SHA256TreeHash.Hash})
	}
	return page, nil
}

// Parts iterates over all parts.
func (c *Client) Parts(ctx context.Context, vault, uploadID string) iter.Seq2[PartInfo, error] {
	return each(OpListParts, func(marker string) ([]PartInfo, string, error) {
		p, err := c.ListParts(ctx, vault, uploadID, Page{Marker: marker})
		return p.Parts, p.Marker, err
	})
}

// ListUploads returns one page of uploads in progress.
func (c *Client) ListUploads(ctx context.Context, vault string, p Page) (UploadPage, error) {
	const op = OpListUploads
	if err := checkVault(op, vault); err != nil {
		return UploadPage{}, err
	}
	rep, err := c.do(ctx, &request{op: op, method: http.MethodGet, path: "/vaults/" + vault + "/multipart-uploads", query: pageQuery(p)})
	if err != nil {
		return UploadPage{}, err
	}
	var w struct {
		Marker      flexString
		UploadsList []wireUpload
	}
	if err := rep.decode(op, &w); err != nil {
		return UploadPage{}, err
	}
	page := UploadPage{Marker: string(w.Marker)}
	for _, u := range w.UploadsList {
		page.Uploads = append(page.Uploads, u.info())
	}
	return page, nil
}

// Uploads iterates over all uploads in progress.
func (c *Client) Uploads(ctx context.Context, vault string) iter.Seq2[UploadInfo, error] {
	return each(OpListUploads, func(marker string) ([]UploadInfo, string, error) {
		p, err := c.ListUploads(ctx, vault, Page{Marker: marker})
		return p.Uploads, p.Marker, err
	})
}
