package cas

import (
	"context"
	"fmt"
	"io"
)

// Inventory streams the output of a finished inventory job through
// DecodeInventory, reading on after breaks. Errors: those of JobOutput and DecodeInventory, and ErrUnavailable.
func (c *Client) Inventory(ctx context.Context, vault, jobID string, each func(InventoryEntry) error) (InventoryHeader, error) {
	r := &outputReader{ctx: ctx, c: c, vault: vault, job: jobID, total: -1}
	defer r.close()
	if err := r.open(); err != nil {
		return InventoryHeader{}, err
	}
	return DecodeInventory(r, each)
}

// outputReader reads an output from start to end and survives breaks.
type outputReader struct {
	ctx        context.Context
	c          *Client
	vault, job string
	out        *Output
	off, total int64
	broken     int // times in a row
}

func (r *outputReader) open() error {
	var rng Range
	if r.off > 0 {
		rng = Range{r.off, r.total - r.off}
	}
	out, err := r.c.JobOutput(r.ctx, r.vault, r.job, rng)
	if err != nil {
		return err
	}
	if r.off == 0 {
		r.total = out.Total
	}
	r.out = out
	return nil
}

func (r *outputReader) close() {
	if r.out != nil {
		r.out.Body.Close()
		r.out = nil
	}
}

func (r *outputReader) Read(p []byte) (int, error) {
	for {
		if r.out == nil {
			if err := r.open(); err != nil {
				return 0, err
			}
		}
		n, err := r.out.Body.Read(p)
		r.off += int64(n)
		if n > 0 {
			r.broken = 0
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		r.close()
		r.broken++
		if cerr := ctxErr(r.ctx); cerr != nil {
			return n, cerr
		}
		if r.broken >= r.c.retry.MaxAttempts || r.total < 0 {
			return n, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := sleep(r.ctx, min(r.c.retry.Initial<<(r.broken-1), r.c.retry.Max)); err != nil {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}
