package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	maxBody = 4 << 30 // bytes of one part or single upload, and the most that is read to be thrown away
	maxJSON = 1 << 20 // bytes of a JSON body
)

// bodyReader reads a request body with limits on how slow the client may be.
// Its errors are refusals, so that what goes wrong on the wire is told apart
// from what goes wrong on the disk.
type bodyReader struct {
	r     io.Reader
	rc    *http.ResponseController
	size  int64 // announced, -1 when not
	n     int64 // read so far
	grace time.Duration
	rate  int64
	start time.Time
	timed bool // deadlines work: a real connection
	err   error
}

func (s *Store) newBody(w http.ResponseWriter, r *http.Request) *bodyReader {
	b := &bodyReader{r: r.Body, rc: http.NewResponseController(w), size: r.ContentLength, grace: s.stall(), rate: s.minRate()}
	if r.Body == nil {
		b.r = http.NoBody
	}
	return b
}

// Read implements io.Reader. Every read must bring something within the grace
// time, and once that is over the average must keep up with the rate.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.start.IsZero() {
		b.start = time.Now()
		b.timed = b.rc.SetReadDeadline(b.start.Add(b.grace)) == nil
	} else if b.timed {
		now := time.Now()
		if d := now.Sub(b.start); d > b.grace && b.n < int64(d.Seconds()*float64(b.rate)) {
			b.err = slowBody()
			return 0, b.err
		}
		b.rc.SetReadDeadline(now.Add(b.grace))
	}
	n, err := b.r.Read(p)
	b.n += int64(n)
	switch {
	case err == nil:
	case err == io.EOF && b.size >= 0 && b.n < b.size, errors.Is(err, io.ErrUnexpectedEOF):
		b.err = invalid("the body ended after %d of %d bytes", b.n, b.size)
		b.err.(*apiError).close = true
	case err == io.EOF:
		b.err = io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = slowBody()
	default:
		b.err = badRequest("the body could not be read: %v", err)
		b.err.(*apiError).close = true
	}
	if b.err != nil || b.n == b.size {
		b.release()
	}
	if n > 0 {
		return n, nil // an error comes with the next call
	}
	return 0, b.err
}

// release lifts the deadline: the server watches the connection for a hang-up
// while the handler works on.
func (b *bodyReader) release() {
	if b.timed {
		b.rc.SetReadDeadline(time.Time{})
	}
}

func slowBody() *apiError {
	return &apiError{status: http.StatusRequestTimeout, code: "RequestTimeoutException", msg: "the body came too slowly", close: true}
}

// drain reads what is left of the body, so that a refusal reaches clients that
// send everything before they look. It reports false when the connection
// cannot be used any further.
func (b *bodyReader) drain() bool {
	if b.size > maxBody {
		return false
	}
	_, err := io.Copy(io.Discard, io.LimitReader(readerOnly{b}, maxBody+1-b.n))
	return err == nil && b.n <= maxBody
}

// abandon keeps net/http from waiting for the rest of the body after the
// reply. The connection lingers instead, for the client to read the reply.
func (b *bodyReader) abandon(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*headConn); ok {
		c.linger()
	}
	b.rc.SetReadDeadline(time.Now())
}

// readerOnly hides everything but Read.
type readerOnly struct{ io.Reader }

// received describes a body that was read to its end.
type received struct {
	size         int64
	linear, tree digest
	leaves       []digest
}

// chunkBuffers are reused between requests: one MiB each, the unit of hashing and writing.
var chunkBuffers = sync.Pool{New: func() any { b := make([]byte, mib); return &b }}

var (
	zeroChunk [mib]byte
	zeroLeaf  = sha256.Sum256(zeroChunk[:])
)

// receive reads exactly size bytes of body, hashes them in one pass and hands
// them to put by the MiB (zero tells that a whole chunk is zeros, which need
// not be written). The slice given to put is reused afterwards. Memory does not
// depend on size, but for 32 bytes per MiB of leaves.
func receive(body io.Reader, size int64, put func(off int64, p []byte, zero bool) error) (received, error) {
	rec := received{size: size}
	var buf []byte
	if size < 64<<10 {
		buf = make([]byte, size)
	} else {
		b := chunkBuffers.Get().(*[]byte)
		defer chunkBuffers.Put(b)
		buf = *b
	}
	rec.leaves = make([]digest, 0, leafCount(size))
	var linear hash.Hash
	if size > mib {
		linear = sha256.New()
	}
	var tree treeStack
	for off := int64(0); off < size; {
		p := buf[:min(size-off, mib)]
		if _, err := io.ReadFull(body, p); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = invalid("the body is shorter than %d bytes", size)
			}
			return rec, err
		}
		// The two hashes of a chunk are computed side by side.
		done := make(chan struct{})
		if linear == nil {
			close(done)
		} else {
			go func() {
				linear.Write(p)
				close(done)
			}()
		}
		zero := len(p) == mib && bytes.Equal(p, zeroChunk[:])
		leaf := digest(zeroLeaf)
		if !zero {
			leaf = sha256.Sum256(p)
		}
		err := put(off, p, zero)
		<-done
		if err != nil {
			return rec, err
		}
		tree.push(leaf)
		rec.leaves = append(rec.leaves, leaf)
		off += int64(len(p))
	}
	rec.tree = tree.root()
	rec.linear = rec.tree // up to one MiB they are the same
	if linear != nil {
		linear.Sum(rec.linear[:0])
	}
	return rec, nil
}
