package cas

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchdog runs in virtual time: what moves goes on, what stands still ends.
func TestWatchdog(t *testing.T) {
	const stall = time.Minute
	client := func(rt roundTripper) *Client {
		c, err := New(Options{Endpoint: "h", Credentials: testCred, Transport: rt, Stall: stall, Retry: RetryPolicy{MaxAttempts: 1}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	hang := func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	slowBody := func(r *http.Request, pause time.Duration) {
		for b := make([]byte, 1<<20); ; {
			if n, err := r.Body.Read(b); n == 0 || err != nil {
				return
			}
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				return
			}
		}
	}
	took := func(f func() error) (time.Duration, error) {
		began := time.Now()
		err := f()
		return time.Since(began), err
	}
	body := pattern(8 * mib)
	h := HashPart(body)
	t.Run("no reply", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, err := took(func() error { _, err := client(hang).DescribeVault(t.Context(), "v"); return err })
			checkIs(t, err, ErrUnavailable)
			if d != stall {
				t.Errorf("ended after %v", d)
			}
		})
	})
	t.Run("slow completion", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := client(func(r *http.Request) (*http.Response, error) {
				select {
				case <-time.After(4 * stall):
					return answer(r, 201, "", "x-cas-archive-id", "ID"), nil
				case <-r.Context().Done():
					return nil, r.Context().Err()
				}
			})
			if _, err := c.CompleteUpload(t.Context(), "v", "u", 1, h.Tree); err != nil {
				t.Error(err)
			}
			if _, err := c.UploadArchive(t.Context(), "v", "", bytes.NewReader(body), h); err == nil {
				t.Error("a body that nobody reads is no progress")
			}
		})
	})
	t.Run("slow body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := client(func(r *http.Request) (*http.Response, error) {
				slowBody(r, stall-time.Second)
				time.Sleep(4 * stall)
				return answer(r, 201, "", "x-cas-archive-id", "ID"), nil
			})
			d, err := took(func() error {
				_, err := c.UploadArchive(t.Context(), "v", "", bytes.NewReader(body), h)
				return err
			})
			if err != nil || d < 10*stall {
				t.Errorf("%v after %v", err, d)
			}
		})
	})
	t.Run("stalled body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := client(func(r *http.Request) (*http.Response, error) {
				r.Body.Read(make([]byte, 1000))
				return hang(r)
			})
			d, err := took(func() error { return c.UploadPart(t.Context(), "v", "u", 0, bytes.NewReader(body), h) })
			checkIs(t, err, ErrUnavailable)
			if d != stall {
				t.Errorf("ended after %v", d)
			}
		})
	})
	t.Run("reply body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, x := range []struct {
				pause time.Duration
				ok    bool
			}{{stall - time.Second, true}, {stall + time.Second, false}} {
				c := client(func(r *http.Request) (*http.Response, error) {
					pr, pw := io.Pipe()
					go func() {
						for range 4 {
							time.Sleep(x.pause)
							pw.Write([]byte("x"))
						}
						pw.Close()
					}()
					context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
					resp := answer(r, 200, "")
					resp.Body, resp.ContentLength = pr, 4
					return resp, nil
				})
				out, err := c.JobOutput(t.Context(), "v", "j", Range{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * stall) // our own time does not count
				b, err := io.ReadAll(out.Body)
				if x.ok && (err != nil || string(b) != "xxxx") {
					t.Errorf("%q, %v", b, err)
				}
				if !x.ok {
					checkIs(t, err, io.ErrUnexpectedEOF, errStalled)
				}
				out.Body.Close()
				time.Sleep(10 * stall)
			}
		})
	})
}

// TestBodyIsReturned: when a call is over nothing reads the buffer any more,
// even if the server answered before it had read the body. The race detector watches.
func TestBodyIsReturned(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.ReadFull(c, make([]byte, 100))
				io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 39\r\nx-cas-requestid: r\r\n\r\n{\"code\":\"ResourceNotFoundException\"    }")
				io.Copy(io.Discard, io.LimitReader(c, 1<<20))
			}()
		}
	}()
	c, err := New(Options{Endpoint: "http://" + l.Addr().String(), Credentials: testCred, Retry: RetryPolicy{MaxAttempts: 2, Initial: 1, Max: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := pattern(8 * mib)
	h := HashPart(buf)
	for range 10 {
		err := c.UploadPart(t.Context(), "v", "u", 0, bytes.NewReader(buf), h)
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
		for i := 0; i < len(buf); i += 4096 {
			buf[i] ^= 0
		}
	}
}
