//go:build crashpoints

package jobs

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// crashPoint makes the program kill itself where CASFS_CRASH_AT says: a point between
// two durable steps and, after a colon, at which visit. (internal/crash runs it.)
func crashPoint() func(string) {
	at, nth, ok := strings.Cut(os.Getenv("CASFS_CRASH_AT"), ":")
	n, err := strconv.ParseInt(nth, 10, 64)
	if !ok || err != nil {
		return nil
	}
	var visits atomic.Int64
	return func(name string) {
		if name == at && visits.Add(1) == n {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}
