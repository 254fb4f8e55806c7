// Package catalog is the local database of casfs: the tree, the versions of
// its files, the vaults' archives, uploads, retrievals and the trash. Every
// change is one journal record first (package journal), then applied to badger,
// which is only an index: missing, older or damaged, it is rebuilt from
// snapshot and journal. keys.go lists every key prefix; codec.go the encodings.
package catalog

import (
	"context"
	"errors"
	"iter"
	"log/slog"
)

// Options configure a Catalog.
type Options struct {
	Dir           string // holds journal/, index/ (badger), reserve and format
	Reserve       int64  // bytes preallocated against a full disk; 0: 64 MiB
	MinFree       int64  // refuse changes below this much free space; 0: 64 MiB
	SnapshotEvery int64  // journal bytes between snapshots; 0: 64 MiB
	Logger        *slog.Logger
}

// Errors. The namespace errors are matched by errors.Is and mapped to errno in package fs.
var (
	ErrNotExist    = errors.New("no such entry")
	ErrExist       = errors.New("entry exists")
	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotEmpty    = errors.New("directory not empty")
	ErrLoop        = errors.New("a directory cannot be moved below itself")
	ErrXDev        = errors.New("different vaults")
	ErrPerm        = errors.New("operation not permitted here")
	ErrNameTooLong = errors.New("name longer than 255 bytes")
	ErrMaxLinks    = errors.New("too many links")
	ErrNoAttr      = errors.New("no such attribute")
	ErrInvalid     = errors.New("invalid argument")
	ErrNoSpace     = errors.New("no room for the catalog")   // guard tripped; reads go on
	ErrInUse       = errors.New("state directory is in use") // wrapped with the other pid
	ErrDamaged     = errors.New("catalog is damaged")        // journal or snapshot cannot rebuild it; says what to do
	ErrFormat      = errors.New("catalog format is newer than this program")
	ErrReadOnly    = errors.New("catalog failed earlier and takes no more changes")
)

// Catalog is open for one process. Safe for concurrent use.
type Catalog struct{ impl catalogImpl }

type catalogImpl struct{}

// Open opens or creates the catalog, brings badger up to the journal, rebuilding it
// when missing, older or damaged (with a log line saying so), and creates the account root inode.
func Open(o Options) (*Catalog, error) { panic("unimplemented") }

// Close stops background work and closes; nothing acknowledged depends on it.
func (c *Catalog) Close() error { panic("unimplemented") }

// View runs fn on a consistent snapshot. fn must not keep tx.
func (c *Catalog) View(fn func(tx *Tx) error) error { panic("unimplemented") }

// Update runs fn alone among Updates and commits what it changed as one journal
// record. It returns after the record is in the journal (survives kill -9) and
// visible to View; seq is for Barrier. When fn returns an error nothing is changed and the error is returned as it is.
// fn may be run on the committer's goroutine; it must be quick, must not block, and must not call Update.
func (c *Catalog) Update(fn func(tx *Tx) error) (seq uint64, err error) { panic("unimplemented") }

// Barrier blocks until everything up to seq (0: everything so far) survives power loss. ctx ends the waiting only.
func (c *Catalog) Barrier(ctx context.Context, seq uint64) error { panic("unimplemented") }

// ID returns the catalog's random creation id (hex).
func (c *Catalog) ID() string { panic("unimplemented") }

// Rebuilt reports why badger had to be rebuilt at Open, "" if it had not.
func (c *Catalog) Rebuilt() string { panic("unimplemented") }

// Stats are counts for status, cheap enough to ask for every second.
type Stats struct {
	Inodes, Files            int64
	LiveBytes                int64 // sum of sizes of regular files, as statfs needs it
	StagedFiles, StagedBytes int64
	JournalBytes             int64
	Seq                      uint64
}

// Stats returns counts kept up to date by every change.
func (c *Catalog) Stats() Stats { panic("unimplemented") }

// Check compares badger with snapshot and journal and the tree with itself
// (dangling entries, wrong nlink, versions without inode …), reporting each problem; repair mends what loses nothing.
func (c *Catalog) Check(ctx context.Context, repair bool, report func(problem string)) error {
	panic("unimplemented")
}

// Tx reads, and in Update changes, the catalog. Reads and iterations in Update see its own changes.
// Getters return ErrNotExist for what is absent.
type Tx struct{ impl txImpl }

type txImpl struct{}

// NextID allocates a number never used before (inodes, archives, retrievals, local files).
func (tx *Tx) NextID() uint64 { panic("unimplemented") }

// ---- raw records: no rules applied ----

func (tx *Tx) Inode(ino uint64) (Inode, error)                   { panic("unimplemented") }
func (tx *Tx) PutInode(i Inode) error                            { panic("unimplemented") }
func (tx *Tx) DeleteInode(ino uint64) error                      { panic("unimplemented") } // with its xattrs, not its versions
func (tx *Tx) Lookup(parent uint64, name string) (Dirent, error) { panic("unimplemented") }

// ReadDir returns up to limit entries of dir with Cookie > after, by cookie.
func (tx *Tx) ReadDir(dir uint64, after uint64, limit int) ([]Dirent, error) { panic("unimplemented") }

// Parents yields the entries that name ino (hard links have several); for paths shown to people.
func (tx *Tx) Parents(ino uint64) ([]Dirent, error) { panic("unimplemented") }

// Path returns one path of ino from the account root, without leading slash ("vault/dir/name"); ErrNotExist when unlinked.
func (tx *Tx) Path(ino uint64) (string, error) { panic("unimplemented") }

func (tx *Tx) Version(ino, v uint64) (Version, error) { panic("unimplemented") }
func (tx *Tx) PutVersion(v Version) error             { panic("unimplemented") }
func (tx *Tx) DeleteVersion(ino, v uint64) error      { panic("unimplemented") }
func (tx *Tx) Versions(ino uint64) ([]Version, error) { panic("unimplemented") } // oldest first
// StagedVersions iterates over versions in state Staged or Uploading (an index; cheap when there are few).
func (tx *Tx) StagedVersions() iter.Seq2[Version, error] { panic("unimplemented") }

// LocalVersions iterates over all versions with Local != 0.
func (tx *Tx) LocalVersions() iter.Seq2[Version, error] { panic("unimplemented") }

func (tx *Tx) Archive(num uint64) (Archive, error)                  { panic("unimplemented") }
func (tx *Tx) ArchiveByID(vault uint64, id string) (Archive, error) { panic("unimplemented") }
func (tx *Tx) ArchiveByIntent(intent string) (Archive, error)       { panic("unimplemented") }
func (tx *Tx) PutArchive(a Archive) error                           { panic("unimplemented") }
func (tx *Tx) DeleteArchive(num uint64) error                       { panic("unimplemented") }
func (tx *Tx) Archives(vault uint64) iter.Seq2[Archive, error]      { panic("unimplemented") }

// TrashUntil iterates over archives in Trash with Deadline <= t, by deadline.
func (tx *Tx) TrashUntil(t int64) iter.Seq2[Archive, error] { panic("unimplemented") }

func (tx *Tx) Upload(intent string) (Upload, error) { panic("unimplemented") }
func (tx *Tx) PutUpload(u Upload) error             { panic("unimplemented") }
func (tx *Tx) DeleteUpload(intent string) error     { panic("unimplemented") }
func (tx *Tx) Uploads() iter.Seq2[Upload, error]    { panic("unimplemented") }

func (tx *Tx) Retrieval(id uint64) (Retrieval, error)  { panic("unimplemented") }
func (tx *Tx) PutRetrieval(r Retrieval) error          { panic("unimplemented") }
func (tx *Tx) DeleteRetrieval(id uint64) error         { panic("unimplemented") }
func (tx *Tx) Retrievals() iter.Seq2[Retrieval, error] { panic("unimplemented") }

func (tx *Tx) Vault(ino uint64) (Vault, error)        { panic("unimplemented") }
func (tx *Tx) VaultByName(name string) (Vault, error) { panic("unimplemented") }
func (tx *Tx) PutVault(v Vault) error                 { panic("unimplemented") }
func (tx *Tx) DeleteVault(ino uint64) error           { panic("unimplemented") }
func (tx *Tx) Vaults() ([]Vault, error)               { panic("unimplemented") }

// Orphans are inodes whose last name is gone while handles were open; reclaimed at start.
func (tx *Tx) Orphans() ([]uint64, error)    { panic("unimplemented") }
func (tx *Tx) PutOrphan(ino uint64) error    { panic("unimplemented") }
func (tx *Tx) DeleteOrphan(ino uint64) error { panic("unimplemented") }

func (tx *Tx) Xattr(ino uint64, name string) ([]byte, error) { panic("unimplemented") } // ErrNoAttr
func (tx *Tx) SetXattr(ino uint64, name string, value []byte, create, replace bool) error {
	panic("unimplemented")
}                                                        // ErrExist, ErrNoAttr
func (tx *Tx) RemoveXattr(ino uint64, name string) error { panic("unimplemented") }
func (tx *Tx) Xattrs(ino uint64) ([]string, error)       { panic("unimplemented") }

// Meta is a small named value (daily byte counts of the guard, allowances, settings).
func (tx *Tx) Meta(name string) ([]byte, error)        { panic("unimplemented") }
func (tx *Tx) PutMeta(name string, value []byte) error { panic("unimplemented") }

// ---- the tree: POSIX rules, one call one transaction step; now is the time stamped ----

// Create makes a new inode of the given template (Mode, UID, GID, Rdev, Target) below parent and
// links it: setgid directories pass on their group and, to directories, the bit. At RootIno only
// directories are allowed (vaults; ErrPerm otherwise) and PutVault is the caller's. Errors: ErrExist, ErrNotDir, ErrNameTooLong, ErrNotExist.
func (tx *Tx) Create(parent uint64, name string, template Inode, now int64) (Inode, error) {
	panic("unimplemented")
}

// Link adds a name. Errors: ErrXDev, ErrPerm (directories), ErrExist, ErrMaxLinks.
func (tx *Tx) Link(ino, parent uint64, name string, now int64) (Inode, error) { panic("unimplemented") }

// Unlink removes the name of a non-directory and returns the inode as it is now; with
// Nlink 0 it is left as an orphan for the caller to keep (open handles) or reclaim.
func (tx *Tx) Unlink(parent uint64, name string, now int64) (Inode, error) { panic("unimplemented") }

// Rmdir removes an empty directory with its inode. Errors: ErrNotEmpty, ErrNotDir.
func (tx *Tx) Rmdir(parent uint64, name string, now int64) (Inode, error) { panic("unimplemented") }

// Rename flags, as in renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Rename moves a name, replacing newName as POSIX says; replaced is the inode that
// lost a name (Ino 0 for none; Nlink 0: orphan for the caller, as with Unlink;
// a replaced directory is gone already). Vaults cannot be renamed: ErrPerm. Renaming onto another link of the same inode does nothing.
func (tx *Tx) Rename(parent uint64, name string, newParent uint64, newName string, flags uint32, now int64) (moved, replaced Inode, err error) {
	panic("unimplemented")
}
