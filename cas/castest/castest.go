// Package castest runs the embedded store in process for tests, with faults
// injected by operation name, and counts requests.
package castest

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
)

// Kind is what a fault does.
type Kind int

// The faults.
const (
	Status         Kind = iota // answer Code/HTTPStatus instead of doing the work
	Reset                      // break the connection before the work
	CutRequest                 // break after Bytes of the request body
	CutReply                   // break after Bytes of the reply body
	Delay                      // wait Delay first
	Corrupt                    // flip one byte of the reply body at Bytes
	WrongHash                  // falsify x-cas-sha256-tree-hash of the reply
	LoseReply                  // do the work, then break the connection
	CorruptRequest             // flip one byte of the request body at Bytes
	Hold                       // wait first, until the fault is removed
	HoldReply                  // do the work, then wait until the fault is removed
)

// Fault injects Kind into calls of Op ("" or "*": any). After Skip matching calls
// it fires Count times (0: for ever); Probability (0: always) thins it.
type Fault struct {
	Op          string // as cas.Error.Op: UploadArchive, UploadPart, CompleteUpload, InitiateJob, JobOutput, …
	Kind        Kind
	Skip, Count int
	Probability float64
	HTTPStatus  int    // of Status; 0: the code's own
	Code        string // of Status; "": ServiceUnavailableException
	Bytes       int64
	Delay       time.Duration

	removed chan struct{} // of Hold and HoldReply
}

// Server is a store in process.
type Server struct {
	Store *local.Store

	mu      sync.Mutex
	counts  map[string]int
	faults  []*armed
	rng     *rand.Rand
	closed  bool
	running sync.WaitGroup // handlers
}

// armed is a fault with its counters.
type armed struct {
	Fault
	seen, fired int
}

// New opens a store in o.Dir ("": t.TempDir()) and closes it at the end of t.
// Zero o.Delays finish jobs at once. Nothing is synced to disk: a test that
// pulls the plug uses package local itself.
func New(t testing.TB, o local.Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.NoSync = true
	store, err := local.Open(o)
	if err != nil {
		t.Fatalf("castest: %v", err)
	}
	s := &Server{Store: store, counts: map[string]int{}}
	s.Seed(1)
	t.Cleanup(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.running.Wait()
		if err := store.Close(); err != nil {
			t.Errorf("castest: close: %v", err)
		}
	})
	return s
}

// Transport calls the handler in process, through the faults. It works inside testing/synctest.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

// Client is a cas.Client on Transport with fast retries.
func (s *Server) Client(t testing.TB) *cas.Client {
	t.Helper()
	cr := s.Store.Credentials()
	c, err := cas.New(cas.Options{
		Endpoint:    "http://cas.test",
		AppID:       cr.AppID,
		Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey},
		Transport:   s.Transport(),
		Retry:       cas.RetryPolicy{MaxAttempts: 6, Initial: time.Millisecond, Max: 10 * time.Millisecond},
	})
	if err != nil {
		t.Fatalf("castest: %v", err)
	}
	t.Cleanup(c.Close)
	return c
}

// Inject adds a fault and returns a function that removes it. Of several that
// fire on one call, Hold and Delay come first and then the earliest of those that end the call.
func (s *Server) Inject(f Fault) (remove func()) {
	f.removed = make(chan struct{})
	a := &armed{Fault: f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, a)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, b := range s.faults {
			if a == b {
				s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
				close(f.removed)
				return
			}
		}
	}
}

// Count returns how many requests of op ("*": all) have arrived, faulted ones included.
func (s *Server) Count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Seed makes Probability reproducible.
func (s *Server) Seed(seed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rng = rand.New(rand.NewPCG(seed, seed))
}

// arrive counts a request and returns copies of the faults that fire on it.
func (s *Server) arrive(op string) []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["*"]++
	if op != "" {
		s.counts[op]++
	}
	var fire []Fault
	for _, a := range s.faults {
		if a.Op != "" && a.Op != "*" && a.Op != op {
			continue
		}
		a.seen++
		if a.seen <= a.Skip || a.Count > 0 && a.fired >= a.Count {
			continue
		}
		if a.Probability > 0 && s.rng.Float64() >= a.Probability {
			continue
		}
		a.fired++
		fire = append(fire, a.Fault)
	}
	return fire
}

// begin counts a running handler; false: the test has ended.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.running.Add(1)
	}
	return !s.closed
}
