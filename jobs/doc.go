// Package jobs is the engine: work that outlives a system call, and every
// change that touches local files, catalog and service together. fs calls it
// for each operation; everything that takes long runs here, under Run, bounded,
// and is picked up again after a crash.
//
// # The life of a version
//
//	Staged     the bytes are in a staging file only; size and mtime are that file's own
//	Uploading  sealed: an intent is recorded for every archive it will become
//	Archived   its extents are recorded; the local file, if any, is a disposable copy
//
// A file is Staged from its creation (or the first change of an Archived or
// Uploading version, which makes a new version on the same local file) until it has been
// left alone for the settle time, or Sync, an unmount or a full staging area wants it. Then, in
// upload.go:
//
//	seal     Update: the version Uploading, uploads Intended. Barrier
//	send     staging file synced, one request; or Initiate, parts while it is synced, Completing (barrier), Complete, Sent
//	commit   Update: archives, extents, Archived; uploads gone; older versions' archives to the trash. Barrier
//	promote  the staging file is renamed into content
//
// A file that is written sequentially and has become long is sent while it is open, in
// segments (stream.go); bytes leave the staging file only when the archive of
// their segment is recorded durably.
//
// # Uploads
//
//	Intended → Sending → Completing → Sent → (deleted by the commit)
//	any of them → Abandoned → (aborted at the service, deleted)
//
// An upload whose request may have made an archive nobody has seen the ID of is
// Uncertain: it is sent again under the same intent, which both descriptions
// carry, and stays recorded when abandoned, so that an inventory knows a second archive for what it is.
//
// # Deleted files
//
// Unlink takes the name and records an orphan. When the last handle is gone and
// the record is durable the reclaimer (reap.go) removes the local file, then, in one
// transaction for many, puts the archives into the trash and forgets the inode. It does so when deleting pauses, or after
// two seconds, and at once when writers wait for room. The
// trash is emptied when the deadlines come. An archive is claimed, durably, before the service is asked to delete it: from then on it
// does not leave the trash, whatever an inventory finds, until it is Deleted, which it is after the service has said so.
//
// # Crash points
//
// Between two durable steps the engine passes a named point; a crash there
// leaves what the next start goes on from:
//
//	create.staging        an empty staging file without a record: removed
//	truncate.staging      the same; the file is as before the truncation
//	truncate.recorded     the old local copy has no record: removed
//	supersede.recorded    the catalog says staging, the file is still content: demoted
//	sealed                version Uploading, perhaps not durable: sealed again, or goes on
//	sealed.syncing        the same; parts may be at the service already
//	sealed.durable        intents without an answer: sent
//	single.read           the same
//	single.answered       an archive nobody knows: Uncertain, sent again, found by the next inventory
//	multipart.initiated   an upload nobody knows: expires, costs nothing
//	multipart.recorded    List Parts tells what is there
//	multipart.part        the same
//	multipart.completing  Complete is asked (again)
//	multipart.completed   Complete is asked again and names the same archive
//	segment.recorded      the segment is Sent; the others go on
//	sent                  everything is in the vault: Sent segments are committed; a single one as single.answered
//	committed             Archived, the file is still in staging: promoted
//	committed.durable     the same
//	promoted              nothing is left to do
//	reclaim.durable       an orphan: reclaimed
//	reclaim.removed       the same; that its local file is missing is expected
//	reclaim.recorded      nothing is left to do but the trash
//	trash.claimed         in the trash, and nothing takes it out of there any more: deleted
//	trash.deleted         the same: deleted again, which is no error
//	vault.created         the vault without a directory: the next list of vaults makes it
//	vault.deleted         the directory of a vault being deleted: removed by the next list
//	stream.part           List Parts tells
//	stream.completing     Complete is asked again when the file is sealed, unless its bytes changed, which would have been recorded
//	stream.recorded       the segment is kept by the seal
//	stream.droppable      the same
//	stream.dropped        the same; its bytes are in the vault only
//	stream.removed        a record of a local file that is gone: the file is cold
//	untouched.recorded    the version is the archived one again, the file still in staging: promoted
//	recall.requested      a recall of a tree or list goes on without the command
//	recall.recorded       a retrieval nothing was asked for: asked for when the list of jobs holds none of it
//	recall.asked          a job nobody knows: found in the list by its description
//	recall.noted          the job is known, and looked after
//	recall.fetched        verified bytes that are not in the file: fetched again
//	recall.verified       the range is in the file; those that are missing are fetched
//	recall.complete       all of it is local, the retrieval is dropped
//	recall.finished       nothing is left to do
//	evict.recorded        a local copy without a record: removed
//	evict.removed         nothing is left to do
//	inventory.recorded    an inventory that is wanted: its job is looked for, then asked for
//	inventory.asked       the same; the list of jobs shows it
//	inventory.merged      the page is merged again, which changes nothing
package jobs
