package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// OpenFlags of a handle, from open(2).
type OpenFlags struct {
	Read, Write bool
	Append      bool
	Truncate    bool
	Sync        bool // O_SYNC or O_DSYNC: every write is on stable disk before it returns
	// Whole waits in Open for a cold file to be local, instead of in the first write: during a
	// write the kernel holds the inode's lock; another program's rm would wait for that
	// with the directory's lock in hand, and then everybody else in that directory, out of any signal's reach.
	Whole bool
}

// Handle is an open regular file. It keeps the inode alive until Release.
type Handle struct{ impl handleImpl }

type handleImpl struct {
	f        *file
	flags    OpenFlags
	local    bool        // told Local
	pinned   bool        // counted in file.pinned
	fd       int         // -1: none
	early    atomic.Bool // counted in file.plain until its first call
	seq      sequence    // how it is read
	released atomic.Bool
}

// Create makes a regular file and opens it. Errors: catalog.ErrExist and the namespace's.
//
// The staging file comes first, then one transaction with name, inode and
// version: a staging file without a record is recognised at the next start (and
// removed when empty), a record without its file would be damage.
func (e *Engine) Create(ctx context.Context, c Caller, parent uint64, name string, mode uint32, fl OpenFlags) (Attr, *Handle, error) {
	if err := e.writable(); err != nil {
		return Attr{}, nil, err
	}
	l, err := e.newStaging()
	if err != nil {
		return Attr{}, nil, err
	}
	id := l.ID()
	defer e.newStagingEnds(id)
	e.hit("create.staging")
	now := time.Now()
	// The staging file's own mtime is what the file's will be.
	if m, err := l.Mtime(); err == nil {
		now = m
	}
	var i catalog.Inode
	var v catalog.Version
	seq, err := e.catalog.Update(func(tx *catalog.Tx) error {
		i, err = tx.Create(parent, name, catalog.Inode{Mode: syscall.S_IFREG | mode&07777, UID: c.UID, GID: c.GID}, now.UnixNano())
		if err != nil {
			return err
		}
		i.Version = 1
		v = catalog.Version{Ino: i.Ino, V: 1, State: catalog.Staged, Local: id, Mtime: i.Mtime, StagedAt: time.Now().UnixNano()}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		return tx.PutInode(i)
	})
	if err != nil {
		return Attr{}, nil, errors.Join(err, l.Close(), e.store.Remove(id))
	}
	f := e.adopt(i, v, l, seq)
	f.mu.Lock()
	h := f.openLocked(fl)
	a := f.attrLocked()
	f.mu.Unlock()
	a.Parent = parent
	return a, h, nil
}

// adopt makes the live file of an inode just created, with one reference. Somebody
// else may have found the new name and loaded it already: then theirs is used.
func (e *Engine) adopt(i catalog.Inode, v catalog.Version, l *content.File, seq uint64) *file {
	e.filesMu.Lock()
	f := e.files[i.Ino]
	if f == nil {
		f = &file{e: e, ino: i.Ino, refs: 1, inode: i, ver: v, local: l, seq: seq}
		e.files[i.Ino] = f
		e.filesMu.Unlock()
		return f
	}
	f.refs++
	e.filesMu.Unlock()
	f.mu.Lock()
	if f.loadErr != nil {
		// It looked before the record was there, which is here now.
		f.loadErr, f.inode, f.ver, f.local = nil, i, v, l
		l = nil
	}
	f.mu.Unlock()
	if l != nil {
		l.Close()
	}
	return f
}

// openLocked counts a new handle, which takes over the caller's reference.
//
// Who gets the descriptor follows from what the kernel refuses (EIO): an open
// without it while one with it is open, an open with it while a handle without it has
// a shared mapping, and another descriptor while one is out. So: once one is
// out everybody gets it; while a readable handle without it is open nobody
// does; and a first handle that writes does not, since then its stores come
// through the engine, and a stream longer than the staging pool can
// drop what is in the vault. A handle that only writes is in nobody's way once the
// kernel has finished its open: replies to two opens may overtake each other.
func (f *file) openLocked(fl OpenFlags) *Handle {
	h := &Handle{handleImpl{f: f, flags: fl, fd: -1}}
	f.handles++
	if fl.Write {
		f.writers++
	}
	if f.local != nil && f.wholeLocked() && (f.fds > 0 || f.checkedLocked()) {
		h.impl.pinned = true
		f.pinned++
		if f.fds > 0 || !fl.Write && f.plain == 0 && !f.streamedOutLocked() && (f.stagingLocked() || !f.local.Moves()) {
			h.impl.local = true
			h.impl.fd = f.local.Fd()
			f.fds++
		}
	}
	if !h.impl.local {
		f.plain++
		h.impl.early.Store(!fl.Read)
		if fl.Read {
			if f.readers == nil {
				f.readers = make(map[*sequence]struct{})
			}
			f.readers[&h.impl.seq] = struct{}{}
		}
	}
	return h
}

// checkedLocked reports whether a whole local file stays as it is. A retrieval that has just brought the last
// of it still holds the archive against its tree hash, and punches out what is not what it should be: below a descriptor the kernel has, that
// would be zeros.
func (f *file) checkedLocked() bool {
	return f.ver.State != catalog.Archived || f.ver.Complete || !f.e.recall.underWay(verKey{f.ver.Ino, f.ver.V})
}

// streamedOutLocked reports whether archives are being made of a version that may still
// change: then every store must come through the engine.
func (f *file) streamedOutLocked() bool {
	return f.ver.State == catalog.Staged && f.ver.V != 0 && f.e.up.hasIntents(f.ino)
}

// Open opens a regular file. In mode queue, a cold file starts
// its retrieval and fails with ErrAgain; deny, guard and denied commands fail with ErrDenied/ErrGuard. In mode auto it does not wait: reads do.
// Opening for writing without Truncate does not recall either, unless Whole is set: the first Write or Truncate does.
func (e *Engine) Open(ctx context.Context, c Caller, ino uint64, fl OpenFlags) (*Handle, error) {
	if fl.Write || fl.Truncate {
		if err := e.writable(); err != nil {
			return nil, err
		}
	}
	f, err := e.acquire(ino)
	if err != nil {
		return nil, err
	}
	if err := f.admitOpen(c, fl); err != nil {
		f.put()
		return nil, err
	}
	if fl.Truncate {
		if err := errors.Join(f.killPriv(c), f.truncate(ctx, c, 0)); err != nil {
			f.mu.Lock()
			f.settleLocked() // no release will
			f.mu.Unlock()
			f.put()
			return nil, err
		}
	}
	f.mu.Lock()
	for fl.Whole && !f.gone && f.coldLocked() {
		f.mu.Unlock()
		err := f.ensureWhole(ctx, c)
		f.mu.Lock()
		if err != nil && !(fl.Read && (errors.Is(err, ErrDamaged) || errors.Is(err, content.ErrNoSpace))) {
			f.settleLocked()
			f.mu.Unlock()
			f.put()
			return nil, err
		}
		if err != nil {
			break // what is good and has room can be read, and the first write says why it cannot be
		}
	}
	if fl.Read && fl.Write {
		err = f.expectStoresLocked()
	}
	if err == nil && f.gone {
		err = ErrStale
	}
	if err != nil {
		f.settleLocked()
		f.mu.Unlock()
		f.put()
		return nil, err
	}
	h := f.openLocked(fl)
	archived := f.ver.State == catalog.Archived && f.local != nil
	id := f.ver.Local
	f.mu.Unlock()
	if archived {
		e.store.Touch(id)
	}
	return h, nil
}

// admitOpen is the recall policy of an open.
func (f *file) admitOpen(c Caller, fl OpenFlags) error {
	if fl.Truncate || !fl.Read && !fl.Whole {
		return nil
	}
	f.mu.Lock()
	cold := f.coldLocked()
	f.mu.Unlock()
	if !cold {
		return nil
	}
	return f.e.recall.admit(c, f)
}

// coldLocked reports whether bytes are only in the vault.
func (f *file) coldLocked() bool {
	return f.ver.V != 0 && f.ver.State == catalog.Archived && !f.wholeLocked()
}

// Local reports whether every byte is local, verified, and will stay so until Release:
// then reads and writes never wait for a recall and Fd may be handed to the kernel. It is decided at Open and never changes for this handle.
//
// While a Local handle is open every further handle of the inode is Local too, with the same Fd.
func (h *Handle) Local() bool { return h.impl.local }

// Fd returns a descriptor of the local file for passthrough, or -1 when the file must
// not be read or written behind the engine's back (cold, streaming with punched parts, empty).
// It is -1 exactly when Local is false.
func (h *Handle) Fd() int { return h.impl.fd }

// Ino returns the inode number.
func (h *Handle) Ino() uint64 { return h.impl.f.ino }

// opened notes that the kernel has finished the open of a handle that only writes, for it uses it.
func (h *Handle) opened() {
	if h.impl.early.Load() && h.impl.early.Swap(false) {
		f := h.impl.f
		f.mu.Lock()
		f.plain--
		f.mu.Unlock()
	}
}

// Flush reports, once, a permanent upload failure of the file. It commits nothing.
func (h *Handle) Flush(ctx context.Context) error {
	if !h.impl.flags.Write {
		return nil
	}
	h.opened()
	return h.impl.f.e.tellFailure(h.impl.f.ino)
}

// Fsync makes data, size, mtime and name of the file survive power loss; with
// Options.FsyncVault it waits until the version is archived and recorded.
func (h *Handle) Fsync(ctx context.Context, datasync bool) error {
	f := h.impl.f
	e := f.e
	if err := f.fsync(ctx); err != nil {
		return err
	}
	if err := e.tellFailure(f.ino); err != nil {
		return err
	}
	if !e.opts.FsyncVault || e.opts.ReadOnly {
		return nil
	}
	return e.Sync(ctx, []uint64{f.ino}, nil)
}

// fsync puts data, then the records that name it, on stable storage.
func (f *file) fsync(ctx context.Context) error {
	f.mu.Lock()
	l := f.local
	if !f.stagingLocked() {
		l = nil
	}
	f.mu.Unlock()
	if l != nil {
		if err := l.Sync(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	err := f.flushLocked()
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.e.catalog.Barrier(ctx, 0)
}

// Release closes the handle. The release of the last write handle starts the settle clock.
func (h *Handle) Release() {
	if h.impl.released.Swap(true) || h.impl.f.e.keepMapped(h) {
		return
	}
	h.release()
}

func (h *Handle) release() {
	f := h.impl.f
	e := f.e
	f.mu.Lock()
	f.handles--
	if h.impl.pinned {
		f.pinned--
	}
	if h.impl.local {
		f.fds--
	} else if h.impl.flags.Read || h.impl.early.Swap(false) {
		f.plain--
	}
	keep := false
	if h.impl.flags.Write {
		f.writers--
		if h.impl.local {
			f.noticeLocked()
		}
		if f.writers == 0 {
			if err := f.untouchedLocked(); err != nil {
				e.log.Error("a file that was opened for writing and not written is uploaded again", "path", e.path(f.ino), "err", err)
			}
			keep = f.flushOrKeepLocked()
		}
		f.settleLocked()
	} else if h.impl.flags.Truncate { // O_RDONLY|O_TRUNC has changed the file, too
		keep = f.flushOrKeepLocked()
		f.settleLocked()
	}
	_, reader := f.readers[&h.impl.seq]
	delete(f.readers, &h.impl.seq)
	lonely := reader && len(f.readers) == 0 && len(f.ver.Extents) > 1
	v := f.ver.V
	reclaim := f.orphan && f.handles == 0
	f.mu.Unlock()
	if lonely {
		e.recall.lessAhead(f.ino, v)
	}
	if reclaim {
		e.bin.add(f.ino)
	}
	if !keep {
		f.put()
	}
}

// flushOrKeepLocked records size and times. When that fails the staging file knows them, and recovery asks it; until then this file
// is the only one that knows, and the caller's reference stays with the flusher if it reports so.
func (f *file) flushOrKeepLocked() (kept bool) {
	err := f.flushLocked()
	if err == nil {
		return false
	}
	f.e.log.Error("recording size and times", "path", f.e.path(f.ino), "err", err)
	return f.e.keepUnflushed(f)
}

// expectStoresLocked is for a handle that will get the descriptor of an archived
// version: a shared mapping of it stores past the engine, so the catalog must
// know beforehand that the bytes are no copy any more.
func (f *file) expectStoresLocked() error {
	for {
		if f.awaitConvLocked() {
			continue
		}
		if f.fds == 0 || f.gone || f.local == nil || f.ver.V == 0 || f.ver.State != catalog.Archived {
			return nil
		}
		old := f.ver
		if err := f.supersedeLocked(0, 0); err != nil {
			return err
		}
		if err := f.convertLocked(); err != nil {
			return err
		}
		if f.ver.V != old.V+1 || f.local == nil {
			continue
		}
		// A local file that was recalled has another mtime than the file.
		if err := f.local.SetMtime(time.Unix(0, f.inode.Mtime)); err != nil {
			return err
		}
		f.expected = &expected{old: old, writes: f.writes, mtimeSet: f.mtimeSet}
	}
}

// expected is what expectStoresLocked did, or the commit of a file that is mapped, to be undone when no store came.
type expected struct {
	old              catalog.Version
	writes, mtimeSet uint64
}

// unchangedLocked reports whether the version was made for stores that have not come, yet: it is in the vault, under the number before.
func (f *file) unchangedLocked() bool {
	x := f.expected
	if x == nil {
		return false
	}
	f.noticeLocked()
	return f.ver.V == x.old.V+1 && f.ver.State == catalog.Staged && f.writes == x.writes &&
		f.mtimeSet == x.mtimeSet && !f.dirty && !f.gone // (an mtime that was set hides what stores did to it)
}

// untouchedLocked undoes expectStoresLocked when the last writer has gone and nothing has changed.
func (f *file) untouchedLocked() error {
	x := f.expected
	untouched := f.unchangedLocked()
	f.expected = nil
	if !untouched {
		return nil
	}
	now := f.ver.V
	seq, err := f.e.catalog.Update(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		if i.Version != now {
			return errSuperseded
		}
		i.Version = x.old.V
		if err := tx.PutInode(i); err != nil {
			return err
		}
		if err := tx.DeleteVersion(f.ino, now); err != nil {
			return err
		}
		return tx.PutVersion(x.old)
	})
	if err != nil {
		return err
	}
	f.ver, f.seq, f.inode.Version = x.old, seq, x.old.V
	f.e.hit("untouched.recorded")
	if err := f.barrierLocked(); err != nil {
		return err
	}
	return f.convertLocked()
}

// noticeLocked looks for stores that came past the engine: a shared mapping on
// a descriptor the kernel uses directly moves only the local file's mtime.
func (f *file) noticeLocked() {
	if f.local == nil || f.dirty || !f.stagingLocked() {
		return
	}
	m, err := f.local.Mtime()
	if err != nil {
		return
	}
	want := f.inode.Mtime
	if f.ver.State == catalog.Uploading {
		want = f.ver.Mtime
	}
	if m.UnixNano() == want {
		return
	}
	f.writes++
	if f.ver.State != catalog.Staged {
		if err := f.supersedeLocked(0, f.inode.Size); err != nil {
			f.e.log.Error("a mapped file changed and cannot become a new version", "path", f.e.path(f.ino), "err", err)
			return
		}
	}
	f.dirty = true
	f.inode.Ctime = max(f.inode.Ctime, m.UnixNano())
}

// tellFailure returns a permanent upload failure of ino nobody was told of yet.
func (e *Engine) tellFailure(ino uint64) error {
	e.problemsMu.Lock()
	defer e.problemsMu.Unlock()
	fl := e.failures[ino]
	if fl == nil || fl.told {
		return nil
	}
	fl.told = true
	return fmt.Errorf("%w: %s", ErrUpload, fl.err)
}

// keepUnflushed leaves the caller's reference to the flusher, and reports whether it took it.
func (e *Engine) keepUnflushed(f *file) bool {
	e.problemsMu.Lock()
	defer e.problemsMu.Unlock()
	if _, ok := e.unflushed[f]; ok {
		return false
	}
	e.unflushed[f] = struct{}{}
	select {
	case e.flushWake <- struct{}{}:
	default:
	}
	return true
}

// runFlush retries what Release could not record.
func (e *Engine) runFlush(ctx context.Context) error {
	for {
		e.problemsMu.Lock()
		var list []*file
		for f := range e.unflushed {
			list = append(list, f)
		}
		e.problemsMu.Unlock()
		if len(list) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-e.flushWake:
			}
			continue
		}
		if err := sleep(ctx, 2*time.Second); err != nil {
			return nil
		}
		for _, f := range list {
			f.mu.Lock()
			err := f.flushLocked()
			gone := f.gone
			f.mu.Unlock()
			if err != nil && !gone {
				break // the same reason for all: no room for the catalog
			}
			e.problemsMu.Lock()
			delete(e.unflushed, f)
			e.problemsMu.Unlock()
			f.put()
		}
	}
}
