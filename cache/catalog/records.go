package catalog

// RootIno is the account's root directory.
const RootIno = 1

// Inode is a file system object. Times are nanoseconds since 1970.
type Inode struct {
	Ino                        uint64
	Vault                      uint64 // inode number of the vault directory it lives in; 0 for the account root
	Parent                     uint64 // directories only; the account root's and a vault's is RootIno
	Mode                       uint32 // type and permission bits as in st_mode
	UID                        uint32
	GID                        uint32
	Rdev                       uint32
	Nlink                      uint32
	Size                       int64
	Atime, Mtime, Ctime, Btime int64
	Version                    uint64 // current version of a regular file; 0 when it never had bytes
	Entries                    int64  // directories: number of entries
	Target                     string // symlinks
	Pinned                     bool   // never evicted automatically
}

// Dirent is a name in a directory. Cookie is unique within the directory,
// never zero, grows with every new entry and orders listings.
type Dirent struct {
	Parent uint64
	Name   string
	Ino    uint64
	Type   uint32 // Mode & S_IFMT
	Cookie uint64
}

// VersionState says where a version's bytes are authoritative.
type VersionState uint8

// The states of a version.
const (
	Staged    VersionState = 1 // only in the local staging file; size and mtime are that file's own
	Uploading VersionState = 2 // sealed: staging file frozen, uploads under way
	Archived  VersionState = 3 // extents are recorded; a local copy is disposable
)

// Extent places Len bytes of a version, in order, at Off of an archive.
type Extent struct {
	Archive uint64 // Archive.Num
	Off     int64
	Len     int64
}

// Version is one content of a file.
type Version struct {
	Ino, V     uint64
	State      VersionState
	Local      uint64 // local file in cache/content, 0 for none
	Complete   bool   // Archived: every byte is local and verified
	Damaged    bool   // the vault's copy failed verification or is gone
	Size       int64
	Mtime      int64
	TreeHash   [32]byte // of the whole version when it is one archive; zero otherwise
	Extents    []Extent
	StagedAt   int64 // when the version was last changed (settle clock after a restart)
	ArchivedAt int64
	Error      string // last permanent failure, for people
}

// ArchiveState says what is known of an archive at the service.
type ArchiveState uint8

// The states of an archive.
const (
	Live    ArchiveState = 1
	Trash   ArchiveState = 2 // no version needs it; deleted at the service after Deadline
	Deleted ArchiveState = 3 // deletion confirmed; kept so that a stale inventory cannot resurrect it
	Missing ArchiveState = 4 // absent from inventories that should list it
)

// Archive is one archive of a vault.
type Archive struct {
	Num         uint64 // the catalog's own number
	Vault       uint64 // vault directory's inode number
	VaultName   string
	ID          string // the service's
	Size        int64
	TreeHash    [32]byte
	Created     int64
	Description string
	Intent      string // of the upload that made it, "" for foreign ones
	State       ArchiveState
	Deadline    int64  // Trash: when deleting costs nothing; negative: it may have been asked for already
	Ino, V      uint64 // the version that uses it (small-file packing will use more than one)
	Misses      int    // consecutive inventories that should have listed it
	Confirmed   int64  // date of the last inventory that listed it
}

// UploadState is how far an upload has come.
type UploadState uint8

// The states of an upload.
const (
	Intended   UploadState = 1 // recorded, nothing asked yet or the answer is unknown
	Sending    UploadState = 2 // multipart: UploadID known
	Completing UploadState = 3 // multipart: Complete has been or is about to be asked
	Sent       UploadState = 4 // archive ID known (Archive set), version not yet committed
	Abandoned  UploadState = 5 // the version changed; to be aborted, an archive it made goes to the trash
)

// Upload is one archive on its way to the service: the intent, recorded before
// anything is asked, and what is known since.
type Upload struct {
	Intent      string // random, also in the archive's description
	Ino, V      uint64
	Seg, Segs   int // segment i of n, counted from 0
	Off, Size   int64
	Vault       uint64
	VaultName   string
	State       UploadState
	UploadID    string
	PartSize    int64
	Started     int64 // when UploadID was given (it lives 24 h)
	Archive     uint64
	TreeHash    [32]byte
	Description string
	Uncertain   bool // a request that may have made an archive went unanswered
	Attempts    int
	Error       string
	Permanent   bool // the service refuses it for good; data stays staged
}

// RetrievalState is how far a retrieval has come.
type RetrievalState uint8

// The states of a retrieval.
const (
	Wanted   RetrievalState = 1 // recorded before it is asked for
	Asked    RetrievalState = 2 // JobID known, running
	Ready    RetrievalState = 3 // output can be fetched until Expires
	Fetching RetrievalState = 4
	Failed   RetrievalState = 5 // given up, Error says why
)

// Retrieval brings a range of one archive back.
type Retrieval struct {
	ID                                 uint64
	Archive                            uint64
	VaultName                          string
	Off, Len                           int64
	Tier                               string
	State                              RetrievalState
	JobID                              string
	Created, AskedAt, ReadyAt, Expires int64
	Attempts                           int    // jobs asked for so far
	Expired                            int    // outputs that expired before they were fetched
	Explicit                           bool   // by `casfs recall`: not limited by the guard
	Uncertain                          bool   // asked, answer lost: look in List Jobs first
	Adopted                            bool   // the job was somebody else's
	Ahead                              bool   // asked for ahead of a reader; nobody has wanted it yet
	Ino, V                             uint64 // the version it is for
	Error                              string
}

// Vault is a vault of the account.
type Vault struct {
	Ino             uint64
	Name            string
	QCS             string
	Created         int64
	LastInventory   int64 // the service's LastInventoryDate
	Archives        int64 // as of then, -1 unknown
	Bytes           int64
	Merged          int64 // date of the newest inventory merged into the tree
	InventoryJob    string
	InventoryMarker string
	Gone            bool // no longer listed by the service
}
