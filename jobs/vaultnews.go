package jobs

import (
	"context"
	"errors"
	"sync"

	"github.com/casfs/casfs/cas"
)

// vaultNews knows when something was last recorded of each vault that an answer asked for before may not know: a vault that was found
// gone would be there again, and the only copies of its files could be evicted. It counts instead of looking at a clock, and
// forgets with the program, as does whoever waits for an answer.
type vaultNews struct {
	mu    sync.Mutex
	count uint64
	last  map[string]uint64 // by name
}

// now is taken before the service is asked.
func (n *vaultNews) now() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count
}

// note is for transactions: name is made, gone (also when that was known), back, or another one.
func (n *vaultNews) note(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last == nil {
		n.last = make(map[string]uint64)
	}
	n.count++
	n.last[name] = n.count
}

// since reports whether an answer about name was overtaken.
func (n *vaultNews) since(name string, asked uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last[name] > asked
}

var errOvertaken = errors.New("something was recorded of the vault since the service was asked")

// lookAtVault asks about one vault and merges the answer; again when that was overtaken, which only news do.
func (e *Engine) lookAtVault(ctx context.Context, name string) error {
	for {
		asked := e.vaultNews.now()
		info, err := e.client.DescribeVault(ctx, name)
		if err != nil {
			return err
		}
		if err := e.mergeVaults([]cas.VaultInfo{info}, false, asked); !errors.Is(err, errOvertaken) {
			return err
		}
	}
}
