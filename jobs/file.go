package jobs

import (
	"sync"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
)

// file is the live state of one regular inode. It exists while handles are
// open, while its version is staged or uploading, and while a recall, an
// eviction or a verb works on it; files.acquire returns the one there is.
//
// Lock order: file.mu before the catalog's Update; recaller.mu after file.mu.
// file.mu is never held over the network, a wait, or a call into the kernel's
// caches.
type file struct {
	e   *Engine
	ino uint64

	refs int // guarded by Engine.filesMu

	mu      sync.Mutex
	inode   catalog.Inode   // current attributes; newer than the catalog's while dirty
	ver     catalog.Version // current version; V 0 when the file never had bytes
	local   *content.File   // ver's local file, nil when there is none; closed with the last ref
	writers int             // open write handles
	pinned  int             // handles that were told Local: the local file must stay whole
	writes  uint64          // counts changes of the bytes: an upload is good only if it did not move
	orphan  bool            // no name is left; goes away with the last handle
}

// acquire returns the live file of ino with one more reference, loading it from
// the catalog when needed (and opening its local file). Errors: catalog.ErrNotExist, catalog.ErrIsDir.
func (e *Engine) acquire(ino uint64) (*file, error) { panic("unimplemented") }

// put gives a reference back.
func (f *file) put() { panic("unimplemented") }

// ensureContentLocked gives an Archived version a content file to fetch into: it
// allocates a number, records it in the catalog, and creates the file. Called with f.mu held.
func (f *file) ensureContentLocked() (*content.File, error) { panic("unimplemented") }
