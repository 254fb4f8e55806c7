# make            build bin/casfs
# make demo       see the whole story on an embedded store, in two minutes
# make test       every test, through real mounts, with the race detector
# make check      formatting, vet, and a short run of every fuzz target
# make install    program, man pages and completions below $(DESTDIR)$(PREFIX)
# make bench      the benchmarks (docs/benchmarks.md)
# make crash      kill the mounted program 300 times, and its parts a thousand times, pull the plug of its disk, and look whether anything is lost
# make model      a long run of random operations against a plain directory
# make test-big   the service verbs with 1 GiB, 200 000 files in a directory, every user's every call, sweeps
# make foreign    a vault of 25 000 archives with every kind of description
# make fuzz       every fuzz target for FUZZTIME (a duration, or a number of inputs as 300x)
# make tools      install or name the programs that tests need

PREFIX   ?= /usr/local
DESTDIR  ?=
GO       ?= go
FUZZTIME ?= 1m
# A release is a tag; otherwise the program tells the commit it was built from.
VERSION  ?= $(shell git describe --tags --exact-match 2>/dev/null)
LDFLAGS  := $(if $(VERSION),-X github.com/casfs/casfs/internal/cli/version.release=$(VERSION))
# Those that take longest begin first.
PACKAGES ?= ./jobs ./fs ./internal/crash ./internal/cli ./internal/e2e ./...
# Nothing is taken from the cache (-count=1): it does not know the programs that tests build.
# Packages tested at a time: tests wait for disks, mounts and programs more than they compute.
TESTS    ?= 4
# The race detector has a shadow for all memory. Above 64 KiB it gets a fresh one by mmap, whose page faults cost more than
# to clear it, a third of some tests where faults are slow.
# Nor do most goroutines live long enough to fill a history of accesses; of what raced, the older side's stack may be
# missing from a report (then run that test with GORACE=history_size=7).
export GORACE ?= clear_shadow_mmap_threshold=1073741824:history_size=0
# One set of flags for everything, so that nothing is compiled twice.
export GOFLAGS ?= -trimpath

.PHONY: build demo test check install uninstall bench crash model test-big foreign fuzz tools clean
.DEFAULT_GOAL := build

build:
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/casfs .

demo: build
	@testdata/demo bin/casfs

test: tools
	$(GO) test -race -count=1 -p $(TESTS) -timeout 60m $(PACKAGES)

check:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted (run gofmt -w):"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) mod verify
	$(MAKE) --no-print-directory fuzz FUZZTIME=300x

fuzz:
	GO='$(GO)' .ci/fuzz '$(FUZZTIME)'

tools:
	@.ci/install-tools

bench: tools
	-@.ci/install-tools rclone:rclone
	$(GO) run ./internal/bench

crash: tools
	CASFS_CRASHES=300 $(GO) test -race -timeout 60m -v -run 'TestCrash|TestPowerLoss' ./internal/crash
	CASFS_CRASHES=1000 $(GO) test -race -timeout 60m -v -run 'Crash|Kill' ./jobs ./cache/... ./internal/cli

model: tools
	CASFS_MODEL_OPS=100000 $(GO) test -timeout 120m -v -run TestModel ./fs

test-big: tools
	CASFS_TEST_BIG=1 $(GO) test -timeout 30m -v -run 'Service|Resume' ./internal/cli
	CASFS_TEST_BIG=1 $(GO) test -timeout 60m -v -run Stream ./internal/crash
	CASFS_TEST_BIG=1 $(GO) test -timeout 30m -v -run 'Users|LargeDirectory|NewMachine|Sweeps' ./fs

foreign: tools
	CASFS_FOREIGN=25000 $(GO) test -timeout 60m -v -run TestForeignVault ./internal/cli
	$(GO) test -run '^$$' -bench MergeInventory ./jobs

install: build
	install -D -m 755 bin/casfs '$(DESTDIR)$(PREFIX)/bin/casfs'
	install -d '$(DESTDIR)$(PREFIX)/share/man/man1'
	bin/casfs man '$(DESTDIR)$(PREFIX)/share/man/man1'
	install -d '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	bin/casfs completion bash > '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/casfs'
	bin/casfs completion zsh > '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_casfs'
	bin/casfs completion fish > '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/casfs.fish'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/bin/casfs' '$(DESTDIR)$(PREFIX)'/share/man/man1/casfs.1 '$(DESTDIR)$(PREFIX)'/share/man/man1/casfs-*.1
	rm -f '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/casfs' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_casfs' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/casfs.fish'

clean:
	rm -rf bin
