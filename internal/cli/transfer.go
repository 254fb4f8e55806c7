package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"math/rand/v2"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/casfs/casfs/cas"
)

type uploadOptions struct {
	description string
	partSize    int64
	parallel    int
	bwlimit     int64
}

// limiter bounds a transfer's bytes per second; nil is no bound.
func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(64<<10, min(bytesPerSecond/10, 4<<20))))
}

func (u uploadOptions) check() error {
	if u.parallel < 1 {
		return usagef("--parallel is at least 1")
	}
	if u.partSize != 0 && (u.partSize < cas.MinPartSize || u.partSize > cas.MaxPartSize) {
		return usagef("--part-size lies between %s and %s", sizeText(cas.MinPartSize), sizeText(cas.MaxPartSize))
	}
	if err := powerOfTwo("--part-size", u.partSize); err != nil {
		return err
	}
	if len(u.description) > cas.MaxDescription {
		return usagef("--desc has at most %d bytes", cas.MaxDescription)
	}
	return nil
}

// powerOfTwo refuses parts whose tree hashes are no nodes of the archive's tree.
func powerOfTwo(name string, n int64) error {
	if n&(n-1) == 0 {
		return nil
	}
	below := int64(1) << (bits.Len64(uint64(n)) - 1)
	return usagef("%s is a power of two, as %s or %s", name, sizeText(below), sizeText(2*below))
}

// upload stores a file as one archive, or finishes the upload uploadID with it.
func (a *app) upload(cmd *cobra.Command, c *cas.Client, vault, name, uploadID string, u uploadOptions) error {
	if err := u.check(); err != nil {
		return err
	}
	// What cannot be an archive is said before the service is asked.
	f, _, err := openRegular(name)
	if err != nil {
		return err
	}
	f.Close()
	b := a.newBar("uploading", 0, true)
	defer b.done()
	started := ""
	res, err := c.UploadFile(cmd.Context(), vault, name, cas.UploadOptions{
		Description: u.description, PartSize: u.partSize, Parallel: u.parallel, UploadID: uploadID, Progress: b.set,
		BandwidthLimit: limiter(u.bwlimit),
		OnUploadID: func(id string) {
			started = id
			if uploadID == "" && !a.json {
				// On standard error at once: it is what resumes the upload, whatever happens to this process.
				b.note(a.errOut, "upload %s\n", id)
			}
		},
	})
	b.done()
	var open *cas.UploadError
	switch {
	case errors.As(err, &open) && !errors.Is(err, cas.ErrNotFound) && !errors.Is(err, cas.ErrMismatch):
		return advise(err, "it can be finished within 24 h: casfs upload resume %s %s %s", vault, open.UploadID, shown(name))
	case err != nil:
		return err
	}
	if a.json {
		out := map[string]any{"vault": vault, "archive_id": res.ArchiveID, "size": res.Size, "tree_hash": res.TreeHash}
		if started != "" || uploadID != "" {
			out["upload_id"], out["part_size"], out["skipped"] = res.UploadID, res.PartSize, res.Skipped
		}
		return a.printJSON(out)
	}
	// Standard output is the ID alone, for scripts.
	if res.Skipped > 0 {
		fmt.Fprintf(a.errOut, "resumed: %s of %s were there\n", sizeText(res.Skipped), sizeText(res.Size))
	}
	fmt.Fprintf(a.errOut, "tree hash %s\n", res.TreeHash)
	a.printf("%s\n", res.ArchiveID)
	return nil
}

type fetchOptions struct {
	force, wait, unverified bool
	first, last             int64 // of the output; last -1: to its end
	parallel                int
	bwlimit                 int64
}

// fetch downloads a job's output to a file, or to standard output.
func (a *app) fetch(cmd *cobra.Command, c *cas.Client, vault, jobID, name string, o fetchOptions) error {
	ctx := cmd.Context()
	if o.parallel < 1 {
		return usagef("--parallel is at least 1")
	}
	if name != "-" && !o.force {
		if _, err := os.Lstat(name); err == nil {
			return advise(fmt.Errorf("%s: %w", shown(name), fs.ErrExist), "add -f to replace it")
		}
	}
	var job cas.Job
	var err error
	if o.wait {
		job, err = a.waitJob(ctx, c, vault, jobID)
	} else {
		job, err = c.PollJob(ctx, vault, jobID)
	}
	if err != nil {
		return err
	}
	total := job.OutputSize()
	whole := o.first == 0 && o.last < 0
	r := cas.Range{Off: o.first, Len: o.last - o.first + 1}
	if o.last < 0 {
		r.Len = total - o.first
	}
	if !whole && (r.Len <= 0 || r.End() > total) {
		return usagef("the output has %d bytes: the range must lie within", total)
	}
	b := a.newBar("fetching", total, true)
	defer b.done()
	fo := cas.FetchOptions{Parallel: o.parallel, Force: o.force, AllowUnverified: o.unverified, Progress: b.set, BandwidthLimit: limiter(o.bwlimit)}
	var res cas.FetchResult
	switch {
	case name == "-":
		res, err = c.FetchJobRange(ctx, vault, jobID, r, a.out, fo)
	case whole:
		res, err = c.FetchJobFile(ctx, vault, jobID, name, fo)
	default:
		res, err = fetchSlice(ctx, c, vault, jobID, r, name, fo)
	}
	b.done()
	switch {
	case errors.Is(err, cas.ErrUnverifiable):
		return advise(err, "--unverified fetches it all the same; a range that is a power of two MiB, at a multiple of its size, could be verified")
	case err != nil && name != "-" && whole && resumable(err):
		return advise(err, "run it again to go on where it stopped")
	case err != nil:
		return err
	}
	if name == "-" {
		return nil
	}
	if a.json {
		return a.printJSON(map[string]any{"file": name, "size": res.Size, "tree_hash": res.TreeHash, "verified": res.Verified, "skipped": res.Skipped})
	}
	if res.Skipped > 0 {
		a.printf("resumed: %s of %s were there\n", sizeText(res.Skipped), sizeText(res.Size))
	}
	how := "verified"
	if !res.Verified {
		how = "not verified: the service tells no hash for it"
		if job.Type == cas.InventoryRetrieval {
			how = "inventories have no hash"
		}
	}
	a.printf("fetched %s to %s (%s)\n", sizeText(res.Size), shown(name), how)
	return nil
}

func resumable(err error) bool {
	return errors.Is(err, cas.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, cas.ErrThrottled)
}

// fetchSlice fetches a part of an output to a file that gets its name when it is complete. Until then it has one
// of its own: the name's .casfs-part belongs to a download of the whole, which may be going on or wait to be resumed.
func fetchSlice(ctx context.Context, c *cas.Client, vault, jobID string, r cas.Range, name string, o cas.FetchOptions) (cas.FetchResult, error) {
	tmp := fmt.Sprintf("%s.casfs-%08x", name, rand.Uint32())
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return cas.FetchResult{}, err
	}
	defer os.Remove(tmp)
	res, err := c.FetchJobRange(ctx, vault, jobID, r, f, o)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	return res, err
}

// waitJob waits until a job has finished. Errors: cas.ErrJobFailed and WaitJob's others.
func (a *app) waitJob(ctx context.Context, c *cas.Client, vault, jobID string) (cas.Job, error) {
	b := a.newBar("waiting for the job", 0, false)
	defer b.done()
	return c.WaitJob(ctx, vault, jobID, 0)
}
