package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

func inosMeta(id uint64, chunk int) string { return fmt.Sprintf("recall.request.%d.%d", id, chunk) }

func (w *waves) load(tx *catalog.Tx, log *slog.Logger) error {
	b, err := tx.Meta(wavesMeta)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && len(b) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	var recs []bulkRecord
	if err := json.Unmarshal(b, &recs); err != nil {
		return fmt.Errorf("recall requests: %w", err)
	}
requests:
	for _, rec := range recs {
		w.nextID = max(w.nextID, rec.ID+1)
		bk := newBulk(rec, nil)
		for i := range rec.Chunks {
			b, err := tx.Meta(inosMeta(rec.ID, i))
			if errors.Is(err, catalog.ErrNotExist) {
				// What was asked for already has records of its own; the rest has to be asked for again. No reason not to mount.
				log.Error("a recall is forgotten, for the list of its files is missing", "request", rec.ID)
				w.save = true
				continue requests
			}
			if err != nil {
				return fmt.Errorf("recall request %d: %w", rec.ID, err)
			}
			var inos []uint64
			if err := json.Unmarshal(b, &inos); err != nil {
				return fmt.Errorf("recall request %d: %w", rec.ID, err)
			}
			bk.inos = append(bk.inos, inos...)
		}
		w.bulks = append(w.bulks, bk)
	}
	return nil
}

// saveWaves records the requests and how far each has come: up to the first file whose
// retrieval is not recorded yet. What it records is looked up within the change: what came before would
// overwrite what others recorded meanwhile, and name lists that are deleted.
func (r *recaller) saveWaves() {
	w := &r.waves
	r.mu.Lock()
	save := w.save
	r.mu.Unlock()
	if !save {
		return
	}
	var gone []bulkRecord
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		r.mu.Lock()
		recs := r.progressLocked()
		gone, w.gone = append(gone, w.gone...), nil
		r.mu.Unlock()
		for _, rec := range gone {
			for i := range rec.Chunks {
				if err := tx.PutMeta(inosMeta(rec.ID, i), nil); err != nil {
					return err
				}
			}
		}
		return putRequests(tx, recs)
	})
	if err != nil {
		r.log.Error("the progress of recalls is not recorded", "error", err)
		r.mu.Lock()
		w.gone, w.save = append(gone, w.gone...), true
		r.mu.Unlock()
	}
}

// progressLocked returns what is to be recorded of the requests now.
func (r *recaller) progressLocked() (recs []bulkRecord) {
	w := &r.waves
	unsaved := make(map[uint64]struct{})
	for key, rts := range r.byKey {
		for _, rt := range rts {
			if rt.rec.ID == 0 {
				unsaved[key.ino] = struct{}{}
			}
		}
	}
	for _, b := range w.bulks {
		for len(b.queued) > 0 {
			if _, ok := unsaved[b.queued[0].Ino]; ok {
				break
			}
			b.rec.Frontier = b.queued[0]
			b.queued = b.queued[1:]
		}
		recs = append(recs, b.rec)
	}
	w.save = len(unsaved) > 0
	return recs
}

func putRequests(tx *catalog.Tx, recs []bulkRecord) error {
	if len(recs) == 0 {
		return tx.PutMeta(wavesMeta, nil)
	}
	b, err := json.Marshal(recs)
	if err != nil {
		return err
	}
	return tx.PutMeta(wavesMeta, b)
}

// Recall queues retrievals in waves; with Wait it blocks until all are local or failed. Ending ctx leaves the recall going.
// The request survives a restart. Files that arrive while the cache is full make those that came first leave again.
func (e *Engine) Recall(ctx context.Context, q RecallRequest, progress func(Progress)) (RecallResult, error) {
	r := e.recall
	if q.Cancel {
		return r.cancel(ctx, q)
	}
	if q.Off < 0 || q.Len < 0 || q.Off > 0 && q.Len == 0 {
		return RecallResult{}, fmt.Errorf("range %d+%d: %w", q.Off, q.Len, catalog.ErrInvalid)
	}
	if e.closing.Load() {
		return RecallResult{}, ErrClosing
	}
	// What does not exist is told at once.
	err := e.catalog.View(func(tx *catalog.Tx) error {
		for _, ino := range q.Inos {
			i, err := tx.Inode(ino)
			if err != nil {
				return fmt.Errorf("inode %d: %w", ino, err)
			}
			if isDir(i.Mode) && !q.Recursive {
				path, _ := tx.Path(ino)
				return fmt.Errorf("/%s: %w", path, catalog.ErrIsDir)
			}
		}
		return nil
	})
	if err != nil {
		return RecallResult{}, err
	}
	b, err := r.request(ctx, q)
	if err != nil {
		return RecallResult{}, err
	}
	if err := r.await(ctx, b, b.counted, progress); err != nil {
		return r.result(b), err
	}
	if q.Wait {
		err = r.await(ctx, b, b.ended, progress)
	}
	return r.result(b), err
}

// putInos records what a request is for.
func putInos(tx *catalog.Tx, id uint64, inos []uint64) error {
	i := 0
	for chunk := range slices.Chunk(inos, inoChunk) {
		data, err := json.Marshal(chunk)
		if err != nil {
			return err
		}
		if err := tx.PutMeta(inosMeta(id, i), data); err != nil {
			return err
		}
		i++
	}
	return nil
}

func chunksOf(inos []uint64) int { return (len(inos) + inoChunk - 1) / inoChunk }

// request records a recall durably and hands it to the wave loop.
func (r *recaller) request(ctx context.Context, q RecallRequest) (*bulk, error) {
	inos := slices.Clone(q.Inos)
	w := &r.waves
	r.mu.Lock()
	id := w.nextID
	w.nextID++
	b := newBulk(bulkRecord{
		ID: id, Recursive: q.Recursive, Tier: q.Tier, Off: q.Off, Len: q.Len,
		Created: time.Now().UnixNano(), Chunks: chunksOf(inos),
	}, inos)
	r.mu.Unlock()
	seq, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		if err := putInos(tx, id, inos); err != nil {
			return err
		}
		r.mu.Lock()
		recs := make([]bulkRecord, 0, len(w.bulks)+1)
		for _, x := range w.bulks {
			recs = append(recs, x.rec)
		}
		w.bulks = append(w.bulks, b)
		r.mu.Unlock()
		return putRequests(tx, append(recs, b.rec))
	})
	if err == nil {
		// Whoever asked may be gone already: what he asked for goes on.
		err = r.e.catalog.Barrier(context.WithoutCancel(ctx), seq)
	}
	if err != nil {
		r.mu.Lock()
		w.bulks = slices.DeleteFunc(w.bulks, func(x *bulk) bool { return x == b })
		w.save = true
		r.mu.Unlock()
		return nil, fmt.Errorf("recording the recall: %w", err)
	}
	r.e.hit("recall.requested")
	w.kick()
	return b, nil
}

// await blocks until ch is closed, reporting progress every second.
func (r *recaller) await(ctx context.Context, b *bulk, ch <-chan struct{}, progress func(Progress)) error {
	var tick <-chan time.Time
	if progress != nil {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		tick = t.C
	}
	var last Progress
	report := func() {
		if progress == nil {
			return
		}
		r.mu.Lock()
		p := Progress{FilesDone: b.local + b.failed, FilesTotal: b.files, BytesDone: min(b.fetched, b.bytes), BytesTotal: b.bytes, Waits: r.waitsForLocked(b)}
		current := b.current
		r.mu.Unlock()
		if current != 0 {
			p.Current = r.pathOf(current)
		}
		if p != last {
			last = p
			progress(p)
		}
	}
	for {
		select {
		case <-ch:
			report()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-r.stop:
			return ErrClosing
		case <-tick:
			report()
		}
	}
}

func (r *recaller) result(b *bulk) RecallResult {
	r.mu.Lock()
	res := RecallResult{Local: b.local, Failed: b.failed, Bytes: b.bytes, Failures: slices.Clone(b.failures), Waits: r.waitsForLocked(b)}
	res.Pending = max(b.files-b.local-b.failed, 0)
	select {
	case <-b.ended:
		res.Pending = 0
	default:
	}
	r.mu.Unlock()
	for i, s := range res.Failures {
		var ino uint64
		fmt.Sscan(s.Path, &ino)
		res.Failures[i].Path = r.pathOf(ino)
	}
	return res
}

// cancel drops what was wanted and not asked for yet, of the files given and all
// below directories, or of everything when none is given.
func (r *recaller) cancel(ctx context.Context, q RecallRequest) (RecallResult, error) {
	var res RecallResult
	w := &r.waves
	r.mu.Lock()
	bulks := slices.Clone(w.bulks)
	r.mu.Unlock()
	for _, b := range bulks {
		for again := true; again; {
			var err error
			if again, err = r.cancelBulk(b, q.Inos); err != nil {
				return res, fmt.Errorf("recording what is cancelled: %w", err)
			}
		}
	}
	r.mu.Lock()
	keys := slices.Collect(maps.Keys(r.byKey))
	r.mu.Unlock()
	drop := func(key verKey) {
		r.mu.Lock()
		defer r.mu.Unlock()
		left := false
		for _, rt := range slices.Clone(r.byKey[key]) {
			if !rt.rec.Explicit {
				continue
			}
			if rt.rec.State == catalog.Wanted && !rt.asking && !rt.rec.Uncertain {
				r.cancelLocked(rt)
			} else {
				left = true
			}
		}
		if left {
			res.Pending++
		}
	}
	var err error
	if len(q.Inos) == 0 {
		for _, key := range keys {
			drop(key)
		}
	} else {
		err = r.walk(ctx, q.Inos, true, func(ino catalog.Inode) error {
			if isRegular(ino.Mode) {
				drop(verKey{ino.Ino, ino.Version})
				cold, err := r.isCold(ino)
				if err == nil && !cold {
					res.Local++
				}
			}
			return nil
		})
	}
	w.kick()
	r.saveWaves()
	return res, err
}

// cancelBulk takes files, and all below directories, out of a request; everything when none is given. It is
// to be called again when somebody else did so at the same time.
func (r *recaller) cancelBulk(b *bulk, inos []uint64) (again bool, err error) {
	w := &r.waves
	r.mu.Lock()
	old, asked := b.rec, b.inos
	id := w.nextID
	w.nextID++
	r.mu.Unlock()
	var left []uint64
	if len(inos) > 0 {
		below, err := r.below(inos)
		if err != nil {
			return false, err
		}
		for _, ino := range asked {
			if !below(ino) {
				left = append(left, ino)
			}
		}
	}
	rewritten := len(left) > 0 && len(left) < len(asked)
	if rewritten {
		// Under a number of its own: until the request's record has it, the old list holds.
		if _, err := r.e.catalog.Update(func(tx *catalog.Tx) error { return putInos(tx, id, left) }); err != nil {
			return false, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.save = true
	if !slices.Contains(w.bulks, b) || b.rec.ID != old.ID {
		if rewritten {
			w.gone = append(w.gone, bulkRecord{ID: id, Chunks: chunksOf(left)})
		}
		return slices.Contains(w.bulks, b), nil
	}
	b.gen++
	if len(left) == 0 {
		w.bulks = slices.DeleteFunc(w.bulks, func(x *bulk) bool { return x == b })
		w.endLocked(b)
		return false, nil
	}
	if rewritten {
		w.gone = append(w.gone, b.rec)
		b.inos, b.rec.ID, b.rec.Chunks = left, id, chunksOf(left)
	}
	b.rec.Exclude = append(b.rec.Exclude, inos...)
	if len(b.rec.Exclude) > waveExclude {
		b.rec.Exclude = b.rec.Exclude[len(b.rec.Exclude)-waveExclude:]
	}
	// The rest is found again, without those.
	b.items, b.more, b.found = nil, true, b.rec.Frontier
	return false, nil
}

// below tells inodes that are among those given, or below one of them.
func (r *recaller) below(inos []uint64) (func(ino uint64) bool, error) {
	path := func(ino uint64) (string, error) {
		var p string
		err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
			p, err = tx.Path(ino)
			return err
		})
		return p, err
	}
	roots, given := make(map[string]struct{}, len(inos)), make(map[uint64]struct{}, len(inos))
	for _, ino := range inos {
		given[ino] = struct{}{}
		p, err := path(ino)
		if errors.Is(err, catalog.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		roots[p] = struct{}{}
	}
	return func(ino uint64) bool {
		if _, ok := given[ino]; ok {
			return true
		}
		p, err := path(ino)
		if err != nil {
			return false
		}
		for {
			if _, ok := roots[p]; ok {
				return true
			}
			if p == "" {
				return false
			}
			p = p[:max(strings.LastIndexByte(p, '/'), 0)]
		}
	}, nil
}
