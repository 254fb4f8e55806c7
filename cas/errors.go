package cas

import (
	"errors"
	"time"
)

// Error is a refusal by the service. Match its kind with errors.Is and the
// sentinels below, which are decided by Code, not by Status (throttling is a
// 400, cas-api.md §2).
type Error struct {
	Op        string    // operation name, as "UploadArchive"
	Status    int       // HTTP status
	Code      string    // the service's code, as "ResourceNotFoundException"; "" when the body was no JSON
	Message   string    // the service's text
	Type      string    // "Client" or "Server", as sent
	RequestID string    // x-cas-requestid
	Date      time.Time // the server's clock, zero when it sent none
}

// Kinds of failure. Network failures that outlive the retries match ErrUnavailable.
var (
	ErrNotFound     = errors.New("not found")                            // vault, upload, job or archive does not exist
	ErrAccessDenied = errors.New("access denied")                        // no permission, or the wrong account
	ErrCredentials  = errors.New("credentials refused")                  // unknown key, bad signature, expired token
	ErrClockSkew    = errors.New("the local clock is wrong")             // signature outside its window even after learning the server's time
	ErrThrottled    = errors.New("throttled")                            // too many requests
	ErrUnavailable  = errors.New("service unavailable")                  // 5xx, time-outs, network
	ErrInvalid      = errors.New("invalid request")                      // a parameter the service refuses
	ErrDigest       = errors.New("hash mismatch")                        // body and hashes disagree, either side
	ErrLimit        = errors.New("limit exceeded")                       // vault or tag limit
	ErrPolicy       = errors.New("refused by the data-retrieval policy") // PolicyEnforced
	ErrNotEmpty     = errors.New("vault is not empty")                   // Delete Vault
	ErrNotReady     = errors.New("job is not finished")                  // output or poll before completion
	ErrJobFailed    = errors.New("job failed")                           // finished with StatusCode Failed
	ErrExpired      = errors.New("job output has expired")               // 24 h after completion
	ErrTooLarge     = errors.New("archive is too large")
	ErrEmpty        = errors.New("an archive needs at least one byte")
	ErrMismatch     = errors.New("local file differs from the upload") // resume: a part's tree hash is another
	ErrUnknown      = errors.New("outcome unknown")                    // the request was sent, the reply never came: the work may have been done
	ErrProtocol     = errors.New("unexpected reply")                   // a reply that breaks the contract (missing id, bad length)
)

// Error says operation, code, message and request id in one line.
func (e *Error) Error() string { panic("unimplemented") }

// Is matches the sentinels above by code.
func (e *Error) Is(target error) bool { panic("unimplemented") }
