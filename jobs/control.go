package jobs

// EvictResult counts what Evict did.
type EvictResult struct {
	Files, Bytes int64
	Skipped      []Skipped
}

// Skipped is a path a verb left alone and why, in plain words.
type Skipped struct{ Path, Reason string }

// RecallRequest is `casfs recall`.
type RecallRequest struct {
	Inos      []uint64
	Recursive bool
	Tier      string // "" the mount's
	Off, Len  int64  // range of each file; Len 0: whole
	Wait      bool
	Cancel    bool // drop wanted retrievals not yet asked for
}

// RecallResult counts files by outcome.
type RecallResult struct {
	Local, Pending, Failed int64
	Bytes                  int64 // asked for
	Failures               []Skipped
	Waits                  string // for what pending files are not asked for yet, if not for their turn
}
