package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	defaultSingle   = 100 << 20 // as the official SDK
	defaultParallel = 4
	// maxBuffered is the largest part that is held in memory; larger ones,
	// which only archives above 625 GiB need, are read twice: to hash and to send.
	maxBuffered = 64 << 20
)

// UploadOptions say how Upload works. The zero value is fine.
type UploadOptions struct {
	Description string // at most MaxDescription bytes, no control characters
	// PartSize is the preferred part size in bytes (0: DefaultPart). It is
	// rounded up to a power of two MiB and to what 10 000 parts need. Memory
	// used is Parallel times this.
	PartSize int64
	Parallel int // parts in flight; 0: 4
	// SingleBelow is the largest size in bytes sent in one request (0: 100 MiB, or PartSize
	// when that is set to less). A single request cannot be resumed.
	SingleBelow int64
	// UploadID resumes a multipart upload: parts the service has are compared with r before
	// anything is sent, and not sent again. One that was completed already, by somebody who did
	// not live to hear of it, gives its archive if that has r's size and tree hash.
	UploadID string
	// OnUploadID is told the upload's ID before its first part is sent.
	OnUploadID func(id string)
	// Progress is told bytes done, of size. It is called from one goroutine at a time and must not block.
	Progress func(done, total int64)
	// BandwidthLimit, in bytes/s, may be shared by transfers. Its burst should be 64 KiB or more.
	BandwidthLimit *rate.Limiter
}

// UploadResult describes a new archive.
type UploadResult struct {
	ArchiveID string
	TreeHash  Hash
	Size      int64
	UploadID  string // "" when one request was enough
	PartSize  int64  // 0 when one request was enough, or the upload was complete
	Skipped   int64  // bytes the service had from before
}

// UploadError is the failure of a multipart upload that stays open: it can be
// resumed with UploadID until 24 h after its creation, unless Err matches ErrNotFound or ErrMismatch.
type UploadError struct {
	UploadID string
	Err      error
}

func (e *UploadError) Error() string {
	return fmt.Sprintf("%v (upload %s)", e.Err, e.UploadID)
}

func (e *UploadError) Unwrap() error { return e.Err }

// Upload makes an archive of size bytes of r, in one request or as a parallel
// multipart upload, and blocks until it exists or ctx ends. r must not change
// meanwhile; it is read from several goroutines. Failures of a multipart
// upload are an *UploadError. Errors: ErrEmpty, ErrTooLarge, ErrNotFound (vault; upload when resuming),
// ErrMismatch (resuming something else), ErrUnknown (the archive may exist, see
// UploadArchive and CompleteUpload), ErrDigest.
func (c *Client) Upload(ctx context.Context, vault string, r io.ReaderAt, size int64, o UploadOptions) (UploadResult, error) {
	return c.upload(ctx, vault, r, size, o, func() error { return nil })
}

// UploadFile is Upload of a regular file. A file that changes while it is read
// is an error matching ErrMismatch, and makes no archive.
func (c *Client) UploadFile(ctx context.Context, vault, path string, o UploadOptions) (UploadResult, error) {
	f, err := os.Open(path)
	if err != nil {
		return UploadResult{}, err
	}
	defer f.Close()
	was, err := f.Stat()
	if err != nil {
		return UploadResult{}, err
	}
	if !was.Mode().IsRegular() {
		return UploadResult{}, fmt.Errorf("cas: %s is not a regular file: %w", path, ErrInvalid)
	}
	return c.upload(ctx, vault, f, was.Size(), o, func() error {
		is, err := f.Stat()
		if err != nil {
			return err
		}
		if is.Size() != was.Size() || !is.ModTime().Equal(was.ModTime()) {
			return fmt.Errorf("cas: %s changed while it was read: %w", path, ErrMismatch)
		}
		return nil
	})
}

// upload asks unchanged after the last byte has been read, before the archive comes into being.
func (c *Client) upload(ctx context.Context, vault string, r io.ReaderAt, size int64, o UploadOptions, unchanged func() error) (UploadResult, error) {
	if err := checkSize(size); err != nil {
		return UploadResult{}, err
	}
	part, err := PartSizeFor(size, o.PartSize)
	if err != nil {
		return UploadResult{}, err
	}
	single := o.SingleBelow
	if single == 0 {
		single = defaultSingle
		if o.PartSize > 0 {
			single = min(single, part)
		}
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	prog := newProgress(o.Progress, size)
	if o.UploadID == "" && size <= single {
		return c.uploadSingle(ctx, vault, r, size, o, unchanged, prog)
	}
	u := multiUpload{c: c, vault: vault, r: r, size: size, o: o, prog: prog, id: o.UploadID, part: part}
	if err := u.run(ctx, unchanged); err != nil {
		if u.id == "" {
			return UploadResult{}, err
		}
		return UploadResult{}, &UploadError{UploadID: u.id, Err: err}
	}
	prog.finish()
	return UploadResult{
		ArchiveID: u.archive, TreeHash: u.tree, Size: size, UploadID: u.id, PartSize: u.part, Skipped: u.skipped,
	}, nil
}

func (c *Client) uploadSingle(ctx context.Context, vault string, r io.ReaderAt, size int64, o UploadOptions, unchanged func() error, prog *progress) (UploadResult, error) {
	body, h, err := readPart(r, Range{0, size}, nil)
	if err == nil {
		err = unchanged()
	}
	if err != nil {
		return UploadResult{}, err
	}
	id, err := c.uploadArchive(ctx, vault, o.Description, body, h, &meter{limit: o.BandwidthLimit, progress: prog.add})
	if err != nil {
		return UploadResult{}, err
	}
	prog.finish()
	return UploadResult{ArchiveID: id, TreeHash: h.Tree, Size: size}, nil
}

// readPart reads p once and hashes it. It uses buf when that is large enough,
// and no memory for p when p is too large to be held.
func readPart(r io.ReaderAt, p Range, buf []byte) (Body, PartHash, error) {
	if p.Len > maxBuffered {
		body := io.NewSectionReader(r, p.Off, p.Len)
		h, err := hashBody(body)
		return body, h, err
	}
	if int64(cap(buf)) < p.Len {
		buf = make([]byte, p.Len)
	}
	buf = buf[:p.Len]
	if err := readFullAt(r, buf, p.Off); err != nil {
		return nil, PartHash{}, err
	}
	return bytes.NewReader(buf), HashPart(buf), nil
}

// multiUpload is one run of a multipart upload.
type multiUpload struct {
	c     *Client
	vault string
	r     io.ReaderAt
	size  int64
	o     UploadOptions
	prog  *progress

	id      string
	part    int64
	trees   []Hash // per part; zero: not there yet
	skipped int64
	tree    Hash
	archive string
}

func (u *multiUpload) run(ctx context.Context, unchanged func() error) error {
	if u.id == "" {
		id, err := u.c.InitiateUpload(ctx, u.vault, u.o.Description, u.part)
		if err != nil {
			return err
		}
		u.id = id
		u.trees = make([]Hash, u.count())
	} else if err := u.resume(ctx); errors.Is(err, errNoParts) {
		return u.find(ctx, unchanged, err)
	} else if err != nil {
		return err
	}
	if u.o.OnUploadID != nil {
		u.o.OnUploadID(u.id)
	}
	if err := u.send(ctx); err != nil {
		return err
	}
	if err := unchanged(); err != nil {
		return err
	}
	u.tree = CombineTreeHashes(u.trees)
	var err error
	u.archive, err = u.c.CompleteUpload(ctx, u.vault, u.id, u.size, u.tree)
	return err
}

// errNoParts is an upload the service does not list (any more).
var errNoParts = errors.New("nothing to resume")

// find looks for the archive of an upload that is not there any more. The service
// remembers a Complete for a while and answers its repetition with the same archive; to
// send the file again instead might store, and bill, it twice.
func (u *multiUpload) find(ctx context.Context, unchanged func() error, gone error) error {
	tree, err := TreeHashReaderAt(ctx, u.r, u.size, 0)
	if err == nil {
		err = unchanged()
	}
	if err != nil {
		return err
	}
	archive, err := u.c.CompleteUpload(ctx, u.vault, u.id, u.size, tree)
	var refused *Error
	switch {
	case errors.Is(err, ErrUnknown), err != nil && !errors.As(err, &refused):
		return err
	case err != nil:
		return gone
	}
	u.tree, u.archive, u.part, u.skipped = tree, archive, 0, u.size
	return nil
}

func (u *multiUpload) count() int64 { return (u.size + u.part - 1) / u.part }

func (u *multiUpload) rangeOf(i int64) Range {
	off := i * u.part
	return Range{off, min(u.part, u.size-off)}
}

// resume learns which parts the service has, and that they are ours, by their tree hashes.
func (u *multiUpload) resume(ctx context.Context) error {
	var parts []PartInfo
	for marker := ""; ; {
		p, err := u.c.ListParts(ctx, u.vault, u.id, Page{Marker: marker})
		if errors.Is(err, ErrNotFound) {
			return fmt.Errorf("%w: %w", errNoParts, err)
		}
		if err != nil {
			return err
		}
		parts = append(parts, p.Parts...)
		u.part = p.Upload.PartSize
		if p.Marker == "" {
			break
		}
		if p.Marker == marker {
			return badReply(OpListParts, "the list does not end: marker %q again", marker)
		}
		marker = p.Marker
	}
	if u.part < 1 || u.part > MaxPartSize {
		return badReply(OpListParts, "a part size of %d", u.part)
	}
	if u.count() > MaxParts {
		return fmt.Errorf("cas: %w: %d bytes do not fit into %d parts of %d", ErrMismatch, u.size, MaxParts, u.part)
	}
	u.trees = make([]Hash, u.count())
	for _, p := range parts { // all of the cheap checks before the dear ones
		if i := p.Range.Off / u.part; i >= u.count() || p.Range != u.rangeOf(i) {
			return fmt.Errorf("cas: %w: the upload has bytes %s, %d bytes in parts of %d have no such part", ErrMismatch, p.Range, u.size, u.part)
		}
	}
	for _, p := range parts {
		i := p.Range.Off / u.part
		if p.TreeHash.IsZero() || !u.trees[i].IsZero() {
			continue // nothing to compare with: send it again
		}
		got, err := TreeHashReaderAt(ctx, io.NewSectionReader(u.r, p.Range.Off, p.Range.Len), p.Range.Len, 0)
		if err != nil {
			return err
		}
		if got != p.TreeHash {
			return fmt.Errorf("cas: %w: bytes %s are %s here, %s there", ErrMismatch, p.Range, got, p.TreeHash)
		}
		u.trees[i] = got
		u.skipped += p.Range.Len
		u.prog.add(p.Range.Len)
	}
	return nil
}

// send uploads what is missing. Each part is read once, into a buffer that is
// also what retries are sent from.
func (u *multiUpload) send(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(u.o.Parallel)
	buffers := make(chan []byte, u.o.Parallel)
	for range u.o.Parallel {
		buffers <- nil
	}
	for i := range u.count() {
		if !u.trees[i].IsZero() {
			continue
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := ctxErr(gctx); err != nil {
				return err
			}
			buf := <-buffers
			defer func() { buffers <- buf }()
			p := u.rangeOf(i)
			if p.Len <= maxBuffered && int64(cap(buf)) < p.Len {
				buf = make([]byte, p.Len)
			}
			body, h, err := readPart(u.r, p, buf)
			if err != nil {
				return err
			}
			err = u.c.uploadPart(gctx, u.vault, u.id, p.Off, body, h, &meter{limit: u.o.BandwidthLimit, progress: u.prog.add})
			u.trees[i] = h.Tree
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctxErr(ctx)
}

// progress serialises reports.
type progress struct {
	fn    func(done, total int64)
	total int64
	mu    sync.Mutex
	done  int64
}

func newProgress(fn func(done, total int64), total int64) *progress {
	return &progress{fn: fn, total: total}
}

func (p *progress) add(n int64) {
	if p.fn == nil || n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = min(p.done+n, p.total)
	p.fn(p.done, p.total)
}

// finish reports the end, if that was not reported yet.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fn != nil && p.done != p.total {
		p.done = p.total
		p.fn(p.done, p.total)
	}
}
