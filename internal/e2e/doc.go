// Package e2e holds tests with the programs people use: rsync, tar, git, SQLite,
// restic, borg and others work in a mount of the real binary, whose
// service is the embedded store behind HTTP. Each program runs twice: on files that
// stay local, and on files that are archived and evicted after each step, so
// that everything it reads comes back from the vault.
package e2e
