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
)

// mark is how far the log of a vault was known to be. A log that ends before has lost records: it is a copy from an earlier
// day, or its end did not survive. What archives were made since then only their files tell.
type mark struct {
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
		s.marks[r.Name] = mark{created: r.At, seq: r.Seq}
	}
	s.written = maps.Clone(s.marks)
}

// passing reports whether a log could not be opened for a reason that says nothing of what is in it.
func passing(why error) bool {
	return slices.ContainsFunc([]error{fs.ErrPermission, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EROFS},
		func(err error) bool { return errors.Is(why, err) })
}

// setMarks writes how far the logs are, at Open and at Close.
func (s *Store) setMarks() {
	marks := map[string]mark{}
	for base, b := range s.broken {
		m, known := s.marks[base]
		if !passing(b.why) {
			marks[base] = mark{created: m.created, seq: math.MaxUint64}
		} else if known {
			marks[base] = m
		}
	}
	for _, v := range s.vaults {
		base := filepath.Base(v.dir)
		if v.log.broken() != nil { // what is in memory may not be in the log
			marks[base] = s.marks[base]
			continue
		}
		marks[base] = mark{created: v.created, seq: v.seq}
	}
	s.marks = marks
	if maps.Equal(marks, s.written) {
		return
	}
	var text []byte
	for _, base := range slices.Sorted(maps.Keys(marks)) {
		text = appendLine(text, (&record{Type: "mark", Name: base, At: marks[base].created, Seq: marks[base].seq}).encode())
	}
	if err := replaceFile(filepath.Join(s.dir, "mark"), text, 0o600, !s.noSync); err != nil {
		s.logger.Warn("cannot write how far the logs are", "error", err)
		return
	}
	s.written = marks
}
