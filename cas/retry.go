package cas

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
)

var (
	errStalled  = errors.New("no byte moved for too long")
	errDetached = errors.New("the request is over")
)

const (
	maxDigestRetries = 3
	// learnable is the least difference of clocks worth correcting: Date has
	// seconds, and a reply may be on its way for a while.
	learnable = 20 * time.Second
)

// verdict is what to do about a failed attempt.
type verdict int

const (
	final   verdict = iota // return the error
	again                  // repeat after a delay
	atOnce                 // repeat now; does not count
	unknown                // return the error: the work may have been done
)

// do sends r until it succeeds, is refused for good, the policy is used up or
// ctx ends.
func (c *Client) do(ctx context.Context, r *request) (*reply, error) {
	rep, _, err := c.doLost(ctx, r)
	return rep, err
}

// doLost is do; lost tells that an attempt failed which may have done the work.
func (c *Client) doLost(ctx context.Context, r *request) (_ *reply, lost bool, _ error) {
	bo := &backoff.ExponentialBackOff{
		InitialInterval: c.retry.Initial, MaxInterval: c.retry.Max,
		Multiplier: 2, RandomizationFactor: 0.5,
	}
	bo.Reset()
	var st retryState
	var firstFailure time.Time
	for try := 1; ; try++ {
		rep, res, err := c.attempt(ctx, r)
		c.logAttempt(ctx, r, try, rep, res, err)
		if err == nil {
			return rep, st.lost, nil
		}
		if firstFailure.IsZero() {
			firstFailure = time.Now()
		}
		v := c.judge(ctx, r, &st, res, &err)
		if v == again {
			delay := max(min(bo.NextBackOff(), c.retry.Max), min(res.retryAfter, c.retry.Max))
			if try >= c.retry.MaxAttempts || time.Since(firstFailure)+delay > c.retry.MaxElapsed {
				v = final
			} else {
				c.log.LogAttrs(ctx, slog.LevelInfo, "request will be repeated", slog.String("op", r.op),
					slog.Int("attempt", try), slog.Duration("delay", delay), slog.Any("error", err))
				if serr := sleep(ctx, delay); serr != nil {
					return nil, st.lost, c.failed(r, &st, fmt.Errorf("%w (after: %w)", serr, err), v)
				}
			}
		}
		switch v {
		case atOnce:
			try--
		case final, unknown:
			return nil, st.lost, c.failed(r, &st, err, v)
		}
	}
}

// retryState is what the attempts of one call have learned.
type retryState struct {
	lost      bool // an attempt failed after it may have been acted on
	skewTried bool // the clock was corrected once
	skewLarge bool // and had been outside the signature's window
	digests   int  // repeats because of a hash
}

// judge decides about *err, which it may replace.
func (c *Client) judge(ctx context.Context, r *request, st *retryState, res attemptResult, err *error) verdict {
	var e *Error
	refused := errors.As(*err, &e)
	if !refused {
		st.lost = st.lost || res.sent
	}
	if cerr := ctxErr(ctx); cerr != nil && !refused {
		*err = cerr
		if res.sent {
			return unknown
		}
		return final
	}
	if refused {
		return c.judgeRefusal(r, st, res, e, err)
	}
	if res.sourceErr != nil {
		*err = res.sourceErr
		return final
	}
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(*err, ErrProtocol), errors.As(*err, &cert), errors.Is(*err, http.ErrSchemeMismatch):
		return final
	}
	*err = fmt.Errorf("%w: %w", ErrUnavailable, *err)
	if r.once && res.sent {
		return unknown
	}
	return again
}

func (c *Client) judgeRefusal(r *request, st *retryState, res attemptResult, e *Error, err *error) verdict {
	switch e.Code {
	case codeBadSignature, codeExpiredToken:
		return c.judgeSignature(st, res, e)
	case codeThrottling, codeUnavailable, codeRequestTimeout:
		return again // refused before anything was stored, says the service itself
	case codeInvalidDigest, codeInvalidParam:
		if !r.upload {
			return final
		}
		// The service names a bad body either way (cas-api.md §12 no. 18). When our own hashes
		// no longer fit, the bytes changed under us; otherwise they were damaged on the way.
		if h, herr := hashBody(r.body); herr != nil {
			*err = herr
			return final
		} else if r.hash != nil && h != *r.hash {
			*err = fmt.Errorf("%w: the bytes changed while they were sent: %w", ErrDigest, e)
			return final
		}
		if st.digests < maxDigestRetries && (e.Code == codeInvalidDigest || st.digests == 0 && !r.once) {
			st.digests++
			return again
		}
		return final
	}
	switch e.kind() {
	case ErrThrottled:
		return again
	case ErrUnavailable:
		// Not the service's own words: a gateway may have lost its reply.
		st.lost = true
		if r.once {
			return unknown
		}
		return again
	}
	return final
}

// judgeSignature learns the server's clock from its Date.
func (c *Client) judgeSignature(st *retryState, res attemptResult, e *Error) verdict {
	off := (res.dateSkew - res.signSkew).Abs() > learnable
	switch {
	case e.Date.IsZero():
		return final
	case !st.skewTried && off:
		c.skew.Store(int64(res.dateSkew))
		st.skewTried = true
		// Whether the signature of an uncorrected clock, [t-slack, t+life], missed the server's time.
		st.skewLarge = res.dateSkew < -skewSlack || res.dateSkew > res.signedFor
		c.log.Warn("the local clock differs from the server's: correcting", "by", res.dateSkew.Round(time.Second))
		return atOnce
	case e.Code == codeExpiredToken && !off && res.took >= res.signedFor:
		return again // the upload outlived its signature
	}
	e.skewed = st.skewTried && st.skewLarge || e.Code == codeExpiredToken && off
	return final
}

// failed dresses the error of a call for its caller.
func (c *Client) failed(r *request, st *retryState, err error, v verdict) error {
	// Complete is safe to repeat, but once a reply was lost no failure proves that there is no archive.
	if r.once && v == unknown || r.op == OpCompleteUpload && st.lost {
		return fmt.Errorf("cas: %s: %w: %w", r.op, ErrUnknown, err)
	}
	var e *Error
	if errors.As(err, &e) && error(e) == err {
		return err // names the operation itself
	}
	return fmt.Errorf("cas: %s: %w", r.op, err)
}

func (c *Client) logAttempt(ctx context.Context, r *request, try int, rep *reply, res attemptResult, err error) {
	if !c.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("op", r.op), slog.Int("attempt", try), slog.Duration("took", res.took)}
	if rep != nil {
		attrs = append(attrs, slog.Int("status", rep.status), slog.String("request_id", rep.header.Get("x-cas-requestid")))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	c.log.LogAttrs(ctx, slog.LevelDebug, "request", attrs...)
}

// ctxErr is nil while ctx lives; then it matches both its Err and its Cause.
func ctxErr(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return context.Cause(ctx)
}

// sleep waits for d or the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctxErr(ctx)
	}
}

// watchdog calls bark when it is armed and not fed for long enough.
type watchdog struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

func newWatchdog(d time.Duration, bark func()) *watchdog {
	return &watchdog{timer: time.AfterFunc(d, bark)}
}

// arm gives the other side d to move a byte.
func (w *watchdog) arm(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(d)
	}
}

// rest suspends it while the delay is our own: disk, bandwidth limit, a reader who takes its time.
func (w *watchdog) rest() { w.timer.Stop() }

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}

// meter follows the body of one transfer over all its attempts.
type meter struct {
	limit    *rate.Limiter // nil: none
	progress func(n int64) // bytes not reported before; nil: none
	high     int64
}

func (m *meter) reached(off int64) {
	if m != nil && m.progress != nil && off > m.high {
		m.progress(off - m.high)
		m.high = off
	}
}

// throttle waits until n bytes or fewer may pass, and says how many.
func throttle(ctx context.Context, l *rate.Limiter, n int) (int, error) {
	if l == nil || l.Limit() == rate.Inf {
		return n, nil
	}
	n = min(n, max(l.Burst(), 1))
	return n, l.WaitN(ctx, n)
}

// sender is the body of one attempt. net/http may go on reading a body after
// it has returned; detach ends that, so that the bytes are the caller's again.
type sender struct {
	ctx       context.Context
	body      Body
	size      int64
	meter     *meter
	dog       *watchdog
	stall     time.Duration
	replyWait time.Duration

	mu       sync.Mutex
	gen      int // of the reader that is in use
	off      int64
	err      error // of body
	detached bool
}

// open starts from the beginning; readers opened before are dead.
func (s *sender) open() (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	s.off = 0
	return &senderReader{s, s.gen}, nil
}

func (s *sender) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached = true
}

func (s *sender) state() (off int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off, s.err
}

type senderReader struct {
	s   *sender
	gen int
}

func (r *senderReader) Close() error { return nil }

func (r *senderReader) Read(p []byte) (int, error) {
	s := r.s
	if s.meter != nil && s.meter.limit != nil && len(p) > 0 {
		s.dog.rest()
		n, err := throttle(s.ctx, s.meter.limit, len(p))
		if err != nil {
			return 0, err
		}
		p = p[:n]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.detached || r.gen != s.gen:
		return 0, errDetached
	case s.off >= s.size:
		return 0, io.EOF
	}
	s.dog.rest()
	n, err := s.body.ReadAt(p[:min(int64(len(p)), s.size-s.off)], s.off)
	s.off += int64(n)
	s.meter.reached(s.off)
	if s.off == s.size {
		s.dog.arm(s.replyWait)
		return n, io.EOF
	}
	s.dog.arm(s.stall)
	if n > 0 || err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	s.err = err
	return 0, err
}

// replyBody counts a reply as progress while it is being read, and ends the
// attempt's context when closed.
type replyBody struct {
	body   io.ReadCloser
	ctx    context.Context
	dog    *watchdog
	wait   time.Duration
	finish func()
}

func (b *replyBody) Read(p []byte) (int, error) {
	b.dog.arm(b.wait)
	n, err := b.body.Read(p)
	b.dog.rest()
	if err != nil && err != io.EOF && context.Cause(b.ctx) == errStalled {
		err = errStalled
	}
	return n, err
}

func (b *replyBody) Close() error {
	err := b.body.Close()
	b.finish()
	return err
}

// hashBody reads all of b once.
func hashBody(b Body) (PartHash, error) {
	var t TreeHasher
	buf := make([]byte, min(ChunkSize, b.Size()))
	for off, size := int64(0), b.Size(); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := readFullAt(b, buf, off); err != nil {
			return PartHash{}, err
		}
		t.Write(buf)
	}
	return t.Sum(), nil
}
