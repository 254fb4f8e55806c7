package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
)

// logRotate is the size above which a log file is set aside at start.
const logRotate = 16 << 20

// openLog makes the logger of a long-running verb. file "" is w.
func (s *settings) openLog(w io.Writer, file string) (*slog.Logger, func(), error) {
	done := func() {}
	if file != "" {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, nil, fmt.Errorf("log file: %w", err)
		}
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Size() > logRotate {
			os.Rename(file, file+".1")
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
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
