// Package local is the archive service itself on a local directory: an
// http.Handler with every operation, header, limit and error of the wire
// contract. It is what casfs uses without an account, what `casfs serve`
// offers to other machines, and what every test runs against. It shares no
// code with package cas (its own signing and tree hash), so that client and
// server do not share a bug.
//
// # Disk
//
//	DIR/lock                       flock; the holder's pid
//	DIR/credentials                the account, in cascmd's INI format (0600)
//	DIR/mark                       how far the logs are known to be
//	DIR/tmp/                       vaults being made or removed; emptied at Open
//	DIR/cos/BUCKET/OBJECT          what push-to-cos writes and pull-from-cos reads
//	DIR/vaults/V/log               all metadata of a vault: checksummed JSON lines
//	DIR/vaults/V/log.damaged-*     a log that has lost records, kept aside; while it is
//	                               there, no file without a record is removed
//	DIR/vaults/V/archives/NNNN/ID  an archive's bytes, a plain (sparse) file
//	                  …/ID.tree    its leaf hashes, 32 bytes per MiB, when there are several
//	                  …/ID.part-*  a part that was sent again, until Complete
//	DIR/vaults/V/jobs/ID           the output of an inventory job
//
// V is derived from the vault's name. A directory NNNN takes 1024 archives. A vault whose log cannot be
// read at all (empty, missing), or whose directory is missing although it was not deleted, is listed, refuses every request with what is wrong and what to do, and is left as it
// is; the others are not concerned.
//
// # One account
//
// The store has one account with one key, which may do everything. Access
// policies say what other accounts and sub-accounts may do: they are kept and
// given back word for word, and there is nobody here to apply them to. Requests in
// another account's name are refused. The vaults' logs tell the account too: when the credentials file is lost, it gets a new key. Vault locks, tags and data-retrieval policies, which the
// service does not document, are unknown operations (404).
//
// # Crashes
//
// A reply is sent after data, directory entry and log record are on disk, in
// that order; requests in flight at the same time share the fsync of the log.
// Data is written under its final name from the first byte on, and is garbage
// until the log mentions it: Open deletes every file that no record of a whole log explains. The archive of
// a multipart upload gets its ID when the upload is opened; parts go to
// their offsets in its file, so Complete writes nothing but a record. A
// part that is sent again while the first one is acknowledged, or still
// arriving, goes to a file of its own (ID.part-*), and Complete copies it in.
//
// An open store answers only while its directory, and a vault's, is the one that was opened (see there.go).
//
// # Damage
//
// One flipped bit in a log is undone by its checksums. What more than that has damaged is skipped. A log that
// does not reach as far as it did at the last Open or Close, or some ten seconds before the store was killed, has lost its end, or is an older copy. In each of these
// cases, and when the log could not be read the last time, it stays aside as it was found.
// A leaf file is held against the archive's hash and made anew when it is damaged. The archives' own bytes are for the client to
// check, by hashes that were made when they came; what goes to a bucket is checked here. Bytes that are missing at the end of
// an archive are InvalidDigest, and those before them are served.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
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
	// Lenient accepts part sizes that are no power of two (cascmd's 48 MiB), in multiples of 1 MiB.
	Lenient bool
	// Now is the store's clock; nil: time.Now.
	Now func() time.Time
	// Stall is how long a client may send nothing, within a head or a body,
	// before 408; 0: 60 s. MinRate is how slow it may send a body on average
	// (bytes/s) once Stall is over; 0: 1 KiB/s.
	Stall   time.Duration
	MinRate int64
	// MaxRate is how many requests per second are served before
	// ThrottlingException; 0: no limit (the service's own is 800).
	MaxRate int
	// NoSync leaves out every fsync: a power cut may lose anything, a killed
	// process nothing. For tests.
	NoSync bool
	// Callbacks sends notifications; nil: a transport of the store's own.
	Callbacks http.RoundTripper
	Logger    *slog.Logger // nil: discard
}

// Store is an open store directory. One process holds it at a time (flock).
// It is safe for concurrent use.
type Store struct {
	dir          string
	region       string
	delays       Delays
	uploadLife   int64 // ms
	outputLife   int64 // ms
	inventoryAge int64 // ms; 0: live
	lenient      bool
	noSync       bool
	clock        func() time.Time
	stallTime    time.Duration
	rate         int64
	maxRate      int
	logger       *slog.Logger
	headKey      string // name of the header in which Serve hands over what it mended
	lock         *os.File
	lockInfo     os.FileInfo
	closed       atomic.Bool

	creds Credentials

	credMu   sync.Mutex
	endpoint string

	rateMu     sync.Mutex
	rateSecond time.Time
	rateCount  int

	vaultOps sync.Mutex // held while a vault is created or deleted
	mu       sync.RWMutex
	vaults   map[string]*vault
	broken   map[string]*brokenVault // by directory; as Open found them

	marksMu sync.Mutex
	marks   map[string]mark // by directory; as far as the logs are known to be on disk
	written map[string]mark // what is in DIR/mark

	markMu     sync.Mutex
	markTimer  *time.Timer // nil: nothing was recorded since the mark was written
	markClosed bool
	following  sync.Mutex // held while the mark follows the logs

	sweepMu   sync.Mutex
	lastSweep int64

	// Work that outlives requests: jobs that settle by themselves and callbacks.
	ctx       context.Context
	cancel    context.CancelFunc
	work      workGroup
	callbacks *http.Client
	slots     slots
}

// Credentials of the generated account.
type Credentials struct {
	AppID, SecretID, SecretKey string
}

// String hides the key.
func (c Credentials) String() string { return c.AppID + "/" + c.SecretID }

// ErrInUse is wrapped by Open when another process holds the directory; the
// message names its pid.
var ErrInUse = errInUse{}

type errInUse struct{}

func (errInUse) Error() string { return "store directory is in use" }

// Open opens or creates the store in o.Dir, collects what crashes left behind,
// and writes DIR/credentials (0600, cascmd's INI format) on first start.
func Open(o Options) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("local: Options.Dir is empty")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, region: o.Region, delays: o.Delays, lenient: o.Lenient, noSync: o.NoSync, clock: o.Now,
		uploadLife: o.UploadLife.Milliseconds(), outputLife: o.OutputLife.Milliseconds(), inventoryAge: o.InventoryAge.Milliseconds(),
		stallTime: o.Stall, rate: o.MinRate, maxRate: o.MaxRate, logger: o.Logger,
		headKey: http.CanonicalHeaderKey("X-Casfs-" + newKey(24)), vaults: map[string]*vault{}, broken: map[string]*brokenVault{},
	}
	const day = 24 * 60 * 60 * 1000
	if s.region == "" {
		s.region = "local"
	}
	if s.uploadLife <= 0 {
		s.uploadLife = day
	}
	if s.outputLife <= 0 {
		s.outputLife = day
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if err := s.openDir(o); err != nil {
		s.unlock()
		return nil, fmt.Errorf("local: open %s: %w", dir, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.startCallbacks(o.Callbacks)
	for _, v := range s.vaults {
		v.armAll()
	}
	return s, nil
}

// Credentials returns the account the store accepts.
func (s *Store) Credentials() Credentials { return s.creds }

// Close stops background work (callbacks, collection) and releases the
// directory. Requests must have ended before. A second Close does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.RLock()
	for _, v := range s.vaults {
		v.mu.Lock()
		for _, j := range v.jobs {
			j.stopTimer()
		}
		v.mu.Unlock()
	}
	s.mu.RUnlock()
	s.endMarks()
	s.cancel()
	s.work.close()
	s.callbacks.CloseIdleConnections()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.there(); err != nil {
		s.logger.Error("not written how far the logs are", "error", err)
	} else {
		s.setMarks(slices.Collect(maps.Values(s.vaults)))
	}
	var errs []error
	for _, v := range s.vaults {
		errs = append(errs, v.log.close())
	}
	s.vaults = map[string]*vault{}
	s.unlock()
	return errors.Join(errs...)
}

func (s *Store) now() time.Time { return s.clock() }

func (s *Store) nowMillis() int64 { return millis(s.clock()) }

func (s *Store) stall() time.Duration {
	if s.stallTime > 0 {
		return s.stallTime
	}
	return 60 * time.Second
}

func (s *Store) minRate() int64 {
	if s.rate > 0 {
		return s.rate
	}
	return 1024
}
