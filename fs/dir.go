package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/jobs"
)

// Directory offsets. An entry's offset is the catalog's cookie moved up by
// two, so that "." and ".." have offsets of their own; it never changes while the name exists.
const (
	afterDot    = 1
	afterDotDot = 2
)

// dirHandle is an open directory. An offset says all about where a listing is; what the handle keeps
// saves work only.
type dirHandle struct {
	mu    sync.Mutex
	ahead []jobs.Entry // fetched without attributes, not yet handed out
	next  uint64       // the offset before ahead
	size  int          // bytes of an entry in the last reply with attributes, on average
	end   uint64       // the last cookie there was when the listing began
}

// begin notes where a listing that starts, or starts again, at off is to end: a program that makes a name
// for each one it is told would otherwise never come to an end.
func (h *dirHandle) begin(t *tree, off uint64) (err error) {
	if off == 0 || h.end == 0 {
		h.end, err = t.m.engine.LastCookie()
	}
	return err
}

// OpenDir lets the kernel keep the listing: it drops it when the
// directory changes through this mount, and EntryChanged drops it otherwise.
func (t *tree) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.Fh = t.listing.add(&dirHandle{size: entrySize(16)})
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (t *tree) ReleaseDir(in *fuse.ReleaseIn) { t.listing.take(in.Fh) }

func (t *tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	ino := t.ino(in.NodeId)
	if err := t.m.engine.FsyncDir(c, ino); err != nil {
		return t.m.fail(c, "fsync", ino, "", err)
	}
	return fuse.OK
}

// dots adds "." and ".." where the offset asks for them, and returns the offset to go on from. full: no room.
func (t *tree) dots(c *call, dir, off uint64, add func(fuse.DirEntry) bool) (_ uint64, full bool, _ error) {
	if off == 0 {
		if !add(fuse.DirEntry{Name: ".", Ino: dir, Mode: unix.S_IFDIR, Off: afterDot}) {
			return off, true, nil
		}
		off = afterDot
	}
	if off == afterDot {
		up := dir
		if dir != t.m.rootIno {
			a, err := t.m.engine.Getattr(c, dir)
			if err != nil {
				return off, false, err
			}
			up = a.Parent
		}
		if !add(fuse.DirEntry{Name: "..", Ino: up, Mode: unix.S_IFDIR, Off: afterDotDot}) {
			return off, true, nil
		}
		off = afterDotDot
	}
	return off, false, nil
}

func dirEntry(e *jobs.Entry) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Type, Off: e.Cookie + afterDotDot}
}

// listChunk is how many entries without attributes are fetched at once: enough to make the fetch
// cheap, few enough to keep nothing large in memory for a listing of any size.
const listChunk = 1000

// ReadDir serves kernels that were not offered READDIRPLUS.
func (t *tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	dir, h := t.ino(in.NodeId), t.listing.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.begin(t, in.Offset); err != nil {
		return t.m.fail(c, "readdir", dir, "", err)
	}
	off, full, err := t.dots(c, dir, in.Offset, out.AddDirEntry)
	if off != h.next || in.Offset == 0 {
		h.ahead, h.next = nil, off
	}
	for !full && err == nil {
		if len(h.ahead) == 0 {
			if h.ahead, err = t.m.engine.ReadDir(c, dir, h.next-afterDotDot, listChunk); len(h.ahead) == 0 {
				break
			}
		}
		if h.ahead[0].Cookie > h.end {
			break
		}
		e := dirEntry(&h.ahead[0])
		if full = !out.AddDirEntry(e); !full {
			h.ahead, h.next = h.ahead[1:], e.Off
		}
	}
	return t.listed(c, dir, out, err)
}

// listed answers a request for entries: an error that came after some is met again by the next request.
func (t *tree) listed(c *call, dir uint64, out *fuse.DirEntryList, err error) fuse.Status {
	if err != nil && len(out.Bytes()) == 0 {
		return t.m.fail(c, "readdir", dir, "", err)
	}
	return fuse.OK
}

// entrySize is what an entry with a name of n bytes takes in a reply with attributes.
func entrySize(n int) int { return 152 + (n+7)&^7 }

// ReadDirPlus answers with entries and their attributes. These are fetched together,
// and for this one request: while it lasts the kernel changes no name in the
// directory, and takes no attributes from the answer that changed meanwhile, by its doing or by an invalidation.
func (t *tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c := begin(&in.InHeader, cancel)
	defer c.finish()
	dir, h := t.ino(in.NodeId), t.listing.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.begin(t, in.Offset); err != nil {
		return t.m.fail(c, "readdir", dir, "", err)
	}
	off, full, err := t.dots(c, dir, in.Offset, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
	count, used := 0, 0
	for !full && err == nil {
		n := max((int(in.Size)-len(out.Bytes()))/h.size, 0) + 1
		told := t.m.notify.told.Load()
		var list []jobs.Entry
		var attrs []jobs.Attr
		if list, attrs, err = t.m.engine.ReadDirPlus(c, dir, off-afterDotDot, n); err != nil {
			break
		}
		for i := range list {
			if list[i].Cookie > h.end {
				list = list[:i]
				break
			}
			e := dirEntry(&list[i])
			entry := out.AddDirLookupEntry(e)
			if full = entry == nil; full {
				break
			}
			if attrs[i].Ino != 0 { // else the kernel looks it up when someone asks
				t.found(c, told, attrs[i], entry)
			}
			off = e.Off
			count++
			used += entrySize(len(e.Name))
		}
		if len(list) < n {
			break
		}
	}
	if count > 0 {
		h.size = used / count
	}
	return t.listed(c, dir, out, err)
}
