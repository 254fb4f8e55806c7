package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// file is the live state of one regular inode. It exists while handles are
// open, and while an upload, a recall, an eviction or a verb works on it;
// acquire returns the one there is. A staged file nobody has open is only its
// catalog records and its staging file, so a million of them cost no
// descriptors.
//
// Who knows what: the catalog is the truth for everything but size, mtime and
// ctime of a Staged version, which are the staging file's own until they are
// flushed (dirty). Attribute changes hold mu across their Update, or reload
// afterwards, so that inode is always as new as every finished call.
//
// Lock order: file.mu before the catalog's Update; recaller.mu, settler.mu and
// uploader.mu after file.mu. file.mu is never held over the network, a wait, or
// a call into the kernel's caches. No function given to Update may take file.mu.
type file struct {
	e   *Engine
	ino uint64

	refs int // guarded by Engine.filesMu

	mu      sync.Mutex
	inode   catalog.Inode   // current attributes; newer than the catalog's while dirty
	ver     catalog.Version // current version; V 0 when the file never had bytes
	local   *content.File   // ver's local file, nil when there is none; closed with the last ref
	writers int             // open write handles
	mapped  int             // of them, those that are closed and may be mapped
	pinned  int             // handles that were told Local, and reads under way: the local file must stay whole
	writes  uint64          // counts changes of the bytes: an upload is good only if it did not move
	orphan  bool            // no name is left; goes away with the last handle

	handles  int                    // open handles
	readers  map[*sequence]struct{} // of those that read and may have to wait for bytes
	fds      int                    // of them, those whose descriptor the kernel may use: one backing file for all
	plain    int                    // open handles without the descriptor, write-only ones until they are used
	inflight int                    // changes of the bytes under way outside mu; no version is sealed meanwhile
	changing []content.Range        // of those, the bytes
	head     int64                  // bytes from the start that are written without a gap
	ahead    []content.Range        // written beyond
	stream   *stream                // what is in the vault of a version still being written; nil: not looked up
	mtimeSet uint64                 // counts explicit changes of the mtime
	expected *expected              // a version made for stores that may not have come
	dirty    bool                   // size or times are newer than the catalog's
	gone     bool                   // the inode is being reclaimed
	seq      uint64                 // last catalog change that matters to the bytes' existence
	conv     chan struct{}          // closed when the Promote, Demote, barrier or DropUploaded under way is over; nil: none
	loadErr  error
}

// acquire returns the live file of ino with one more reference, loading it from
// the catalog when needed (and opening its local file). Errors: catalog.ErrNotExist, catalog.ErrIsDir,
// catalog.ErrInvalid for other types.
func (e *Engine) acquire(ino uint64) (*file, error) {
	e.filesMu.Lock()
	f := e.files[ino]
	if f != nil {
		f.refs++
		e.filesMu.Unlock()
		f.mu.Lock() // waits for the loading
		err := f.loadErr
		f.mu.Unlock()
		if err != nil {
			f.put()
			return nil, err
		}
		return f, nil
	}
	f = &file{e: e, ino: ino, refs: 1}
	f.mu.Lock()
	e.files[ino] = f
	e.filesMu.Unlock()
	f.loadErr = f.loadLocked()
	err := f.loadErr
	f.mu.Unlock()
	if err != nil {
		f.put()
		return nil, err
	}
	return f, nil
}

// live returns the live file of ino with one more reference, or nil when there is none.
func (e *Engine) live(ino uint64) *file {
	e.filesMu.Lock()
	f := e.files[ino]
	if f != nil {
		f.refs++
	}
	e.filesMu.Unlock()
	if f == nil {
		return nil
	}
	f.mu.Lock()
	err := f.loadErr
	f.mu.Unlock()
	if err != nil {
		f.put()
		return nil
	}
	return f
}

// liveFiles returns all live files, each with one more reference.
func (e *Engine) liveFiles() []*file {
	e.filesMu.Lock()
	defer e.filesMu.Unlock()
	live := make([]*file, 0, len(e.files))
	for _, f := range e.files {
		f.refs++
		live = append(live, f)
	}
	return live
}

// put gives a reference back.
func (f *file) put() {
	e := f.e
	e.filesMu.Lock()
	f.refs--
	last := f.refs == 0
	if last && e.files[f.ino] == f {
		delete(e.files, f.ino)
	}
	e.filesMu.Unlock()
	if last {
		f.closeLocal()
	}
}

func (f *file) closeLocal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaceLocalLocked(nil)
}

func (f *file) loadLocked() error {
	err := f.e.catalog.View(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		switch i.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
		case syscall.S_IFDIR:
			return catalog.ErrIsDir
		default:
			return catalog.ErrInvalid
		}
		f.inode = i
		f.orphan = i.Nlink == 0
		f.ver = catalog.Version{}
		if i.Version != 0 {
			f.ver, err = tx.Version(f.ino, i.Version)
			if err != nil {
				return fmt.Errorf("version %d of inode %d: %w", i.Version, f.ino, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.head = f.inode.Size
	if f.ver.Local != 0 {
		l, err := f.e.store.Open(f.ver.Local)
		switch {
		case err == nil:
			f.local = l
		case errors.Is(err, content.ErrNotExist):
			// Archived: cold after all. Staged: damaged, as the start has reported.
		default:
			return fmt.Errorf("opening the local copy of inode %d: %w", f.ino, err)
		}
	}
	return nil
}

// reload takes over what other calls changed in the catalog's inode record,
// keeping size and times that are newer here.
func (f *file) reload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var i catalog.Inode
	err := f.e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		i, err = tx.Inode(f.ino)
		return err
	})
	if errors.Is(err, catalog.ErrNotExist) {
		f.gone = true
		return
	}
	if err != nil {
		f.e.log.Error("reading an inode", "ino", f.ino, "err", err)
		return
	}
	f.adoptLocked(i)
}

// adoptLocked makes i, as the catalog has it now, the file's inode.
func (f *file) adoptLocked(i catalog.Inode) {
	if f.dirty {
		i.Size, i.Mtime, i.Atime = f.inode.Size, f.inode.Mtime, f.inode.Atime
		i.Ctime = max(i.Ctime, f.inode.Ctime)
	}
	f.inode = i
	f.orphan = i.Nlink == 0
}

// ensureContentLocked gives an Archived version a content file to fetch into: it
// allocates a number, creates the file, and records it in the catalog. Called with f.mu held.
func (f *file) ensureContentLocked() (*content.File, error) {
	if f.local != nil {
		return f.local, nil
	}
	if f.ver.State != catalog.Archived {
		return nil, fmt.Errorf("inode %d: only archived content is fetched: %w", f.ino, catalog.ErrInvalid)
	}
	// The file before the record: a content file the catalog does not know is removed at start, and that is all.
	id, err := f.e.newLocalID()
	if err != nil {
		return nil, err
	}
	l, err := f.e.store.CreateContent(id, f.ver.Size)
	if err != nil {
		return nil, err
	}
	v := f.ver
	v.Local, v.Complete = id, false
	_, err = f.e.catalog.Update(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		if i.Version != v.V {
			return catalog.ErrNotExist
		}
		return tx.PutVersion(v)
	})
	if err != nil {
		return nil, errors.Join(err, l.Close(), f.e.store.Remove(id))
	}
	f.ver, f.local = v, l
	return l, nil
}

// replaceLocalLocked makes l (which may be nil) the local file. Calls that still use the old
// one finish; later ones get os.ErrClosed and look again.
func (f *file) replaceLocalLocked(l *content.File) {
	if f.local != nil && f.local != l {
		if err := f.local.Close(); err != nil {
			f.e.log.Warn("closing a local file", "ino", f.ino, "err", err)
		}
	}
	f.local = l
}

// staging reports whether the local file holds bytes that are nowhere else.
func (f *file) stagingLocked() bool {
	return f.ver.V != 0 && f.ver.State != catalog.Archived
}

// wholeLocked reports whether every byte is local and verified.
func (f *file) wholeLocked() bool {
	if f.inode.Size == 0 && !f.stagingLocked() {
		return true
	}
	if f.local == nil {
		return false
	}
	if f.inode.Size == 0 {
		return true
	}
	return f.local.Verified(0, f.inode.Size)
}

// timesLocked brings inode's mtime and ctime up to the staging file's own,
// which write(2) and mmap stores move.
func (f *file) timesLocked() {
	if !f.dirty || f.local == nil || !f.stagingLocked() {
		return
	}
	m, err := f.local.Mtime()
	if err != nil {
		return
	}
	f.inode.Mtime = m.UnixNano()
}

func (f *file) attrLocked() Attr {
	f.timesLocked()
	a := attrOf(f.inode)
	var local int64
	if f.local != nil {
		local, _ = f.local.Allocated()
	}
	a.Blocks = blocks(f.inode.Size, local)
	return a
}

// flushLocked records size and times of a dirty file in the catalog.
func (f *file) flushLocked() error {
	if !f.dirty {
		return nil
	}
	f.timesLocked()
	if f.local != nil && f.stagingLocked() {
		if n, err := f.local.Size(); err == nil {
			f.inode.Size = n
		}
	}
	want, v, now := f.inode, f.ver, time.Now().UnixNano()
	v.Size, v.Mtime, v.StagedAt = want.Size, want.Mtime, now
	seq, err := f.e.catalog.Update(func(tx *catalog.Tx) error {
		i, err := tx.Inode(f.ino)
		if err != nil {
			return err
		}
		i.Size, i.Mtime, i.Atime = want.Size, want.Mtime, want.Atime
		i.Ctime = max(i.Ctime, want.Ctime)
		if err := tx.PutInode(i); err != nil {
			return err
		}
		want = i
		if v.V == 0 || v.State == catalog.Archived {
			return nil
		}
		return tx.PutVersion(v)
	})
	if err != nil {
		return err
	}
	f.e.flushes.Add(1)
	f.dirty = false
	f.inode = want
	if f.stagingLocked() {
		f.ver = v
	}
	f.seq = seq
	return nil
}

// awaitConvLocked waits, with mu released, for what gateLocked runs. It
// reports whether it had to.
func (f *file) awaitConvLocked() bool {
	if f.conv == nil {
		return false
	}
	ch := f.conv
	f.mu.Unlock()
	<-ch // a rename, or at worst a copy between two local disks
	f.mu.Lock()
	return true
}

// gateLocked runs fn with mu released, while others wait in awaitConvLocked.
func (f *file) gateLocked(fn func() error) error {
	ch := make(chan struct{})
	f.conv = ch
	f.mu.Unlock()
	err := fn()
	f.mu.Lock()
	f.conv = nil
	close(ch)
	return err
}

// convertLocked moves the local file to where the current version says it
// belongs, with mu released meanwhile: the caller must look at everything again.
func (f *file) convertLocked() error {
	for f.awaitConvLocked() {
	}
	if f.local == nil {
		return nil
	}
	to := content.Content
	if f.stagingLocked() {
		to = content.Staging
	}
	if f.local.Kind() == to {
		return nil
	}
	id, seq := f.local.ID(), f.seq
	err := f.gateLocked(func() error {
		if to == content.Content {
			return f.e.store.Promote(id)
		}
		// The record that these bytes are no copy any more must not be lost while
		// what changes them stays: after a power loss they would pass as verified.
		if err := f.e.catalog.Barrier(context.Background(), seq); err != nil {
			return err
		}
		return f.e.store.Demote(id)
	})
	if err != nil {
		return fmt.Errorf("local file %d of inode %d: %w", id, f.ino, err)
	}
	return nil
}
