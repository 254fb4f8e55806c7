package cas

import (
	"context"
	"iter"
	"time"
)

// VaultInfo is the service's record of a vault. Counts and size are as of
// LastInventoryDate (about daily), never live; HasInventory says whether there was one.
type VaultInfo struct {
	Name              string
	QCS               string
	CreationDate      time.Time
	LastInventoryDate time.Time // zero before the first stock-taking
	NumberOfArchives  int64     // -1 before the first stock-taking
	Size              int64     // bytes; -1 before the first stock-taking
}

// Page asks for one page of a list. Limit 0 leaves it to the service (1000).
type Page struct {
	Marker string // opaque, from the previous page
	Limit  int
}

// VaultPage is one page; Marker "" ends the list.
type VaultPage struct {
	Vaults []VaultInfo
	Marker string
}

// ValidVaultName reports why name cannot be a vault's, or nil (1–255 of A-Za-z0-9_.-).
func ValidVaultName(name string) error { panic("unimplemented") }

// CreateVault makes a vault; an existing one of the same account is no error.
// It returns the Location header. Errors: ErrLimit (1000 vaults), ErrInvalid.
func (c *Client) CreateVault(ctx context.Context, name string) (string, error) {
	panic("unimplemented")
}

// DeleteVault removes an empty vault. Errors: ErrNotEmpty, ErrNotFound.
func (c *Client) DeleteVault(ctx context.Context, name string) error { panic("unimplemented") }

// DescribeVault returns the service's record. Errors: ErrNotFound.
func (c *Client) DescribeVault(ctx context.Context, name string) (VaultInfo, error) {
	panic("unimplemented")
}

// ListVaults returns one page, sorted by QCS.
func (c *Client) ListVaults(ctx context.Context, p Page) (VaultPage, error) { panic("unimplemented") }

// Vaults iterates over all vaults, page by page; an error ends it.
func (c *Client) Vaults(ctx context.Context) iter.Seq2[VaultInfo, error] { panic("unimplemented") }
