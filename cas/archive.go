package cas

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
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
// Errors: ErrDigest, ErrNotFound, ErrEmpty, ErrTooLarge, ErrUnknown. An ID that comes
// with an error (ErrDigest) names an archive that exists but is not what was sent.
func (c *Client) UploadArchive(ctx context.Context, vault, description string, body Body, h PartHash) (string, error) {
	return c.uploadArchive(ctx, vault, description, body, h, nil)
}

func (c *Client) uploadArchive(ctx context.Context, vault, description string, body Body, h PartHash, m *meter) (string, error) {
	const op = OpUploadArchive
	if err := checkVault(op, vault); err != nil {
		return "", err
	}
	if err := checkSize(body.Size()); err != nil {
		return "", err
	}
	description, err := checkDescription(op, description)
	if err != nil {
		return "", err
	}
	if h, err = completeHash(op, body, h); err != nil {
		return "", err
	}
	rep, err := c.do(ctx, &request{
		op: op, method: http.MethodPost, path: "/vaults/" + vault + "/archives",
		header: []pair{
			{"x-cas-content-sha256", h.Linear.String()},
			{"x-cas-sha256-tree-hash", h.Tree.String()},
			{"x-cas-archive-description", description},
		},
		body: body, upload: true, hash: &h, once: true, slow: true, bare: true, meter: m,
	})
	if err != nil {
		return "", err
	}
	id := rep.id("x-cas-archive-id")
	if checkID(op, "archive id", id) != nil {
		return "", fmt.Errorf("cas: %s: %w: %w: success without an archive id", op, ErrUnknown, ErrProtocol)
	}
	return id, sameTree(op, rep, h.Tree)
}

// completeHash computes what the caller left out.
func completeHash(op string, body Body, h PartHash) (PartHash, error) {
	if !h.Linear.IsZero() && !h.Tree.IsZero() {
		return h, nil
	}
	h, err := hashBody(body)
	if err != nil {
		return h, fmt.Errorf("cas: %s: reading the body: %w", op, err)
	}
	return h, nil
}

// sameTree compares the hash of a reply, if it carries one, with ours.
func sameTree(op string, rep *reply, want Hash) error {
	got, err := ParseHash(rep.header.Get("x-cas-sha256-tree-hash"))
	if err != nil {
		return badReply(op, "%v", err)
	}
	if !got.IsZero() && got != want {
		return fmt.Errorf("cas: %s: %w: the service stored %s, sent was %s", op, ErrDigest, got, want)
	}
	return nil
}

// checkDescription returns d as it goes over the wire, where outer blanks do
// not survive and control characters are impossible.
func checkDescription(op, d string) (string, error) {
	if len(d) > MaxDescription {
		return "", invalid(op, "a description of %d bytes, at most %d are possible", len(d), MaxDescription)
	}
	if strings.ContainsFunc(d, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", invalid(op, "a description with control characters")
	}
	return strings.Trim(d, " "), nil
}

// DeleteArchive deletes an archive; one that is gone already is no error.
// Errors: ErrNotFound when there is no such vault.
func (c *Client) DeleteArchive(ctx context.Context, vault, archiveID string) error {
	const op = OpDeleteArchive
	if err := checkVault(op, vault); err != nil {
		return err
	}
	if err := checkID(op, "archive id", archiveID); err != nil {
		return err
	}
	_, err := c.do(ctx, &request{op: op, method: http.MethodDelete, path: "/vaults/" + vault + "/archives/" + archiveID, bare: true})
	return c.goneOrNoVault(ctx, vault, err)
}
