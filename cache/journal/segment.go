package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// segment is one file of records. Fields but refs never change once it has a successor.
type segment struct {
	header
	first, last uint64 // last is first-1 while it is empty
	size        int64  // bytes that count: a failed append may leave more for a moment
	f           *os.File
	refs        int // who still needs f: the journal while it appends, an fsync in flight. Guarded by Journal.mu
}

func (s *segment) release() error {
	s.refs--
	if s.refs > 0 {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// recordReader reads a segment's records in order and stops with io.EOF at a clean end.
type recordReader struct {
	r    *bufio.Reader
	seed uint32
	off  int64
	size int64
	next uint64 // sequence number that must come
	buf  []byte // reused between records unless keep
	keep bool
}

var errBadRecord = errors.New("record fails its checksum")

// read returns the next record's payload and stable number.
func (r *recordReader) read() (payload []byte, durable uint64, err error) {
	if r.off == r.size {
		return nil, 0, io.EOF
	}
	if r.size-r.off < recordSize {
		return nil, 0, errBadRecord
	}
	var head [recordSize]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return nil, 0, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	if n > r.size-r.off-recordSize || binary.LittleEndian.Uint64(head[8:]) != r.next {
		return nil, 0, errBadRecord
	}
	if r.keep || int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	payload = r.buf[:n]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		return nil, 0, err
	}
	if sum(r.seed, r.off, head[:], payload) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, 0, errBadRecord
	}
	r.off += recordSize + n
	r.next++
	return payload, binary.LittleEndian.Uint64(head[16:]), nil
}

// openSegment checks every record of a segment. It returns nil for one that was
// begun but never used, which it removes. snap is the newest snapshot, for the count of bytes after it.
func (j *Journal) openSegment(first uint64, newest bool, snap uint64, haveID *bool) (*segment, error) {
	name := segName(first)
	path := filepath.Join(j.dir, name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(headerSize, st.Size()))
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, err
	}
	h, err := decodeHeader(head, segMagic)
	switch {
	case errors.Is(err, ErrFormat):
		return nil, fmt.Errorf("%s: %w", name, err)
	case st.Size() <= headerSize && newest:
		// The header is synced before the first record is written, so nothing was ever here.
		return nil, os.Remove(path)
	case err != nil:
		return nil, fmt.Errorf("%s offset 0: %w", name, err)
	case h.seq != first:
		return nil, fmt.Errorf("%w: %s says it begins at %d", ErrDamaged, name, h.seq)
	case *haveID && h.id != j.id:
		return nil, fmt.Errorf("%w: %s belongs to another journal", ErrDamaged, name)
	}
	j.id, *haveID = h.id, true
	s := &segment{header: h, first: first, last: first - 1}
	r := &recordReader{r: bufio.NewReaderSize(f, 1<<20), seed: h.seed(), off: headerSize, size: st.Size(), next: first}
	for {
		at := r.off
		_, _, err := r.read()
		if err == io.EOF {
			break
		}
		if err == errBadRecord {
			if err := j.cutTail(s, f, at, st.Size(), newest, r.seed); err != nil {
				return nil, err
			}
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s offset %d: %w", name, at, err)
		}
		s.last = r.next - 1
		if s.last > snap {
			j.sinceSnap += r.off - at
		}
	}
	s.size = r.off
	if s.last < s.first {
		// Only a cut can leave an unused segment before another one's place; its number is needed again.
		if !newest {
			return nil, fmt.Errorf("%w: %s is empty but has a successor", ErrDamaged, name)
		}
		return nil, os.Remove(path)
	}
	if newest {
		// After a kill -9 what was just read may be in the page cache only.
		if err := j.fsync(f); err != nil {
			return nil, err
		}
		if err := syncDir(j.dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// cutTail decides what a record at off that is not intact means. The end of the
// newest segment may be torn: it is cut. If records follow it, it was either
// written and spoilt later, which is damage, or never reached the disk before
// the machine went down (file systems may write the pages of a file in any
// order): that shows in none of the records that follow having known it stable,
// and is possible only if the machine was started since.
func (j *Journal) cutTail(s *segment, f *os.File, off, size int64, newest bool, seed uint32) error {
	name := segName(s.first)
	damaged := func(why string) error {
		return fmt.Errorf("%w: %s offset %d, sequence %d: %s", ErrDamaged, name, off, s.last+1, why)
	}
	if !newest {
		return damaged("record fails its checksum, and a later segment exists")
	}
	if s.last < j.stable {
		return damaged(fmt.Sprintf("record fails its checksum, but those up to %d were on stable storage", j.stable))
	}
	tail := make([]byte, size-off)
	if _, err := f.ReadAt(tail, off); err != nil {
		return err
	}
	var n int
	var durable, lastSeq uint64
	for i := int64(1); i+recordSize <= int64(len(tail)); {
		head := tail[i : i+recordSize]
		l, seq := int64(binary.LittleEndian.Uint32(head)), binary.LittleEndian.Uint64(head[8:])
		rest := int64(len(tail)) - i - recordSize
		// Sequence numbers grow by one per record of at least 25 bytes; anything else is chance.
		if l <= rest && seq > s.last && seq-s.last <= uint64(len(tail)) &&
			sum(seed, off+i, head, tail[i+recordSize:i+recordSize+l]) == binary.LittleEndian.Uint32(head[4:]) {
			n++
			lastSeq = seq
			durable = max(durable, binary.LittleEndian.Uint64(head[16:]))
			i += recordSize + l
			continue
		}
		i++
	}
	switch {
	case n > 0 && durable > s.last:
		return damaged(fmt.Sprintf("record fails its checksum; %d intact records up to %d follow", n, lastSeq))
	case n > 0 && (s.boot == j.boot || s.boot == [16]byte{} || j.boot == [16]byte{}):
		return damaged(fmt.Sprintf("record fails its checksum; %d intact records up to %d follow and the machine was not restarted since", n, lastSeq))
	case n > 0:
		j.log.Error("journal lost records that were never synced when the machine went down", "segment", name, "offset", off, "last", s.last, "dropped_up_to", lastSeq)
	default:
		j.log.Warn("journal ends in a torn record; cut off", "segment", name, "offset", off, "bytes", size-off, "last", s.last)
	}
	if err := f.Truncate(off); err != nil {
		return err
	}
	return f.Sync()
}

// newSegment begins the segment for the next record: synced with its directory
// before any record, so that a record can never be lost for want of its file.
func (j *Journal) newSegmentLocked() error {
	path := filepath.Join(j.dir, segName(j.last+1))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	h := header{id: j.id, seq: j.last + 1, boot: j.boot}
	_, err = j.write(f, h.encode(segMagic), 0)
	if err == nil {
		err = j.fsync(f)
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		f.Close()
		return errors.Join(err, os.Remove(path))
	}
	j.cur = &segment{header: h, first: h.seq, last: h.seq - 1, size: headerSize, f: f, refs: 1}
	j.segs = append(j.segs, j.cur)
	return nil
}
