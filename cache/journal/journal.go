// Package journal keeps an append-only sequence of records in segment files.
// A record that Append returned for survives kill -9; one that a Barrier
// covered survives power loss. Snapshots bound what must be replayed. The
// journal knows bytes and sequence numbers, nothing of files or keys' meaning.
//
// # Files
//
// All integers in headers are little endian, all checksums CRC-32C
// (Castagnoli), every name carries a sequence number as 16 hexadecimal digits:
//
//	seg-0000000000000001.log   records from that sequence number on
//	snap-00000000000003e8.dump every key as of that sequence number
//	*.tmp                      a snapshot being written; removed at Open
//
// # Segment, version 1
//
// A header of 64 bytes, then records without padding. Every Open that appends
// begins a new segment; a segment that has a successor never changes again.
//
//	 0  8  magic "CASFSJNL"
//	 8  4  format version (1); a larger one is refused with ErrFormat
//	12  4  length of this header (64)
//	16 16  journal id, random, the same in every segment and snapshot
//	32  8  sequence number of the first record
//	40 16  boot id of the machine when the segment was begun (zero: unknown)
//	56  4  zero
//	60  4  checksum of bytes 0 to 59
//
// Record:
//
//	 0  4  length of the payload
//	 4  4  checksum over journal id, first sequence number of the segment, offset of
//	       the record in the file (8 bytes), bytes 0 to 3 and 8 to 23, payload
//	 8  8  sequence number: one more than the record before
//	16  8  sequence number known to be on stable storage when this was written
//	24  …  payload: uvarint number of changes, then for each change uvarint length
//	       of the key, key, uvarint 0 (delete) or length of the value plus 1, value
//
// The offset in the checksum keeps a copy of a record inside a value from being
// taken for a record. The stable sequence number tells, after a power loss, a
// record that was never promised from one that was.
//
// # Snapshot, version 1
//
// A header like a segment's with magic "CASFSNAP" and the snapshot's sequence
// number, then blocks:
//
//	 0  4  length of the payload, 0 in the last block
//	 4  4  checksum over journal id, sequence number, offset of the block (8 bytes), bytes 0 to 3 and 8 to 15, payload
//	 8  8  number of pairs up to and including this block
//	16  …  payload: for each pair uvarint length of the key, key, uvarint length of the value, value
//
// A snapshot without its last block, or with bytes after it, is damaged.
package journal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// Stable is a sequence number the owner knows to have been on stable storage:
	// a journal that ends before it is damaged, not torn.
	Stable uint64
	Logger *slog.Logger
}

// Errors of a damaged journal. A torn last record is not damage: it was never acknowledged durable and is cut off with a log line.
var (
	ErrDamaged = errors.New("journal is damaged")          // a record in the middle fails its checksum; the error names segment, offset and sequence
	ErrGap     = errors.New("journal records are missing") // the oldest record kept is newer than what was asked for
	ErrFormat  = errors.New("journal format is newer than this program")
	ErrFailed  = errors.New("journal failed earlier and takes no more records") // after a failed fsync; only a restart helps
	ErrClosed  = errors.New("journal is closed")
)

// Journal is an open journal; one process holds it. Safe for concurrent use.
type Journal struct {
	dir         string
	segmentSize int64
	stable      uint64
	log         *slog.Logger
	id          [16]byte
	boot        [16]byte

	// Replaced by tests to count, delay and fail.
	fsync func(*os.File) error
	write func(f *os.File, b []byte, off int64) (int, error)

	snapMu sync.Mutex // one WriteSnapshot at a time

	mu        sync.Mutex
	segs      []*segment // oldest first; the last one is open for appending when cur is set
	cur       *segment
	snaps     []uint64 // with a readable header, oldest first
	last      uint64
	durable   uint64 // everything up to here is on stable storage
	sinceSnap int64  // bytes of records after the newest snapshot
	buf       []byte
	running   *round // the fsync in flight
	queued    *round // the one after it, for those whom the running one does not serve
	failed    error
	closed    bool
	damage    []string // found and worked around
}

// Open opens or creates the journal in o.Dir, checks every segment's
// checksums and cuts a torn tail. Errors: ErrDamaged, ErrFormat.
func Open(o Options) (*Journal, error) {
	if o.SegmentSize == 0 {
		o.SegmentSize = 64 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	j := &Journal{
		dir:         o.Dir,
		segmentSize: o.SegmentSize,
		stable:      o.Stable,
		log:         o.Logger,
		boot:        bootID(),
		fsync:       fdatasync,
		write:       func(f *os.File, b []byte, off int64) (int, error) { return f.WriteAt(b, off) },
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := j.scan(); err != nil {
		return nil, err
	}
	return j, nil
}

// Exists reports whether dir holds segments or snapshots, without opening
// them: an empty journal where there was one before is a loss, not a start.
func Exists(dir string) (bool, error) {
	segs, snaps, _, err := list(dir)
	return len(segs)+len(snaps) > 0, err
}

// list sorts the names in dir by kind and sequence number.
func list(dir string) (segs, snaps []uint64, tmp []string, err error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil, nil
	}
	for _, e := range names {
		name := e.Name()
		if strings.HasSuffix(name, ".tmp") {
			tmp = append(tmp, name)
		} else if seq, ok := parseName(name, "seg-", ".log"); ok {
			segs = append(segs, seq)
		} else if seq, ok := parseName(name, "snap-", ".dump"); ok {
			snaps = append(snaps, seq)
		}
	}
	slices.Sort(segs)
	slices.Sort(snaps)
	return segs, snaps, tmp, err
}

func parseName(name, prefix, suffix string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	s, ok = strings.CutSuffix(s, suffix)
	if !ok || len(s) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(s, 16, 64)
	return seq, err == nil
}

func segName(seq uint64) string  { return fmt.Sprintf("seg-%016x.log", seq) }
func snapName(seq uint64) string { return fmt.Sprintf("snap-%016x.dump", seq) }

// scan reads what is in the directory and brings the Journal up to it.
func (j *Journal) scan() error {
	segs, snaps, tmp, err := list(j.dir)
	if err != nil {
		return err
	}
	for _, name := range tmp {
		if err := os.Remove(filepath.Join(j.dir, name)); err != nil {
			return err
		}
	}
	haveID := false
	for _, seq := range snaps {
		h, err := readHeader(filepath.Join(j.dir, snapName(seq)), snapMagic)
		if errors.Is(err, ErrFormat) {
			return err
		}
		if err == nil && h.seq != seq {
			err = fmt.Errorf("%w: %s holds sequence %d", ErrDamaged, snapName(seq), h.seq)
		}
		if err == nil && haveID && h.id != j.id {
			err = fmt.Errorf("%w: %s belongs to another journal", ErrDamaged, snapName(seq))
		}
		if err != nil {
			j.log.Error("journal snapshot is unusable", "file", snapName(seq), "err", err)
			j.note("the snapshot %s of the journal is unusable (%v)", snapName(seq), err)
			continue
		}
		j.id, haveID = h.id, true
		j.snaps = append(j.snaps, seq)
	}
	var snap uint64
	if n := len(j.snaps); n > 0 {
		snap = j.snaps[n-1]
	}
	for i, first := range segs {
		newest := i == len(segs)-1
		s, err := j.openSegment(first, newest, snap, &haveID)
		if errors.Is(err, ErrDamaged) && !newest && segs[i+1]-1 <= snap {
			// Only the older snapshot needs it. Replay fails on it if it comes to that.
			j.log.Error("a journal segment is damaged, but a newer snapshot covers it", "err", err, "snapshot", snap)
			j.note("%v; a newer snapshot covers it", err)
			s, err = &segment{first: first, last: segs[i+1] - 1}, nil
		}
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if n := len(j.segs); n > 0 && j.segs[n-1].last+1 != s.first {
			p := j.segs[n-1]
			if p.last+1 > s.first {
				return fmt.Errorf("%w: %s begins at %d, but %s goes on to %d", ErrDamaged, segName(s.first), s.first, segName(p.first), p.last)
			}
			if snap < s.first-1 {
				return fmt.Errorf("%w: records %d to %d are missing between %s and %s", ErrDamaged, p.last+1, s.first-1, segName(p.first), segName(s.first))
			}
			// The newest snapshot stands for what is missing; only the older one is useless now.
			j.log.Error("journal records are missing, but a newer snapshot covers them", "from", p.last+1, "to", s.first-1, "snapshot", snap)
			j.note("the journal's records %d to %d are missing; a newer snapshot covers them", p.last+1, s.first-1)
		}
		j.segs = append(j.segs, s)
		j.last = s.last
	}
	if j.last < snap {
		// WriteSnapshot syncs the records it covers first, so this is a lost
		// segment; the owner, who knows how far it had come, decides whether more is lost.
		j.log.Error("journal ends before its newest snapshot", "last", j.last, "snapshot", snap)
		j.note("the journal ends at record %d, before its newest snapshot, of %d", j.last, snap)
		j.last = snap
	}
	if j.last < j.stable {
		return fmt.Errorf("%w: it ends at record %d, but those up to %d were on stable storage", ErrDamaged, j.last, j.stable)
	}
	if !haveID {
		rand.Read(j.id[:])
	}
	j.durable = j.last
	return nil
}

// ID returns the journal's random id in hexadecimal. An empty journal gets its id at Open and keeps it from the first Append on.
func (j *Journal) ID() string { return hex.EncodeToString(j.id[:]) }

// note remembers damage that cost nothing, once.
func (j *Journal) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Contains(j.damage, text) {
		j.damage = append(j.damage, text)
	}
}

// Damage tells, in plain words, what Open and LoadSnapshot found damaged and could do without.
func (j *Journal) Damage() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damage)
}

// Last returns the newest sequence number, 0 when nothing was ever written.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Durable returns the sequence number up to which everything is known to be on stable storage.
func (j *Journal) Durable() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// Size returns the bytes of the journal since the last snapshot.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.sinceSnap
}

// Close syncs and closes.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	last, failed := j.last, j.failed
	j.mu.Unlock()
	err := failed
	if err == nil {
		err = j.barrier(last)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.cur != nil {
		err = errors.Join(err, j.cur.release())
		j.cur = nil
	}
	return err
}
