package local

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// metaLog is an append-only file of checksummed lines: eight hexadecimal digits
// of CRC-32C, a blank, the record, a line feed. Appending is done in two steps
// so that the order in the file is the order in which the owner's lock was held
// while the slow part happens outside of it: enqueue, then wait. Waiters
// share writes and fsyncs.
type metaLog struct {
	f    *os.File
	path string
	info os.FileInfo // of f
	sync bool
	note func() // of every batch that was written; may be nil

	qmu      sync.Mutex
	queue    []byte
	dirs     map[string]*os.File // directories whose entries the queue relies on
	tickets  uint64              // batches begun
	size     int64               // bytes of the file once the queue is written
	reserved int64               // bytes allocated on disk

	// flushMu is held while a batch is written: whoever gets it next finds
	// its own record written already, or writes everything queued by then.
	flushMu sync.Mutex
	flushed uint64 // batches durable

	failed atomic.Pointer[error] // sticky: after a failed write or fsync nothing is known about the file's tail
}

const (
	reserveStep = 64 << 10
	reserveKept = 32 << 10 // not used by records that only take room
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendLine(b, record []byte) []byte {
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(record, castagnoli))
	b = append(b, record...)
	return append(b, '\n')
}

// parseLine checks a line without its line feed and returns the record.
func parseLine(line []byte) ([]byte, bool) {
	if len(line) < 10 || line[8] != ' ' {
		return nil, false
	}
	var sum uint32
	for _, c := range line[:8] {
		switch {
		case '0' <= c && c <= '9':
			sum = sum<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			sum = sum<<4 | uint32(c-'a'+10)
		default:
			return nil, false
		}
	}
	return line[9:], sum == crc32.Checksum(line[9:], castagnoli)
}

// replayed is what a replay found beside records.
type replayed struct {
	damaged bool  // bad lines, which are no torn tail
	torn    int64 // bytes of a torn tail, which a crash leaves
	good    int64 // where the last good line ends
}

// replay calls each for every record of the file. Damage before the last good line is skipped and reported, so
// that one bad sector does not hide the archives after it. One flipped bit costs no record, wherever it is.
func replay(path string, logger *slog.Logger, each func(record []byte) error) (found replayed, err error) {
	f, err := os.Open(path)
	if err != nil {
		return found, err
	}
	defer f.Close()
	damaged := false
	br := bufio.NewReaderSize(f, 1<<20)
	var off, good int64 // start of this line, end of the last good one
	whole := false      // a bad line since then has its line feed
	var long []byte     // the beginning of a line that exceeds the buffer
	var bad []byte      // what lies between good and off, as far as it may be made whole again
	unflipped := func() (bool, error) {
		records := unflip(bad)
		for _, r := range records {
			if err := each(r); err != nil {
				return false, fmt.Errorf("%s at %d: %w", path, good, err)
			}
		}
		if len(records) > 0 {
			logger.Error("one flipped bit undone", "file", path, "offset", good, "bytes", off-good)
		}
		return len(records) > 0, nil
	}
	for {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			long = append(long, line...)
			continue
		}
		if len(long) > 0 {
			line = append(long, line...)
			long = nil
		}
		if err != nil && err != io.EOF {
			return found, err
		}
		if err == io.EOF {
			off += int64(len(line))
			bad = append(bad, line[:min(len(line), maxUnflip+1)]...)
			break
		}
		if rec, ok := parseLine(line[:len(line)-1]); ok {
			if off > good {
				damaged = true
				if ok, err := unflipped(); err != nil {
					return found, err
				} else if !ok {
					logger.Error("damaged record skipped", "file", path, "offset", good, "bytes", off-good)
				}
			}
			if err := each(rec); err != nil {
				return found, fmt.Errorf("%s at %d: %w", path, off, err)
			}
			good = off + int64(len(line))
			whole, bad = false, bad[:0]
		} else {
			whole = true
			if len(bad) <= maxUnflip {
				bad = append(bad, line[:min(len(line), maxUnflip+1)]...)
			}
		}
		off += int64(len(line))
	}
	if ok, err := unflipped(); err != nil {
		return found, err
	} else if ok {
		return replayed{damaged: true, good: off}, nil
	}
	if whole {
		logger.Error("damaged record skipped", "file", path, "offset", good, "bytes", off-good)
		return replayed{damaged: true, good: off}, nil
	}
	return replayed{damaged: damaged, torn: off - good, good: good}, nil
}

// settleLog sees to it that what is read of a log is on the disk: a killed process may have written more than it synced, and after a
// failed fsync the kernel goes on to show what it did not write. Repetitions of what is in the log are acknowledged without another write.
func (s *Store) settleLog(path string) error {
	if s.noSync {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), forget(f), f.Close())
}

// openLog opens an existing file for appending.
func openLog(path string, sync bool) (*metaLog, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	l := &metaLog{f: f, path: path, info: info, sync: sync, dirs: map[string]*os.File{}, tickets: 1, size: size, reserved: size}
	for n := int64(reserveStep); n >= 4<<10; n /= 2 { // on a full disk, what an earlier process left
		if reserve(f, size, n) == nil {
			l.reserved += n
			break
		}
	}
	return l, nil
}

// enqueue adds a record to the next batch and returns the ticket to wait on.
// dir, when not empty, is a directory to be synced before the record is written. keep is how much of what is
// reserved has to remain on a full disk, for records that give room back.
// It fails, without effect, when the disk has no room, the directory cannot be opened or the log is broken.
func (l *metaLog) enqueue(record []byte, dir string, keep int64) (uint64, error) {
	if err := l.broken(); err != nil {
		return 0, err
	}
	l.qmu.Lock()
	defer l.qmu.Unlock()
	need := l.size + int64(len(record)) + 10
	if need+reserveKept > l.reserved {
		to := need + reserveStep
		if err := reserve(l.f, l.reserved, to-l.reserved); err == nil {
			l.reserved = to
		} else if need+keep > l.reserved {
			return 0, err
		}
	}
	if dir != "" && l.sync && l.dirs[dir] == nil {
		f, err := os.Open(dir)
		if err != nil {
			return 0, err
		}
		l.dirs[dir] = f
	}
	l.queue = appendLine(l.queue, record)
	l.size = need
	return l.tickets, nil
}

// wait returns when the batch of ticket is on disk, in the log that the next Open reads.
func (l *metaLog) wait(ticket uint64) error {
	if err := l.flush(ticket); err != nil {
		return err
	}
	return l.there()
}

// flush returns when the batch of ticket is on disk.
func (l *metaLog) flush(ticket uint64) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.flushed >= ticket {
		return nil
	}
	if err := l.broken(); err != nil {
		return err
	}
	l.qmu.Lock()
	batch, dirs, upto := l.queue, l.dirs, l.tickets
	l.queue, l.dirs = nil, map[string]*os.File{}
	l.tickets++
	l.qmu.Unlock()

	if err := l.write(batch, dirs); err != nil {
		err = fmt.Errorf("the store must be restarted: %w", err)
		l.failed.Store(&err)
		return err
	}
	l.flushed = upto
	if l.note != nil && len(batch) > 0 {
		l.note()
	}
	return nil
}

// barrier returns when every record queued so far is on disk: for replies that
// repeat what another request has recorded and may still be waiting for.
func (l *metaLog) barrier() error {
	l.qmu.Lock()
	t := l.tickets
	if len(l.queue) == 0 {
		t-- // at most the batch that is being written
	}
	l.qmu.Unlock()
	return l.wait(t)
}

func (l *metaLog) write(batch []byte, dirs map[string]*os.File) error {
	var err error
	for _, d := range dirs {
		err = errors.Join(err, d.Sync(), d.Close())
	}
	if err != nil {
		return err
	}
	if _, err := l.f.Write(batch); err != nil {
		return err
	}
	if l.sync {
		return l.f.Sync()
	}
	return nil
}

// broken returns the sticky error.
func (l *metaLog) broken() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// close writes what is queued. What is reserved stays so: the disk may be full when the file is opened again.
func (l *metaLog) close() error {
	l.qmu.Lock()
	t := l.tickets
	pending := len(l.queue) > 0
	l.qmu.Unlock()
	var err error
	if pending {
		err = l.flush(t)
	}
	for _, d := range l.dirs { // of a broken log
		d.Close()
	}
	return errors.Join(err, l.f.Close())
}

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

// replaceFile puts b in place of the file at path, atomically.
func replaceFile(path string, b []byte, mode os.FileMode, sync bool) error {
	return replaceWith(path, mode, sync, func(w *bufio.Writer) {
		w.Write(b) // its error comes with Flush
	})
}

// replaceWith lets fill write a temporary neighbour of path and renames it.
func replaceWith(path string, mode os.FileMode, sync bool, fill func(*bufio.Writer)) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	bw := bufio.NewWriterSize(f, 64<<10)
	fill(bw)
	err = bw.Flush()
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}
