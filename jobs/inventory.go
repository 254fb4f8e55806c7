package jobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// inventory is one inventory of a vault under way. Fields are guarded by recaller.mu.
type inventory struct {
	ino  uint64 // the vault's
	name string

	done    chan struct{} // closed at its end, err is valid then
	err     error
	entries int64 // merged so far
	total   int64 // as the service counted last, -1 unknown

	first    bool      // nothing of the vault was merged before
	resumed  bool      // begun by an earlier run of the program, which merged pages of it
	findings []finding // what does not agree with the catalog; complete unless resumed
	more     int       // findings that are not kept

	// For when all of it has been seen; what an earlier run of the program noted is noted again by the next inventory.
	unsure  []cas.InventoryEntry // as another archive that was not listed so far
	settles map[string]bool      // gatherings in which something may be superseded

	// What the vault's loop is to look for in its list of jobs.
	polled      bool
	asked       time.Time // of the job; how often the list is read follows from it
	since       time.Time // only lists begun later count
	job         string    // "" none yet: one with description, or another running one from marker
	description string
	marker      string
	seen        *cas.Job
	listed      chan struct{} // closed after every list that counts
}

// inventoryRecord is what the catalog keeps of a vault's inventory besides the vault's own fields.
type inventoryRecord struct {
	Run     string `json:",omitempty"` // random, in the descriptions of its jobs
	Active  bool   `json:",omitempty"`
	Started int64
	Date    int64 `json:",omitempty"` // the oldest of its pages
	Page    int   `json:",omitempty"`
	Seen    int64 `json:",omitempty"` // the vault's LastInventory when it began
}

func inventoryMeta(vault uint64) string { return fmt.Sprintf("inventory.%d", vault) }

const (
	// inventoryEvery is how often a vault is looked at for a new stock-taking of the service, and
	// inventoryPause what lies at least between two inventories that begin by themselves.
	inventoryEvery = time.Minute
	inventoryPause = 20 * time.Hour
	// inventoryRetry is the pause after a failed one.
	inventoryRetry = time.Hour
	// inventoryTries is how often a page is asked for or read before the inventory fails.
	inventoryTries = 5
	// mergeBatch is how many archives one catalog change merges.
	mergeBatch = 500
	// merges bounds the inventories merged at once; any number may be waited for.
	merges = 2
)

// inventoryOfLocked returns the inventory of a vault that wants to hear of the list of jobs.
func (r *recaller) inventoryOfLocked(vault string) *inventory {
	if inv := r.inventories[vault]; inv != nil {
		return inv
	}
	return nil
}

// seeLocked hears of a job of the list begun at began.
func (inv *inventory) seeLocked(j cas.Job, began time.Time) {
	switch {
	case !inv.polled || began.Before(inv.since):
	case inv.job != "":
		if j.ID == inv.job {
			inv.seen = &j
		}
	case j.Description == inv.description:
		inv.seen = &j // the answer to our request was lost
	case !j.Completed && j.InventoryMarker == inv.marker && j.StartDate.IsZero() && j.EndDate.IsZero() && inv.seen == nil:
		inv.seen = &j // somebody else's, of all the vault; of finished ones nobody knows where they began
	}
}

// listedLocked hears that such a list was read; all: and that it held every job, not only running ones.
func (inv *inventory) listedLocked(began time.Time, all bool) {
	if inv.polled && !began.Before(inv.since) && (all || inv.job != "") {
		inv.polled = false
		close(inv.listed)
		inv.listed = make(chan struct{})
	}
}

// look waits for a list of jobs begun from now on and returns the job it held.
func (r *recaller) look(ctx context.Context, inv *inventory, job, description, marker string, asked time.Time) (*cas.Job, error) {
	r.mu.Lock()
	inv.polled, inv.since, inv.asked = true, time.Now(), asked
	inv.job, inv.description, inv.marker, inv.seen = job, description, marker, nil
	listed := inv.listed
	if job == "" || asked.IsZero() {
		r.kickLocked(inv.name)
	} else {
		r.wakeLaterLocked(inv.name)
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		inv.polled = false
		r.mu.Unlock()
	}()
	select {
	case <-listed:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return inv.seen, nil
}

// inventoryLoop starts inventories that are due by themselves: of a vault never
// merged, of one the service has taken stock of since, and what was not finished.
func (r *recaller) inventoryLoop(ctx context.Context) {
	retry := make(map[string]time.Time)
	for {
		due, err := r.dueInventories()
		if err != nil {
			r.log.Error("vaults cannot be read", "error", err)
		}
		for _, v := range due {
			if !time.Now().Before(retry[v.Name]) {
				retry[v.Name] = time.Now().Add(inventoryRetry)
				if _, err := r.startInventory(v); err != nil {
					return
				}
			}
		}
		if sleep(ctx, inventoryEvery) != nil {
			return
		}
	}
}

func (r *recaller) dueInventories() (due []catalog.Vault, err error) {
	err = r.e.catalog.View(func(tx *catalog.Tx) error {
		vaults, err := tx.Vaults()
		if err != nil {
			return err
		}
		for _, v := range vaults {
			if v.Gone || r.e.opts.Vault != "" && v.Name != r.e.opts.Vault {
				continue
			}
			rec, err := loadInventory(tx, v.Ino)
			if err != nil {
				return err
			}
			since := time.Since(time.Unix(0, rec.Started))
			rested := since > inventoryPause || since < 0 // the clock was ahead when it began
			fresh := v.LastInventory > v.Merged && v.LastInventory != rec.Seen && rested
			if rec.Active || (v.Merged == 0 || fresh) && !r.noInventory {
				due = append(due, v)
			}
		}
		return nil
	})
	return due, err
}

func loadInventory(tx *catalog.Tx, vault uint64) (rec inventoryRecord, err error) {
	b, err := tx.Meta(inventoryMeta(vault))
	if errors.Is(err, catalog.ErrNotExist) || err == nil && len(b) == 0 {
		return rec, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		return rec, fmt.Errorf("inventory of vault %d: %w", vault, err)
	}
	return rec, nil
}

func putInventory(tx *catalog.Tx, vault uint64, rec inventoryRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return tx.PutMeta(inventoryMeta(vault), b)
}

// startInventory runs an inventory in the background, or returns the one that runs.
func (r *recaller) startInventory(v catalog.Vault) (*inventory, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if inv := r.inventories[v.Name]; inv != nil {
		return inv, nil
	}
	if !r.running {
		return nil, ErrClosing
	}
	inv := &inventory{ino: v.Ino, name: v.Name, total: v.Archives, done: make(chan struct{}), listed: make(chan struct{})}
	r.inventories[v.Name] = inv
	ctx := r.ctx
	r.wg.Go(func() {
		began := time.Now()
		err := r.runInventory(ctx, inv)
		r.mu.Lock()
		inv.err = err
		delete(r.inventories, v.Name)
		n := inv.entries
		r.mu.Unlock()
		close(inv.done)
		switch {
		case err == nil:
			r.log.Info("inventory merged", "vault", v.Name, "archives", n, "took", time.Since(began).Round(time.Second))
			r.e.solved("inventory/" + v.Name)
		case ctx.Err() == nil:
			r.log.Error("inventory failed", "vault", v.Name, "error", err)
			r.e.problem("inventory/"+v.Name, fmt.Sprintf("the inventory of vault %s failed and is tried again: %v", v.Name, err))
			if err := r.e.catalog.View(func(tx *catalog.Tx) error { _, err := tx.VaultByName(v.Name); return err }); errors.Is(err, catalog.ErrNotExist) {
				r.e.solved("inventory/" + v.Name) // deleted meanwhile
			}
		}
	})
	return inv, nil
}

// Inventory starts (or adopts) an inventory of a vault ("": of each) and with wait blocks until it is merged.
// Ending ctx leaves it going.
func (e *Engine) Inventory(ctx context.Context, vault string, wait bool, progress func(Progress)) error {
	_, err := e.recall.takeInventory(ctx, vault, wait, progress)
	return err
}

func (r *recaller) takeInventory(ctx context.Context, vault string, wait bool, progress func(Progress)) ([]*inventory, error) {
	e := r.e
	var vaults []catalog.Vault
	err := e.catalog.View(func(tx *catalog.Tx) error {
		if vault == "" {
			var err error
			vaults, err = tx.Vaults()
			return err
		}
		v, err := tx.VaultByName(vault)
		vaults = append(vaults, v)
		return err
	})
	switch {
	case errors.Is(err, catalog.ErrNotExist):
		return nil, fmt.Errorf("there is no vault %s in this mount: %w", vault, err)
	case err != nil:
		return nil, fmt.Errorf("vault %s: %w", vault, err)
	case vault != "" && vaults[0].Gone:
		return nil, fmt.Errorf("the service does not have the vault %s any more; make it again (%s)", vault, e.createVault(vault))
	}
	select {
	case <-r.started: // a verb may come in before Run
	case <-r.stop:
		return nil, ErrClosing
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var running []*inventory
	for _, v := range vaults {
		if v.Gone {
			continue
		}
		inv, err := r.startInventory(v)
		if err != nil {
			return nil, err
		}
		running = append(running, inv)
	}
	if !wait {
		return running, nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	report := func(inv *inventory) {
		if progress != nil {
			r.mu.Lock()
			p := Progress{FilesDone: inv.entries, FilesTotal: max(inv.total, inv.entries), Current: inv.name}
			r.mu.Unlock()
			progress(p)
		}
	}
	var first error
	for _, inv := range running {
		for ended := false; !ended; {
			select {
			case <-inv.done:
				ended = true
			case <-tick.C:
			case <-ctx.Done():
				return running, ctx.Err()
			}
			report(inv)
		}
		if inv.err != nil && first == nil {
			first = fmt.Errorf("inventory of vault %s: %w", inv.name, inv.err)
		}
	}
	return running, first
}

// errNoInventory is a job that gave none: failed, or expired before it was read.
var errNoInventory = errors.New("the inventory job gave nothing")

// runInventory takes one inventory from wherever it stands to its end.
func (r *recaller) runInventory(ctx context.Context, inv *inventory) error {
	var v catalog.Vault
	var rec inventoryRecord
	if _, err := r.e.catalog.Update(func(tx *catalog.Tx) (err error) {
		if v, err = tx.Vault(inv.ino); err != nil {
			return err
		}
		if rec, err = loadInventory(tx, inv.ino); err != nil {
			return err
		}
		if !rec.Active {
			rec = inventoryRecord{Run: newRun(), Active: true, Started: time.Now().UnixNano(), Seen: v.LastInventory}
			v.InventoryJob, v.InventoryMarker = "", ""
			if err := tx.PutVault(v); err != nil {
				return err
			}
		}
		inv.first, inv.resumed = v.Merged == 0, rec.Page > 0
		return putInventory(tx, inv.ino, rec)
	}); err != nil {
		return err
	}
	// The intent must survive before anything is asked of the service.
	if err := r.e.catalog.Barrier(ctx, 0); err != nil {
		return err
	}
	r.e.hit("inventory.recorded")
	for tries := 0; ; {
		next, err := r.inventoryPage(ctx, inv, &rec)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNoInventory), errors.Is(err, cas.ErrExpired), errors.Is(err, cas.ErrNotFound):
			if tries++; tries >= inventoryTries {
				return err
			}
			r.log.Warn("an inventory job gave nothing and is asked for again", "vault", inv.name, "error", err)
			if err := r.recordPage(inv, rec, "", nil); err != nil {
				return err
			}
			if err := sleep(ctx, time.Minute<<tries); err != nil {
				return err
			}
		case err != nil:
			return err
		case next == "":
			return r.finishInventory(inv, rec)
		default:
			tries = 0
		}
	}
}

func newRun() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// recordPage records the job of the present page, or with marker that the next begins.
func (r *recaller) recordPage(inv *inventory, rec inventoryRecord, job string, marker *string) error {
	_, err := r.e.catalog.Update(func(tx *catalog.Tx) error {
		v, err := tx.Vault(inv.ino)
		if err != nil {
			return err
		}
		v.InventoryJob = job
		if marker != nil {
			v.InventoryMarker = *marker
		}
		if err := tx.PutVault(v); err != nil {
			return err
		}
		return putInventory(tx, inv.ino, rec)
	})
	return err
}

// inventoryPage gets one job's list merged and returns the marker of the next, "" at the end.
func (r *recaller) inventoryPage(ctx context.Context, inv *inventory, rec *inventoryRecord) (string, error) {
	j, err := r.inventoryJob(ctx, inv, *rec)
	if err != nil {
		return "", err
	}
	for !j.Completed {
		seen, err := r.look(ctx, inv, j.ID, "", "", j.CreationDate)
		if err != nil {
			return "", err
		}
		if seen == nil {
			d, err := r.e.client.DescribeJob(ctx, inv.name, j.ID)
			if errors.Is(err, cas.ErrNotFound) {
				return "", fmt.Errorf("%w: job %s has expired", errNoInventory, j.ID)
			}
			if err != nil {
				r.log.Warn("an inventory job cannot be looked at", "vault", inv.name, "error", err)
				if err := sleep(ctx, r.o.pollMax); err != nil {
					return "", err
				}
				continue
			}
			seen = &d
		}
		j = *seen
	}
	if j.Failed() {
		return "", fmt.Errorf("%w: job %s: %s", errNoInventory, j.ID, j.StatusMessage)
	}
	date, err := r.readInventory(ctx, inv, j, rec.Started)
	if err != nil {
		return "", err
	}
	if date.IsZero() {
		date = j.CreationDate.Add(-inventoryLag) // it tells none: then it is old
	}
	if at := date.UnixNano(); rec.Date == 0 || at < rec.Date {
		rec.Date = at
	}
	r.e.hit("inventory.merged")
	rec.Page++
	return j.InventoryMarker, r.recordPage(inv, *rec, "", &j.InventoryMarker)
}

// inventoryJob returns the job of the present page: the one recorded, one that runs already, or a new one.
func (r *recaller) inventoryJob(ctx context.Context, inv *inventory, rec inventoryRecord) (cas.Job, error) {
	var v catalog.Vault
	if err := r.e.catalog.View(func(tx *catalog.Tx) (err error) {
		v, err = tx.Vault(inv.ino)
		return err
	}); err != nil {
		return cas.Job{}, err
	}
	if v.InventoryJob != "" {
		return cas.Job{ID: v.InventoryJob}, nil
	}
	description := fmt.Sprintf("casfs1 inventory=%s-%d", rec.Run, rec.Page)
	for tries := 0; ; tries++ {
		j, err := r.look(ctx, inv, "", description, v.InventoryMarker, time.Time{})
		if err != nil {
			return cas.Job{}, err
		}
		if j != nil {
			if j.Description != description {
				r.log.Info("an inventory job that runs already is used", "vault", inv.name, "job", j.ID)
			}
			return *j, r.recordPage(inv, rec, j.ID, nil)
		}
		id, err := r.e.client.InitiateJob(ctx, inv.name, cas.JobRequest{
			Type: cas.InventoryRetrieval, Description: description, Format: "JSON", Marker: v.InventoryMarker, Limit: r.inventoryLimit,
		})
		if err == nil {
			r.e.hit("inventory.asked")
			r.log.Info("inventory asked for", "vault", inv.name, "job", id, "page", rec.Page)
			return cas.Job{ID: id}, r.recordPage(inv, rec, id, nil)
		}
		if ctx.Err() != nil {
			return cas.Job{}, ctx.Err()
		}
		if !errors.Is(err, cas.ErrUnknown) && !errors.Is(err, cas.ErrUnavailable) && !errors.Is(err, cas.ErrThrottled) || tries >= 20 {
			return cas.Job{}, err
		}
		r.log.Warn("no inventory job was started", "vault", inv.name, "error", err)
		if err := sleep(ctx, min(10*time.Second<<min(tries, 10), 5*time.Minute)); err != nil {
			return cas.Job{}, err
		}
	}
}

// readInventory merges the output of a finished job; a broken connection begins it anew, which changes nothing twice.
func (r *recaller) readInventory(ctx context.Context, inv *inventory, j cas.Job, stamp int64) (time.Time, error) {
	select {
	case r.merging <- struct{}{}:
		defer func() { <-r.merging }()
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
	r.mu.Lock()
	before := inv.entries
	r.mu.Unlock()
	for tries := 1; ; tries++ {
		r.mu.Lock()
		inv.entries = before
		r.mu.Unlock()
		h, err := r.readOnce(ctx, inv, j, stamp)
		switch {
		case err == nil:
			return h.Date, nil
		case ctx.Err() != nil:
			return time.Time{}, ctx.Err()
		case errors.Is(err, cas.ErrExpired), tries >= inventoryTries:
			return time.Time{}, err
		}
		r.log.Warn("an inventory is read again", "vault", inv.name, "job", j.ID, "error", err)
		if err := sleep(ctx, time.Second<<tries); err != nil {
			return time.Time{}, err
		}
	}
}

func (r *recaller) readOnce(ctx context.Context, inv *inventory, j cas.Job, stamp int64) (cas.InventoryHeader, error) {
	out, err := r.e.client.JobOutput(ctx, inv.name, j.ID, cas.Range{})
	if err != nil {
		return cas.InventoryHeader{}, err
	}
	defer out.Body.Close()
	m := merger{r: r, inv: inv, stamp: stamp}
	h, err := cas.DecodeInventory(io.Reader(out.Body), m.add)
	if ferr := m.flush(); err == nil {
		err = ferr
	}
	return h, err
}
