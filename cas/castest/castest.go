// Package castest runs the embedded store in process for tests, with faults
// injected by operation name, and counts requests.
package castest

import (
	"net/http"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
)

// Kind is what a fault does.
type Kind int

// The faults.
const (
	Status     Kind = iota // answer Code/HTTPStatus instead of doing the work
	Reset                  // break the connection before the work
	CutRequest             // break after Bytes of the request body
	CutReply               // break after Bytes of the reply body
	Delay                  // wait Delay first
	Corrupt                // flip one byte of the reply body at Bytes
	WrongHash              // falsify x-cas-sha256-tree-hash of the reply
	LoseReply              // do the work, then break the connection
)

// Fault injects Kind into calls of Op ("" or "*": any). After Skip matching calls
// it fires Count times (0: for ever); Probability (0: always) thins it.
type Fault struct {
	Op          string // as cas.Error.Op: UploadArchive, UploadPart, CompleteUpload, InitiateJob, JobOutput, …
	Kind        Kind
	Skip, Count int
	Probability float64
	HTTPStatus  int
	Code        string
	Bytes       int64
	Delay       time.Duration
}

// Server is a store in process.
type Server struct {
	Store *local.Store
	impl  serverImpl
}

type serverImpl struct{}

// New opens a store in o.Dir ("": t.TempDir()) and closes it at the end of t.
// Zero o.Delays finish jobs at once.
func New(t testing.TB, o local.Options) *Server { panic("unimplemented") }

// Transport calls the handler in process, through the faults. It works inside testing/synctest.
func (s *Server) Transport() http.RoundTripper { panic("unimplemented") }

// Client is a cas.Client on Transport with fast retries.
func (s *Server) Client(t testing.TB) *cas.Client { panic("unimplemented") }

// Inject adds a fault and returns a function that removes it.
func (s *Server) Inject(f Fault) (remove func()) { panic("unimplemented") }

// Count returns how many requests of op ("*": all) have arrived, faulted ones included.
func (s *Server) Count(op string) int { panic("unimplemented") }

// Seed makes Probability reproducible.
func (s *Server) Seed(seed uint64) { panic("unimplemented") }
