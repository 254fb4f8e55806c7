package cas

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{2 * time.Hour, -2 * time.Hour, -90 * time.Second, 30 * time.Minute} {
		f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { io.WriteString(w, "{}") })
		at := time.Now() // both clocks stand still: how long a reply takes is not learnt
		f.now = func() time.Time { return at.Add(skew) }
		client := func(mod ...func(*Options)) *Client {
			c := f.client(mod...)
			c.now = func() time.Time { return at }
			return c
		}
		c := client(func(o *Options) { o.Retry.MaxAttempts = 1 })
		for i := range 2 {
			if _, err := c.DescribeVault(t.Context(), "v"); err != nil {
				t.Errorf("skew %v: %v", skew, err)
			}
			if f.count() != 2+i {
				t.Errorf("skew %v: %d requests, want %d", skew, f.count(), 2+i)
			}
		}
		// An upload, too, may be repeated after such a refusal, and many at once learn the same.
		c = client()
		f.handler = func(w http.ResponseWriter, r *http.Request, n int) { w.Header().Set("x-cas-archive-id", "A") }
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := c.UploadArchive(t.Context(), "v", "", bytes.NewReader([]byte("x")), PartHash{}); err != nil {
					t.Errorf("skew %v: %v", skew, err)
				}
			})
		}
		wg.Wait()
		needed := skew < -skewSlack || skew > signLifeUpload
		if got := time.Duration(c.skew.Load()); needed && (got-skew).Abs() > time.Second {
			t.Errorf("learnt %v, want %v", got, skew)
		}
	}

	// A window around the true time that is refused nevertheless.
	f := newFake(t, func(w http.ResponseWriter, r *http.Request, n int) { refuse(w, 400, "InvalidSignatureException", "") })
	_, err := f.client().DescribeVault(t.Context(), "v")
	checkIs(t, err, ErrCredentials)
	checkNot(t, err, ErrClockSkew)
	if f.count() != 1 {
		t.Errorf("a wrong key: %d requests, want 1", f.count())
	}
	f.now = func() time.Time { return time.Now().Add(5 * time.Hour) }
	_, err = f.client().DescribeVault(t.Context(), "v")
	checkIs(t, err, ErrClockSkew)
	if f.count() != 3 {
		t.Errorf("a wrong clock and key: %d requests, want 2", f.count()-1)
	}
	jump := time.Now()
	f.now = func() time.Time { jump = jump.Add(24 * time.Hour); return jump }
	f.handler = func(w http.ResponseWriter, r *http.Request, n int) {}
	_, err = f.client().DescribeVault(t.Context(), "v")
	checkIs(t, err, ErrClockSkew)
	if !strings.Contains(err.Error(), ErrClockSkew.Error()) {
		t.Errorf("%v does not name the clock", err)
	}
}
