package jobs

import (
	"errors"
	"testing"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// TestPartsOfAFile: a recall of a range hears of what it waits for, and of nothing else of the same file.
func TestPartsOfAFile(t *testing.T) {
	r := newRig(t, nil)
	r.notRun()
	rc := r.e.recall
	ext := catalog.Extent{Archive: 1, Off: 0, Len: 100 * mib}
	window := func(off, n int64) *retrieval { // of an archive that begins at 50 MiB of the file
		rt := rc.newRetrieval(catalog.Archive{Num: 1, Size: ext.Len}, ext, 50*mib, catalog.Retrieval{Archive: 1, VaultName: "v", Off: off, Len: n, Ino: 1 << 40, V: 1})
		rc.addLocked(rt)
		return rt
	}
	part := func(off, n int64) *wavePart {
		f := &file{ver: catalog.Version{V: 1, Size: 150 * mib, State: catalog.Archived}}
		return newPart(newBulk(bulkRecord{Off: off, Len: n}, nil), f)
	}
	mine, other := window(8*mib, 8*mib), window(32*mib, 32*mib)
	own, all, last, beyond := part(60*mib, 2*mib), part(0, 0), part(149*mib, 50*mib), part(200*mib, mib)
	rc.waves.inflight[mine.key] = &waveFile{parts: []*wavePart{own, all, last, beyond}}

	for _, x := range []struct {
		p    *wavePart
		want bool
	}{{own, true}, {all, true}, {last, false}, {beyond, false}} {
		if got := rc.waitsLocked(mine.key, x.p); got != x.want {
			t.Errorf("%+v waits: %v", x.p, got)
		}
	}
	rc.waves.fetchedLocked(mine, cas.Range{Off: mine.rec.Off, Len: mine.rec.Len})
	if own.b.fetched != 2*mib || all.b.fetched != 8*mib || last.b.fetched != 0 || beyond.b.fetched != 0 {
		t.Errorf("fetched: %d, %d, %d, %d", own.b.fetched, all.b.fetched, last.b.fetched, beyond.b.fetched)
	}
	rc.waves.failedLocked(other, errors.New("not mine"))
	rc.removeLocked(other)
	if own.cause != nil || all.cause == nil || last.cause != nil {
		t.Errorf("causes: %v, %v, %v", own.cause, all.cause, last.cause)
	}
	if !rc.waitsLocked(mine.key, own) {
		t.Error("it does not wait for its own any more")
	}
	own.local = true
	if rc.waitsLocked(mine.key, own) {
		t.Error("it waits for what is there")
	}
	mine.finishing = true
	if !rc.waitsLocked(mine.key, own) {
		t.Error("it does not wait for the check of what is there")
	}
}

// TestOvertakenWindowIsNotAskedForAgain: a window that ends because others have brought it is not made part of a larger one.
func TestOvertakenWindowIsNotAskedForAgain(t *testing.T) {
	r := newRig(t, nil)
	r.notRun()
	rc := r.e.recall
	ext := catalog.Extent{Archive: 1, Off: 0, Len: 100 * mib}
	window := func(off int64) *retrieval {
		rt := rc.newRetrieval(catalog.Archive{Num: 1, Size: ext.Len}, ext, 0, catalog.Retrieval{
			Archive: 1, VaultName: "v", Off: off, Len: 8 * mib, Ino: 1 << 40, V: 1, State: catalog.Wanted,
		})
		rt.window = true
		rc.addLocked(rt)
		return rt
	}
	here, next := window(0), window(8*mib)
	here.finishing = true
	rc.mergeLocked("v")
	if here.gone || next.gone || len(rc.byVault["v"]) != 2 {
		t.Errorf("%d retrievals; merged: %v, %v", len(rc.byVault["v"]), here.gone, next.gone)
	}
	here.finishing = false
	rc.mergeLocked("v")
	if !here.gone || !next.gone || len(rc.byVault["v"]) != 1 {
		t.Errorf("%d retrievals; merged: %v, %v", len(rc.byVault["v"]), here.gone, next.gone)
	}
}

// TestFinishedAfterItWasDropped: a retrieval that was dropped while it was being finished gives its file back when that is over.
func TestFinishedAfterItWasDropped(t *testing.T) {
	r := newRig(t, nil)
	r.notRun()
	rc := r.e.recall
	ext := catalog.Extent{Archive: 1, Off: 0, Len: mib}
	rt := rc.newRetrieval(catalog.Archive{Num: 1, Size: ext.Len}, ext, 0, catalog.Retrieval{Archive: 1, VaultName: "v", Len: mib, Ino: 1 << 40, V: 1})
	rc.addLocked(rt)
	rt.file, rt.finishing = &file{e: r.e, ino: 1 << 40, refs: 2}, true
	rc.removeLocked(rt)
	rc.bury() // as a worker does that the removal has woken
	work := rc.work
	rc.finish(rt)
	select {
	case <-work:
	default:
		t.Error("nobody is woken to give it back")
	}
	rc.bury()
	if rt.file != nil || len(rc.dead) != 0 {
		t.Error("it keeps its file")
	}
}
