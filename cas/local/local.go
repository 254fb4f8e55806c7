// Package local is the archive service itself on a local directory: an
// http.Handler with every operation, header, limit and error of the wire
// contract. It is what casfs uses without an account, what `casfs serve`
// offers to other machines, and what every test runs against. It shares no
// code with package cas (its own signing and tree hash), so that client and
// server do not share a bug.
package local

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Delays model how long the service takes.
type Delays struct {
	Expedited, Standard, Bulk, Inventory time.Duration
}

// Options configure a Store.
type Options struct {
	Dir    string // created when missing
	Region string // in QCS names; "": "local"
	AppID  string // "": a generated one, kept in credentials
	Delays Delays
	// UploadLife and OutputLife are 24 h when zero.
	UploadLife, OutputLife time.Duration
	// InventoryAge makes inventories and vault counts snapshots of that age; 0 is live.
	InventoryAge time.Duration
	// Lenient accepts part sizes that are no power of two (cascmd's 48 MiB).
	Lenient bool
	// Now is the store's clock; nil: time.Now.
	Now func() time.Time
	// MinRate is how slow a client may send a body (bytes/s) before 408; 0: 1 KiB/s after 60 s grace.
	Logger *slog.Logger
}

// Store is an open store directory. One process holds it at a time (flock).
type Store struct{ impl storeImpl }

type storeImpl struct{}

// Credentials of the generated account.
type Credentials struct {
	AppID, SecretID, SecretKey string
}

// ErrInUse is wrapped by Open when another process holds the directory; the
// message names its pid.
var ErrInUse = errInUse{}

type errInUse struct{}

func (errInUse) Error() string { return "store directory is in use" }

// Open opens or creates the store in o.Dir, collects what crashes left behind,
// and writes DIR/credentials (0600, cascmd's INI format) on first start.
func Open(o Options) (*Store, error) { panic("unimplemented") }

// Credentials returns the account the store accepts.
func (s *Store) Credentials() Credentials { panic("unimplemented") }

// ServeHTTP implements the service; usable in process. Requests with two Host
// headers only get here through Serve, which mends the head first.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) { panic("unimplemented") }

var _ http.Handler = (*Store)(nil)

// Serve accepts connections on l until ctx ends, then lets requests in flight
// finish for up to 10 s. It mends request heads with several Host lines before net/http sees them.
func (s *Store) Serve(ctx context.Context, l net.Listener) error { panic("unimplemented") }

// SetEndpoint records the address in DIR/credentials, for users and tests to read.
func (s *Store) SetEndpoint(endpoint string) error { panic("unimplemented") }

// Close stops background work (callbacks, collection) and releases the directory.
func (s *Store) Close() error { panic("unimplemented") }
