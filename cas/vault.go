package cas

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
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
func ValidVaultName(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("vault name %.300q: %w: 1 to 255 characters are needed", name, ErrInvalid)
	}
	if name == "." || name == ".." {
		// Proxies and libraries clean such elements out of paths.
		return fmt.Errorf("vault name %q: %w: it cannot be part of a path", name, ErrInvalid)
	}
	for i := range len(name) {
		switch b := name[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '_', b == '.', b == '-':
		default:
			return fmt.Errorf("vault name %q: %w: only A-Z a-z 0-9 _ . - may occur", name, ErrInvalid)
		}
	}
	return nil
}

type wireVault struct {
	CreationDate      flexTime
	LastInventoryDate flexTime
	NumberOfArchives  flexInt
	SizeInBytes       flexInt
	VaultQCS          flexString
	VaultName         flexString
}

func (w wireVault) info() VaultInfo {
	return VaultInfo{
		Name: string(w.VaultName), QCS: string(w.VaultQCS),
		CreationDate: w.CreationDate.Time, LastInventoryDate: w.LastInventoryDate.Time,
		NumberOfArchives: w.NumberOfArchives.or(-1), Size: w.SizeInBytes.or(-1),
	}
}

// HasInventory reports whether there was a stock-taking, on which counts and size rest.
func (v VaultInfo) HasInventory() bool { return !v.LastInventoryDate.IsZero() }

// each walks a paged list. page returns the items after marker and the next
// marker, "" at the end.
func each[T any](op string, page func(marker string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for marker := ""; ; {
			items, next, err := page(marker)
			if err != nil {
				yield(zero, err)
				return
			}
			for _, it := range items {
				if !yield(it, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			if next == marker {
				yield(zero, badReply(op, "the list does not end: marker %q again", marker))
				return
			}
			marker = next
		}
	}
}

// CreateVault makes a vault; an existing one of the same account is no error.
// It returns the Location header. Errors: ErrLimit (1000 vaults), ErrInvalid.
func (c *Client) CreateVault(ctx context.Context, name string) (string, error) {
	if err := checkVault(OpCreateVault, name); err != nil {
		return "", err
	}
	rep, err := c.do(ctx, &request{op: OpCreateVault, method: http.MethodPut, path: "/vaults/" + name, bare: true})
	if err != nil {
		// What the service answers for an existing vault is not documented.
		if errors.Is(err, ErrInvalid) {
			if _, derr := c.DescribeVault(ctx, name); derr == nil {
				return "/" + c.uid + "/vaults/" + name, nil
			}
		}
		return "", err
	}
	return rep.header.Get("Location"), nil
}

// DeleteVault removes an empty vault. Errors: ErrNotEmpty, ErrNotFound.
func (c *Client) DeleteVault(ctx context.Context, name string) error {
	if err := checkVault(OpDeleteVault, name); err != nil {
		return err
	}
	r := &request{op: OpDeleteVault, method: http.MethodDelete, path: "/vaults/" + name, bare: true}
	_, lost, err := c.doLost(ctx, r)
	if lost && errors.Is(err, ErrNotFound) {
		return nil // our own attempt, whose reply was lost, did it
	}
	return err
}

// DescribeVault returns the service's record. Errors: ErrNotFound.
func (c *Client) DescribeVault(ctx context.Context, name string) (VaultInfo, error) {
	return c.describeVault(ctx, "", name)
}

func (c *Client) describeVault(ctx context.Context, uid, name string) (VaultInfo, error) {
	if err := checkVault(OpDescribeVault, name); err != nil {
		return VaultInfo{}, err
	}
	rep, err := c.do(ctx, &request{op: OpDescribeVault, method: http.MethodGet, uid: uid, path: "/vaults/" + name})
	if err != nil {
		return VaultInfo{}, err
	}
	var w wireVault
	if err := rep.decode(OpDescribeVault, &w); err != nil {
		return VaultInfo{}, err
	}
	return w.info(), nil
}

// ListVaults returns one page, sorted by QCS.
func (c *Client) ListVaults(ctx context.Context, p Page) (VaultPage, error) {
	rep, err := c.do(ctx, &request{op: OpListVaults, method: http.MethodGet, path: "/vaults", query: pageQuery(p)})
	if err != nil {
		return VaultPage{}, err
	}
	var w struct {
		Marker    flexString
		VaultList []wireVault
	}
	if err := rep.decode(OpListVaults, &w); err != nil {
		return VaultPage{}, err
	}
	page := VaultPage{Marker: string(w.Marker)}
	for _, v := range w.VaultList {
		page.Vaults = append(page.Vaults, v.info())
	}
	return page, nil
}

// Vaults iterates over all vaults, page by page; an error ends it.
func (c *Client) Vaults(ctx context.Context) iter.Seq2[VaultInfo, error] {
	return each(OpListVaults, func(marker string) ([]VaultInfo, string, error) {
		p, err := c.ListVaults(ctx, Page{Marker: marker})
		return p.Vaults, p.Marker, err
	})
}

// goneOrNoVault turns "not found" into success when it was not the vault that
// was not found: a mistyped vault name must not pass for a deletion.
func (c *Client) goneOrNoVault(ctx context.Context, vault string, err error) error {
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	if _, verr := c.DescribeVault(ctx, vault); verr != nil {
		return fmt.Errorf("%w (looking at the vault: %w)", err, verr)
	}
	return nil
}
