package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// workGroup owns the goroutines that outlive a request.
type workGroup struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// start runs fn on a goroutine; false: the store is closing.
func (g *workGroup) start(fn func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		fn()
	}()
	return true
}

// close refuses new work and waits for the rest.
func (g *workGroup) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}

// slots bounds how many callbacks are under way.
type slots chan struct{}

var callbackPauses = []time.Duration{time.Second, 5 * time.Second, 25 * time.Second}

func (s *Store) startCallbacks(rt http.RoundTripper) {
	if rt == nil {
		rt = &http.Transport{Proxy: http.ProxyFromEnvironment, IdleConnTimeout: 30 * time.Second}
	}
	s.callbacks = &http.Client{
		Transport:     rt,
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.slots = make(slots, 4)
}

// targets are the URLs to be called about a job that has finished: its own and
// the vault's, if the vault's was there by then. mu is held.
func (v *vault) targets(j *job, now int64) []string {
	var urls []string
	if j.URL != "" {
		urls = append(urls, j.URL)
	}
	if done, at, _ := j.outcome(now); v.notify != nil && (!done || v.notifyAt <= at) && slices.Contains(v.notify.Events, events[j.Type]) {
		urls = append(urls, v.notify.CallBackUrl)
	}
	return urls
}

// tell posts the job object to whoever wants it and records that it did. When
// the store is closed before, the next Open tells.
func (v *vault) tell(j *job) {
	now := v.s.nowMillis()
	v.mu.Lock()
	done, _, _ := j.outcome(now)
	if !done || j.told || v.gone || v.jobs[j.ID] != j {
		v.mu.Unlock()
		return
	}
	j.told = true // by this goroutine
	urls := v.targets(j, now)
	body, err := json.Marshal(v.jobJSON(j, now))
	v.mu.Unlock()
	if len(urls) == 0 {
		return
	}
	if err != nil {
		v.s.logger.Error("cannot encode callback", "error", err)
		return
	}
	for _, u := range urls {
		if err := v.s.call(v.s.ctx, u, body); err != nil {
			if v.s.ctx.Err() != nil {
				return
			}
			v.s.logger.Warn("callback given up", "url", u, "job", j.ID, "error", err)
		}
	}
	v.mu.Lock()
	if v.gone {
		v.mu.Unlock()
		return
	}
	t, err := v.commitLocked(&record{Type: "told", ID: j.ID}, "")
	v.mu.Unlock()
	if err == nil {
		err = v.log.wait(t)
	}
	if err != nil {
		v.s.logger.Error("callback not recorded", "job", j.ID, "error", err)
	}
}

// call posts body, repeating a few times; any 2xx is success.
func (s *Store) call(ctx context.Context, url string, body []byte) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	for i := 0; ; i++ {
		err := s.post(ctx, url, body)
		if err == nil || i == len(callbackPauses) || ctx.Err() != nil {
			return err
		}
		t := time.NewTimer(callbackPauses[i])
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func (s *Store) post(ctx context.Context, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.callbacks.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}
