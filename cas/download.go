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
// happened. r is relative to the output. Nothing in buf counts before nil is returned. Errors: ErrDigest, ErrExpired, ErrNotFound,
// ErrProtocol when the service tells no hash (r is not aligned).
func (c *Client) FetchRange(ctx context.Context, vault, jobID string, r Range, buf []byte) error {
	_, err := c.fetchRange(ctx, vault, jobID, r, buf, true, nil, nil)
	return err
}

// fetchRange is FetchRange with a bandwidth limit and a report of bytes as they arrive
// (taken back with a negative number when they have to come again). It returns the
// tree hash of buf. Without verify a missing hash is tolerated, a wrong one is not.
func (c *Client) fetchRange(ctx context.Context, vault, jobID string, r Range, buf []byte, verify bool, limit *rate.Limiter, arrived func(int64)) (Hash, error) {
	const op = OpJobOutput
	if int64(len(buf)) != r.Len || r.Len == 0 || r.Off < 0 {
		return Hash{}, invalid(op, "a buffer of %d bytes for the range %+v", len(buf), r)
	}
	f := rangeFetch{c: c, vault: vault, job: jobID, r: r, buf: buf, verify: verify, limit: limit, arrived: arrived}
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
		switch {
		case ctxErr(ctx) != nil:
			return Hash{}, fmt.Errorf("cas: %s: %w", op, ctxErr(ctx))
		case errors.As(err, &broke):
			err = fmt.Errorf("cas: %s: %w: %w", op, ErrUnavailable, broke.err)
		case !errors.Is(err, ErrDigest):
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

// rangeFetch is a range on its way. Whole chunks are hashed as they arrive and
// kept over a break.
type rangeFetch struct {
	c          *Client
	vault, job string
	r          Range
	buf        []byte
	verify     bool
	limit      *rate.Limiter
	arrived    func(int64)

	want   Hash   // of all of r, from the first reply
	leaves []Hash // of the chunks in buf
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
		chunk := f.buf[done:min(done+ChunkSize, f.r.Len)]
		if err := f.fill(ctx, out.Body, chunk); err != nil {
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
