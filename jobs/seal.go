package jobs

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// sealed is a version frozen for its upload.
type sealed struct {
	f      *file
	ver    catalog.Version
	local  *content.File
	writes uint64
	segs   []catalog.Upload

	// open: somebody had it open for writing, and may have it mapped. Then nothing is read before it is durable: a
	// page that a mapping has made dirty takes further stores without moving the mtime until it was written out.
	open bool
	// durable waits until the bytes are on stable storage. Parts may go before that, but nothing that makes an
	// archive: after a power loss other bytes would be sent under the same intent.
	durable func() error
}

// syncBeside begins to write the version out beside everything else, for durable to wait for. stop waits for the end of it.
func (e *Engine) syncBeside(j *sealed) (stop func()) {
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		e.hit("sealed.syncing")
		err = j.local.Sync()
	}()
	j.durable = func() error {
		<-done
		return err
	}
	return func() { <-done }
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
		// The times first, then the bytes, and Sync before them if it may be mapped already: a store through a
		// shared mapping at any moment from here on moves the mtime, and commit sees it.
		size, err := f.local.Size()
		if err != nil {
			return nil, 0, err
		}
		mtime, err := f.local.Mtime()
		if err != nil {
			return nil, 0, err
		}
		v := f.ver.V
		if f.unchangedLocked() {
			e.syncEvent(f.ino, v, 0, nil)
			return nil, 0, nil
		}
		if f.ver.V != v {
			return nil, 0, f.putOffLocked()
		}
		if f.ver.State == catalog.Uploading {
			if moved, err := f.movedLocked(size, mtime, f.ver); moved || err != nil {
				if err != nil {
					return nil, 0, err
				}
				return nil, 0, f.putOffLocked()
			}
			segs, err := e.segments(f)
			if errors.Is(err, catalog.ErrDamaged) {
				e.log.Error("the records of an upload do not fit its file; it begins again", "path", e.path(f.ino), "err", err)
				if err := f.supersedeLocked(0, 0); err != nil {
					return nil, 0, err
				}
				return nil, 0, f.putOffLocked()
			}
			if err != nil {
				return nil, 0, err
			}
			return &sealed{f: f, ver: f.ver, local: f.local, writes: f.writes, segs: segs, open: f.writers > 0}, f.seq, nil
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

// putOffLocked ends an upload whose version it has itself superseded, which ends whatever works for that: the new one waits
// to be quiet, as any other.
func (f *file) putOffLocked() error {
	if err := f.flushLocked(); err != nil {
		f.e.log.Error("recording size and times", "path", f.e.path(f.ino), "err", err)
	}
	f.settleLocked()
	return errSuperseded
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
	intents := make([]string, len(plan))
	for i, u := range plan {
		intents[i] = u.Intent
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
			if err := e.describeTx(tx, i, v, u, k, len(plan), setOf(intents)); err != nil {
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

// describeTx fills in the intent of segment k of n, which belongs with those of set.
func (e *Engine) describeTx(tx *catalog.Tx, i catalog.Inode, v catalog.Version, u *catalog.Upload, k, n int, set string) error {
	vault, err := tx.Vault(i.Vault)
	if err != nil {
		return fmt.Errorf("vault of inode %d: %w", i.Ino, err)
	}
	path, err := tx.Path(i.Ino)
	if err != nil {
		return err
	}
	_, path, _ = strings.Cut(path, "/")
	dirs, err := dirModes(tx, vault.Ino, path)
	if err != nil {
		return err
	}
	if guessDir(i.Mode) == usualDir && !slices.ContainsFunc(dirs, func(mode uint32) bool { return mode != usualDir }) {
		dirs = nil
	}
	root, err := e.rootTx(tx, vault.Ino)
	if err != nil {
		return err
	}
	u.Ino, u.V, u.Seg, u.Segs = i.Ino, v.V, k, n
	u.Vault, u.VaultName = vault.Ino, vault.Name
	u.State = catalog.Intended
	u.Started = time.Now().UnixNano()
	u.Description = formatDescription(Metadata{
		Intent: u.Intent, Ino: i.Ino, V: v.V, Size: i.Size, Mtime: i.Mtime,
		Mode: i.Mode & 07777, UID: i.UID, GID: i.GID, Born: i.Btime, Seg: k, Segs: n, Set: set, Off: u.Off, Path: path, Dirs: dirs, Root: root,
	})
	return nil
}

// dirModes returns the modes of the directories of a path that begins in dir.
func dirModes(tx *catalog.Tx, dir uint64, path string) (modes []uint32, err error) {
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			return modes, nil
		}
		d, err := tx.Lookup(dir, name)
		if err != nil {
			return nil, err
		}
		i, err := tx.Inode(d.Ino)
		if err != nil {
			return nil, err
		}
		modes = append(modes, i.Mode&07777)
		dir, path = i.Ino, rest
	}
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
// in descriptions mean something only beside it and the time at which the inode was made.
func newIntent(catalog string) string {
	var b [12]byte
	rand.Read(b[:])
	return catalog[:min(sourceLen, len(catalog))] + hex.EncodeToString(b[:])
}
