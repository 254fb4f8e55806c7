package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/casfs/casfs/jobs"
)

// bar shows progress on standard error when that is a terminal, and nothing
// otherwise. Its methods may be called from several goroutines.
type bar struct {
	mu    sync.Mutex
	pb    *progressbar.ProgressBar
	what  string
	bytes bool
	total int64
}

// newBar makes a bar for total bytes (or other units; less than 1: unknown yet).
func (a *app) newBar(what string, total int64, inBytes bool) *bar {
	b := &bar{what: what, bytes: inBytes, total: total}
	if a.json || !isTerminal(a.errOut) {
		return b
	}
	if total < 1 {
		total = -1
	}
	b.pb = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(a.errOut),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(inBytes),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
		progressbar.OptionSetRenderBlankState(true),
	)
	return b
}

// set shows how much is done.
func (b *bar) set(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pb == nil {
		return
	}
	if total > 0 && total != b.total {
		b.total = total
		b.pb.ChangeMax64(total)
	}
	b.pb.Set64(min(done, max(b.total, done)))
}

// Write counts bytes, for io.TeeReader and friends.
func (b *bar) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pb != nil {
		b.pb.Add(len(p))
	}
	return len(p), nil
}

// engine shows the progress of an engine's verb: bytes where there are any, else files.
func (b *bar) engine(p jobs.Progress) {
	b.mu.Lock()
	if b.pb != nil {
		b.pb.Describe(fmt.Sprintf("%s %d/%d files", b.what, p.FilesDone, p.FilesTotal))
	}
	b.mu.Unlock()
	b.set(p.BytesDone, p.BytesTotal)
}

// note prints a line that stays, above the bar.
func (b *bar) note(w io.Writer, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pb != nil {
		b.pb.Clear()
		defer b.pb.RenderBlank()
	}
	fmt.Fprintf(w, format, args...)
}

// done removes the bar.
func (b *bar) done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pb != nil {
		b.pb.Clear()
		b.pb.Close()
		b.pb = nil
	}
}
