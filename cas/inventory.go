package cas

import (
	"io"
	"time"
)

// InventoryEntry is one archive of an inventory.
type InventoryEntry struct {
	ArchiveID    string
	Description  string
	CreationDate time.Time
	Size         int64
	TreeHash     Hash
}

// InventoryHeader is what precedes or follows the list.
type InventoryHeader struct {
	VaultQCS string
	Date     time.Time
}

// DecodeInventory reads an inventory (JSON, or CSV with or without a header
// row) and calls each for every entry, in constant memory. An error of each ends it and is returned.
func DecodeInventory(r io.Reader, each func(InventoryEntry) error) (InventoryHeader, error) {
	panic("unimplemented")
}
