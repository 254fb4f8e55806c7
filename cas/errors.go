package cas

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
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

	skewed bool // the signature was refused and the local clock was off by more than it may
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
	ErrUnverifiable = errors.New("no hash to verify with")             // the service tells none for this job's range
)

// Codes of the service (cas-api.md §2).
const (
	codeAccessDenied   = "AccessDeniedException"
	codeBadRequest     = "BadRequest"
	codeExpiredToken   = "ExpiredTokenException"
	codeInvalidParam   = "InvalidParameterValueException"
	codeBadSignature   = "InvalidSignatureException"
	codeLimit          = "LimitExceededException"
	codeNoToken        = "MissingAuthenticationTokenException"
	codeMissingParam   = "MissingParameterValueException"
	codePolicy         = "PolicyEnforcedException"
	codeNotFound       = "ResourceNotFoundException"
	codeRequestTimeout = "RequestTimeoutException"
	codeSerialization  = "SerializationException"
	codeThrottling     = "ThrottlingException"
	codeUnknownClient  = "UnrecognizedClientException"
	codeUnavailable    = "ServiceUnavailableException"
	codeInvalidDigest  = "InvalidDigest"
	codeInvalidParam2  = "InvalidParameter"
)

var kinds = map[string]error{
	codeAccessDenied:   ErrAccessDenied,
	codeBadRequest:     ErrInvalid,
	codeExpiredToken:   ErrCredentials,
	codeInvalidParam:   ErrInvalid,
	codeBadSignature:   ErrCredentials,
	codeLimit:          ErrLimit,
	codeNoToken:        ErrCredentials,
	codeMissingParam:   ErrInvalid,
	codePolicy:         ErrPolicy,
	codeNotFound:       ErrNotFound,
	codeRequestTimeout: ErrUnavailable,
	codeSerialization:  ErrInvalid,
	codeThrottling:     ErrThrottled,
	codeUnknownClient:  ErrCredentials,
	codeUnavailable:    ErrUnavailable,
	codeInvalidDigest:  ErrDigest,
	codeInvalidParam2:  ErrInvalid,
}

// kind is the sentinel for e; status decides only where the code does not.
func (e *Error) kind() error {
	if e.Op == OpDeleteVault && e.Code == codeBadRequest {
		return ErrNotEmpty
	}
	if k := kinds[e.Code]; k != nil {
		if k == ErrCredentials && e.skewed {
			return ErrClockSkew
		}
		return k
	}
	switch {
	case e.Status < 400:
		return ErrProtocol
	case e.Status == http.StatusTooManyRequests:
		return ErrThrottled
	case e.Status >= 500, e.Status == http.StatusRequestTimeout:
		return ErrUnavailable
	case e.Code == "" && e.RequestID == "":
		// Not the service speaking: a proxy, a portal, a wrong address. Its 404 says nothing about an archive.
		return ErrProtocol
	case e.Status == http.StatusUnauthorized:
		return ErrCredentials
	case e.Status == http.StatusForbidden:
		return ErrAccessDenied
	case e.Status == http.StatusNotFound:
		return ErrNotFound
	case e.Status == http.StatusRequestEntityTooLarge:
		return ErrTooLarge
	}
	return ErrInvalid
}

// Error says operation, code, message and request id in one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cas: %s: ", e.Op)
	if e.Code != "" {
		b.WriteString(oneLine(e.Code))
	} else {
		fmt.Fprintf(&b, "HTTP %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Message != "" {
		b.WriteString(": " + oneLine(e.Message))
	}
	if e.skewed {
		b.WriteString(" (" + ErrClockSkew.Error() + ")")
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", oneLine(e.RequestID))
	}
	return b.String()
}

// Is matches the sentinels above by code.
func (e *Error) Is(target error) bool { return target == e.kind() }

// oneLine keeps what a server sent from breaking a line of log or terminal.
func oneLine(s string) string {
	const most = 500
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.TrimSpace(s)
}

// invalid is an error of the caller's making, found before anything was sent.
func invalid(op, format string, args ...any) error {
	return fmt.Errorf("cas: %s: %w: %s", op, ErrInvalid, fmt.Sprintf(format, args...))
}

// badReply is a reply that breaks the contract.
func badReply(op, format string, args ...any) error {
	return fmt.Errorf("cas: %s: %w: %s", op, ErrProtocol, fmt.Sprintf(format, args...))
}
