package cas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	defaultFetchPart = 32 << 20
	partSuffix       = ".casfs-part"
	stateSuffix      = ".casfs-part.state"
)

// FetchOptions say how the output of a job is fetched. The zero value is fine.
type FetchOptions struct {
	// PartSize is the preferred size in bytes of the ranges asked for (0: 32 MiB), rounded like an upload's.
	PartSize int64
	Parallel int // ranges in flight; 0: 4
	// Force lets FetchJobFile replace an existing file.
	Force bool
	// AllowUnverified fetches what the service tells no hash for (an archive
	// range that is not tree-aligned); without it that is an error matching ErrUnverifiable.
	AllowUnverified bool
	// Progress is told bytes done, of the total. Bytes that have to be fetched again
	// are taken back. It is called from one goroutine at a time and must not block.
	Progress func(done, total int64)
	// BandwidthLimit, in bytes/s, may be shared by transfers. Its burst should be 64 KiB or more.
	BandwidthLimit *rate.Limiter
}

// FetchResult describes what was fetched.
type FetchResult struct {
	Job      Job
	Size     int64
	TreeHash Hash  // of the bytes
	Verified bool  // against hashes of the service; inventories have none
	Skipped  int64 // bytes an earlier, interrupted FetchJobFile had left
}

// PollJob looks at a job once. Errors: ErrNotReady while it runs and ErrJobFailed, both
// together with the Job; ErrNotFound, also for an expired one.
func (c *Client) PollJob(ctx context.Context, vault, jobID string) (Job, error) {
	j, err := c.DescribeJob(ctx, vault, jobID)
	switch {
	case err != nil:
		return j, err
	case !j.Completed:
		return j, fmt.Errorf("cas: job %s: %w", jobID, ErrNotReady)
	case j.Failed():
		return j, fmt.Errorf("cas: job %s: %w: %s", jobID, ErrJobFailed, oneLine(j.StatusMessage))
	}
	return j, nil
}

// WaitJob blocks until a job has finished or ctx ends. It looks at once and then after interval
// (0: 1 s), which grows with the job's age up to a minute. An unavailable service
// is waited for. Errors: those of PollJob except ErrNotReady, and that of ctx.
func (c *Client) WaitJob(ctx context.Context, vault, jobID string, interval time.Duration) (Job, error) {
	if interval <= 0 {
		interval = time.Second
	}
	for most := max(interval, time.Minute); ; interval = min(interval*3/2, most) {
		j, err := c.PollJob(ctx, vault, jobID)
		switch {
		case err == nil:
			return j, nil
		case errors.Is(err, ErrNotReady):
		case errors.Is(err, ErrUnavailable), errors.Is(err, ErrThrottled):
			c.log.WarnContext(ctx, "waiting for a job", "job", jobID, "error", err)
		default:
			return j, err
		}
		if err := sleep(ctx, interval); err != nil {
			return j, fmt.Errorf("cas: waiting for job %s: %w", jobID, err)
		}
	}
}

// readyJob is PollJob for those about to fetch.
func (c *Client) readyJob(ctx context.Context, vault, jobID string) (Job, error) {
	j, err := c.PollJob(ctx, vault, jobID)
	switch {
	case errors.Is(err, ErrNotFound):
		return j, fmt.Errorf("%w: %w", ErrExpired, err)
	case err != nil:
		return j, err
	case j.Type != ArchiveRetrieval && j.Type != InventoryRetrieval:
		return j, invalid(OpJobOutput, "a %s job has no output", j.Type)
	}
	return j, nil
}

// piece is one range to fetch, relative to the output.
type piece struct {
	Range
	hash Hash // zero: not there yet
}

// fetchPlan is how an output is taken apart.
type fetchPlan struct {
	vault  string
	job    Job
	size   int64
	part   int64
	verify bool
	o      FetchOptions
	prog   *progress
	pieces []piece
}

// plan decides about part sizes and what can be verified.
func (c *Client) plan(ctx context.Context, vault string, job Job, o FetchOptions) (*fetchPlan, error) {
	p := &fetchPlan{vault: vault, job: job, size: job.OutputSize(), o: o}
	if p.o.Parallel <= 0 {
		p.o.Parallel = defaultParallel
	}
	if p.size <= 0 && job.Type == InventoryRetrieval {
		out, err := c.JobOutput(ctx, vault, job.ID, Range{})
		if err != nil {
			return nil, err
		}
		p.size = out.Total
		out.Body.Close()
	}
	if p.size <= 0 {
		return nil, badReply(OpJobOutput, "job %s is finished but has no size", job.ID)
	}
	preferred := o.PartSize
	if preferred <= 0 {
		preferred = defaultFetchPart
	}
	var err error
	if p.part, err = PartSizeFor(p.size, preferred); err != nil {
		return nil, err
	}
	p.verify = job.Type == ArchiveRetrieval && TreeAligned(p.retrieved(), job.ArchiveSize)
	if job.Type == ArchiveRetrieval && !p.verify && !o.AllowUnverified {
		return nil, fmt.Errorf("cas: job %s: %w: the range %s of the archive is not tree-aligned", job.ID, ErrUnverifiable, job.Range)
	}
	p.prog = newProgress(o.Progress, p.size)
	return p, nil
}

// retrieved is the part of the archive that the job's output holds.
func (p *fetchPlan) retrieved() Range {
	if p.job.Range.Len > 0 {
		return p.job.Range
	}
	return Range{0, p.job.ArchiveSize}
}

// cut returns the pieces that cover r of the output.
func (p *fetchPlan) cut(r Range) []piece {
	var out []piece
	if p.verify {
		whole := p.retrieved()
		from := (whole.Off + r.Off) / ChunkSize * ChunkSize
		end := min((whole.Off+r.End()+ChunkSize-1)/ChunkSize*ChunkSize, whole.End())
		for _, a := range AlignedRanges(Range{from, end - from}, p.job.ArchiveSize, p.part) {
			out = append(out, piece{Range: Range{a.Off - whole.Off, a.Len}})
		}
		return out
	}
	for off := r.Off; off < r.End(); off += p.part {
		out = append(out, piece{Range: Range{off, min(p.part, r.End()-off)}})
	}
	return out
}

// fetchPieces fetches what has no hash yet, in parallel, and tells done about each piece
// after it was verified and written.
func (c *Client) fetchPieces(ctx context.Context, p *fetchPlan, w io.WriterAt, done func(i int) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.o.Parallel)
	for i := range p.pieces {
		if !p.pieces[i].hash.IsZero() {
			continue
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := ctxErr(gctx); err != nil {
				return err
			}
			f := rangeFetch{
				c: c, vault: p.vault, job: p.job.ID, r: p.pieces[i].Range, verify: p.verify,
				dst:   &writerSink{w: w, base: p.pieces[i].Off, b: make([]byte, min(ChunkSize, p.pieces[i].Len))},
				limit: p.o.BandwidthLimit, arrived: p.prog.add,
			}
			h, err := f.run(gctx)
			if err != nil {
				return err
			}
			p.pieces[i].hash = h
			return done(i)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctxErr(ctx)
}

// result checks the pieces as a whole. An aligned range is a subtree, and its
// pieces are equal but for the last: their hashes combine to its own.
func (p *fetchPlan) result() (FetchResult, error) {
	res := FetchResult{Job: p.job, Size: p.size, Verified: p.verify}
	hashes := make([]Hash, len(p.pieces))
	for i := range p.pieces {
		hashes[i] = p.pieces[i].hash
	}
	res.TreeHash = combine(hashes)
	want := p.job.TreeHash
	if want.IsZero() && p.retrieved() == (Range{0, p.job.ArchiveSize}) {
		want = p.job.ArchiveTreeHash
	}
	if p.verify && !want.IsZero() && res.TreeHash != want {
		return FetchResult{}, fmt.Errorf("cas: job %s: %w: the output is %s, announced was %s", p.job.ID, ErrDigest, res.TreeHash, want)
	}
	p.prog.finish()
	return res, nil
}

// FetchJob fetches the output of a finished job into w, by parallel
// tree-aligned ranges each of which is verified, and then as a whole. It blocks until done or
// ctx ends; what is in w counts only after success. Inventories have no
// hashes and are not verified. Errors: ErrNotReady, ErrJobFailed, ErrExpired, ErrDigest, ErrUnverifiable.
func (c *Client) FetchJob(ctx context.Context, vault, jobID string, w io.WriterAt, o FetchOptions) (FetchResult, error) {
	job, err := c.readyJob(ctx, vault, jobID)
	if err != nil {
		return FetchResult{}, err
	}
	p, err := c.plan(ctx, vault, job, o)
	if err != nil {
		return FetchResult{}, err
	}
	p.pieces = p.cut(Range{0, p.size})
	if err := c.fetchPieces(ctx, p, w, func(int) error { return nil }); err != nil {
		return FetchResult{}, err
	}
	return p.result()
}

// FetchJobRange writes r of a job's output (relative to its start; zero Len: all of it) to w in
// order, fetching ahead in parallel. Every byte is verified before it is written: the aligned ranges around r are
// fetched, up to 1 MiB more at each end. It holds up to Parallel ranges of PartSize (at most 64 MiB each) in memory. Errors:
// those of FetchJob, ErrInvalid when r is outside the output, and w's.
func (c *Client) FetchJobRange(ctx context.Context, vault, jobID string, r Range, w io.Writer, o FetchOptions) (FetchResult, error) {
	job, err := c.readyJob(ctx, vault, jobID)
	if err != nil {
		return FetchResult{}, err
	}
	p, err := c.plan(ctx, vault, job, o)
	if err != nil {
		return FetchResult{}, err
	}
	if r == (Range{}) {
		r.Len = p.size
	}
	if !r.within(p.size) {
		return FetchResult{}, invalid(OpJobOutput, "the range %+v of %d bytes", r, p.size)
	}
	p.part = min(p.part, maxBuffered)
	p.pieces = p.cut(r)
	p.prog.total = r.Len

	type slot struct {
		i   int
		buf []byte
		err chan error
	}
	g, gctx := errgroup.WithContext(ctx)
	buffers := make(chan []byte, p.o.Parallel)
	for range p.o.Parallel {
		buffers <- nil
	}
	order := make(chan *slot, p.o.Parallel)
	g.Go(func() error {
		defer close(order)
		for i := range p.pieces {
			s := &slot{i: i, err: make(chan error, 1)}
			select {
			case s.buf = <-buffers:
			case <-gctx.Done():
				return ctxErr(gctx)
			}
			n := p.pieces[i].Len
			if int64(cap(s.buf)) < n {
				s.buf = make([]byte, n)
			}
			s.buf = s.buf[:n]
			g.Go(func() error {
				f := rangeFetch{
					c: c, vault: vault, job: jobID, r: p.pieces[i].Range, dst: bufferSink(s.buf),
					verify: p.verify, limit: p.o.BandwidthLimit,
				}
				h, err := f.run(gctx)
				p.pieces[i].hash = h
				s.err <- err
				return err
			})
			order <- s // has room: there are no more slots than buffers
		}
		return nil
	})
	var hasher TreeHasher
	g.Go(func() error {
		for s := range order {
			if err := <-s.err; err != nil {
				return err
			}
			at := p.pieces[s.i].Off
			b := s.buf[max(0, r.Off-at):min(int64(len(s.buf)), r.End()-at)]
			if _, err := w.Write(b); err != nil {
				return err
			}
			if r.Len != p.size {
				hasher.Write(b)
			}
			p.prog.add(int64(len(b)))
			buffers <- s.buf
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return FetchResult{}, err
	}
	if err := ctxErr(ctx); err != nil {
		return FetchResult{}, err
	}
	if r == (Range{0, p.size}) {
		return p.result()
	}
	return FetchResult{Job: job, Size: r.Len, TreeHash: hasher.Sum().Tree, Verified: p.verify}, nil
}
