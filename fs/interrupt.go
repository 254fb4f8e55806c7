package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/casfs/casfs/jobs"
)

// call is the context of one request. The kernel interrupts a request for any
// signal, and the Go runtime sends its threads SIGURG all the time; a program
// that gets EINTR for that may fail (SA_RESTART does not help on FUSE). So the request's own
// cancellation is passed on only for a signal that is the program's business.
//
// Nothing is started until someone asks for Done: most calls never wait.
type call struct {
	who       fuse.Caller     // Pid is the calling thread's; 0 when it cannot be seen
	cancelled <-chan struct{} // closed when the request is interrupted
	once      sync.Once
	done      chan struct{} // what waiters see
	end       chan struct{} // closed when the handler returns
}

// begin makes the context of a request. finish must be called when the handler returns.
func begin(in *fuse.InHeader, cancel <-chan struct{}) *call {
	return &call{who: in.Caller, cancelled: cancel}
}

func (c *call) finish() {
	// Claim the once, so that a Done after the end starts nothing.
	c.once.Do(func() { c.done = make(chan struct{}) })
	if c.end != nil {
		close(c.end)
	}
}

// caller returns who makes the call.
func (c *call) caller() jobs.Caller {
	return jobs.Caller{UID: c.who.Uid, GID: c.who.Gid, PID: c.who.Pid}
}

func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *call) Value(any) any               { return nil }

func (c *call) Done() <-chan struct{} {
	c.once.Do(func() {
		c.done = make(chan struct{})
		c.end = make(chan struct{})
		go c.watch()
	})
	return c.done
}

func (c *call) Err() error {
	select {
	case <-c.cancelled:
	default:
		return nil
	}
	select {
	case <-c.Done():
		return context.Canceled
	default:
		return nil
	}
}

// signalPoll is how often a call that was interrupted by SIGURG alone is looked
// at again: the kernel says nothing more after the first interrupt.
const signalPoll = 10 * time.Millisecond

func (c *call) watch() {
	select {
	case <-c.end:
		return
	case <-c.cancelled:
	}
	for onlySIGURG(c.who.Pid) {
		t := time.NewTimer(signalPoll)
		select {
		case <-c.end:
			t.Stop()
			return
		case <-t.C:
		}
	}
	close(c.done)
}

// onlySIGURG reports whether SIGURG is the one signal waiting for the thread.
// With nothing waiting the interrupt had another reason (the mount is
// gone, a signal another thread took), and with a thread that cannot be seen nothing is
// known: both end the call, so that nobody is ever stuck.
func onlySIGURG(tid uint32) bool {
	if tid == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	return pendingSignals(b) == 1<<(uint(syscall.SIGURG)-1)
}

// pendingSignals returns the signals of a /proc/PID/status that are pending for
// the thread or its process and not blocked, bit n-1 for signal n.
func pendingSignals(status []byte) uint64 {
	var thread, shared, blocked uint64
	for line := range bytes.Lines(status) {
		name, hex, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		var to *uint64
		switch string(name) {
		case "SigPnd":
			to = &thread
		case "ShdPnd":
			to = &shared
		case "SigBlk":
			to = &blocked
		default:
			continue
		}
		v, err := strconv.ParseUint(string(bytes.TrimSpace(hex)), 16, 64)
		if err != nil {
			return ^uint64(0)
		}
		*to = v
	}
	return (thread | shared) &^ blocked
}
