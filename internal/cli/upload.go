package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

func (a *app) uploadCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "upload", Short: "multipart uploads: list, show, resume, abort; start, part, complete by hand"}
	cmd.AddCommand(a.uploadListCmd(), a.uploadShowCmd(), a.uploadResumeCmd(), a.uploadAbortCmd(),
		a.uploadStartCmd(), a.uploadPartCmd(), a.uploadCompleteCmd())
	return cmd
}

type uploadView struct {
	ID          string     `json:"id"`
	Description string     `json:"description"`
	Created     *time.Time `json:"created"`
	Expires     *time.Time `json:"expires"`
	PartSize    int64      `json:"part_size"`
	Parts       []partView `json:"parts,omitempty"`
	Bytes       *int64     `json:"bytes,omitempty"` // acknowledged
}

type partView struct {
	First    int64  `json:"first"`
	Last     int64  `json:"last"` // inclusive
	TreeHash string `json:"tree_hash"`
}

const uploadLife = 24 * time.Hour

func viewUpload(u cas.UploadInfo) uploadView {
	v := uploadView{ID: u.UploadID, Description: u.Description, Created: orNull(u.CreationDate), PartSize: u.PartSize}
	if !u.CreationDate.IsZero() {
		v.Expires = orNull(u.CreationDate.Add(uploadLife))
	}
	return v
}

func (a *app) uploadListCmd() *cobra.Command {
	var page cas.Page
	cmd := a.vaultVerb("list VAULT", "list uploads in progress", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		if err := checkLimit(cmd, page, 1000); err != nil {
			return err
		}
		var ups []cas.UploadInfo
		marker := page.Marker
		for {
			p, err := c.ListUploads(cmd.Context(), vault, cas.Page{Marker: marker, Limit: page.Limit})
			if err != nil {
				return err
			}
			ups, marker = append(ups, p.Uploads...), p.Marker
			if marker == "" || paged(cmd) {
				break
			}
		}
		if a.json {
			views := make([]uploadView, 0, len(ups))
			for _, u := range ups {
				views = append(views, viewUpload(u))
			}
			return a.printJSON(map[string]any{"uploads": views, "marker": marker})
		}
		if len(ups) == 0 {
			a.printf("no uploads in progress\n")
			return nil
		}
		t := newTable(a.out)
		t.row("UPLOAD", "PART SIZE", "STARTED", "DESCRIPTION")
		for _, u := range ups {
			t.row(u.UploadID, sizeText(u.PartSize), when(u.CreationDate), u.Description)
		}
		t.flush()
		if marker != "" {
			a.printf("more: --marker %s\n", shown(marker))
		}
		return nil
	})
	pageFlags(cmd, &page)
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadShowCmd() *cobra.Command {
	var page cas.Page
	cmd := a.vaultVerb("show VAULT UPLOAD", "show an upload and the parts the service has", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		if err := checkLimit(cmd, page, 1000); err != nil {
			return err
		}
		var info cas.UploadInfo
		var parts []cas.PartInfo
		marker, total := page.Marker, int64(0)
		for {
			p, err := c.ListParts(cmd.Context(), vault, args[0], cas.Page{Marker: marker, Limit: page.Limit})
			if err != nil {
				return err
			}
			info, parts, marker = p.Upload, append(parts, p.Parts...), p.Marker
			if marker == "" || paged(cmd) {
				break
			}
		}
		for _, p := range parts {
			total += p.Range.Len
		}
		if a.json {
			v := viewUpload(info)
			v.Bytes = &total
			for _, p := range parts {
				v.Parts = append(v.Parts, partView{p.Range.Off, p.Range.End() - 1, p.TreeHash.String()})
			}
			return a.printJSON(map[string]any{"upload": v, "marker": marker})
		}
		t := newTable(a.out)
		t.row("upload", info.UploadID)
		t.row("description", info.Description)
		t.row("started", when(info.CreationDate))
		if !info.CreationDate.IsZero() {
			t.row("expires", when(info.CreationDate.Add(uploadLife)))
		}
		t.row("part size", sizeText(info.PartSize))
		t.row("acknowledged", fmt.Sprintf("%s, %s", count(int64(len(parts)), "part"), sizeText(total)))
		t.flush()
		if len(parts) > 0 {
			t := newTable(a.out)
			t.row("FIRST", "LAST", "TREE HASH")
			for _, p := range parts {
				t.row(p.Range.Off, p.Range.End()-1, p.TreeHash)
			}
			t.flush()
		}
		if marker != "" {
			a.printf("more: --marker %s\n", shown(marker))
		}
		return nil
	})
	pageFlags(cmd, &page)
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadResumeCmd() *cobra.Command {
	var u uploadOptions
	cmd := a.vaultVerb("resume VAULT UPLOAD FILE", "finish an interrupted upload of FILE", 2, 2, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		return a.upload(cmd, c, vault, args[1], args[0], u)
	})
	cmd.Long = `Compares the parts the service has with FILE, sends what is missing and
completes the archive, whose ID it prints. A FILE that differs from what was sent
is refused before anything is sent.`
	sendFlags(cmd, &u)
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadAbortCmd() *cobra.Command {
	cmd := a.vaultVerb("abort VAULT UPLOAD…", "drop uploads in progress", 1, -1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		aborted, absent := []string{}, []string{} // not null, in JSON
		for _, id := range args {
			// To abort one that is not there succeeds without a difference.
			_, perr := c.ListParts(cmd.Context(), vault, id, cas.Page{Limit: 1})
			if err := c.AbortUpload(cmd.Context(), vault, id); err != nil {
				return err
			}
			if errors.Is(perr, cas.ErrNotFound) {
				absent = append(absent, id)
				if !a.json {
					fmt.Fprintf(a.errOut, "casfs: there is no upload %s: it was completed or aborted, or has expired\n", shown(id))
				}
				continue
			}
			aborted = append(aborted, id)
			if !a.json {
				a.printf("aborted %s\n", shown(id))
			}
		}
		if a.json {
			return a.printJSON(map[string]any{"aborted": aborted, "absent": absent})
		}
		return nil
	})
	cmd.Long = `Drops uploads in progress and the parts the service has of them. One that is not
there is no failure, but is said.`
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadStartCmd() *cobra.Command {
	var desc string
	cmd := a.vaultVerb("start VAULT PART-SIZE", "begin a multipart upload by hand and print its ID", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		part, err := parseSize(args[0])
		if err != nil {
			return usagef("PART-SIZE: %v", err)
		}
		if part >= cas.MinPartSize && part < cas.MaxPartSize { // else the client says what is wrong
			if err := powerOfTwo("PART-SIZE", part); err != nil {
				return err
			}
		}
		id, err := c.InitiateUpload(cmd.Context(), vault, desc, part)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"upload_id": id, "part_size": part})
		}
		a.printf("%s\n", id)
		return nil
	})
	cmd.Flags().StringVar(&desc, "desc", "", "description kept with the archive")
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadPartCmd() *cobra.Command {
	cmd := a.vaultVerb("part VAULT UPLOAD FILE START END", "send bytes START to END (inclusive) of FILE as a part", 4, 4, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		f, total, err := openRegular(args[1])
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := slice(args[2], args[3], total)
		if err != nil {
			return err
		}
		body := io.NewSectionReader(f, r.Off, r.Len)
		var h cas.TreeHasher
		if _, err := io.Copy(&h, io.NewSectionReader(f, r.Off, r.Len)); err != nil {
			return err
		}
		sum := h.Sum()
		if err := c.UploadPart(cmd.Context(), vault, args[0], r.Off, body, sum); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(partView{r.Off, r.End() - 1, sum.Tree.String()})
		}
		a.printf("sent bytes %s, tree hash %s\n", r, sum.Tree)
		return nil
	})
	a.addJSON(cmd)
	return cmd
}

func (a *app) uploadCompleteCmd() *cobra.Command {
	cmd := a.vaultVerb("complete VAULT UPLOAD SIZE TREE-HASH", "turn the parts into an archive and print its ID", 3, 3, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		n, err := parseSize(args[1])
		if err != nil {
			return usagef("SIZE: %v", err)
		}
		h, err := cas.ParseHash(args[2])
		if err != nil || h.IsZero() {
			return usagef("TREE-HASH has 64 hexadecimal digits")
		}
		id, err := c.CompleteUpload(cmd.Context(), vault, args[0], n, h)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"archive_id": id, "size": n, "tree_hash": h})
		}
		a.printf("%s\n", id)
		return nil
	})
	a.addJSON(cmd)
	return cmd
}

// slice reads START and END (inclusive; a multiple of 1 MiB means the byte before) of a file of total bytes.
func slice(start, end string, total int64) (cas.Range, error) {
	first, err := parseSize(start)
	if err != nil {
		return cas.Range{}, usagef("START: %v", err)
	}
	last, err := parseSize(end)
	if err != nil {
		return cas.Range{}, usagef("END: %v", err)
	}
	last = inclusiveEnd(last)
	if last < first {
		return cas.Range{}, usagef("END %s lies before START %s", end, start)
	}
	if last >= total {
		return cas.Range{}, usagef("END %s lies beyond the file's last byte, %s", end, strconv.FormatInt(total-1, 10))
	}
	return cas.Range{Off: first, Len: last - first + 1}, nil
}
