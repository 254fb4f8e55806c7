package jobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
)

// sealed is a version frozen for its upload.
type sealed struct {
	f      *file
	ver    catalog.Version
	local  *content.File
	writes uint64
	segs   []catalog.Upload
}

// upload brings the current version of a file into the vault:
//
//	seal     the version becomes Uploading, with an intent per archive
//	         barrier: bytes and records are on stable storage
//	send     each segment: one request, or parts and Complete; what must not be forgotten is recorded between them
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
	e.hit("sealed")
	for i := range j.segs {
		e.up.setBusy(j.segs[i].Intent, true)
		defer e.up.setBusy(j.segs[i].Intent, false)
	}
	if err := j.local.Sync(); err != nil {
		return err
	}
	if err := e.catalog.Barrier(ctx, seq); err != nil {
		return err
	}
	e.hit("sealed.durable")
	var archives []catalog.Archive
	for i := range j.segs {
		a, err := e.sendSegment(ctx, t, j, &j.segs[i])
		if err != nil {
			return err
		}
		archives = append(archives, a)
	}
	return e.commit(ctx, j, archives)
}

// seal freezes the current version. A nil result without error means there is nothing to upload.
func (e *Engine) seal(f *file) (*sealed, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if f.gone || f.orphan || f.ver.V == 0 || f.ver.State == catalog.Archived {
			return nil, 0, nil
		}
		if f.awaitConvLocked() {
			continue
		}
		if f.local == nil {
			return nil, 0, fmt.Errorf("%w: its staging file is missing", ErrDamaged)
		}
		if f.inflight > 0 {
			return nil, 0, errInUse
		}
		if f.stream != nil && f.stream.running {
			f.stream.cancel() // what it has done is kept
			return nil, 0, errInUse
		}
		if f.local.Kind() != content.Staging {
			if err := f.convertLocked(); err != nil {
				return nil, 0, err
			}
			continue
		}
		// The times first, then Sync, then the bytes: a store through a shared mapping
		// at any moment from here on moves the mtime, and commit sees it.
		size, err := f.local.Size()
		if err != nil {
			return nil, 0, err
		}
		mtime, err := f.local.Mtime()
		if err != nil {
			return nil, 0, err
		}
		if f.ver.State == catalog.Uploading {
			if moved, err := f.movedLocked(size, mtime, f.ver); moved || err != nil {
				if err != nil {
					return nil, 0, err
				}
				continue
			}
			segs, err := e.segments(f)
			if errors.Is(err, catalog.ErrDamaged) {
				e.log.Error("the records of an upload do not fit its file; it begins again", "path", e.path(f.ino), "err", err)
				if err := f.supersedeLocked(0, 0); err != nil {
					return nil, 0, err
				}
				continue
			}
			if err != nil {
				return nil, 0, err
			}
			return &sealed{f, f.ver, f.local, f.writes, segs}, f.seq, nil
		}
		f.inode.Size = size
		if size == 0 {
			return nil, 0, f.commitEmptyLocked()
		}
		if err := f.sealLocked(); err != nil {
			return nil, 0, err
		}
	}
}

// movedLocked makes a new version when the staging file of a sealed one is not what it was: bytes
// were lost with the power, or came through a shared mapping. (One that has dropped
// parts is never mapped, and dropping them again at start moves its mtime.)
func (f *file) movedLocked(size int64, mtime time.Time, v catalog.Version) (bool, error) {
	from := min(size, v.Size)
	switch {
	case size != v.Size:
	case mtime.UnixNano() != v.Mtime && f.local.Verified(0, size):
		from = 0
	default:
		return false, nil
	}
	if err := f.supersedeLocked(from, max(size, v.Size)-from); err != nil {
		return false, err
	}
	f.dirty = true
	return true, nil
}

// segments loads the uploads of an Uploading version, in order.
func (e *Engine) segments(f *file) ([]catalog.Upload, error) {
	segs, err := f.uploadsLocked()
	if err != nil {
		return nil, err
	}
	var end int64
	for _, u := range segs {
		if u.Off != end {
			break
		}
		end += u.Size
	}
	if end != f.ver.Size {
		return nil, fmt.Errorf("uploads of inode %d cover %d of %d bytes: %w", f.ino, end, f.ver.Size, catalog.ErrDamaged)
	}
	return segs, nil
}

// sealLocked records the version as Uploading with an intent for each segment.
// Segments a stream has brought into the vault already stay.
func (f *file) sealLocked() error {
	e := f.e
	f.timesLocked()
	v := f.ver
	mtime, err := f.local.Mtime()
	if err != nil {
		return err
	}
	v.State, v.Size, v.Mtime, v.StagedAt = catalog.Uploading, f.inode.Size, mtime.UnixNano(), time.Now().UnixNano()
	kept, dropped, err := f.streamedLocked()
	if err != nil {
		return err
	}
	plan := planSegments(v.Size, kept, e.opts.SegmentSize)
	for i := range plan {
		if plan[i].Intent == "" {
			plan[i].Intent = newIntent(e.catalog.ID())
		}
	}
	want := f.inode
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		i.Size, i.Mtime, i.Atime = want.Size, want.Mtime, want.Atime
		i.Ctime = max(i.Ctime, want.Ctime)
		want = i
		if err := tx.PutInode(i); err != nil {
			return err
		}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		for _, u := range dropped {
			if err := e.abandonTx(tx, u); err != nil {
				return err
			}
		}
		for k := range plan {
			u := &plan[k]
			if u.State != 0 {
				if err := tx.PutUpload(*u); err != nil {
					return err
				}
				continue
			}
			if err := describeTx(tx, i, v, u, k, len(plan)); err != nil {
				return err
			}
			if err := tx.PutUpload(*u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.dirty = false
	f.adoptLocked(want)
	f.ver, f.seq = v, seq
	known := e.up.intents(f.ino)
	f.stream = nil
	for _, u := range plan {
		if !contains(known, u.Intent) {
			e.up.addIntent(f.ino, u.Intent)
		}
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// describeTx fills in the intent of segment k of n.
func describeTx(tx *catalog.Tx, i catalog.Inode, v catalog.Version, u *catalog.Upload, k, n int) error {
	vault, err := tx.Vault(i.Vault)
	if err != nil {
		return fmt.Errorf("vault of inode %d: %w", i.Ino, err)
	}
	path, err := tx.Path(i.Ino)
	if err != nil {
		return err
	}
	_, path, _ = strings.Cut(path, "/")
	u.Ino, u.V, u.Seg, u.Segs = i.Ino, v.V, k, n
	u.Vault, u.VaultName = vault.Ino, vault.Name
	u.State = catalog.Intended
	u.Started = time.Now().UnixNano()
	u.Description = formatDescription(Metadata{
		Intent: u.Intent, Ino: i.Ino, V: v.V, Size: i.Size, Mtime: i.Mtime,
		Mode: i.Mode & 07777, UID: i.UID, GID: i.GID, Seg: k, Segs: n, Path: path,
	})
	return nil
}

// planSegments covers size bytes with the uploads that exist (in order of offset, not overlapping) and new ones in between.
func planSegments(size int64, have []catalog.Upload, most int64) []catalog.Upload {
	var plan []catalog.Upload
	var end int64
	fill := func(to int64) {
		for end < to {
			n := min(most, to-end)
			plan = append(plan, catalog.Upload{Off: end, Size: n})
			end += n
		}
	}
	for _, u := range have {
		fill(u.Off)
		plan = append(plan, u)
		end = u.Off + u.Size
	}
	fill(size)
	return plan
}

// newIntent returns a name for an upload that no other has. It begins with a piece of the catalog's: inode numbers
// in descriptions mean something only beside it.
func newIntent(catalog string) string {
	var b [12]byte
	rand.Read(b[:])
	return catalog[:min(sourceLen, len(catalog))] + hex.EncodeToString(b[:])
}

// commitEmptyLocked ends the life of a staged version without bytes: the
// service takes no empty archive, so the catalog's word is all there is.
func (f *file) commitEmptyLocked() error {
	e := f.e
	f.timesLocked()
	v := f.ver
	v.State, v.Complete, v.Size, v.Mtime, v.ArchivedAt = catalog.Archived, true, 0, f.inode.Mtime, time.Now().UnixNano()
	v.Extents, v.TreeHash, v.Error = nil, [32]byte{}, ""
	if f.fds == 0 {
		v.Local = 0 // else it is promoted: the kernel holds the descriptor, so the next bytes must go to the same file
	}
	abandon, err := f.uploadsLocked()
	if err != nil {
		return err
	}
	seq, err := e.recordArchived(f, v, nil, nil, abandon)
	if err != nil {
		return err
	}
	f.ver, f.seq = v, seq
	if v.Local == 0 {
		id := f.local.ID()
		f.replaceLocalLocked(nil)
		if err := e.store.Remove(id); err != nil && !errors.Is(err, content.ErrNotExist) {
			e.log.Warn("removing an empty staging file", "path", e.path(f.ino), "err", err)
		}
	} else if err := f.convertLocked(); err != nil {
		e.log.Warn("keeping an empty file", "path", e.path(f.ino), "err", err)
	}
	e.forgive(f.ino)
	e.syncEvent(f.ino, nil)
	return nil
}

// recordArchived is the one transaction in which a version becomes Archived.
// It fails with errSuperseded when the version is no longer the file's.
func (e *Engine) recordArchived(f *file, v catalog.Version, archives []catalog.Archive, uploads, abandon []catalog.Upload) (uint64, error) {
	now := time.Now()
	want, dirty := f.inode, f.dirty
	var drop []uint64
	seq, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		drop = nil
		i, err := tx.Inode(f.ino)
		if errors.Is(err, catalog.ErrNotExist) || err == nil && i.Version != v.V {
			return errSuperseded
		}
		if err != nil {
			return err
		}
		if dirty {
			i.Size, i.Mtime, i.Atime = want.Size, want.Mtime, want.Atime
			i.Ctime = max(i.Ctime, want.Ctime)
			if err := tx.PutInode(i); err != nil {
				return err
			}
		}
		want = i
		for k := range archives {
			a := &archives[k]
			if a.Num == 0 {
				a.Num = tx.NextID()
				if err := tx.PutArchive(*a); err != nil {
					return err
				}
			}
			if k < len(v.Extents) {
				v.Extents[k].Archive = a.Num
			}
		}
		for _, u := range uploads {
			if err := tx.DeleteUpload(u.Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		for _, u := range abandon {
			if err := e.abandonTx(tx, u); err != nil {
				return err
			}
		}
		olds, err := tx.Versions(f.ino)
		if err != nil {
			return err
		}
		for _, o := range olds {
			if o.V >= v.V {
				continue
			}
			if err := e.trashVersionTx(tx, o, v.Extents, now); err != nil {
				return err
			}
			if o.Local != 0 && o.Local != v.Local {
				drop = append(drop, o.Local)
			}
			if err := tx.DeleteVersion(o.Ino, o.V); err != nil {
				return err
			}
		}
		return tx.PutVersion(v)
	})
	if err != nil {
		return 0, err
	}
	f.dirty = false
	f.adoptLocked(want)
	for _, u := range uploads {
		e.up.dropIntent(f.ino, u.Intent)
	}
	e.bin.kickTrash() // older versions' archives
	for _, id := range drop {
		if err := e.store.Remove(id); err != nil && !errors.Is(err, content.ErrNotExist) {
			e.log.Warn("removing the local copy of an old version", "path", e.path(f.ino), "err", err)
		}
	}
	return seq, nil
}

// commit makes the version Archived, provided not a byte moved since it was sealed.
func (e *Engine) commit(ctx context.Context, j *sealed, archives []catalog.Archive) error {
	f := j.f
	e.hit("sent")
	f.mu.Lock()
	for f.awaitConvLocked() {
	}
	moved := f.gone || f.ver.V != j.ver.V || f.ver.State != catalog.Uploading || f.writes != j.writes
	if !moved {
		size, err1 := j.local.Size()
		mtime, err2 := j.local.Mtime()
		if err := errors.Join(err1, err2); err != nil {
			f.mu.Unlock()
			return err
		}
		var err error
		if moved, err = f.movedLocked(size, mtime, j.ver); err != nil {
			f.mu.Unlock()
			return err
		}
		if moved {
			if err := f.flushLocked(); err != nil {
				e.log.Error("recording size and times", "path", e.path(f.ino), "err", err)
			}
			if f.writers == 0 {
				e.settle.start(f.ino, time.Now().Add(e.opts.Settle))
			}
		}
	}
	if moved {
		f.mu.Unlock()
		return errors.Join(errSuperseded, e.discardArchives(j, archives))
	}
	v := j.ver
	v.State, v.ArchivedAt, v.Error, v.Damaged = catalog.Archived, time.Now().UnixNano(), "", false
	v.Complete = j.local.Verified(0, v.Size)
	v.Extents = make([]catalog.Extent, len(archives))
	for k, a := range archives {
		v.Extents[k] = catalog.Extent{Archive: a.Num, Len: j.segs[k].Size}
	}
	v.TreeHash = [32]byte{}
	if len(archives) == 1 {
		v.TreeHash = archives[0].TreeHash
	}
	punched := !v.Complete // streamed: parts of it were dropped as their archives were recorded
	if punched {
		v.Local = 0
	}
	seq, err := e.recordArchived(f, v, archives, j.segs, nil)
	if err != nil {
		f.mu.Unlock()
		if errors.Is(err, errSuperseded) {
			err = errors.Join(err, e.discardArchives(j, archives))
		}
		return err
	}
	f.ver, f.seq = v, seq
	f.mu.Unlock()
	e.hit("committed")
	e.forgive(f.ino)

	// Only now may the bytes be treated as a copy.
	if err := e.catalog.Barrier(context.WithoutCancel(ctx), seq); err != nil {
		return err
	}
	e.hit("committed.durable")
	f.mu.Lock()
	if f.ver.V == v.V && f.ver.State == catalog.Archived {
		if punched {
			id := j.local.ID()
			f.replaceLocalLocked(nil)
			err = e.store.Remove(id)
		} else {
			err = f.convertLocked()
		}
	}
	f.mu.Unlock()
	if err != nil && !errors.Is(err, content.ErrNotExist) {
		// It stays in staging until the next start, which repeats this.
		e.log.Warn("an archived file stays in staging", "path", e.path(f.ino), "err", err)
	}
	e.hit("promoted")
	e.log.Info("archived", "path", e.path(f.ino), "size", v.Size, "archives", len(archives))
	e.opts.Observer.AttrChanged(f.ino)
	e.syncEvent(f.ino, nil)
	return nil
}

// discardArchives puts archives no version will use into the trash.
func (e *Engine) discardArchives(j *sealed, archives []catalog.Archive) error {
	now := time.Now()
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		for k, a := range archives {
			if a.Num != 0 {
				continue // recorded with its upload, which whoever superseded the version has dealt with
			}
			a.Num = tx.NextID()
			e.trash(&a, now)
			if err := tx.PutArchive(a); err != nil {
				return err
			}
			if err := tx.DeleteUpload(j.segs[k].Intent); err != nil && !errors.Is(err, catalog.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, a := range archives {
		if a.Num == 0 {
			e.up.dropIntent(j.f.ino, j.segs[k].Intent)
		}
	}
	e.bin.kickTrash()
	return nil
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
			if a, err = e.sendSingle(ctx, t, j.local, u); err != nil {
				return a, err
			}
			e.up.setSent(u.Intent, a)
		}
		if len(j.segs) == 1 {
			return a, nil
		}
		return e.recordSent(ctx, u, a)
	}
	return e.sendMultipart(ctx, t, j.local, u)
}

func (e *Engine) archive(num uint64) (a catalog.Archive, err error) {
	err = e.catalog.View(func(tx *catalog.Tx) error {
		a, err = tx.Archive(num)
		return err
	})
	return a, err
}

func newArchive(u *catalog.Upload, id string, tree cas.Hash) catalog.Archive {
	return catalog.Archive{
		Vault: u.Vault, VaultName: u.VaultName, ID: id, Size: u.Size, TreeHash: tree,
		Created: time.Now().UnixNano(), Description: u.Description, Intent: u.Intent,
		State: catalog.Live, Ino: u.Ino, V: u.V,
	}
}

// tiny is the size up to which a file gets a buffer of its own: as many as versions upload at once.
const tiny = 256 << 10

// sendSingle uploads a segment in one request. Its answer may get lost with the
// work done: then the upload is marked Uncertain, durably, and sent again. The
// intent in both descriptions is the same, so the inventory will find the
// second archive and put it into the trash.
func (e *Engine) sendSingle(ctx context.Context, t *task, l *content.File, u *catalog.Upload) (catalog.Archive, error) {
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
		if err := readFull(l, b, u.Off+u.Size-left); err != nil {
			return catalog.Archive{}, err
		}
		h.Write(b)
		left -= int64(len(b))
	}
	sum := h.Sum()
	e.hit("single.read")
	id, err := e.client.UploadArchive(ctx, u.VaultName, u.Description, e.up.pace(ctx, pieces{bufs, u.Size}), sum)
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

// refuseArchive puts an archive into the trash that the service has made of other bytes than were sent.
func (e *Engine) refuseArchive(a catalog.Archive) error {
	_, err := e.catalog.Reclaim(func(tx *catalog.Tx) error {
		a.Num = tx.NextID()
		e.trash(&a, time.Now())
		return tx.PutArchive(a)
	})
	if err == nil {
		e.bin.kickTrash()
	}
	return err
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

// restarts bounds how often one attempt begins an upload anew.
const restarts = 3

// sendMultipart uploads a segment in parts, going on where an earlier attempt ended.
func (e *Engine) sendMultipart(ctx context.Context, t *task, l *content.File, u *catalog.Upload) (catalog.Archive, error) {
	var last error
	before := t.done.Load()
	for range restarts {
		t.done.Store(before)
		a, err := e.tryMultipart(ctx, t, l, u)
		if err == nil {
			return e.recordSent(ctx, u, a)
		}
		if !errors.Is(err, errRestart) {
			return a, err
		}
		last = err
		e.log.Warn("an upload begins again", "path", e.path(u.Ino), "why", err)
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

func (e *Engine) tryMultipart(ctx context.Context, t *task, l *content.File, u *catalog.Upload) (catalog.Archive, error) {
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
	tree, err := e.sendParts(ctx, t, l, u, have)
	if errors.Is(err, cas.ErrNotFound) {
		return catalog.Archive{}, restart(err)
	}
	if err != nil {
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
