package fs

import (
	"context"
	"syscall"
)

// linkNode is a symbolic link.
type linkNode struct{ node }

func (n *linkNode) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	c, end := begin(ctx)
	defer end()
	target, err := n.m.engine.Readlink(c, n.ino())
	if err != nil {
		r := n.removed.Load()
		if r == nil {
			return nil, n.fail(c, "readlink", "", err)
		}
		target = r.target
	}
	return []byte(target), 0
}
