package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cache/content"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// deleteVault is another tool that deletes all there is in the vault, and then the vault.
func (r *rig) deleteVault() {
	r.t.Helper()
	ctx := context.Background()
	r.abortUploads()
	var ids []string
	r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
		for a, err := range tx.Archives(r.vault) {
			if err != nil {
				return err
			}
			ids = append(ids, a.ID)
		}
		return nil
	}))
	for _, id := range ids {
		if err := r.client.DeleteArchive(ctx, "v", id); err != nil && !errors.Is(err, cas.ErrNotFound) {
			r.t.Fatal(err)
		}
	}
	r.must(r.client.DeleteVault(ctx, "v"))
}

func (r *rig) makeVault() {
	r.t.Helper()
	_, err := r.client.CreateVault(context.Background(), "v")
	r.must(err)
}

var goneWords = []string{"/v/f", "does not have the vault v any more", "kept on this machine", "casfs vault create v", "casfs sync"}

// The vault is deleted while files wait for their upload. They stay where they are, status says what to do, and they
// go on by themselves when the vault is there again.
func TestVaultGoneWhileFilesWait(t *testing.T) {
	t.Parallel()
	for name, x := range refusedSizes {
		t.Run(name, func(t *testing.T) {
			quietly(t, func(o *Options) { o.SegmentSize = 4 << 20 }, func(t *testing.T, r *rig) {
				data := pattern(x.size, 1)
				ino := r.write("f", data)
				other := r.write("g", []byte("the other one"))
				time.Sleep(10 * time.Second)
				r.deleteVault()
				time.Sleep(time.Minute)
				r.wantProblem("/v/f and 1 more", "does not have the vault v any more", "casfs vault create v", "casfs sync")
				for _, s := range []FileStatus{r.wantState(ino, "uploading"), r.wantState(other, "uploading")} {
					if !strings.Contains(s.Error, "casfs vault create v") {
						t.Errorf("%+v", s)
					}
				}
				r.toldOnce(ino)
				r.expect(ino, data)
				if err := r.e.Sync(context.Background(), nil, nil); !errors.Is(err, ErrUpload) || !strings.Contains(err.Error(), "casfs vault create v") {
					t.Errorf("sync: %v", err)
				}

				r.reopen()
				r.wantProblem("/v/f and 1 more", "casfs vault create v")
				sent := r.srv.Count(cas.OpUploadArchive) + r.srv.Count(cas.OpInitiateUpload)
				time.Sleep(time.Hour)
				if n := r.srv.Count(cas.OpUploadArchive) + r.srv.Count(cas.OpInitiateUpload); n != sent {
					t.Errorf("%d uploads were begun in a vault that is known to be gone", n-sent)
				}
				r.expect(ino, data)

				r.makeVault()
				time.Sleep(retryPermanent + time.Minute)
				r.wantState(ino, "resident")
				r.wantState(other, "resident")
				r.wantNoProblem()
				r.wantArchives(x.archives + 1)
				r.evict(ino)
				r.expect(ino, data)
			})
		})
	}
}

// The same in the middle of an upload: between its requests, and while one is on its way.
func TestVaultGoneWhileUploading(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		op   string
		skip int
		size string
	}{
		{cas.OpUploadArchive, 0, "single"}, {cas.OpInitiateUpload, 0, "parts"}, {cas.OpUploadPart, 2, "parts"}, {cas.OpCompleteUpload, 0, "parts"},
		{cas.OpInitiateUpload, 1, "segments"}, {cas.OpUploadPart, 6, "segments"}, {cas.OpCompleteUpload, 1, "segments"},
		{cas.OpInitiateUpload, 2, "segments"}, {cas.OpCompleteUpload, 2, "segments"},
	} {
		t.Run(fmt.Sprintf("%s-%d-%s", at.op, at.skip, at.size), func(t *testing.T) {
			quietly(t, func(o *Options) { o.Parts, o.SegmentSize = 2, 4<<20 }, func(t *testing.T, r *rig) {
				x := refusedSizes[at.size]
				if at.size == "segments" {
					x.size = 11 << 20 // the last one in parts, too
				}
				data := pattern(x.size, 1)
				release := r.srv.Inject(castest.Fault{Op: at.op, Kind: castest.Hold, Skip: at.skip})
				ino := r.write("f", data)
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := r.srv.Count(at.op); n <= at.skip {
					t.Fatalf("%d of %s", n, at.op)
				}
				r.deleteVault()
				release()
				time.Sleep(time.Minute)
				r.wantProblem(goneWords...)
				r.expect(ino, data)
				r.toldOnce(ino)

				// casfs sync does not wait for the next attempt.
				r.makeVault()
				r.must(r.e.Sync(context.Background(), []uint64{ino}, nil))
				r.wantState(ino, "resident")
				r.wantNoProblem()
				r.wantArchives(x.archives)
				r.evict(ino)
				r.expect(ino, data)
			})
		})
	}
}

// The vault is deleted and made again before anybody looks: what of a file was sent to
// the old one is sent to the new one, too.
func TestVaultMadeAnewWhileUploading(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		op   string
		skip int
	}{{cas.OpInitiateUpload, 1}, {cas.OpUploadPart, 6}, {cas.OpCompleteUpload, 1}, {cas.OpInitiateUpload, 2}, {cas.OpCompleteUpload, 2}} {
		t.Run(fmt.Sprintf("%s-%d", at.op, at.skip), func(t *testing.T) {
			quietly(t, func(o *Options) { o.Parts, o.SegmentSize = 2, 4<<20 }, func(t *testing.T, r *rig) {
				data := pattern(11<<20, 1)
				release := r.srv.Inject(castest.Fault{Op: at.op, Kind: castest.Hold, Skip: at.skip})
				ino := r.write("f", data)
				time.Sleep(time.Minute)
				synctest.Wait()
				r.deleteVault()
				r.makeVault()
				release()
				time.Sleep(time.Minute)
				r.sync()
				r.wantState(ino, "resident")
				r.wantNoProblem()
				// What came into the new vault before that was known is in the trash.
				_, err := r.e.Purge(context.Background(), nil)
				r.must(err)
				r.wantArchives(3)
				r.evict(ino)
				r.expect(ino, data)
			})
		})
	}
}

// While a file is written that is longer than the staging area, the vault goes. Nothing leaves the disk any more,
// the writer is told that there is no room, and goes on when there is a vault.
func TestVaultGoneWhileStreaming(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		ctx := context.Background()
		data := pattern(40<<20+77, 1)
		a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		at := 5 << 20
		r.writeAll(h, data[:at], 0)
		time.Sleep(10 * time.Second)
		if r.srv.Count(cas.OpCompleteUpload) == 0 {
			t.Fatal("nothing was streamed")
		}
		r.deleteVault()
		r.writeAll(h, data[at:at+1<<20], int64(at))
		at += 1 << 20
		time.Sleep(5 * time.Second)
		for {
			var n int
			n, err = h.WriteAt(ctx, someone, data[at:at+64<<10], int64(at))
			at += n
			if err != nil {
				break
			}
		}
		if !errors.Is(err, content.ErrNoSpace) || at < 14<<20 {
			t.Fatalf("after %d bytes: %v", at, err)
		}
		r.wantProblem(goneWords...)
		st, err := r.e.Status(ctx)
		r.must(err)
		if len(st.Uploads) != 1 || st.Uploads[0].Path != "/v/f" || !strings.Contains(st.Uploads[0].Error, "casfs vault create v") {
			t.Errorf("%+v", st.Uploads)
		}
		r.expect(a.Ino, data[:at])
		if err := h.Fsync(ctx, false); !errors.Is(err, ErrUpload) {
			t.Errorf("fsync: %v", err)
		}
		r.must(h.Fsync(ctx, false))

		r.makeVault()
		time.Sleep(retryMost + time.Minute)
		r.wantNoProblem()
		r.writeAll(h, data[at:], int64(at))
		h.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantNoProblem()
		r.expect(a.Ino, data)
		r.wantClean(false)
	})
}

// Parts of it that were dropped before the vault went are lost with it, and status says so.
func TestVaultGoneWithStreamedBytes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		ctx := context.Background()
		_, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		r.writeAll(h, pattern(24<<20, 1), 0)
		time.Sleep(10 * time.Second)
		r.deleteVault()
		r.writeAll(h, pattern(4<<20, 1), 24<<20)
		time.Sleep(10 * time.Second)
		const lost = "bytes of it were in the vault v only, which was deleted at the service"
		r.wantProblem("/v/f", lost)
		h.Release()
		// Who writes it anew does not want them any more.
		r.write("f", []byte("anew"))
		st, err := r.e.Status(ctx)
		r.must(err)
		for _, p := range st.Problems {
			if strings.Contains(p, lost) {
				t.Errorf("still a problem: %s", p)
			}
		}
	})
}

// A list of vaults tells that it is gone before the stream hears of it: what is there of the file stays.
func TestVaultFoundGoneWhileStreaming(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		ctx := context.Background()
		a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		data := pattern(7<<20, 1)
		r.writeAll(h, data, 0)
		time.Sleep(10 * time.Second)
		r.deleteVault()
		r.must(r.e.Probe(ctx))
		f := r.e.live(a.Ino)
		f.mu.Lock()
		s, v := f.stream, f.ver.V
		sent := 0
		for _, g := range s.segs {
			if g.up.State == catalog.Sent && !g.dropped {
				sent++
			}
		}
		f.mu.Unlock()
		if sent == 0 {
			t.Fatal("no segment is in the vault: this tests nothing")
		}
		r.must(r.e.dropStreamed(f, s, v))
		f.put()
		r.expect(a.Ino, data)
		h.Release()
	})
}

// A copy in the cache is the last one when its vault is gone: it stays.
func TestVaultGoneKeepsCopies(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		ino := r.write("f", []byte("the last copy"))
		r.sync()
		r.deleteVault()
		r.must(r.e.Probe(ctx)) // as every hour
		r.wantProblem("does not have the vault v any more")
		res, err := r.e.Evict(ctx, []uint64{ino}, false)
		r.must(err)
		if res.Files != 0 || len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0].Reason, "the only one") {
			t.Errorf("%+v", res)
		}
		r.expect(ino, []byte("the last copy"))
	})
}

// They stay, too, when the vault was made anew, as status says: what it had before is not in it.
func TestVaultMadeAnewKeepsCopies(t *testing.T) {
	for _, seen := range []bool{true, false} {
		t.Run(fmt.Sprintf("seen gone %v", seen), func(t *testing.T) {
			quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
				ctx := context.Background()
				data := []byte("the last copy")
				ino := r.write("f", data)
				r.sync()
				time.Sleep(time.Hour)
				r.deleteVault()
				if seen {
					r.must(r.e.Probe(ctx))
				}
				r.makeVault()
				r.must(r.e.Probe(ctx))
				r.wantProblem("the vault v was deleted at the service and made again", "1 files", "casfs check --repair")
				r.reopen()
				time.Sleep(time.Minute)
				other := r.write("g", data)
				r.sync()
				stays := func() {
					t.Helper()
					res, err := r.e.Evict(ctx, []uint64{ino}, false)
					r.must(err)
					if res.Files != 0 || len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0].Reason, "the only one") {
						t.Errorf("%+v", res)
					}
					var local uint64
					r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
						v, err := tx.Version(ino, 1)
						local = v.Local
						return err
					}))
					if err := r.e.recall.evictLocal(local); !errors.Is(err, errLastCopy) {
						t.Errorf("when the cache is full: %v", err)
					}
					r.expect(ino, data)
				}
				stays()
				// What is sent to the new vault is as anything else.
				r.evict(other)
				r.expect(other, data)
				r.write("f", data)
				r.sync()
				r.wantNoProblem()
				r.evict(ino)
				r.expect(ino, data)
			})
		})
	}
}

// What is left of a file on this machine stays, too, when it is not all of it.
func TestVaultGoneKeepsParts(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"gone", "made anew", "damaged"} {
		t.Run(how, func(t *testing.T) {
			quietly(t, func(o *Options) { o.Settle, o.SegmentSize = -1, 4<<20 }, func(t *testing.T, r *rig) {
				ctx := context.Background()
				data := pattern(8<<20, 1)
				ino := r.write("f", data)
				r.sync()
				r.evict(ino)
				res, err := r.e.Recall(ctx, RecallRequest{Inos: []uint64{ino}, Off: 5 << 20, Len: 1 << 20, Wait: true}, nil)
				if err != nil || res.Local != 1 {
					t.Fatalf("%+v, %v", res, err)
				}
				time.Sleep(time.Hour)
				r.wantState(ino, "partial")
				switch how {
				case "gone", "made anew":
					r.deleteVault()
					if how == "made anew" {
						r.makeVault()
					}
					r.must(r.e.Probe(ctx))
				default:
					r.e.recall.markDamaged(verKey{ino, 1}, missingText)
				}
				kept := func() {
					t.Helper()
					h, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
					r.must(err)
					defer h.Release()
					b := make([]byte, 4<<20)
					if n, err := h.ReadAt(ctx, someone, b, 4<<20); n != len(b) || err != nil || !bytes.Equal(b, data[4<<20:]) {
						t.Fatalf("the only bytes left: %d, %v", n, err)
					}
				}
				ev, err := r.e.Evict(ctx, []uint64{ino}, false)
				r.must(err)
				if ev.Files != 0 || len(ev.Skipped) != 1 || !strings.Contains(ev.Skipped[0].Reason, "the only one") {
					t.Errorf("%+v", ev)
				}
				kept()
				f, err := r.e.acquire(ino)
				r.must(err)
				defer f.put()
				if err := r.e.recall.evictLocal(f.ver.Local); !errors.Is(err, errLastCopy) {
					t.Errorf("when the cache is full: %v", err)
				}
				kept()
				all := func(content.Range) bool { return true }
				if n := r.e.recall.dropRanges(f, f.local, content.Range{Len: f.ver.Size}, f.ver.Size, all); n != 0 {
					t.Errorf("%d bytes were dropped for a reader", n)
				}
				kept()
			})
		})
	}
}

// A service that does not know any more when the vault was made has not made it anew.
func TestVaultOfUnknownDate(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		ino := r.write("f", []byte("a copy"))
		r.sync()
		info, err := r.client.DescribeVault(context.Background(), "v")
		r.must(err)
		unknown := info
		unknown.CreationDate = time.UnixMilli(0)
		for _, x := range []cas.VaultInfo{unknown, info} {
			time.Sleep(time.Minute)
			r.must(r.e.mergeVaults([]cas.VaultInfo{x}, true, r.e.vaultNews.now()))
		}
		r.evict(ino)
		r.expect(ino, []byte("a copy"))
		info.CreationDate = info.CreationDate.Add(time.Second)
		r.must(r.e.mergeVaults([]cas.VaultInfo{unknown}, true, r.e.vaultNews.now()))
		r.must(r.e.mergeVaults([]cas.VaultInfo{info}, true, r.e.vaultNews.now()))
		if res, err := r.e.Evict(context.Background(), []uint64{ino}, false); err != nil || len(res.Skipped) != 1 {
			t.Errorf("made anew: %+v, %v", res, err)
		}
	})
}

// noteAnew records what a mount does that finds the vault made anew, and is killed, or finds the disk full, before it does
// anything about it.
func (r *rig) noteAnew() {
	r.t.Helper()
	info, err := r.client.DescribeVault(context.Background(), "v")
	r.must(err)
	_, err = r.e.catalog.Reclaim(func(tx *catalog.Tx) error {
		v, err := tx.VaultByName("v")
		if err != nil {
			return err
		}
		v.Created = info.CreationDate.UnixNano()
		return errors.Join(tx.PutVault(v), tx.PutMeta(metaAnew(v.Ino), strconv.AppendInt(nil, time.Now().UnixNano(), 10)))
	})
	r.must(err)
}

// Who learns that the vault was made anew, and is killed right after it has recorded that, sends again all the same what
// was sent before: an archive that went with the old vault is no part of a file.
func TestVaultMadeAnewAndKilled(t *testing.T) {
	t.Parallel()
	quietly(t, func(o *Options) { o.Parts, o.SegmentSize = 2, 4<<20 }, func(t *testing.T, r *rig) {
		data := pattern(11<<20, 1)
		release := r.srv.Inject(castest.Fault{Op: cas.OpUploadPart, Kind: castest.Hold, Skip: 6})
		ino := r.write("f", data)
		time.Sleep(time.Minute)
		synctest.Wait()
		r.deleteVault()
		r.makeVault()
		r.noteAnew()
		r.close()
		release()
		r.open()
		r.sync()
		_, err := r.e.Purge(context.Background(), nil)
		r.must(err)
		r.wantArchives(3)
		r.evict(ino)
		r.expect(ino, data)
	})
}

// The same with a file that is being written: nothing of it leaves the disk for the sake of an archive of the old vault.
func TestVaultMadeAnewWhileStreaming(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := streamRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		ctx := context.Background()
		data := pattern(40<<20+77, 1)
		a, h, err := r.e.Create(ctx, someone, r.vault, "f", 0o644, OpenFlags{Write: true})
		r.must(err)
		at := 5 << 20
		r.writeAll(h, data[:at], 0)
		time.Sleep(10 * time.Second)
		if r.srv.Count(cas.OpCompleteUpload) == 0 {
			t.Fatal("nothing was streamed")
		}
		r.deleteVault()
		r.makeVault()
		r.noteAnew()
		for at < len(data) {
			n := min(len(data)-at, 1<<20)
			r.writeAll(h, data[at:at+n], int64(at))
			at += n
			time.Sleep(time.Second)
		}
		h.Release()
		r.must(r.e.Sync(ctx, nil, nil))
		r.wantNoProblem()
		r.expect(a.Ino, data)
		r.wantClean(false)
	})
}

// A file that was opened for stores that did not come is the one that was archived, and its local copy the last one when
// the archive is missing: also when that was found while the file was open.
func TestMissingWhileOpenForStores(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		ctx := context.Background()
		data := []byte("the last copy")
		ino := r.write("f", data)
		r.sync()
		synctest.Wait() // the first inventory lists the archive, which would be missing no more
		reader, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true})
		r.must(err)
		writer, err := r.e.Open(ctx, someone, ino, OpenFlags{Read: true, Write: true})
		r.must(err)
		if !writer.Local() {
			t.Fatal("the writer has no descriptor: this tests nothing")
		}
		var num uint64
		r.must(r.e.catalog.View(func(tx *catalog.Tx) error {
			v, err := tx.Version(ino, 1)
			num = v.Extents[0].Archive
			return err
		}))
		// As two inventories that do not list it.
		r.must(r.e.setArchiveState(num, catalog.Missing))
		r.e.recall.markDamaged(verKey{ino, 1}, missingText)
		writer.Release()
		reader.Release()
		res, err := r.e.Evict(ctx, []uint64{ino}, false)
		r.must(err)
		if res.Files != 0 || len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0].Reason, "the only one") {
			t.Errorf("%+v", res)
		}
		r.expect(ino, data)
	})
}
