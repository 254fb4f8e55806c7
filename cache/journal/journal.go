// Package journal keeps an append-only sequence of records in segment files.
// A record that Append returned for survives kill -9; one that a Barrier
// covered survives power loss. Snapshots bound what must be replayed. The
// journal knows bytes and sequence numbers, nothing of files or keys' meaning.
package journal

import (
	"context"
	"errors"
	"iter"
	"log/slog"
)

// Op is one key change. A nil Value deletes the key.
type Op struct{ Key, Value []byte }

// Record is one atomic batch of changes.
type Record struct {
	Seq uint64
	Ops []Op
}

// Options configure a Journal.
type Options struct {
	Dir         string
	SegmentSize int64 // bytes before a new segment begins; 0: 64 MiB
	Logger      *slog.Logger
}

// Errors of a damaged journal. A torn last record is not damage: it was never acknowledged durable and is cut off with a log line.
var (
	ErrDamaged = errors.New("journal is damaged")          // a record in the middle fails its checksum; the error names segment, offset and sequence
	ErrGap     = errors.New("journal records are missing") // the oldest record kept is newer than what was asked for
	ErrFormat  = errors.New("journal format is newer than this program")
)

// Journal is an open journal; one process holds it. Safe for concurrent use.
type Journal struct{ impl journalImpl }

type journalImpl struct{}

// Open opens or creates the journal in o.Dir, checks every segment's
// checksums and cuts a torn tail. Errors: ErrDamaged, ErrFormat.
func Open(o Options) (*Journal, error) { panic("unimplemented") }

// Last returns the newest sequence number, 0 when nothing was ever written.
func (j *Journal) Last() uint64 { panic("unimplemented") }

// Append writes records with consecutive sequence numbers starting at Last()+1
// in one write(2) and returns the last number. On an error (disk full) nothing was appended.
func (j *Journal) Append(batches [][]Op) (uint64, error) { panic("unimplemented") }

// Barrier blocks until everything up to seq is on stable storage; one fsync
// serves all who wait. ctx ends the waiting, not the fsync. After a failed fsync every later Barrier and Append fails (the page cache cannot be trusted).
func (j *Journal) Barrier(ctx context.Context, seq uint64) error { panic("unimplemented") }

// Replay yields the records after seq, oldest first. Errors: ErrGap, ErrDamaged.
func (j *Journal) Replay(after uint64) iter.Seq2[Record, error] { panic("unimplemented") }

// WriteSnapshot stores a complete, checksummed dump of all keys as of seq (fsynced,
// then renamed into place) and removes segments and snapshots it makes superfluous, keeping one older snapshot.
func (j *Journal) WriteSnapshot(seq uint64, all iter.Seq2[Op, error]) error { panic("unimplemented") }

// LoadSnapshot yields the newest intact snapshot's pairs and returns its
// sequence number; 0 and no pairs when there is none. A damaged one is skipped with a log line in favour of the older.
func (j *Journal) LoadSnapshot(each func(Op) error) (uint64, error) { panic("unimplemented") }

// Size returns the bytes of the journal since the last snapshot.
func (j *Journal) Size() int64 { panic("unimplemented") }

// Close syncs and closes.
func (j *Journal) Close() error { panic("unimplemented") }
