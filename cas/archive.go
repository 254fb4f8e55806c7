package cas

import (
	"context"
	"io"
)

// Body is what a request sends: size bytes readable again for every retry.
// *bytes.Reader and *io.SectionReader satisfy it.
type Body interface {
	io.ReaderAt
	Size() int64
}

// UploadArchive sends one archive in one request. h must be the hashes of
// body; zero hashes are computed here (one extra pass). The bytes belong to the
// client until it returns. Archives have no names, so repeating after a lost reply would leave a
// second, billed copy: failures before the body was fully sent and refusals that say "not stored"
// (throttled, unavailable with a JSON error, digest) are retried; a lost reply is
// an error matching ErrUnknown, for the caller to look before it uploads again.
// Errors: ErrDigest, ErrNotFound, ErrEmpty, ErrTooLarge, ErrUnknown.
func (c *Client) UploadArchive(ctx context.Context, vault, description string, body Body, h PartHash) (string, error) {
	panic("unimplemented")
}

// DeleteArchive deletes an archive; one that is gone already is no error.
func (c *Client) DeleteArchive(ctx context.Context, vault, archiveID string) error {
	panic("unimplemented")
}
