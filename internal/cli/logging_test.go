package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogFileIsBounded: the log of a mount that lives long does not fill the disk.
func TestLogFileIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sub", "log")
	const limit = 4096
	write := func(from, to int) {
		t.Helper()
		l, err := openLogFile(name, limit)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for i := from; i < to; i++ {
			if _, err := fmt.Fprintf(l, "line %d of the log\n", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(0, 1000)
	write(1000, 2000) // goes on with what is there
	var text strings.Builder
	for _, n := range []string{name + ".1", name} {
		b, err := os.ReadFile(n)
		if err != nil || len(b) > limit {
			t.Fatalf("%s: %d bytes, %v; want at most %d", n, len(b), err, limit)
		}
		text.Write(b)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	if len(lines) < limit/20 {
		t.Errorf("only %d lines are left", len(lines))
	}
	// Nothing is lost between the two files.
	for i, l := range lines {
		if want := fmt.Sprintf("line %d of the log", 2000-len(lines)+i); l != want {
			t.Fatalf("%q, want %q", l, want)
		}
	}
	if files, _ := filepath.Glob(name + "*"); len(files) != 2 {
		t.Errorf("files: %v", files)
	}
}
