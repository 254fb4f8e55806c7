package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

func (a *app) jobCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "jobs: start retrievals and inventories, list, show, fetch"}
	cmd.AddCommand(a.jobListCmd(), a.jobShowCmd(), a.jobStartCmd(), a.jobFetchCmd(), a.jobArchivesCmd())
	return cmd
}

type jobView struct {
	ID              string     `json:"id"`
	Type            string     `json:"type"`
	Status          string     `json:"status"`
	Message         string     `json:"message"`
	Completed       bool       `json:"completed"`
	Created         *time.Time `json:"created"`
	CompletedAt     *time.Time `json:"completed_at"`
	Expires         *time.Time `json:"expires"`
	Description     string     `json:"description"`
	VaultQCS        string     `json:"vault_qcs"`
	CallBackURL     string     `json:"callback_url,omitempty"`
	ArchiveID       string     `json:"archive_id,omitempty"`
	ArchiveSize     *int64     `json:"archive_size,omitempty"`
	ArchiveTreeHash string     `json:"archive_tree_hash,omitempty"`
	Range           string     `json:"range,omitempty"`
	TreeHash        string     `json:"tree_hash,omitempty"`
	Tier            string     `json:"tier,omitempty"`
	InventorySize   *int64     `json:"inventory_size,omitempty"`
	InventoryFormat string     `json:"inventory_format,omitempty"`
	InventoryMarker string     `json:"inventory_marker,omitempty"`
	StartDate       *time.Time `json:"start_date,omitempty"`
	EndDate         *time.Time `json:"end_date,omitempty"`
	Limit           int        `json:"limit,omitempty"`
	Bucket          string     `json:"bucket,omitempty"`
	Object          string     `json:"object,omitempty"`
}

const outputLife = 24 * time.Hour

func viewJob(j cas.Job) jobView {
	v := jobView{
		ID: j.ID, Type: string(j.Type), Status: j.StatusCode, Message: j.StatusMessage, Completed: j.Completed,
		Created: orNull(j.CreationDate), CompletedAt: orNull(j.CompletionDate), Description: j.Description, VaultQCS: j.VaultQCS,
		CallBackURL: j.CallBackURL, ArchiveID: j.ArchiveID, Tier: string(j.Tier), InventoryFormat: j.InventoryFormat,
		InventoryMarker: j.InventoryMarker, StartDate: orNull(j.StartDate), EndDate: orNull(j.EndDate), Limit: j.Limit,
		Bucket: j.Bucket, Object: j.Object,
	}
	if hasOutput(j) && j.Succeeded() && !j.CompletionDate.IsZero() {
		v.Expires = orNull(j.CompletionDate.Add(outputLife))
	}
	if j.ArchiveID != "" && j.ArchiveSize >= 0 {
		v.ArchiveSize = &j.ArchiveSize
	}
	if !j.ArchiveTreeHash.IsZero() {
		v.ArchiveTreeHash = j.ArchiveTreeHash.String()
	}
	if !j.TreeHash.IsZero() {
		v.TreeHash = j.TreeHash.String()
	}
	if j.Range.Len > 0 {
		v.Range = j.Range.String()
	}
	if j.Type == cas.InventoryRetrieval && j.InventorySize >= 0 {
		v.InventorySize = &j.InventorySize
	}
	return v
}

// hasOutput reports whether a job of this type ends with something to fetch.
func hasOutput(j cas.Job) bool {
	return j.Type == cas.ArchiveRetrieval || j.Type == cas.InventoryRetrieval
}

func (a *app) jobListCmd() *cobra.Command {
	var f cas.JobFilter
	var completed, running bool
	var status string
	cmd := a.vaultVerb("list VAULT", "list running and recently finished jobs", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		if err := checkLimit(cmd, f.Page, 1000); err != nil {
			return err
		}
		if completed && running {
			return usagef("--completed and --running exclude each other")
		}
		if completed || running {
			f.Completed = &completed
		}
		f.StatusCode = status
		var jobs []cas.Job
		for {
			p, err := c.ListJobs(cmd.Context(), vault, f)
			if err != nil {
				return err
			}
			jobs, f.Marker = append(jobs, p.Jobs...), p.Marker
			if f.Marker == "" || paged(cmd) {
				break
			}
		}
		if a.json {
			views := make([]jobView, 0, len(jobs))
			for _, j := range jobs {
				views = append(views, viewJob(j))
			}
			return a.printJSON(map[string]any{"jobs": views, "marker": f.Marker})
		}
		if len(jobs) == 0 {
			a.printf("no jobs\n")
			return nil
		}
		t := newTable(a.out)
		t.row("JOB", "TYPE", "STATUS", "TIER", "OUTPUT", "STARTED", "DESCRIPTION")
		for _, j := range jobs {
			output := "-"
			if hasOutput(j) {
				output = sizeText(j.OutputSize())
			}
			t.row(j.ID, j.Type, j.StatusCode, dash(string(j.Tier)), output, when(j.CreationDate), j.Description)
		}
		t.flush()
		if f.Marker != "" {
			a.printf("more: --marker %s\n", shown(f.Marker))
		}
		return nil
	})
	pageFlags(cmd, &f.Page)
	cmd.Flags().BoolVar(&completed, "completed", false, "only finished jobs")
	cmd.Flags().BoolVar(&running, "running", false, "only running jobs")
	cmd.Flags().Var(oneOf(&status, "InProgress", "Succeeded", "Failed"), "status", "only jobs with this status")
	a.addJSON(cmd)
	return cmd
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) jobShowCmd() *cobra.Command {
	var wait bool
	cmd := a.vaultVerb("show VAULT JOB", "describe a job", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		if !wait {
			j, err := c.DescribeJob(cmd.Context(), vault, args[0])
			if err != nil {
				return err
			}
			return a.printJob(j)
		}
		return a.showFinished(cmd.Context(), c, vault, args[0])
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it has finished")
	a.addJSON(cmd)
	return cmd
}

func (a *app) printJob(j cas.Job) error {
	if a.json {
		return a.printJSON(viewJob(j))
	}
	t := newTable(a.out)
	t.row("job", j.ID)
	t.row("type", j.Type)
	status := j.StatusCode
	if j.StatusMessage != "" && j.StatusMessage != j.StatusCode {
		status += " (" + j.StatusMessage + ")"
	}
	t.row("status", status)
	if j.Description != "" {
		t.row("description", j.Description)
	}
	t.row("started", when(j.CreationDate))
	if !j.CompletionDate.IsZero() {
		t.row("finished", when(j.CompletionDate))
		if j.Succeeded() && hasOutput(j) {
			t.row("output kept until", when(j.CompletionDate.Add(outputLife)))
		}
	}
	if j.ArchiveID != "" {
		t.row("archive", j.ArchiveID)
		t.row("archive size", sizeAndBytes(j.ArchiveSize))
		if !j.ArchiveTreeHash.IsZero() {
			t.row("archive tree hash", j.ArchiveTreeHash)
		}
		if j.Range.Len > 0 {
			t.row("range", j.Range)
		}
		if !j.TreeHash.IsZero() && j.TreeHash != j.ArchiveTreeHash {
			t.row("range tree hash", j.TreeHash)
		}
		if j.Tier != "" {
			t.row("tier", j.Tier)
		}
	}
	if j.Type == cas.InventoryRetrieval {
		if j.Completed {
			t.row("output", sizeAndBytes(j.InventorySize))
		}
		if j.InventoryMarker != "" {
			t.row("more archives", "start the next inventory with --marker "+j.InventoryMarker)
		}
	}
	if j.Bucket != "" {
		t.row("COS object", j.Bucket+"/"+j.Object)
	}
	t.flush()
	return nil
}

// showFinished waits for a job and prints it; one that failed is an error, too.
func (a *app) showFinished(ctx context.Context, c *cas.Client, vault, id string) error {
	j, err := a.waitJob(ctx, c, vault, id)
	if err == nil || errors.Is(err, cas.ErrJobFailed) {
		if perr := a.printJob(j); perr != nil {
			return perr
		}
	}
	return err
}

func (a *app) jobStartCmd() *cobra.Command {
	var r cas.JobRequest
	var span, start, length, tier, format, startDate, endDate, toCOS, fromCOS, cosRange string
	var wait bool
	cmd := a.vaultVerb("start VAULT [ARCHIVE]", "start a retrieval of an archive, or an inventory of the vault", 0, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		fl := cmd.Flags()
		changed := func(names ...string) string {
			for _, n := range names {
				if fl.Changed(n) {
					return "--" + n
				}
			}
			return ""
		}
		archiveOnly := []string{"range", "start", "size", "tier", "to-cos"}
		inventoryOnly := []string{"limit", "marker", "start-date", "end-date", "format"}
		switch {
		case fromCOS != "":
			if len(args) > 0 {
				return usagef("--from-cos makes a new archive: give no ARCHIVE")
			}
			if n := changed(append(archiveOnly, inventoryOnly...)...); n != "" {
				return usagef("%s has no meaning with --from-cos", n)
			}
			r.Type, r.COSRange = cas.PullFromCOS, cosRange
		case len(args) == 0:
			if n := changed(archiveOnly...); n != "" {
				return usagef("%s needs an ARCHIVE; without one an inventory is started", n)
			}
			r.Type = cas.InventoryRetrieval
		default:
			if n := changed(inventoryOnly...); n != "" {
				return usagef("%s belongs to inventories, which are started without an ARCHIVE", n)
			}
			r.Type, r.ArchiveID = cas.ArchiveRetrieval, args[0]
			if toCOS != "" {
				r.Type = cas.PushToCOS
			}
		}
		if cos := toCOS + fromCOS; cos != "" {
			var ok bool
			if r.Bucket, r.Object, ok = strings.Cut(cos, "/"); !ok || r.Bucket == "" || r.Object == "" {
				return usagef("%q is not BUCKET/OBJECT", cos)
			}
		}
		r.Tier = cas.Tier(tier)
		r.Format = format
		var err error
		for _, d := range []struct {
			text string
			to   *time.Time
			name string
		}{{startDate, &r.StartDate, "--start-date"}, {endDate, &r.EndDate, "--end-date"}} {
			if d.text != "" {
				if *d.to, err = parseTime(d.text); err != nil {
					return usagef("%s: %v", d.name, err)
				}
			}
		}
		if fl.Changed("limit") && (r.Limit < 1 || r.Limit > 10000) {
			return usagef("--limit is between 1 and 10000")
		}
		first, last, err := rangeFlags(span, start, length)
		if err != nil {
			return err
		}
		if last < 0 && changed("range", "start") != "" {
			return usagef("--start needs --size, and --range both ends: the end of a retrieval's range must be given; without a range all of the archive is retrieved")
		}
		if last >= 0 {
			r.Range = cas.Range{Off: first, Len: last - first + 1}
		}
		id, err := c.InitiateJob(cmd.Context(), vault, r)
		if err != nil {
			return err
		}
		if wait {
			if !a.json {
				fmt.Fprintf(a.errOut, "started %s\n", id)
			}
			return a.showFinished(cmd.Context(), c, vault, id)
		}
		if a.json {
			return a.printJSON(map[string]string{"job_id": id})
		}
		a.printf("%s\n", id)
		return nil
	})
	cmd.Long = `Starts a job and prints its ID. With ARCHIVE it brings the archive, or a range
of it, to where casfs job fetch can download it (expedited: minutes, below 256
MB; standard: 3 to 5 hours; bulk: 5 to 12 hours); without, it lists the vault
(3 to 5 hours). Output is kept for 24 hours. Every retrieval is billed by size
and tier.`
	fl := cmd.Flags()
	fl.StringVar(&span, "range", "", "bytes `A-B` of the archive; both ends on MiB boundaries, as 0-64M")
	fl.StringVar(&start, "start", "", "first byte (with --size)")
	fl.StringVar(&length, "size", "", "number of bytes (with --start, or from the beginning)")
	fl.Var(oneOf(&tier, "Expedited", "Standard", "Bulk"), "tier", "how fast, and how dear (default Standard)")
	fl.StringVar(&r.Description, "desc", "", "note kept with the job")
	fl.StringVar(&r.CallBackURL, "callback", "", "`URL` called when the job ends")
	fl.IntVar(&r.Limit, "limit", 0, "inventory: at most this many archives (up to 10000)")
	fl.StringVar(&r.Marker, "marker", "", "inventory: continue an earlier one")
	fl.StringVar(&startDate, "start-date", "", "inventory: archives created at or after this `time`")
	fl.StringVar(&endDate, "end-date", "", "inventory: archives created at or before this `time`")
	fl.Var(oneOf(&format, "JSON", "CSV"), "format", "inventory: format of the list (default JSON)")
	fl.StringVar(&toCOS, "to-cos", "", "copy the archive to this COS `BUCKET/OBJECT`")
	fl.StringVar(&fromCOS, "from-cos", "", "make an archive of this COS `BUCKET/OBJECT`")
	fl.StringVar(&cosRange, "cos-range", "bytes=0-", "range of the COS object")
	fl.StringVar(&r.ArchiveDescription, "archive-desc", "", "--from-cos: description of the new archive")
	fl.BoolVar(&wait, "wait", false, "wait until the job has finished")
	a.addJSON(cmd)
	return cmd
}

// rangeFlags reads --range, or cascmd's --start and --size; last is -1 when open, and 0, -1 is everything.
func rangeFlags(span, start, length string) (first, last int64, err error) {
	last = -1
	switch {
	case span != "" && (start != "" || length != ""):
		return 0, 0, usagef("--range excludes --start and --size")
	case span != "":
		if first, last, err = parseSpan(span); err != nil {
			return 0, 0, usagef("--range: %v", err)
		}
		return first, last, nil
	}
	if start != "" {
		if first, err = parseSize(start); err != nil {
			return 0, 0, usagef("--start: %v", err)
		}
	}
	if length != "" {
		n, err := parseSize(length)
		if err != nil || n == 0 {
			return 0, 0, usagef("--size: %q is not a number of bytes", length)
		}
		last = first + n - 1
	}
	return first, last, nil
}

func (a *app) jobFetchCmd() *cobra.Command {
	var o fetchOptions
	var span, start, length string
	cmd := a.vaultVerb("fetch VAULT JOB FILE", "download a finished job's output to FILE (- for standard output)", 2, 2, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		var err error
		if o.first, o.last, err = rangeFlags(span, start, length); err != nil {
			return err
		}
		return a.fetch(cmd, c, vault, args[0], args[1], o)
	})
	cmd.Long = `Downloads the output of a finished job, in parallel, each range and the whole
checked against the service's tree hashes. A download that was interrupted goes
on where it stopped when it is started again.

Ranges count from the beginning of the output, not of the archive.`
	fl := cmd.Flags()
	fl.BoolVarP(&o.force, "force", "f", false, "replace FILE")
	fl.BoolVar(&o.wait, "wait", false, "wait until the job has finished")
	fl.StringVar(&span, "range", "", "only bytes `A-B` of the output")
	fl.StringVar(&start, "start", "", "only from this byte")
	fl.StringVar(&length, "size", "", "only this many bytes")
	fl.IntVar(&o.parallel, "parallel", 4, "ranges in flight")
	fl.Var(size(&o.bwlimit), "bwlimit", "at most this many bytes per second")
	fl.BoolVar(&o.unverified, "unverified", false, "fetch even what the service tells no hash for")
	a.addJSON(cmd)
	return cmd
}

type archiveView struct {
	ID          string     `json:"id"`
	Description string     `json:"description"`
	Created     *time.Time `json:"created"`
	Size        int64      `json:"size"`
	TreeHash    string     `json:"tree_hash"`
}

func (a *app) jobArchivesCmd() *cobra.Command {
	var wait bool
	cmd := a.vaultVerb("archives VAULT JOB", "print the archives that a finished inventory lists", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		var j cas.Job
		var err error
		if wait {
			j, err = a.waitJob(cmd.Context(), c, vault, args[0])
		} else {
			j, err = c.PollJob(cmd.Context(), vault, args[0])
		}
		if err != nil {
			return err
		}
		if j.Type != cas.InventoryRetrieval {
			return usagef("%s is no inventory; casfs job fetch downloads an archive", args[0])
		}
		enc := json.NewEncoder(a.out)
		enc.SetEscapeHTML(false)
		t := newTable(a.out)
		if !a.json {
			t.row("ARCHIVE", "SIZE", "CREATED", "DESCRIPTION")
		}
		n := 0
		head, err := c.Inventory(cmd.Context(), vault, j.ID, func(e cas.InventoryEntry) error {
			n++
			if a.json {
				return enc.Encode(archiveView{e.ArchiveID, e.Description, orNull(e.CreationDate), e.Size, e.TreeHash.String()})
			}
			t.row(e.ArchiveID, sizeText(e.Size), when(e.CreationDate), e.Description)
			if n%1000 == 0 {
				t.flush() // bounded memory, for columns that may shift
			}
			return nil
		})
		t.flush()
		if err != nil {
			return err
		}
		if !a.json {
			a.printf("%s", count(int64(n), "archive"))
			if !head.Date.IsZero() { // CSV does not tell
				a.printf(", as of %s", when(head.Date))
			}
			a.printf("\n")
			if j.InventoryMarker != "" {
				a.printf("more: casfs job start %s --marker %s\n", vault, shown(j.InventoryMarker))
			}
		}
		return nil
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the job has finished")
	cmd.Flags().BoolVar(&a.json, "json", false, "print one JSON object per line")
	return cmd
}
