package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// Replay yields the records after seq, oldest first, up to the newest at the
// time of the call. The caller may keep what it is given. Errors: ErrGap, ErrDamaged.
func (j *Journal) Replay(after uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		j.mu.Lock()
		last := j.last
		segs := make([]segment, 0, len(j.segs))
		for _, s := range j.segs {
			if s.last > after && s.last >= s.first {
				segs = append(segs, segment{header: s.header, first: s.first, last: s.last, size: s.size})
			}
		}
		j.mu.Unlock()
		next := after + 1
		for i := range segs {
			s := &segs[i]
			if s.first > next {
				break // the gap is reported below
			}
			for rec, err := range j.records(s) {
				if err != nil {
					yield(Record{}, err)
					return
				}
				if rec.Seq < next {
					continue
				}
				if !yield(rec, nil) {
					return
				}
				next = rec.Seq + 1
			}
		}
		if next <= last {
			yield(Record{}, fmt.Errorf("%w: from %d on, the journal goes to %d", ErrGap, next, last))
		}
	}
}

// records yields one segment.
func (j *Journal) records(s *segment) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		name := segName(s.first)
		f, err := os.Open(filepath.Join(j.dir, name))
		if err != nil {
			yield(Record{}, err)
			return
		}
		defer f.Close()
		if _, err := f.Seek(headerSize, io.SeekStart); err != nil {
			yield(Record{}, err)
			return
		}
		r := &recordReader{r: bufio.NewReaderSize(f, 1<<20), seed: s.seed(), off: headerSize, size: s.size, next: s.first, keep: true}
		for {
			at, seq := r.off, r.next
			payload, _, err := r.read()
			if err == io.EOF {
				return
			}
			var ops []Op
			if err == nil {
				ops, err = decodeOps(payload)
			}
			if errors.Is(err, errBadRecord) || errors.Is(err, errMalformed) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %s offset %d, sequence %d: %w", ErrDamaged, name, at, seq, err)
			}
			if !yield(Record{Seq: seq, Ops: ops}, err) || err != nil {
				return
			}
		}
	}
}

// Oldest returns the sequence number after which Replay can begin: 0 when every record ever written is kept.
func (j *Journal) Oldest() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 {
		return j.last
	}
	return j.segs[0].first - 1
}

// Snapshots returns the sequence numbers of the snapshots kept, oldest first.
func (j *Journal) Snapshots() []uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.snaps)
}
