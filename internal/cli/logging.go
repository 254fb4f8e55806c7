package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// logRotate is the size at which a log file is put aside as FILE.1, in place of the one before: a mount lives for months,
// and says a line about each file.
const logRotate = 16 << 20

// openLog makes the logger of a long-running verb: to file, or to w. done closes it.
func (s *settings) openLog(w io.Writer, file string) (*slog.Logger, func(), error) {
	done := func() {}
	if file != "" {
		f, err := openLogFile(file, logRotate)
		if err != nil {
			return nil, nil, fmt.Errorf("log file: %w", err)
		}
		w, done = f, func() { f.Close() }
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return nil, nil, usagef("--log-level: %v", err)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), done, nil
}

// logFile is a log that takes no more than about twice its limit.
type logFile struct {
	name  string
	limit int64

	mu   sync.Mutex
	f    *os.File
	size int64 // -1: not a regular file, which grows without limit
}

func openLogFile(name string, limit int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	l := &logFile{name: name, limit: limit}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.f, l.size = f, -1
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		l.size = st.Size()
	}
	return nil
}

// Write implements io.Writer.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		l.rotateLocked()
	}
	n, err := l.f.Write(p)
	if l.size >= 0 {
		l.size += int64(n)
	}
	return n, err
}

// rotateLocked begins a new file; when that fails, the old one goes on.
func (l *logFile) rotateLocked() {
	l.size = 0 // also of a file that cannot be renamed: no attempt per line
	if err := os.Rename(l.name, l.name+".1"); err != nil {
		return
	}
	old := l.f
	if err := l.open(); err != nil {
		return
	}
	for _, fd := range []int{1, 2} { // a daemon's, for what the runtime says when the program crashes
		if sameFile(fd, int(old.Fd())) {
			unix.Dup3(int(l.f.Fd()), fd, 0)
		}
	}
	old.Close()
}

func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// Close ends it.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
