package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/jobs"
)

// Verbs, the last element of the request path.
const (
	verbPing      = "ping"
	verbStatus    = "status"
	verbStat      = "stat"
	verbSync      = "sync"
	verbEvict     = "evict"
	verbRecall    = "recall"
	verbAllow     = "allow"
	verbTrash     = "trash"
	verbPurge     = "purge"
	verbInventory = "inventory"
	verbCheck     = "check"
	verbUnmount   = "unmount"
)

// Info says who answers on a socket.
type Info struct {
	PID        int    `json:"pid"`
	Mountpoint string `json:"mountpoint"`
	StateDir   string `json:"state_dir"`
	Vault      string `json:"vault,omitempty"` // "": all vaults of the account
	Version    string `json:"version"`
	Draining   bool   `json:"draining"` // unmounted already, still archiving
}

// UnmountRequest asks the daemon to archive what is staged, unmount and exit.
type UnmountRequest struct {
	Lazy    bool  `json:"lazy"`
	Timeout int64 `json:"timeout"` // nanoseconds the draining may take; 0: no limit
}

// UnmountReply says what is still only on the local disk.
type UnmountReply struct {
	Pending []jobs.Pending `json:"pending"`
}

type inosRequest struct {
	Inos      []uint64 `json:"inos"`
	Recursive bool     `json:"recursive"`
}

type syncReply struct {
	Done     jobs.Progress  `json:"done"` // the last progress, which the stream may have left out
	Failures []jobs.Skipped `json:"failures,omitempty"`
}

type allowRequest struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

type purgeRequest struct {
	IDs []string `json:"ids"`
}

type purgeReply struct {
	Deleted int `json:"deleted"`
}

type inventoryRequest struct {
	Vault string `json:"vault"`
	Wait  bool   `json:"wait"`
}

type checkRequest struct {
	Inventory bool `json:"inventory"`
	Repair    bool `json:"repair"`
}

type none struct{}

// line is one line of a reply.
type line struct {
	Progress *jobs.Progress  `json:"progress,omitempty"`
	Report   string          `json:"report,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Error is a request's failure as the daemon told it. It matches the sentinel
// errors of jobs and cas that the daemon's own error matched.
type Error struct {
	Kind    string          `json:"kind,omitempty"`
	Message string          `json:"message"`
	Partial json.RawMessage `json:"partial,omitempty"` // the result as far as it came
}

func (e *Error) Error() string { return e.Message }

// Is matches the error the kind stands for.
func (e *Error) Is(target error) bool {
	for _, k := range kinds {
		if k.name == e.Kind {
			return k.err == target
		}
	}
	return false
}

// ErrBusy means that programs still have files of the mount open.
var ErrBusy = errors.New("the mount is busy")

// ErrGone means that the daemon went away before it answered.
var ErrGone = errors.New("the daemon went away before it answered")

var kinds = []struct {
	name string
	err  error
}{
	{"pending", jobs.ErrPending},
	{"upload", jobs.ErrUpload},
	{"closing", jobs.ErrClosing},
	{"stale", jobs.ErrStale},
	{"read-only", jobs.ErrReadOnly},
	{"damaged", jobs.ErrDamaged},
	{"denied", jobs.ErrDenied},
	{"guard", jobs.ErrGuard},
	{"timed-out", jobs.ErrTimedOut},
	{"busy", ErrBusy},
	{"busy-vault", jobs.ErrBusy},
	{"clock", cas.ErrClockSkew},
	{"credentials", cas.ErrCredentials},
	{"access", cas.ErrAccessDenied},
	{"not-found", cas.ErrNotFound},
	{"throttled", cas.ErrThrottled},
	{"unavailable", cas.ErrUnavailable},
	{"deadline", context.DeadlineExceeded},
	{"canceled", context.Canceled},
}

func wireError(err error) *Error {
	e := &Error{Message: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			e.Kind = k.name
			break
		}
	}
	return e
}

func decode[T any](raw json.RawMessage) (T, error) {
	var v T
	if len(raw) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("reply of the daemon: %w", err)
	}
	return v, nil
}
