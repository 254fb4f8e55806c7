package jobs

import (
	"context"
	"fmt"
	"math"
	"os"
	"sort"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

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
	RecallsQueued int64             `json:"recalls_queued"`         // files of explicit recalls not asked for yet
	RecallsWait   string            `json:"recalls_wait,omitempty"` // for what they are not asked for, if not for their turn
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
	Files      int64      `json:"files"`
	FilesLimit int64      `json:"files_limit"`
	Bytes      int64      `json:"bytes"`
	BytesLimit int64      `json:"bytes_limit"`
	Until      *time.Time `json:"until,omitempty"`
}

// statusUploads is how many uploads a status lists; running and failed ones come first.
const statusUploads = 200

// Status returns a snapshot. Mountpoint, Endpoint and Passthrough are left to the caller, who knows them.
func (e *Engine) Status(ctx context.Context) (Status, error) {
	st := e.catalog.Stats()
	use := e.store.Usage()
	s := Status{
		StateDir: e.opts.StateDir, PID: os.Getpid(), Since: e.since,
		Files: st.Files, LiveBytes: st.LiveBytes,
		Staging:   Space{Files: st.StagedFiles, Used: use.StagingBytes, Limit: use.StagingLimit},
		Cache:     Space{Used: use.CacheBytes, Limit: use.CacheLimit},
		FreeBytes: use.Free,
		Settling:  e.settle.waiting(),
	}
	err := e.catalog.View(func(tx *catalog.Tx) error {
		vaults, err := tx.Vaults()
		if err != nil {
			return err
		}
		s.Vaults = len(vaults)
		for a, err := range tx.TrashUntil(math.MaxInt64) {
			if err != nil {
				return err
			}
			s.Trash.Files++
			s.Trash.Used += a.Size
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	e.up.fill(&s)
	e.recall.fill(&s)

	e.problemsMu.Lock()
	for _, p := range e.problems {
		s.Problems = append(s.Problems, p)
	}
	e.problemsMu.Unlock()
	refused, err := e.refusals()
	if err != nil {
		return s, err
	}
	lost, err := e.lostProblems()
	if err != nil {
		return s, err
	}
	s.Problems = append(s.Problems, e.up.problems()...)
	s.Problems = append(s.Problems, refused...)
	s.Problems = append(s.Problems, lost...)
	s.Problems = append(s.Problems, e.roomProblems(use)...)
	sort.Strings(s.Problems)
	return s, nil
}

// roomProblems says what is short of room, and what comes of it.
func (e *Engine) roomProblems(use content.Usage) []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if err := e.catalog.Room(); err != nil && !e.opts.ReadOnly {
		say("%v: nothing can be created, renamed or recorded until there is room on this disk; files can be read and deleted", err)
	}
	// What is cached goes when room is needed.
	staging, cache := use.Free, use.CacheFree+use.CacheBytes
	if use.OneDisk {
		staging = cache
	}
	full := staging < use.MinFree+roomShort && !e.opts.ReadOnly
	if use.Throttled > 0 {
		say("%d writers wait for room in the staging area (%d of %d bytes in use, %d bytes of the disk free, %d are kept free)",
			use.Throttled, use.StagingBytes, use.StagingLimit, use.Free, use.MinFree)
	} else if full {
		say("the disk of the staging area is full: %d bytes are free, %d are kept free; writers wait, and then fail with ENOSPC", use.Free, use.MinFree)
	}
	if use.Waiting > 0 {
		say("%d recalls wait for room in the cache (%d of %d bytes in use, %d bytes of its disk free, %d are kept free)",
			use.Waiting, use.CacheBytes, use.CacheLimit, use.CacheFree, use.CacheMinFree)
	} else if cache < use.CacheMinFree+roomShort && !(full && use.OneDisk) {
		say("the disk of the cache is full: %d bytes are free, %d are kept free; recalls wait for room", use.CacheFree, use.CacheMinFree)
	}
	return list
}

// roomShort is how little room above what is kept free is no room: a write brings up to 1 MiB.
const roomShort = 2 << 20

// fill adds the uploads to s.
func (u *uploader) fill(s *Status) {
	type line struct {
		ino   uint64
		state taskState
		UploadStatus
	}
	var list []line
	u.mu.Lock()
	for ino, t := range u.tasks {
		if t.state == taskQueued {
			s.UploadsQueued++
			continue
		}
		list = append(list, line{ino, t.state, UploadStatus{
			Size: t.size, Done: t.done.Load(), Attempts: t.attempts, Error: t.err, Permanent: t.permanent,
		}})
	}
	u.mu.Unlock()
	for _, f := range u.e.liveFiles() {
		f.mu.Lock()
		if st := f.stream; st != nil && st.running {
			list = append(list, line{f.ino, taskRunning, UploadStatus{
				Size: f.inode.Size, Done: st.doneLocked(), Attempts: st.tries + 1, Error: st.err,
			}})
		}
		f.mu.Unlock()
		f.put()
	}
	sort.Slice(list, func(i, k int) bool {
		if list[i].state != list[k].state {
			return list[i].state < list[k].state
		}
		return list[i].ino < list[k].ino
	})
	for _, l := range list[:min(len(list), statusUploads)] {
		l.Path = u.e.path(l.ino)
		s.Uploads = append(s.Uploads, l.UploadStatus)
	}
}
