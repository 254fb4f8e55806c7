package catalog

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets the test binary be the process that is killed, and keeps property tests short unless a flag says otherwise.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CASFS_CATALOG_VICTIM"); dir != "" {
		victim(dir)
	}
	if dir := os.Getenv("CASFS_CATALOG_FULL"); dir != "" {
		fillDisk(dir)
	}
	flag.Set("rapid.checks", "8")
	flag.Set("rapid.shrinktime", "5s")
	flag.Parse()
	os.Exit(m.Run())
}
