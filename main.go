// Command casfs mounts cold-archive vaults as directories.
package main

import (
	"os"

	"github.com/casfs/casfs/internal/cli"
)

func main() { os.Exit(cli.Main()) }
