package journal

import (
	"errors"
	"fmt"
)

// Append writes records with consecutive sequence numbers starting at Last()+1
// in one write(2) and returns the last number. On an error (disk full) nothing was appended.
func (j *Journal) Append(batches [][]Op) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usableLocked(); err != nil {
		return 0, err
	}
	if len(batches) == 0 {
		return j.last, nil
	}
	if err := j.rotateLocked(); err != nil {
		return 0, err
	}
	s := j.cur
	seed, seq := s.seed(), j.last
	b := j.buf[:0]
	var err error
	for _, ops := range batches {
		seq++
		if b, err = appendRecord(b, seed, s.size+int64(len(b)), seq, j.durable, ops); err != nil {
			return 0, err
		}
	}
	if cap(b) <= 4<<20 {
		j.buf = b
	}
	if n, err := j.write(s.f, b, s.size); err != nil {
		if n > 0 {
			if terr := s.f.Truncate(s.size); terr != nil {
				// What is left of the record would be in the way of the next one.
				j.failLocked(errors.Join(err, terr))
			}
		}
		return 0, fmt.Errorf("journal: %w", err)
	}
	s.size += int64(len(b))
	s.last = seq
	j.last = seq
	j.sinceSnap += int64(len(b))
	return seq, nil
}

// rotateLocked makes j.cur a segment with room. The full one is synced first: only the newest segment may have a torn end.
func (j *Journal) rotateLocked() error {
	if j.cur != nil && j.cur.size < j.segmentSize {
		return nil
	}
	if old := j.cur; old != nil {
		if err := j.fsync(old.f); err != nil {
			return j.failLocked(err)
		}
		j.durable = max(j.durable, old.last)
		j.cur = nil
		if err := old.release(); err != nil {
			j.log.Warn("closing a journal segment", "segment", segName(old.first), "err", err)
		}
	}
	if err := j.newSegmentLocked(); err != nil {
		return fmt.Errorf("journal: new segment: %w", err)
	}
	return nil
}

func (j *Journal) usableLocked() error {
	if j.closed {
		return ErrClosed
	}
	return j.failed
}

// failLocked makes every later Append and Barrier fail.
func (j *Journal) failLocked(err error) error {
	if j.failed == nil {
		j.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		j.log.Error("journal failed; no more changes until it is opened again", "err", err)
	}
	return j.failed
}
