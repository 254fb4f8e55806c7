package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/casfs/casfs/jobs"
)

// Client asks a running mount. Every method blocks until the daemon answered or ctx ends; ending ctx cancels the
// request in the daemon. Failures the daemon told are *Error; one that died is ErrGone.
type Client struct {
	path string
	http *http.Client
}

// Dial connects to the socket at path and asks who answers.
func Dial(ctx context.Context, path string) (*Client, Info, error) {
	c := &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return DialSocket(ctx, path)
		},
		DisableCompression: true,
	}}}
	info, err := call[Info](ctx, c, verbPing, none{}, nil, nil)
	if err != nil {
		c.Close()
		return nil, Info{}, err
	}
	return c, info, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the daemon's snapshot.
func (c *Client) Status(ctx context.Context) (jobs.Status, error) {
	return call[jobs.Status](ctx, c, verbStatus, none{}, nil, nil)
}

// Stat explains inodes, in order; with an error the result ends before the inode that failed.
func (c *Client) Stat(ctx context.Context, inos []uint64) ([]jobs.FileStatus, error) {
	return call[[]jobs.FileStatus](ctx, c, verbStat, inosRequest{Inos: inos}, nil, nil)
}

// Sync waits until everything under the inodes is archived. With an error that matches jobs.ErrUpload come the files that were refused.
func (c *Client) Sync(ctx context.Context, inos []uint64, progress func(jobs.Progress)) ([]jobs.Skipped, error) {
	r, err := call[syncReply](ctx, c, verbSync, inosRequest{Inos: inos}, progress, nil)
	if progress != nil && r.Done != (jobs.Progress{}) {
		progress(r.Done)
	}
	return r.Failures, err
}

// Evict drops local copies.
func (c *Client) Evict(ctx context.Context, inos []uint64, recursive bool) (jobs.EvictResult, error) {
	return call[jobs.EvictResult](ctx, c, verbEvict, inosRequest{Inos: inos, Recursive: recursive}, nil, nil)
}

// Recall asks for files to be made local.
func (c *Client) Recall(ctx context.Context, r jobs.RecallRequest, progress func(jobs.Progress)) (jobs.RecallResult, error) {
	return call[jobs.RecallResult](ctx, c, verbRecall, r, progress, nil)
}

// Allow raises the recall guard's allowance.
func (c *Client) Allow(ctx context.Context, files int, bytes int64) error {
	_, err := call[none](ctx, c, verbAllow, allowRequest{files, bytes}, nil, nil)
	return err
}

// Trash lists archives waiting to be deleted.
func (c *Client) Trash(ctx context.Context) ([]jobs.TrashEntry, error) {
	return call[[]jobs.TrashEntry](ctx, c, verbTrash, none{}, nil, nil)
}

// Purge deletes archives of the trash now, all of them without ids.
func (c *Client) Purge(ctx context.Context, ids []string) (int, error) {
	r, err := call[purgeReply](ctx, c, verbPurge, purgeRequest{ids}, nil, nil)
	return r.Deleted, err
}

// Inventory lists a vault ("": the mount's) and merges the list.
func (c *Client) Inventory(ctx context.Context, vault string, wait bool, progress func(jobs.Progress)) error {
	_, err := call[none](ctx, c, verbInventory, inventoryRequest{vault, wait}, progress, nil)
	return err
}

// Check looks for disagreements; each goes to report.
func (c *Client) Check(ctx context.Context, inventory, repair bool, report func(string)) error {
	_, err := call[none](ctx, c, verbCheck, checkRequest{inventory, repair}, nil, report)
	return err
}

// Unmount drains, unmounts, and returns when the daemon's process is gone.
func (c *Client) Unmount(ctx context.Context, r UnmountRequest, progress func(jobs.Progress)) (UnmountReply, error) {
	return call[UnmountReply](ctx, c, verbUnmount, r, progress, nil)
}

func call[Rep any](ctx context.Context, c *Client, verb string, req any, progress func(jobs.Progress), report func(string)) (Rep, error) {
	var zero Rep
	body, err := json.Marshal(req)
	if err != nil {
		return zero, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://casfs/v1/"+verb, bytes.NewReader(body))
	if err != nil {
		return zero, err
	}
	resp, err := c.http.Do(hr)
	if err != nil {
		if ctx.Err() != nil {
			return zero, context.Cause(ctx)
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return zero, fmt.Errorf("no casfs answers on %s: %w", c.path, op.Err)
		}
		return zero, fmt.Errorf("%w (%v)", ErrGone, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return zero, fmt.Errorf("the running casfs does not know %q; is it an older version?", verb)
	}
	in := bufio.NewReader(resp.Body)
	for {
		raw, err := in.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				return zero, context.Cause(ctx)
			}
			return zero, ErrGone
		}
		var l line
		if err := json.Unmarshal(raw, &l); err != nil {
			return zero, fmt.Errorf("reply of the daemon: %w", err)
		}
		switch {
		case l.Error != nil:
			rep, _ := decode[Rep](l.Error.Partial)
			return rep, l.Error
		case l.Result != nil:
			if verb == verbUnmount {
				io.Copy(io.Discard, in) // ends with the process
			}
			return decode[Rep](l.Result)
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		case l.Report != "" && report != nil:
			report(l.Report)
		}
	}
}
