package cli

import (
	"cmp"
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
	w     io.Writer
	what  string
	bytes bool

	mu     sync.Mutex
	pb     *progressbar.ProgressBar
	text   string // now shown instead of what; "" for what
	total  int64
	counts bool // how much is done is shown
}

// newBar makes a bar for total bytes (or other units; less than 1: unknown yet).
func (a *app) newBar(what string, total int64, inBytes bool) *bar {
	b := &bar{w: a.errOut, what: what, bytes: inBytes, total: total}
	if a.json || !isTerminal(a.errOut) {
		return b
	}
	b.counts = total > 0
	b.start(what)
	return b
}

// start shows the bar from its beginning. The number of what is done is shown when there is one, or what it is a part of.
func (b *bar) start(text string) {
	o := []progressbar.Option{
		progressbar.OptionSetWriter(b.w),
		progressbar.OptionSetDescription(text),
		progressbar.OptionShowBytes(b.bytes),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
		progressbar.OptionSetRenderBlankState(true),
	}
	if b.counts {
		o = append(o, progressbar.OptionShowCount())
	}
	total := b.total
	if total < 1 {
		total = -1
	}
	b.pb = progressbar.NewOptions64(total, o...)
}

// end takes the bar off the terminal.
func (b *bar) end() {
	b.pb.Clear()
	b.pb.Close()
	b.pb = nil
}

// set shows how much is done.
func (b *bar) set(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pb == nil {
		return
	}
	known := total > 0 && total != b.total
	if known {
		b.total = total
	}
	switch {
	case !b.counts && (known || done > 0):
		b.end()
		b.counts = true
		b.start(cmp.Or(b.text, b.what))
	case known:
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
		b.text = fmt.Sprintf("%s %d/%d files", b.what, p.FilesDone, p.FilesTotal)
		b.pb.Describe(b.text)
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
		b.end()
	}
}
