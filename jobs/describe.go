package jobs

// Metadata is what an archive description carries, so that the vault alone is
// enough to rebuild the tree.
type Metadata struct {
	Intent    string
	Ino, V    uint64
	Size      int64
	Mtime     int64 // ns
	Mode      uint32
	UID, GID  uint32
	Seg, Segs int    // segment Seg of Segs, counted from 0; Segs 0 or 1: one archive
	Path      string // within the vault, without leading slash
	Cut       bool   // Path lost its left part
}

// formatDescription writes casfs's description: printable ASCII, at most 1024 bytes, the path percent-encoded and
// shortened from the left (path~=) when it does not fit.
func formatDescription(m Metadata) string { panic("unimplemented") }

// parseDescription reads what formatDescription wrote; ok is false for anything else.
func parseDescription(s string) (m Metadata, ok bool) { panic("unimplemented") }
