package local

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// connKey finds the headConn of a request in its context.
type connKey struct{}

// headListener hands out connections whose request heads are mended.
type headListener struct {
	net.Listener
	s *Store
}

func (l headListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headConn{Conn: c, s: l.s, born: time.Now()}, nil
}

// headConn reads requests one after the other: a head is collected and mended,
// the body that its Content-Length announces passes through untouched.
type headConn struct {
	net.Conn
	s    *Store
	born time.Time

	// Only Read uses these; net/http never calls it twice at a time.
	in      []byte // received and not looked at
	scanned int    // bytes of in known not to complete a head
	out     []byte // head to be handed over
	body    int64  // bytes of the current body still to come
	last    bool   // nothing that follows is looked at

	mu       sync.Mutex
	deadline time.Time // for reading
	lingers  bool      // the client may still be sending when the connection is closed
}

// Read implements net.Conn. An error leaves the state as it was: net/http
// interrupts reads by a deadline and goes on later.
func (c *headConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(c.out) > 0:
			n := copy(p, c.out)
			c.out = c.out[n:]
			return n, nil
		case c.body > 0 || c.last:
			if !c.last && int64(len(p)) > c.body {
				p = p[:c.body]
			}
			var n int
			var err error
			if len(c.in) > 0 {
				n = copy(p, c.in)
				c.in = c.in[n:]
			} else {
				n, err = c.Conn.Read(p)
			}
			c.body -= int64(n)
			return n, err
		}
		if err := c.readHead(); err != nil {
			return 0, err
		}
	}
}

// readHead looks for a complete head in what was received, or receives more.
func (c *headConn) readHead() error {
	for len(c.in) > 0 && (c.in[0] == '\n' || c.in[0] == '\r') { // blank lines between requests
		c.in = c.in[1:]
		c.scanned = 0
	}
	if n := headLength(c.in, c.scanned); n > 0 && n <= maxHead {
		m, e := c.s.mend(c.in[:n])
		if e != nil {
			c.refuse(e)
			return nil
		}
		c.in, c.scanned = c.in[n:], 0
		c.out, c.body, c.last = m.head, m.body, m.last
		if len(c.in) == 0 {
			c.in = nil
		}
		return nil
	}
	c.scanned = len(c.in)
	if len(c.in) > maxHead {
		c.refuse(badHead(http.StatusRequestHeaderFieldsTooLarge, "a request head has at most %d bytes", maxHead))
		return nil
	}
	if cap(c.in)-len(c.in) < 2<<10 {
		in := make([]byte, len(c.in), 2*len(c.in)+4<<10)
		copy(in, c.in)
		c.in = in
	}
	n, err := c.Conn.Read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	if n == 0 && err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && len(c.in) > 0 && c.tooSlow() {
			c.refuse(&apiError{status: http.StatusRequestTimeout, code: "RequestTimeoutException", msg: "the request head came too slowly"})
			return nil
		}
		return err
	}
	return nil
}

// refuse makes the handler answer e; the connection ends with that.
func (c *headConn) refuse(e *apiError) {
	c.in = nil
	c.out, c.body, c.last = c.s.refusedHead(e).head, 0, true
	c.linger()
}

// linger makes Close read for a while what the client is still sending.
func (c *headConn) linger() {
	c.mu.Lock()
	c.lingers = true
	c.mu.Unlock()
}

// tooSlow tells a deadline that ran out from one in the past, by which net/http
// interrupts a read.
func (c *headConn) tooSlow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline.After(c.born)
}

// SetReadDeadline implements net.Conn.
func (c *headConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *headConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// Write implements net.Conn; a client that does not take what it asked for is
// given up.
func (c *headConn) Write(p []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(c.s.stall() + time.Duration(int64(len(p))/c.s.minRate())*time.Second))
	return c.Conn.Write(p)
}

// CloseWrite lets net/http end its side first, so that a client that is still
// sending gets to read the reply.
func (c *headConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close implements net.Conn. Unread bytes would make the kernel reset the
// connection and take the reply with it, so some are read after a refusal.
func (c *headConn) Close() error {
	c.mu.Lock()
	linger := c.lingers
	c.lingers = false
	c.mu.Unlock()
	if linger {
		c.CloseWrite()
		c.Conn.SetReadDeadline(time.Now().Add(time.Second))
		io.CopyN(io.Discard, c.Conn, 1<<20)
	}
	return c.Conn.Close()
}
