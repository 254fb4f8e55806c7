package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

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
	Progress   float64         `json:"progress"` // 0..1 of the upload or recall under way; 1 when there is nothing to do
	Error      string          `json:"error,omitempty"`
}

// ArchiveStatus is one archive of a file.
type ArchiveStatus struct {
	ID          string    `json:"id"`
	TreeHash    string    `json:"tree_hash"`
	Description string    `json:"description"`
	Off         int64     `json:"off"` // of the file
	Size        int64     `json:"size"`
	Created     time.Time `json:"created"`
}

// Stat explains an inode.
func (e *Engine) Stat(ctx context.Context, ino uint64) (FileStatus, error) {
	s, err := e.stat(ino, true)
	if err != nil {
		return s, err
	}
	s.Path = e.path(ino)
	return s, nil
}

var typeNames = map[uint32]string{
	syscall.S_IFREG: "file", syscall.S_IFDIR: "directory", syscall.S_IFLNK: "symlink", syscall.S_IFIFO: "fifo",
	syscall.S_IFSOCK: "socket", syscall.S_IFCHR: "character device", syscall.S_IFBLK: "block device",
}

// stat fills in everything but the path.
func (e *Engine) stat(ino uint64, archives bool) (FileStatus, error) {
	var i catalog.Inode
	var v catalog.Version
	var vault catalog.Vault
	var list []ArchiveStatus
	isVault := false
	var shown *catalog.Version
	if f := e.live(ino); f != nil {
		f.mu.Lock()
		if f.unchangedLocked() {
			old := f.expected.old
			shown = &old
		}
		f.mu.Unlock()
		f.put()
	}
	err := e.catalog.View(func(tx *catalog.Tx) error {
		list = nil
		var err error
		if i, v, err = inodeTx(tx, ino); err != nil {
			return err
		}
		if shown != nil && shown.V+1 == i.Version {
			v = *shown
		}
		if i.Mode&syscall.S_IFMT == syscall.S_IFDIR && i.Vault == i.Ino {
			vault, err = tx.Vault(ino)
			isVault = err == nil
		}
		if !archives {
			return nil
		}
		var off int64
		for _, x := range v.Extents {
			a, err := tx.Archive(x.Archive)
			if err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			list = append(list, ArchiveStatus{
				ID: a.ID, TreeHash: hexHash(a.TreeHash), Description: a.Description,
				Off: off, Size: x.Len, Created: time.Unix(0, a.Created),
			})
			off += x.Len
		}
		return nil
	})
	if err != nil {
		return FileStatus{}, err
	}
	s := FileStatus{
		Ino: ino, Type: typeNames[i.Mode&syscall.S_IFMT], Size: i.Size, Version: i.Version, Pinned: i.Pinned, Archives: list,
	}
	if s.Type != "file" {
		s.explainOther(i, vault, isVault)
		return s, nil
	}
	f, err := e.acquire(ino)
	if err != nil {
		return s, err
	}
	defer f.put()
	f.mu.Lock()
	a := f.attrLocked()
	v = f.ver
	if f.unchangedLocked() {
		v = f.expected.old // the one made for stores that may come is nobody's business until they do
	}
	whole := f.wholeLocked()
	checked := f.checkedLocked()
	writing := f.writingLocked()
	var some, missing, last bool
	if v.State == catalog.Archived && v.V != 0 && !v.Damaged && len(v.Extents) > 0 {
		if last, err = e.lastCopy(f.inode.Vault, v); err != nil {
			f.mu.Unlock()
			return s, err
		}
	}
	if f.local != nil {
		s.LocalBytes, _ = f.local.Allocated()
		if v.State == catalog.Archived && !(whole && checked) {
			for _, r := range f.local.VerifiedRanges() {
				some = some || r.Len > 0
			}
		}
	} else {
		missing = f.stagingLocked()
	}
	f.mu.Unlock()
	s.Size, s.Version = a.Size, v.V
	s.TreeHash = hexHash(v.TreeHash)
	if v.ArchivedAt != 0 && len(v.Extents) > 0 {
		t := time.Unix(0, v.ArchivedAt)
		s.UploadedAt = &t
	}
	s.Error = v.Error
	r, recalling := e.recall.state(ino, v.V)
	if recalling {
		s.Job, s.ETA = r.Job, r.ETA
		if r.Error != "" {
			s.Error = r.Error
		}
		if r.Size > 0 {
			s.Progress = float64(r.Done) / float64(r.Size)
		}
	}
	switch {
	case missing:
		s.State = "damaged"
		s.Explain = "Its bytes were only on this machine, not in the vault yet, and their staging file is missing. " +
			"Look in the state directory's lost+found and in backups; overwriting the file repairs it."
	case v.V == 0 || s.Size == 0 && v.State == catalog.Archived:
		s.State, s.Progress = "resident", 1
		s.Explain = "An empty file: it needs no archive."
	case v.State == catalog.Archived && v.Damaged:
		s.State = "damaged"
		s.Explain = "The vault's copy failed verification or is gone."
		if recalling && r.State != "failed" {
			s.Explain += " It is being recalled once more, and counts as damaged until what comes has been verified."
		}
		if whole {
			s.Explain += " The local copy is complete and can still be read: casfs check --repair uploads it again."
		}
	case last:
		s.State = "damaged"
		s.Explain = "The service does not have its archive any more, or not all of them."
		switch {
		case whole:
			s.Explain += " The local copy is complete and kept. Once the vault is there again, casfs check --repair uploads it; or copy it to another vault."
		case some:
			s.Explain += " What is local of it is kept."
		default:
			s.Explain += " Nothing of it is on this machine."
		}
	case v.State == catalog.Archived && whole && checked:
		s.State, s.Progress = "resident", 1
		s.Explain = "In the vault, and a complete verified copy is on this machine."
	case v.State == catalog.Archived && recalling && r.State != "failed":
		s.State = "recalling"
		s.Explain = "In the vault; it is on its way back to this machine."
		if r.ETA != nil {
			s.Explain += " Expected by " + r.ETA.Local().Format("2006-01-02 15:04") + "."
		}
		if r.Error != "" {
			s.Explain += " It does not get on at the moment and is tried again: " + r.Error + "."
		}
	case v.State == catalog.Archived && some:
		s.State = "partial"
		s.Explain = "In the vault; some of its bytes are on this machine, reading the others starts a retrieval."
	case v.State == catalog.Archived:
		s.State = "cold"
		s.Explain = "Only in the vault: reading it starts a retrieval, which takes minutes to hours."
	default:
		e.explainUpload(&s, v, writing)
	}
	switch {
	case s.Pinned && e.recall.keep(ino, s.Size):
		s.Explain += " Pinned: automatic eviction leaves it alone."
	case s.Pinned:
		s.Explain += fmt.Sprintf(" Pinned, but it is not kept: it does not fit in what pinned files may take of the cache, %d bytes.", e.recall.mostRoom())
	}
	return s, nil
}

// explainUpload describes a version that is not in the vault yet.
func (e *Engine) explainUpload(s *FileStatus, v catalog.Version, writing bool) {
	st, done, active := e.up.active(s.Ino)
	s.State = "staged"
	if v.State == catalog.Uploading {
		s.State = "uploading"
	}
	if why := e.uploadError(s.Ino); why != "" {
		s.Error = why
	}
	if s.Size > 0 && active {
		s.Progress = float64(done) / float64(s.Size)
	}
	switch {
	case active && st == taskRunning:
		s.Explain = "On its way into the vault; until it is there the only copy is on this machine, and it is kept."
	case s.Error != "":
		s.Explain = "Only on this machine: the upload failed (" + s.Error + ") and is tried again; the bytes are kept until it works."
	case writing:
		s.Explain = "Only on this machine: it is being written. It is uploaded some time after it is closed."
	case active:
		s.Explain = "Only on this machine: it waits for its turn to be uploaded."
	default:
		s.Explain = "Only on this machine: it is uploaded when it has been left alone for a while; casfs sync does it now."
	}
}

func entries(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

func (s *FileStatus) explainOther(i catalog.Inode, v catalog.Vault, isVault bool) {
	switch {
	case isVault:
		s.Type = "vault"
		var b strings.Builder
		fmt.Fprintf(&b, "A vault of the account, %s at its top.", entries(i.Entries, "entry", "entries"))
		if v.Archives >= 0 {
			fmt.Fprintf(&b, " The service counted %d archives of %d bytes on %s.", v.Archives, v.Bytes, time.Unix(0, v.LastInventory).UTC().Format(time.DateOnly))
		}
		if v.Gone {
			b.WriteString(" The service no longer lists it.")
		}
		s.Explain = b.String()
	case i.Ino == catalog.RootIno:
		s.Explain = "The account, " + entries(i.Entries, "vault", "vaults") + "."
	case s.Type == "directory":
		s.Explain = "A directory of " + entries(i.Entries, "entry", "entries") + "; directories live in the catalog only."
	default:
		s.Explain = "A " + s.Type + " lives in the catalog only."
	}
	a := attrOf(i)
	s.Size = a.Size
}
