package jobs

import (
	"context"
	"time"
)

// Progress is reported while a verb waits; totals may grow.
type Progress struct {
	FilesDone, FilesTotal int64
	BytesDone, BytesTotal int64
	Current               string // a path
}

// Sync seals everything staged under the inodes (all of it below directories) at call time,
// skipping settle, and waits until it is archived and recorded. It fails with the first permanent error, ErrUpload.
func (e *Engine) Sync(ctx context.Context, inos []uint64, progress func(Progress)) error {
	panic("unimplemented")
}

// Drain is Sync of everything, for unmount; it returns what is left when ctx ends.
func (e *Engine) Drain(ctx context.Context, progress func(Progress)) ([]Pending, error) {
	panic("unimplemented")
}

// Pending is a file not yet archived.
type Pending struct {
	Path  string
	Size  int64
	State string
	Error string
}

// EvictResult counts what Evict did.
type EvictResult struct {
	Files, Bytes int64
	Skipped      []Skipped
}

// Skipped is a path a verb left alone and why, in plain words.
type Skipped struct{ Path, Reason string }

// Evict drops local copies of archived files; recursive for directories.
func (e *Engine) Evict(ctx context.Context, inos []uint64, recursive bool) (EvictResult, error) {
	panic("unimplemented")
}

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
}

// Recall queues retrievals in waves; with Wait it blocks until all are local or failed. Ending ctx leaves the recall going.
func (e *Engine) Recall(ctx context.Context, r RecallRequest, progress func(Progress)) (RecallResult, error) {
	panic("unimplemented")
}

// Allow lifts the guard: files and bytes are added to today's allowance; zero: as much as the limits again.
func (e *Engine) Allow(files int, bytes int64) error { panic("unimplemented") }

// FileStatus explains one file (casfs stat).
type FileStatus struct {
	Path       string          `json:"path"`
	Ino        uint64          `json:"ino"`
	Type       string          `json:"type"`    // file, directory, vault, symlink, …
	State      string          `json:"state"`   // design.md §3
	Explain    string          `json:"explain"` // one or more plain sentences
	Size       int64           `json:"size"`
	LocalBytes int64           `json:"local_bytes"`
	Version    uint64          `json:"version"`
	Pinned     bool            `json:"pinned"`
	Archives   []ArchiveStatus `json:"archives,omitempty"`
	TreeHash   string          `json:"tree_hash,omitempty"`
	UploadedAt *time.Time      `json:"uploaded_at,omitempty"`
	Job        string          `json:"job,omitempty"`
	ETA        *time.Time      `json:"eta,omitempty"`
	Progress   float64         `json:"progress"` // 0..1 of the upload or recall under way
	Error      string          `json:"error,omitempty"`
}

// ArchiveStatus is one archive of a file.
type ArchiveStatus struct {
	ID, TreeHash, Description string
	Off, Size                 int64
	Created                   time.Time
}

// Stat explains an inode.
func (e *Engine) Stat(ctx context.Context, ino uint64) (FileStatus, error) { panic("unimplemented") }

// Status is the whole daemon's (casfs status).
type Status struct {
	Mountpoint    string            `json:"mountpoint"`
	StateDir      string            `json:"state_dir"`
	PID           int               `json:"pid"`
	Since         time.Time         `json:"since"`
	Endpoint      string            `json:"endpoint"`
	Vaults        int               `json:"vaults"`
	Files         int64             `json:"files"`
	LiveBytes     int64             `json:"live_bytes"`
	Staging       Space             `json:"staging"`
	Cache         Space             `json:"cache"`
	FreeBytes     int64             `json:"free_bytes"`
	Settling      int64             `json:"settling"` // files waiting for quiet
	Uploads       []UploadStatus    `json:"uploads"`
	UploadsQueued int64             `json:"uploads_queued"`
	Retrievals    []RetrievalStatus `json:"retrievals"`
	Waiters       []WaiterStatus    `json:"waiters"`
	Guard         GuardStatus       `json:"guard"`
	Trash         Space             `json:"trash"`       // Used bytes; Files count
	Problems      []string          `json:"problems"`    // in plain words
	Passthrough   string            `json:"passthrough"` // filled by fs
}

// Space is use against a limit.
type Space struct {
	Files int64 `json:"files"`
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"`
}

// UploadStatus is one version on its way.
type UploadStatus struct {
	Path      string `json:"path"`
	Size      int64  `json:"size"`
	Done      int64  `json:"done"`
	Attempts  int    `json:"attempts"`
	Error     string `json:"error,omitempty"`
	Permanent bool   `json:"permanent,omitempty"`
}

// RetrievalStatus is one retrieval.
type RetrievalStatus struct {
	Path     string     `json:"path"`
	State    string     `json:"state"`
	Tier     string     `json:"tier"`
	Job      string     `json:"job"`
	Size     int64      `json:"size"`
	Done     int64      `json:"done"`
	Since    time.Time  `json:"since"`
	ETA      *time.Time `json:"eta,omitempty"`
	Attempts int        `json:"attempts"`
	Error    string     `json:"error,omitempty"`
}

// WaiterStatus is one program waiting for a recall.
type WaiterStatus struct {
	PID     uint32     `json:"pid"`
	Command string     `json:"command"`
	Path    string     `json:"path"`
	Since   time.Time  `json:"since"`
	ETA     *time.Time `json:"eta,omitempty"`
}

// GuardStatus is how much reads may still recall.
type GuardStatus struct {
	Files, FilesLimit int64
	Bytes, BytesLimit int64
	Until             *time.Time `json:"Until,omitempty"`
}

// Status returns a snapshot.
func (e *Engine) Status(ctx context.Context) (Status, error) { panic("unimplemented") }

// TrashEntry is an archive waiting to be deleted.
type TrashEntry struct {
	Vault, ArchiveID, Path string
	Size                   int64
	Uploaded, Deadline     time.Time
}

// Trash lists the trash; Purge deletes entries now (all, or those of the IDs given), whatever it costs.
func (e *Engine) Trash(ctx context.Context) ([]TrashEntry, error)             { panic("unimplemented") }
func (e *Engine) Purge(ctx context.Context, archiveIDs []string) (int, error) { panic("unimplemented") }

// Inventory starts (or adopts) an inventory of a vault and with wait blocks until it is merged.
func (e *Engine) Inventory(ctx context.Context, vault string, wait bool, progress func(Progress)) error {
	panic("unimplemented")
}

// Check compares catalog, staging and content (and the vaults, with inventory); problems go to report. repair mends what loses nothing.
func (e *Engine) Check(ctx context.Context, inventory, repair bool, report func(problem string)) error {
	panic("unimplemented")
}
