package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// mark is how far the log of a vault was known to be. A log that ends before has lost records: it is a copy from an earlier
// day, or its end did not survive. What archives were made since then only their files tell.
type mark struct {
	name    string // of the vault; "": not known, or written by an older program, which left vaults in it that it had deleted
	created int64  // of the vault; 0: any
	seq     uint64 // math.MaxUint64: more than the log that was found unreadable may ever say
}

// behind reports whether the vault's log ends before the mark.
func (m mark) behind(v *vault) bool {
	return (m.created == 0 || m.created == v.created) && v.seq < m.seq
}

// readMarks reads DIR/mark, which stores of older programs do not have. What cannot be read protects nothing, and harms nothing.
func (s *Store) readMarks() {
	s.marks = map[string]mark{}
	path := filepath.Join(s.dir, "mark")
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		s.logger.Error("cannot read how far the logs were", "file", path, "error", err)
	}
	for line := range bytes.Lines(b) {
		var r record
		if b, ok := parseLine(bytes.TrimSuffix(line, []byte("\n"))); !ok || json.Unmarshal(b, &r) != nil {
			s.logger.Error("damaged record skipped", "file", path)
			continue
		}
		s.marks[r.Name] = mark{name: r.Text, created: r.At, seq: r.Seq}
	}
	s.written = maps.Clone(s.marks)
}

// passing reports whether a log could not be opened for a reason that says nothing of what is in it.
func passing(why error) bool {
	return slices.ContainsFunc([]error{fs.ErrPermission, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EROFS},
		func(err error) bool { return errors.Is(why, err) })
}

// markEvery is how often, at most, the mark follows the logs of an open store. What a log has lost that was younger is not noticed
// when the store was killed.
const markEvery = 10 * time.Second

// markLater sees to it that the mark soon says what has been recorded now.
func (s *Store) markLater() {
	s.markMu.Lock()
	defer s.markMu.Unlock()
	if s.markTimer == nil && !s.markClosed {
		s.markTimer = time.AfterFunc(markEvery, func() { s.work.start(s.follow) })
	}
}

// follow writes how far the logs of an open store are.
func (s *Store) follow() {
	s.markMu.Lock()
	s.markTimer = nil
	s.markMu.Unlock()
	s.mu.RLock()
	vaults := slices.Collect(maps.Values(s.vaults))
	s.mu.RUnlock()
	if !s.following.TryLock() { // it waits for a disk
		s.markLater()
		return
	}
	defer s.following.Unlock()
	if s.there() != nil {
		return
	}
	s.setMarks(vaults)
}

// endMarks ends what markLater has begun.
func (s *Store) endMarks() {
	s.markMu.Lock()
	defer s.markMu.Unlock()
	s.markClosed = true
	if s.markTimer != nil {
		s.markTimer.Stop()
	}
}

// durable returns how far the vault's log is on the disk at least. What is only in memory after a power loss would make the log look short.
func (v *vault) durable() (seq uint64, err error) {
	v.mu.Lock()
	seq = v.seq
	v.mu.Unlock()
	return seq, v.log.barrier()
}

// deleted reports whether the vault is, or is about to be.
func (v *vault) deleted() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gone
}

// forgetMark takes a vault that is being deleted out of the mark, lest the next Open miss it.
func (s *Store) forgetMark(base string) error {
	s.marksMu.Lock()
	defer s.marksMu.Unlock()
	marks := maps.Clone(s.marks)
	delete(marks, base)
	err := s.writeMarks(marks)
	if errors.Is(err, syscall.ENOSPC) {
		err = s.shortenMarks(marks, err)
	}
	if err == nil {
		s.marks = marks
	}
	return err
}

// setMarks writes how far the logs are: at Open, at Close and now and then between.
func (s *Store) setMarks(vaults []*vault) {
	type reached struct {
		seq uint64
		err error
	}
	logs := make([]reached, len(vaults))
	for i, v := range vaults { // with nothing locked: a disk may not answer
		logs[i].seq, logs[i].err = v.durable()
	}
	s.marksMu.Lock()
	defer s.marksMu.Unlock()
	marks := map[string]mark{}
	for base, b := range s.broken {
		m, known := s.marks[base]
		if !passing(b.why) && !errors.Is(b.why, errMissing) {
			marks[base] = mark{name: m.name, created: m.created, seq: math.MaxUint64}
		} else if known {
			marks[base] = m
		}
	}
	for i, v := range vaults {
		base := filepath.Base(v.dir)
		if v.deleted() {
			continue
		}
		if logs[i].err != nil { // what is in memory may not be in the log
			if m, known := s.marks[base]; known {
				marks[base] = m
			}
			continue
		}
		marks[base] = mark{name: v.name, created: v.created, seq: logs[i].seq}
	}
	s.marks = marks
	if err := s.writeMarks(marks); err != nil {
		s.logger.Warn("cannot write how far the logs are", "error", err)
	}
}

func (s *Store) writeMarks(marks map[string]mark) error {
	if maps.Equal(marks, s.written) {
		return nil
	}
	if err := replaceFile(filepath.Join(s.dir, "mark"), markText(marks), 0o600, !s.noSync); err != nil {
		return err
	}
	s.written = marks
	return nil
}

func markText(marks map[string]mark) (text []byte) {
	for _, base := range slices.Sorted(maps.Keys(marks)) {
		m := marks[base]
		text = appendLine(text, (&record{Type: "mark", Name: base, Text: m.name, At: m.created, Seq: m.seq}).encode())
	}
	return text
}

// shortenMarks writes marks over those in DIR/mark, which takes no room on a full disk when they are fewer; else it fails with full. A crash
// leaves lines of both, and one that is neither's.
func (s *Store) shortenMarks(marks map[string]mark, full error) error {
	b := markText(marks)
	f, err := os.OpenFile(filepath.Join(s.dir, "mark"), os.O_WRONLY, 0)
	if err != nil {
		return errors.Join(full, err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.Size() < int64(len(b)):
		err = full
	default:
		_, err = f.WriteAt(b, 0)
		err = errors.Join(err, f.Truncate(int64(len(b))), s.syncFile(f))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		s.written = marks
	}
	return err
}
