// Package fs translates the kernel's requests into calls of
// jobs.Engine and decides nothing that outlives a call. Of what the kernel has looked up
// it keeps a count of references, and nothing else (tree.go, known.go): inode numbers are the catalog's.
//
// # The life of a write
//
// The kernel looks the name up or creates it (tree.go, names.go); the engine makes inode
// and name in one transaction. passthrough.go decides how the kernel does the
// handle's I/O; write handles are direct I/O, so that each write(2) arrives as
// requests of its own (handle.go) and goes to jobs.Handle.WriteAt, which may wait
// for staging room or for a recall; the wait ends on a real signal only
// (interrupt.go). FLUSH reports and commits nothing. RELEASE gives the handle back to the engine,
// whose settle clock starts there.
//
// # The life of a read
//
// open(2) asks the engine for a handle (file.go); the engine refuses by policy, or
// answers whether every byte is local. If it is, the kernel reads the local
// file itself (passthrough) or through its page cache; nothing
// there ever waits. If not, the handle is direct I/O: a read waits inside
// jobs.Handle.ReadAt for its range, and no page is locked meanwhile, so any
// number of readers may wait without holding up others.
//
// # What the kernel caches
//
// One mount is the only writer of its tree, so names, negative names, attributes and
// directory listings are cached for minutes, and listings always bring attributes along. What changes otherwise (uploads,
// evictions, inventories) arrives through jobs.Observer and is invalidated
// from a goroutine of its own (notify.go): an invalidation inside a handler, or
// under a lock a handler takes, would deadlock with the kernel.
//
// # What is refused
//
// Names above 255 bytes (ENAMETOOLONG); O_TMPFILE (EOPNOTSUPP: the catalog has no inodes
// without a name); POSIX ACLs and security.* attributes (EOPNOTSUPP); rename
// flags other than NOREPLACE and EXCHANGE (EINVAL). Locks are the kernel's
// own: flock and fcntl work between the programs of this machine.
//
// Errors become errno in errno.go and nowhere else, with one log line per failed call.
package fs
