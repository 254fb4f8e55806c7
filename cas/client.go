package cas

import (
	"log/slog"
	"net/http"
	"time"
)

// Credentials sign requests. They are never logged; String hides the key.
type Credentials struct {
	SecretID  string
	SecretKey string
}

// Options configure a Client. Only Endpoint and Credentials are required.
type Options struct {
	// Endpoint is "host", "host:port", "http://…", "https://…" or
	// "unix:///path/to/socket". Without a scheme it is https.
	Endpoint string
	// AppID is the account in request paths, decimal, or "-" or "" for the account that signs.
	AppID       string
	Credentials Credentials
	// Transport replaces the client's own http.RoundTripper (tests, in-process store).
	Transport http.RoundTripper
	Logger    *slog.Logger // nil: discard
	Retry     RetryPolicy  // zero: DefaultRetry
	// Stall ends an attempt during which no byte moved for this long (0: 2 min).
	Stall time.Duration
	// MaxConns bounds idle connections kept per host (0: 16).
	MaxConns  int
	UserAgent string // "" : casfs/<version>
}

// RetryPolicy bounds what the client repeats by itself. Every attempt is signed anew.
type RetryPolicy struct {
	MaxAttempts  int           // attempts in all; 0: 6; 1: never repeat
	MaxElapsed   time.Duration // no new attempt after this; 0: 5 min
	Initial, Max time.Duration // backoff bounds; 0: 200 ms, 20 s
}

// Client calls the service. It is safe for concurrent use; it holds idle
// connections until Close.
type Client struct{ impl clientImpl }

type clientImpl struct{}

// New checks o and returns a client; it contacts nothing.
func New(o Options) (*Client, error) { panic("unimplemented") }

// Close drops idle connections. Calls in flight go on.
func (c *Client) Close() { panic("unimplemented") }
