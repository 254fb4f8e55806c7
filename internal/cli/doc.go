// Package cli is the command line of casfs: one file per verb or family of
// verbs. It builds the objects of the other packages, mounts, waits, and shuts
// down in reverse. Nothing here knows how files, uploads or recalls work.
//
// Every setting stands once in the table of settings.go and may come from a
// flag, from the environment (CASFS_ and the flag's name), from the section
// [casfs] of the configuration file, or from its default, in this order.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part (or not
// drained), 75 not finished yet.
package cli
