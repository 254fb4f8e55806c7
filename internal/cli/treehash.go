package cli

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

func (a *app) treehashCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "treehash FILE [START END]",
		Short: "print the SHA-256 and the tree hash of a file or of a part of it",
		Long: `Prints the two hashes the service checks: SHA-256 of the bytes, and the tree
hash over its 1 MiB chunks. END is inclusive; an END that is a multiple of 1 MiB means the
byte before it. An archive made from a file has the file's tree hash.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return usagef("missing END (usage: %s)", usageLine(cmd))
			}
			return positional(1, 3)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f, total, err := openRegular(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			r := cas.Range{Len: total}
			if len(args) == 3 {
				if r, err = slice(args[1], args[2], total); err != nil {
					return err
				}
			}
			var h cas.TreeHasher
			b := a.newBar("hashing", r.Len, true)
			defer b.done()
			buf := make([]byte, 1<<20)
			section := io.NewSectionReader(f, r.Off, r.Len)
			for {
				n, err := section.Read(buf)
				h.Write(buf[:n])
				b.Write(buf[:n])
				if err == io.EOF {
					break
				}
				if err == nil {
					err = cmd.Context().Err()
				}
				if err != nil {
					return err
				}
			}
			b.done()
			sum := h.Sum()
			if a.json {
				return a.printJSON(map[string]any{"file": args[0], "first": r.Off, "last": r.End() - 1, "sha256": sum.Linear, "tree_hash": sum.Tree})
			}
			a.printf("sha256     %s\ntree hash  %s\n", sum.Linear, sum.Tree)
			return nil
		},
	}
	a.addJSON(cmd)
	return cmd
}
