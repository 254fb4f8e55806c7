package jobs

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// contradicting is a service that lists jobs as completed, and says that they run when their output is wanted.
type contradicting struct {
	under   http.RoundTripper
	on      atomic.Bool
	outputs atomic.Int64
	most    int64 // then it is consistent, or a test of what never pauses would never end
}

func (c *contradicting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.under.RoundTrip(req)
	if err != nil || !c.on.Load() {
		return resp, err
	}
	_, job, ok := strings.Cut(req.URL.Path, "/jobs/")
	if !ok {
		return resp, nil
	}
	body, status := "", resp.StatusCode
	if strings.HasSuffix(job, "/output") {
		if c.outputs.Add(1) > c.most {
			c.on.Store(false)
		}
		body, status = `{"code":"InvalidParameterValueException","message":"The job is not finished.","type":"Client"}`, http.StatusBadRequest
	} else {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		body = strings.NewReplacer(`"Completed":true`, `"Completed":false`, `"Succeeded"`, `"InProgress"`).Replace(string(b))
	}
	resp.Body.Close()
	h := make(http.Header)
	for _, k := range []string{"Date", "Content-Type", "X-Cas-Requestid"} {
		h.Set(k, resp.Header.Get(k))
	}
	return &http.Response{
		StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}, nil
}

// TestListedAsReadyButNot: an output that the service does not give yet although the list says that it is there is asked for at growing
// intervals, what is waited for is told, and the recall goes on when the service has made up its mind.
func TestListedAsReadyButNot(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.Tier = "expedited" })
		r.stop()
		c := &contradicting{under: r.srv.Transport(), most: 1000}
		cr := r.srv.Store.Credentials()
		client, err := cas.New(cas.Options{
			Endpoint: "http://cas.test", AppID: cr.AppID, Transport: c,
			Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		r.opts.Client = client
		r.start()
		ino, data := r.coldFile("f", 3<<20)
		c.on.Store(true)
		read := make(chan error, 1)
		go func() {
			got, err := r.read(context.Background(), ino, 0, len(data))
			if err == nil && !bytes.Equal(got, data) {
				t.Error("wrong bytes")
			}
			read <- err
		}()
		time.Sleep(3*time.Hour + 2*time.Second)
		tried := c.outputs.Load()
		t.Logf("%d requests for output in three hours", tried)
		if tried < 10 || tried > 60 { // the last ones every five minutes
			t.Errorf("the output was asked for %d times in three hours", tried)
		}
		s, err := r.e.Stat(t.Context(), ino)
		if err != nil || s.State != "recalling" || !strings.Contains(s.Error, cas.ErrNotReady.Error()) || !strings.Contains(s.Explain, cas.ErrNotReady.Error()) {
			t.Errorf("%+v, %v", s, err)
		}
		st, err := r.e.Status(t.Context())
		if err != nil || len(st.Retrievals) != 1 || !strings.Contains(st.Retrievals[0].Error, cas.ErrNotReady.Error()) {
			t.Errorf("%+v, %v", st.Retrievals, err)
		}
		c.on.Store(false)
		at := time.Now()
		if err := <-read; err != nil {
			t.Error(err)
		}
		if took := time.Since(at); took > 5*time.Minute {
			t.Errorf("it went on after %v", took)
		}
		if got := r.state(ino); got != "resident" {
			t.Errorf("state %s", got)
		}
		r.jobs(1)

		// What went wrong before does not slow the next one down.
		r.cold(ino)
		r.srv.Inject(castest.Fault{Op: cas.OpJobOutput, Kind: castest.Status, Code: "AccessDeniedException", Count: 1})
		at = time.Now()
		r.want(ino, data, 0, len(data))
		if took := time.Since(at); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		r.jobs(1)
	})
}
