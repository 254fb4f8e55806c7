package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

type uploadOptions struct {
	description string
	partSize    int64
	parallel    int
}

// upload stores a file as one archive, or finishes the upload uploadID with it.
func (a *app) upload(cmd *cobra.Command, c *cas.Client, vault, name, uploadID string, u uploadOptions) error {
	return errors.New("not built yet")
}

type fetchOptions struct {
	force, wait bool
	first, last int64 // of the output; last -1: to its end
	parallel    int
}

// fetch downloads a job's output to a file.
func (a *app) fetch(cmd *cobra.Command, c *cas.Client, vault, jobID, name string, o fetchOptions) error {
	return errors.New("not built yet")
}
