package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// restarts bounds how often one attempt begins an upload anew.
const restarts = 3

// sendMultipart uploads a segment in parts, going on where an earlier attempt ended.
func (e *Engine) sendMultipart(ctx context.Context, t *task, j *sealed, u *catalog.Upload) (catalog.Archive, error) {
	var last error
	before := t.done.Load()
	for range restarts {
		t.done.Store(before)
		a, err := e.tryMultipart(ctx, t, j, u)
		if err == nil {
			return e.recordSent(ctx, u, a)
		}
		if !errors.Is(err, errRestart) {
			return a, err
		}
		last = err
		e.log.Warn("an upload begins again", "path", e.path(u.Ino), "why", err)
		// Perhaps it went with its vault, and then what else was sent there did, too.
		if err := onlyGone(e.askVault(ctx, u.VaultName)); err != nil {
			return catalog.Archive{}, err
		}
		_, err = e.changeUpload(u, func(tx *catalog.Tx, u *catalog.Upload) error {
			// A Complete without an answer may have worked although the upload is unknown now.
			u.Uncertain = u.Uncertain || u.State == catalog.Completing
			u.State, u.UploadID, u.TreeHash = catalog.Intended, "", [32]byte{}
			return nil
		})
		if err != nil {
			return catalog.Archive{}, err
		}
	}
	return catalog.Archive{}, last
}

var errRestart = errors.New("the service no longer knows the upload")

// restart hides that err is ErrNotFound: of an upload that passes, of a vault it does not.
func restart(err error) error { return fmt.Errorf("%w: %v", errRestart, err) }

func (e *Engine) tryMultipart(ctx context.Context, t *task, j *sealed, u *catalog.Upload) (catalog.Archive, error) {
	if u.State == catalog.Completing {
		a, err := e.complete(ctx, u)
		// Incomplete after all: parts first.
		if err == nil || !errors.Is(err, cas.ErrInvalid) && !errors.Is(err, cas.ErrDigest) {
			return a, err
		}
	}
	have := map[int64]cas.PartInfo{}
	if u.UploadID == "" {
		if err := e.initiate(ctx, u); err != nil {
			return catalog.Archive{}, err
		}
	} else {
		for p, err := range e.client.Parts(ctx, u.VaultName, u.UploadID) {
			if errors.Is(err, cas.ErrNotFound) {
				return catalog.Archive{}, restart(err)
			}
			if err != nil {
				return catalog.Archive{}, err
			}
			have[p.Range.Off] = p
		}
	}
	tree, err := e.sendParts(ctx, t, j.local, u, have)
	if errors.Is(err, cas.ErrNotFound) {
		return catalog.Archive{}, restart(err)
	}
	if err != nil {
		return catalog.Archive{}, err
	}
	if err := j.durable(); err != nil {
		return catalog.Archive{}, err
	}
	seq, err := e.changeUpload(u, func(_ *catalog.Tx, u *catalog.Upload) error {
		u.State, u.TreeHash = catalog.Completing, tree
		return nil
	})
	if err != nil {
		return catalog.Archive{}, err
	}
	if err := e.catalog.Barrier(ctx, seq); err != nil {
		return catalog.Archive{}, err
	}
	e.hit("multipart.completing")
	return e.complete(ctx, u)
}

// initiate opens the upload at the service and records its ID.
func (e *Engine) initiate(ctx context.Context, u *catalog.Upload) error {
	size, err := cas.PartSizeFor(u.Size, e.opts.PartSize)
	if err != nil {
		return err
	}
	id, err := e.client.InitiateUpload(ctx, u.VaultName, u.Description, size)
	if err != nil {
		return err
	}
	e.hit("multipart.initiated")
	_, err = e.changeUpload(u, func(_ *catalog.Tx, u *catalog.Upload) error {
		u.State, u.UploadID, u.PartSize, u.Started = catalog.Sending, id, size, time.Now().UnixNano()
		u.Error, u.Permanent = "", false
		return nil
	})
	if err != nil {
		// Nobody will know the ID; unused it expires by itself, but not before a day.
		e.abort(context.WithoutCancel(ctx), u.VaultName, id)
	}
	e.hit("multipart.recorded")
	return err
}

func (e *Engine) abort(ctx context.Context, vault, id string) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := e.client.AbortUpload(ctx, vault, id); err != nil {
		e.log.Warn("aborting an upload", "vault", vault, "err", err)
	}
}

// sendParts sends what the service does not have and returns the tree hash of the segment.
func (e *Engine) sendParts(ctx context.Context, t *task, l *content.File, u *catalog.Upload, have map[int64]cas.PartInfo) (cas.Hash, error) {
	n := int((u.Size + u.PartSize - 1) / u.PartSize)
	trees := make([]cas.Hash, n)
	per := int((u.PartSize + e.opts.PartSize - 1) / e.opts.PartSize)
	g, gctx := errgroup.WithContext(ctx)
	for i := range n {
		bufs, err := e.up.bufs.get(gctx, per, true)
		if err != nil {
			break // gctx ended; Wait says why
		}
		off := int64(i) * u.PartSize
		size := min(u.PartSize, u.Size-off)
		g.Go(func() error {
			defer e.up.bufs.put(bufs, true)
			h, err := e.sendPart(gctx, l, u, off, size, bufs, have[off])
			if err != nil {
				return err
			}
			trees[i] = h
			t.done.Add(size)
			if _, had := have[off]; !had {
				e.up.taken(t)
			}
			e.hit("multipart.part")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return cas.Hash{}, err
	}
	if err := ctx.Err(); err != nil {
		return cas.Hash{}, err
	}
	return cas.CombineTreeHashes(trees), nil
}

// sendPart reads a part once, hashes it, and sends it from the same buffer unless the service has it.
func (e *Engine) sendPart(ctx context.Context, l *content.File, u *catalog.Upload, off, size int64, bufs [][]byte, have cas.PartInfo) (cas.Hash, error) {
	var h cas.TreeHasher
	for i, left := 0, size; left > 0; i++ {
		b := bufs[i][:min(left, int64(len(bufs[i])))]
		if err := readFull(l, b, u.Off+off+size-left); err != nil {
			return cas.Hash{}, err
		}
		h.Write(b)
		left -= int64(len(b))
	}
	sum := h.Sum()
	if have.Range.Len == size && have.TreeHash == sum.Tree {
		return sum.Tree, nil
	}
	return sum.Tree, e.client.UploadPart(ctx, u.VaultName, u.UploadID, off, e.up.pace(ctx, pieces{bufs, size}), sum)
}

// complete asks for the archive. Asking again after a lost answer gives the same archive.
func (e *Engine) complete(ctx context.Context, u *catalog.Upload) (catalog.Archive, error) {
	id, err := e.client.CompleteUpload(ctx, u.VaultName, u.UploadID, u.Size, u.TreeHash)
	if errors.Is(err, cas.ErrNotFound) {
		return catalog.Archive{}, restart(err)
	}
	if err != nil {
		return catalog.Archive{}, err
	}
	e.hit("multipart.completed")
	return newArchive(u, id, u.TreeHash), nil
}
