.PHONY: build test check
build:
	go build -o bin/casfs .
test:
	go test -race ./...
check:
	test -z "$$(gofmt -l .)"
	go vet ./...
