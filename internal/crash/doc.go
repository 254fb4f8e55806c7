// Package crash kills the real program, mounted, again and again: at random moments,
// at the named points of package jobs, while it starts, while it unmounts. Before each death
// several workers use the mount and remember what was acknowledged to them; after it the
// program is started anew, and every promise of docs/SEMANTICS.md that an acknowledgement
// made is held against what is there.
//
// It also fills the disks a mount lives on: writes must fail with ENOSPC, nothing acknowledged may be lost,
// and everything goes on when there is room.
//
// CASFS_CRASHES is the number of kills (make crash sets 300); without it, a short run.
package crash
