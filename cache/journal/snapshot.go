package journal

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// WriteSnapshot stores a complete, checksummed dump of all keys as of seq (fsynced,
// then renamed into place) and removes segments and snapshots it makes superfluous, keeping one older snapshot.
// The records up to seq are synced first. On an error the older snapshots and all segments are as before.
func (j *Journal) WriteSnapshot(seq uint64, all iter.Seq2[Op, error]) error {
	j.snapMu.Lock()
	defer j.snapMu.Unlock()
	// A snapshot that survived a power loss its records did not would leave a
	// hole that makes the older snapshot useless.
	if err := j.barrier(seq); err != nil {
		return err
	}
	j.mu.Lock()
	err := j.usableLocked()
	if err == nil && (seq > j.last || len(j.snaps) > 0 && seq < j.snaps[len(j.snaps)-1]) {
		err = fmt.Errorf("snapshot of %d is out of order (last record %d, snapshots %v)", seq, j.last, j.snaps)
	}
	before := j.sinceSnap
	exists := len(j.snaps) > 0 && j.snaps[len(j.snaps)-1] == seq
	j.mu.Unlock()
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, snapName(seq))
	tmp := path + ".tmp"
	if err := j.dump(tmp, seq, all); err != nil {
		return errors.Join(fmt.Errorf("snapshot: %w", err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !exists {
		j.snaps = append(j.snaps, seq)
	}
	j.sinceSnap -= before
	return j.pruneLocked()
}

// Create makes a journal of one snapshot in o.Dir, which must be empty or
// absent: for an owner who has everything as of seq from elsewhere. id is that of the journal it stands for.
func Create(o Options, id string, seq uint64, all iter.Seq2[Op, error]) error {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	if names, err := os.ReadDir(o.Dir); err != nil || len(names) > 0 {
		return errors.Join(err, fmt.Errorf("%s is not empty", o.Dir))
	}
	j := &Journal{dir: o.Dir, boot: bootID(), fsync: fdatasync}
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != len(j.id) {
		return fmt.Errorf("journal id %q", id)
	}
	copy(j.id[:], b)
	path := filepath.Join(o.Dir, snapName(seq))
	if err := j.dump(path+".tmp", seq, all); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(o.Dir)
}

func (j *Journal) dump(path string, seq uint64, all iter.Seq2[Op, error]) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := header{id: j.id, seq: seq, boot: j.boot}
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := w.Write(h.encode(snapMagic)); err != nil {
		return err
	}
	seed, off, synced := h.seed(), int64(headerSize), int64(0)
	var n uint64
	buf := make([]byte, blockSize, blockSize+snapBlockAt+4096)
	flush := func() error {
		head, payload := buf[:blockSize], buf[blockSize:]
		binary.LittleEndian.PutUint32(head, uint32(len(payload)))
		binary.LittleEndian.PutUint64(head[8:], n)
		binary.LittleEndian.PutUint32(head[4:], sum(seed, off, head, payload))
		off += int64(len(buf))
		_, err := w.Write(buf)
		buf = buf[:blockSize]
		return err
	}
	for op, err := range all {
		if err != nil {
			return err
		}
		n++
		buf = binary.AppendUvarint(buf, uint64(len(op.Key)))
		buf = append(buf, op.Key...)
		buf = binary.AppendUvarint(buf, uint64(len(op.Value)))
		buf = append(buf, op.Value...)
		if len(buf) < blockSize+snapBlockAt {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		// In portions, so that a barrier never waits for hundreds of megabytes.
		if off-synced >= syncEvery {
			synced = off
			if err := errors.Join(w.Flush(), j.fsync(f)); err != nil {
				return err
			}
		}
	}
	if len(buf) > blockSize {
		if err := flush(); err != nil {
			return err
		}
	}
	if err := flush(); err != nil { // the empty block that ends it
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return j.fsync(f)
}

// pruneLocked keeps the two newest snapshots and the segments the older one needs.
func (j *Journal) pruneLocked() error {
	var errs []error
	for len(j.snaps) > 2 {
		errs = append(errs, os.Remove(filepath.Join(j.dir, snapName(j.snaps[0]))))
		j.snaps = j.snaps[1:]
	}
	// With a single snapshot everything stays: were it damaged, the records from the first on replace it.
	for len(j.snaps) == 2 && len(j.segs) > 0 && j.segs[0] != j.cur && j.segs[0].last <= j.snaps[0] {
		errs = append(errs, os.Remove(filepath.Join(j.dir, segName(j.segs[0].first))))
		j.segs = j.segs[1:]
	}
	return errors.Join(errs...)
}

// LoadSnapshot yields the newest intact snapshot's pairs and returns its
// sequence number; 0 and no pairs when there is none. A damaged one is skipped with a log line in favour of the older.
// Every checksum is verified before the first pair is handed out; each may keep what it is given.
func (j *Journal) LoadSnapshot(each func(Op) error) (uint64, error) {
	snaps := j.Snapshots()
	slices.Reverse(snaps)
	for _, seq := range snaps {
		err := j.readSnapshot(seq, nil)
		if errors.Is(err, ErrDamaged) || errors.Is(err, os.ErrNotExist) {
			j.log.Error("journal snapshot is damaged; trying an older one", "file", snapName(seq), "err", err)
			j.note("%v; what came before it has taken its place", err)
			continue
		}
		if err != nil {
			return 0, err
		}
		return seq, j.readSnapshot(seq, each)
	}
	return 0, nil
}

// DropSnapshot sets a damaged snapshot aside (as a .damaged file, for people), so
// that it does not count as one of the two that are kept.
func (j *Journal) DropSnapshot(seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.snaps, seq)
	if i < 0 {
		return nil
	}
	path := filepath.Join(j.dir, snapName(seq))
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	j.snaps = slices.Delete(j.snaps, i, i+1)
	// From the segments' sizes, which is near enough to know when the next snapshot is due.
	var newest uint64
	if n := len(j.snaps); n > 0 {
		newest = j.snaps[n-1]
	}
	j.sinceSnap = 0
	for _, s := range j.segs {
		if s.last > newest {
			j.sinceSnap += s.size
		}
	}
	return nil
}

// CheckSnapshots reads every snapshot kept and reports those that are damaged.
func (j *Journal) CheckSnapshots(report func(seq uint64, err error)) {
	for _, seq := range j.Snapshots() {
		if err := j.readSnapshot(seq, nil); err != nil {
			report(seq, err)
		}
	}
}

// readSnapshot checks a snapshot and, when each is given, hands out its pairs.
func (j *Journal) readSnapshot(seq uint64, each func(Op) error) error {
	name := snapName(seq)
	f, err := os.Open(filepath.Join(j.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	damaged := func(off int64, why string) error {
		return fmt.Errorf("%w: %s offset %d: %s", ErrDamaged, name, off, why)
	}
	r := bufio.NewReaderSize(f, 1<<20)
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return damaged(0, "too short")
	}
	h, err := decodeHeader(head, snapMagic)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.id != j.id || h.seq != seq {
		return damaged(0, "belongs to another journal or sequence")
	}
	seed, off, n := h.seed(), int64(headerSize), uint64(0)
	var payload []byte
	for {
		head = head[:blockSize]
		if _, err := io.ReadFull(r, head); err != nil {
			return damaged(off, "ends early")
		}
		l := int64(binary.LittleEndian.Uint32(head))
		if l > st.Size()-off-blockSize {
			return damaged(off, "ends early")
		}
		if each != nil || int64(cap(payload)) < l {
			payload = make([]byte, l)
		}
		payload = payload[:l]
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		if sum(seed, off, head, payload) != binary.LittleEndian.Uint32(head[4:]) {
			return damaged(off, "block fails its checksum")
		}
		off += blockSize + l
		if l == 0 {
			break
		}
		for b := payload; len(b) > 0; n++ {
			var op Op
			for _, field := range []*[]byte{&op.Key, &op.Value} {
				var l uint64
				if l, b, err = take(b); err != nil || l > uint64(len(b)) {
					return damaged(off, "malformed pair")
				}
				*field, b = b[:l:l], b[l:]
			}
			if each == nil {
				continue
			}
			if err := each(op); err != nil {
				return err
			}
		}
		if n != binary.LittleEndian.Uint64(head[8:]) {
			return damaged(off, "wrong number of pairs")
		}
	}
	if n != binary.LittleEndian.Uint64(head[8:]) || off != st.Size() {
		return damaged(off, "wrong number of pairs or bytes after the end")
	}
	return nil
}

// SnapshotBytes returns the size of the newest snapshot, 0 for none.
func (j *Journal) SnapshotBytes() int64 {
	snaps := j.Snapshots()
	if len(snaps) == 0 {
		return 0
	}
	st, err := os.Stat(filepath.Join(j.dir, snapName(snaps[len(snaps)-1])))
	if err != nil {
		return 0
	}
	return st.Size()
}

// Segments returns the number of segment files. Every Open that appends adds one; snapshots remove them.
func (j *Journal) Segments() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.segs)
}
