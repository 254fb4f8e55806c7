package cli

import (
	"os"
	"runtime/pprof"
)

// profileEnv names a file for a CPU profile of a mount from its beginning to its end; for the
// developers of casfs.
const profileEnv = "CASFS_CPUPROFILE"

// profile begins the profile, if one is wanted; stop writes it.
func profile() (stop func(), err error) {
	name := os.Getenv(profileEnv)
	if name == "" {
		return func() {}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
