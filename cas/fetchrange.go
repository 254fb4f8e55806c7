package cas

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
)

// FetchRange reads one tree-aligned range of an archive job's output into buf
// (len(buf) == r.Len), verifies it against the range's tree hash and retries
// breaks and mismatches within the retry policy, resuming where a break
// happened. r is relative to the output. Nothing in buf counts before nil is returned. Errors: ErrDigest (which a service
// may also answer for bytes it has lost), ErrExpired, ErrNotFound, ErrProtocol when the service tells no hash (r is not aligned).
func (c *Client) FetchRange(ctx context.Context, vault, jobID string, r Range, buf []byte) error {
	_, err := c.FetchRangeHash(ctx, vault, jobID, r, buf, nil)
	return err
}

// FetchRangeHash is FetchRange that returns the tree hash it verified, so that callers
// who check a whole need not compute it again, and takes bytes no faster than limit (nil: none), whose burst should be 64 KiB or more.
func (c *Client) FetchRangeHash(ctx context.Context, vault, jobID string, r Range, buf []byte, limit *rate.Limiter) (Hash, error) {
	if int64(len(buf)) != r.Len || r.Len == 0 || r.Off < 0 {
		return Hash{}, invalid(OpJobOutput, "a buffer of %d bytes for the range %+v", len(buf), r)
	}
	f := rangeFetch{c: c, vault: vault, job: jobID, r: r, dst: bufferSink(buf), verify: true, limit: limit}
	return f.run(ctx)
}

// run fetches and verifies; it returns the tree hash of the range.
func (f *rangeFetch) run(ctx context.Context) (Hash, error) {
	const op = OpJobOutput
	c, r := f.c, f.r
	bo := &backoff.ExponentialBackOff{
		InitialInterval: c.retry.Initial, MaxInterval: c.retry.Max,
		Multiplier: 2, RandomizationFactor: 0.5,
	}
	bo.Reset()
	mismatches, fruitless := 0, 0
	var since time.Time // of the first failure without progress
	for {
		before := len(f.leaves)
		err := f.read(ctx)
		if err == nil {
			got := CombineTreeHashes(f.leaves)
			if f.want.IsZero() || got == f.want {
				return got, nil
			}
			err = fmt.Errorf("cas: %s: %w: range %s is %s, announced was %s", op, ErrDigest, r, got, f.want)
			f.restart()
			if mismatches++; mismatches > maxDigestRetries {
				return Hash{}, err
			}
			before = 0
		}
		var broke *brokeError
		var refused *Error
		switch {
		case ctxErr(ctx) != nil:
			return Hash{}, fmt.Errorf("cas: %s: %w", op, ctxErr(ctx))
		case errors.As(err, &broke):
			err = fmt.Errorf("cas: %s: %w: %w", op, ErrUnavailable, broke.err)
		case !errors.Is(err, ErrDigest), errors.As(err, &refused):
			return Hash{}, err // the opening request has been retried already
		}
		if len(f.leaves) > before {
			fruitless = 0
			bo.Reset()
		}
		if fruitless++; fruitless == 1 {
			since = time.Now()
		}
		delay := min(bo.NextBackOff(), c.retry.Max)
		if fruitless >= c.retry.MaxAttempts || time.Since(since)+delay > c.retry.MaxElapsed {
			return Hash{}, err
		}
		c.log.InfoContext(ctx, "range will be read on", "range", r.String(), "have", len(f.leaves)*ChunkSize, "delay", delay, "error", err)
		if err := sleep(ctx, delay); err != nil {
			return Hash{}, fmt.Errorf("cas: %s: %w", op, err)
		}
	}
}

// brokeError is a connection that ended while a body was being read.
type brokeError struct{ err error }

func (e *brokeError) Error() string { return e.err.Error() }
func (e *brokeError) Unwrap() error { return e.err }

// sink takes the chunks of a range; offsets are relative to the range.
type sink interface {
	buffer(off, n int64) []byte      // where the n bytes at off are read into
	store(off int64, b []byte) error // b is a filled buffer
}

type bufferSink []byte

func (s bufferSink) buffer(off, n int64) []byte { return s[off : off+n] }
func (s bufferSink) store(int64, []byte) error  { return nil }

// writerSink writes through one chunk of memory, so that parts may be large.
type writerSink struct {
	w    io.WriterAt
	base int64
	b    []byte
}

func (s *writerSink) buffer(_, n int64) []byte { return s.b[:n] }

func (s *writerSink) store(off int64, b []byte) error {
	_, err := s.w.WriteAt(b, s.base+off)
	return err
}

// rangeFetch is a range on its way. Whole chunks are hashed as they arrive and
// kept over a break.
type rangeFetch struct {
	c          *Client
	vault, job string
	r          Range // of the output
	dst        sink
	verify     bool          // a missing hash is an error; a wrong one always is
	limit      *rate.Limiter // nil: none
	arrived    func(int64)   // told bytes; negative when they have to come again; nil: nobody

	want   Hash   // of all of r, from the first reply
	leaves []Hash // of the chunks in dst
}

func (f *rangeFetch) report(n int64) {
	if f.arrived != nil {
		f.arrived(n)
	}
}

func (f *rangeFetch) have() int64 { return min(int64(len(f.leaves))*ChunkSize, f.r.Len) }

func (f *rangeFetch) restart() {
	f.report(-f.have())
	f.leaves, f.want = f.leaves[:0], Hash{}
}

// read opens what is missing and reads to its end.
func (f *rangeFetch) read(ctx context.Context) error {
	done := f.have()
	out, err := f.c.JobOutput(ctx, f.vault, f.job, Range{f.r.Off + done, f.r.Len - done})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	if out.Range.Len != f.r.Len-done {
		return badReply(OpJobOutput, "the range %s for %d bytes", out.Range, f.r.Len-done)
	}
	if done == 0 {
		// Only this reply is about the whole range; what a resumed rest is called does not matter.
		if f.want = out.TreeHash; f.want.IsZero() && f.verify {
			return badReply(OpJobOutput, "no tree hash for the range %s", f.r)
		}
	}
	for done < f.r.Len {
		chunk := f.dst.buffer(done, min(ChunkSize, f.r.Len-done))
		if err := f.fill(ctx, out.Body, chunk); err != nil {
			return err
		}
		if err := f.dst.store(done, chunk); err != nil {
			return err
		}
		f.leaves = append(f.leaves, sha256.Sum256(chunk))
		done += int64(len(chunk))
		f.report(int64(len(chunk)))
	}
	return nil
}

func (f *rangeFetch) fill(ctx context.Context, r io.Reader, b []byte) error {
	for len(b) > 0 {
		n, err := throttle(ctx, f.limit, len(b))
		if err != nil {
			return &brokeError{err}
		}
		n, err = io.ReadFull(r, b[:n])
		b = b[n:]
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &brokeError{err}
		}
	}
	return nil
}
