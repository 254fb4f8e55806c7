// Package fs is the go-fuse tree: it translates system calls into calls of
// jobs.Engine and decides nothing that outlives a call.
//
// # The life of a write
//
// The kernel looks the name up or creates it (dir.go); the engine makes inode
// and name in one transaction. The handle it returns is wrapped in one of two
// types (handle.go chooses, cold.go and local.go are the types). Each write(2)
// arrives as one request at the handle, because write handles are direct I/O, and goes to
// jobs.Handle.WriteAt, which may wait for staging room or for a recall; the
// wait ends on a real signal only (interrupt.go). FLUSH reports and commits
// nothing. RELEASE gives the handle back to the engine, after the library has
// dropped the kernel's hold on the local file (bridge.go); there the engine's settle clock
// starts.
//
// # The life of a read
//
// open(2) asks the engine for a handle; the engine refuses by policy, or
// answers whether every byte is local. If it is, the kernel reads the local
// file itself (passthrough) or through its page cache (local.go); nothing
// there ever waits. If not, the handle is direct I/O: a read waits inside
// jobs.Handle.ReadAt for its range, and no page is locked meanwhile, so any
// number of readers may wait without holding up others (cold.go).
//
// # What the kernel caches
//
// One mount is the only writer of its tree, so names, negative names, attributes and
// directory listings are cached for minutes. What changes otherwise (uploads,
// evictions, inventories) arrives through jobs.Observer and is invalidated
// from a goroutine of its own (notify.go): an invalidation inside a handler, or
// under a lock a handler takes, would deadlock with the kernel.
//
// # What is refused
//
// Names above 255 bytes (ENAMETOOLONG); O_TMPFILE (EOPNOTSUPP: the catalog has no inodes
// without a name); POSIX ACLs and security.* attributes (EOPNOTSUPP, and
// ENODATA when read: the kernel would ask for them on every write); rename
// flags other than NOREPLACE and EXCHANGE (EINVAL). Locks are the kernel's
// own: flock and fcntl work between the programs of this machine.
//
// Errors become errno in errno.go and nowhere else, with one log line per failed call.
package fs
