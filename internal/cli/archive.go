package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

func (a *app) archiveCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "archive", Short: "archives: upload, delete (job start fetches them)"}
	cmd.AddCommand(a.archiveUploadCmd(), a.archiveDeleteCmd())
	return cmd
}

func (a *app) archiveUploadCmd() *cobra.Command {
	var u uploadOptions
	var uploadID string
	cmd := a.vaultVerb("upload VAULT FILE", "store a file as one archive and print the archive's ID", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		if !cmd.Flags().Changed("desc") {
			u.description = defaultDescription(args[0])
		}
		if uploadID != "" {
			u.description = ""
		}
		return a.upload(cmd, c, vault, args[0], uploadID, u)
	})
	cmd.Long = `Stores FILE as one archive: in one request when it is small, else in parts, in
parallel. An upload that was interrupted is resumed with casfs upload resume.

Archives have no names: keep the ID that is printed (the tree hash is told on standard error), or find it later in an
inventory (casfs job start VAULT). The description is all that an inventory
tells about a file; without --desc it is FILE as typed.`
	uploadFlags(cmd, &u)
	cmd.Flags().StringVar(&u.description, "desc", "", "description kept with the archive (at most 1024 bytes)")
	cmd.Flags().StringVar(&uploadID, "upload-id", "", "resume this upload")
	a.addJSON(cmd)
	return cmd
}

// defaultDescription makes a file's name one that the service takes: without control characters, and not too long.
func defaultDescription(name string) string {
	s := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, name))
	for len(s) > cas.MaxDescription {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

func uploadFlags(cmd *cobra.Command, u *uploadOptions) {
	cmd.Flags().VarP(size(&u.partSize), "part-size", "p", "size of the parts (a power of two, at least 1M; default 16M, or what the size needs)")
	sendFlags(cmd, u)
}

func sendFlags(cmd *cobra.Command, u *uploadOptions) {
	cmd.Flags().IntVar(&u.parallel, "parallel", 4, "parts in flight")
	cmd.Flags().Var(size(&u.bwlimit), "bwlimit", "at most this many bytes per second")
}

// openRegular opens a file that can be an archive.
func openRegular(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is no regular file", name)
	case st.Size() == 0:
		err = fmt.Errorf("%s is empty: %w", name, cas.ErrEmpty)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (a *app) archiveDeleteCmd() *cobra.Command {
	cmd := a.vaultVerb("delete VAULT ARCHIVE…", "delete archives", 1, -1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		var deleted []string
		var errs []error
		for _, id := range args {
			if err := c.DeleteArchive(cmd.Context(), vault, id); err != nil {
				errs = append(errs, err)
				continue
			}
			deleted = append(deleted, id)
			if !a.json {
				a.printf("deleted %s\n", shown(id))
			}
		}
		if a.json {
			if err := a.printJSON(map[string]any{"deleted": append([]string{}, deleted...)}); err != nil {
				return err
			}
		}
		if err := errors.Join(errs...); err != nil && len(deleted) > 0 {
			return &failure{code: exitPartial, err: err}
		} else if err != nil {
			return err
		}
		return nil
	})
	cmd.Long = `Deletes archives at once. Those younger than 90 days are billed for the days
that are left. Deleting one that is not there is no failure; the service does not tell the difference.`
	a.addJSON(cmd)
	return cmd
}
