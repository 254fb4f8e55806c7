package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// upload brings the current version of a file into the vault:
//
//	seal     the version becomes Uploading, with an intent per archive
//	         barrier: the records are on stable storage; the bytes follow while parts are sent already
//	send     each segment: one request, or parts and Complete, not before the bytes are on stable storage; what must
//	         not be forgotten is recorded between them
//	commit   one transaction: archives, the version's extents, uploads gone, older versions' archives to the trash
//	         barrier
//	promote  the staging file becomes content
//
// A crash between any two of them leaves a state that the next start continues.
func (e *Engine) upload(ctx context.Context, t *task) error {
	f, err := e.acquire(t.ino)
	if err != nil {
		return err
	}
	defer f.put()
	j, seq, err := e.seal(f)
	if j == nil || err != nil {
		return err
	}
	e.up.sealed(t, j.ver.V)
	e.hit("sealed")
	for i := range j.segs {
		e.up.setBusy(j.segs[i].Intent, true)
		defer e.up.setBusy(j.segs[i].Intent, false)
	}
	defer e.syncBeside(j)()
	if j.open {
		if err := j.durable(); err != nil {
			return err
		}
	}
	if err := e.catalog.Barrier(ctx, seq); err != nil {
		return err
	}
	e.hit("sealed.durable")
	if err := e.vaultThere(ctx, j.segs[0].Vault); err != nil {
		return err
	}
	var archives []catalog.Archive
	for i := range j.segs {
		a, err := e.sendSegment(ctx, t, j, &j.segs[i])
		if err != nil {
			return e.explainMissing(ctx, j.segs[i].VaultName, err)
		}
		archives = append(archives, a)
	}
	if len(j.segs) > 1 {
		// They came one after the other, over hours perhaps: all of them into the same vault?
		if err := onlyGone(e.askVault(ctx, j.segs[0].VaultName)); err != nil {
			return err
		}
		if err := e.sentBefore(j, archives); err != nil {
			return err
		}
	}
	// Perhaps nothing was left to send.
	if err := j.durable(); err != nil {
		return err
	}
	return e.commit(ctx, j, archives)
}

// sentBefore sees to it that segments that went with a vault that had the name before are sent again: the commit finds
// another version then.
func (e *Engine) sentBefore(j *sealed, archives []catalog.Archive) error {
	nums := make([]uint64, len(archives))
	for i, a := range archives {
		nums[i] = a.Num
	}
	vault := j.segs[0].Vault
	if went, err := e.wentBefore(vault, nums...); err != nil || !went {
		return err
	}
	return e.sendAgain(vault, j.segs[0].VaultName, false)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// sendSegment brings one segment into the vault and returns its archive; Num is 0
// when it is not recorded yet.
func (e *Engine) sendSegment(ctx context.Context, t *task, j *sealed, u *catalog.Upload) (catalog.Archive, error) {
	if u.State == catalog.Sent {
		t.done.Add(u.Size)
		return e.archive(u.Archive)
	}
	if u.State == catalog.Intended && u.UploadID == "" && u.Size <= e.opts.SingleBelow {
		a, known := e.up.getSent(u.Intent)
		if !known {
			var err error
			if a, err = e.sendSingle(ctx, t, j, u); err != nil {
				return a, err
			}
			e.up.setSent(u.Intent, a)
		}
		if len(j.segs) == 1 {
			return a, nil
		}
		return e.recordSent(ctx, u, a)
	}
	return e.sendMultipart(ctx, t, j, u)
}

// tiny is the size up to which a file gets a buffer of its own: as many as versions upload at once.
const tiny = 256 << 10

// answerGrace is how long a stop waits for answers to requests that are not to be repeated.
const answerGrace = 5 * time.Second

// linger returns a context that outlives a stop by answerGrace, but not that ctx's version is superseded.
func linger(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		if errors.Is(context.Cause(ctx), errSuperseded) {
			return
		}
		grace := time.NewTimer(answerGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}

// sendSingle uploads a segment in one request. Its answer may get lost with the
// work done: then the upload is marked Uncertain, durably, and sent again. The
// intent in both descriptions is the same, so the inventory will find the
// second archive and put it into the trash.
func (e *Engine) sendSingle(ctx context.Context, t *task, j *sealed, u *catalog.Upload) (catalog.Archive, error) {
	if err := j.durable(); err != nil {
		return catalog.Archive{}, err
	}
	var bufs [][]byte
	if u.Size <= tiny {
		bufs = [][]byte{make([]byte, u.Size)}
	} else {
		n := int((u.Size + e.opts.PartSize - 1) / e.opts.PartSize)
		var err error
		if bufs, err = e.up.bufs.get(ctx, n, false); err != nil {
			return catalog.Archive{}, err
		}
		defer e.up.bufs.put(bufs, false)
	}
	var h cas.TreeHasher
	for i, left := 0, u.Size; left > 0; i++ {
		b := bufs[i][:min(left, int64(len(bufs[i])))]
		if err := readFull(j.local, b, u.Off+u.Size-left); err != nil {
			return catalog.Archive{}, err
		}
		h.Write(b)
		left -= int64(len(b))
	}
	sum := h.Sum()
	e.hit("single.read")
	if err := ctx.Err(); err != nil {
		return catalog.Archive{}, err
	}
	longer, end := linger(ctx)
	defer end()
	// What waits for the bandwidth limit does not go on.
	id, err := e.client.UploadArchive(longer, u.VaultName, u.Description, e.up.pace(ctx, pieces{bufs, u.Size}), sum)
	if err != nil {
		if errors.Is(err, cas.ErrUnknown) {
			e.markUncertain(u)
		}
		if id != "" {
			err = errors.Join(err, e.refuseArchive(newArchive(u, id, sum.Tree)))
		}
		return catalog.Archive{}, err
	}
	e.hit("single.answered")
	t.done.Add(u.Size)
	return newArchive(u, id, sum.Tree), nil
}

// markUncertain records that the service may have made an archive of this intent.
func (e *Engine) markUncertain(u *catalog.Upload) {
	if u.Uncertain {
		return
	}
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		now, err := tx.Upload(u.Intent)
		if err != nil {
			return err
		}
		now.Uncertain = true
		return tx.PutUpload(now)
	})
	if err != nil && !errors.Is(err, catalog.ErrNotExist) {
		e.log.Error("recording an uncertain upload", "path", e.path(u.Ino), "intent", u.Intent, "err", err)
		return
	}
	u.Uncertain = true
	e.log.Warn("the answer to an upload was lost; a later inventory finds the archive it may have made",
		"path", e.path(u.Ino), "intent", u.Intent)
}

// readFull reads all of b; a file that is shorter has changed.
func readFull(l *content.File, b []byte, off int64) error {
	n, err := io.ReadFull(io.NewSectionReader(l, off, int64(len(b))), b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("staging file ends at %d: %w", off+int64(n), errSuperseded)
	}
	return err
}

// change applies fn to the catalog's record of u, as long as the upload was not abandoned meanwhile.
func (e *Engine) changeUpload(u *catalog.Upload, fn func(tx *catalog.Tx, u *catalog.Upload) error) (uint64, error) {
	var now catalog.Upload
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		var err error
		now, err = tx.Upload(u.Intent)
		if errors.Is(err, catalog.ErrNotExist) || err == nil && now.State == catalog.Abandoned {
			return errSuperseded
		}
		if err != nil {
			return err
		}
		if err := fn(tx, &now); err != nil {
			return err
		}
		return tx.PutUpload(now)
	})
	if err != nil {
		return 0, err
	}
	*u = now
	return seq, nil
}

// recordSent notes the archive of a segment whose version is not complete yet.
func (e *Engine) recordSent(ctx context.Context, u *catalog.Upload, a catalog.Archive) (catalog.Archive, error) {
	_, err := e.changeUpload(u, func(tx *catalog.Tx, u *catalog.Upload) error {
		if a.Num == 0 {
			a.Num = tx.NextID()
		}
		a.Ino, a.V = u.Ino, u.V
		u.State, u.Archive, u.TreeHash = catalog.Sent, a.Num, a.TreeHash
		u.Error, u.Permanent = "", false
		return tx.PutArchive(a)
	})
	e.hit("segment.recorded")
	if errors.Is(err, errSuperseded) {
		a.Num = 0
		_, terr := e.catalog.Reclaim(func(tx *catalog.Tx) error {
			a.Num = tx.NextID()
			e.trash(&a, time.Now())
			if err := tx.PutArchive(a); err != nil {
				return err
			}
			if err := tx.DeleteUpload(u.Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
			return nil
		})
		if terr == nil {
			e.up.dropIntent(u.Ino, u.Intent)
			e.bin.kickTrash()
		}
		return a, errors.Join(err, terr)
	}
	return a, err
}
