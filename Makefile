# Tartarus. `make help` lists the targets.

SHELL   := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO      ?= go
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
GUEST   := internal/assembly/guest/tartarus-guest
LINT    := .cache/bin/golangci-lint
BUF     := $(GO) tool -modfile=tools/go.mod buf
IMAGE   := $(BUF) build --exclude-source-info --path api/v1

.PHONY: help run build guest test test-go faults lab lab-full firecracker-test fuzz lint generate api-released bench bench-parts soak deps deps-test clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: deps build ## install what is missing, build, prepare, and run a real job in a real VM
	bin/tartarus setup
	@echo
	bin/tartarus run --timings --template debian -- python3 -c 'import platform; print(40+2, "from", platform.node(), platform.release())'

build: guest ## build bin/tartarus, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/tartarus ./cmd/tartarus

guest: ## build the guest's init, which the binary embeds
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(GUEST) ./cmd/tartarus-guest

test: deps-test build firecracker-test ## everything that CI runs
	@scripts/test.sh

test-go: guest ## the Go tests alone, with the race detector
	$(GO) test -race ./...

lab: deps-test build firecracker-test ## tests that need KVM or cgroup v2, in a VM that has both (docs/lab.md)
	@$(GO) run ./test/lab suite $(CHECKS)

lab-full: deps-test build firecracker-test ## and the rest of them
	@$(GO) run ./test/lab -full suite

firecracker-test: deps-test ## fetch Firecracker and its jailer for the lab's tests, and for nothing else
	@scripts/firecracker-test.sh

faults: deps-test guest ## kill and break it at every step, on fakes and on real VMs; the table last (FAULTS='-seed 7 -cell vm')
	@mkdir -p bin
	$(GO) test -race -c -o bin/faults.test ./test/faults
	@cd test/faults && ../../bin/faults.test -test.timeout 60m -full $(FAULTS)

fuzz: ## every fuzz target, 100,000 inputs each
	scripts/fuzz.sh 100000x

lint: $(LINT) ## gofmt, vet, golangci-lint, buf, an API that breaks the released one, and stale generated files
	@test -z "$$(gofmt -l $$(git ls-files '*.go' ':!*.pb.go' ':!*.pb.gw.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'gofmt: the files above'; exit 1; }
	$(GO) vet ./...
	$(LINT) run ./...
	$(BUF) lint
	$(IMAGE) -o -\#format=binpb | $(BUF) breaking -\#format=binpb --against api/released/tartarus.v1.binpb
	$(GO) test ./internal/control/olympus -run '^TestGeneratedFilesAreFresh$$' -count=1

$(LINT): tools/lint/go.mod
	$(GO) build -modfile=tools/lint/go.mod -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

generate: ## the code that comes from the API's definition, and the docs that come from tables
	$(BUF) generate
	UPDATE=1 $(GO) test ./internal/archtest -run 'Glossary|Tables' -count=1

api-released: ## at a release: what clients build on from now on, and lint holds the contract to
	$(IMAGE) -o api/released/tartarus.v1.binpb

bench: guest ## what Tartarus itself costs, each figure beside a raw floor (ARGS=-h)
	@CGO_ENABLED=0 $(GO) run -trimpath -ldflags '-X main.version=$(VERSION)' ./test/bench $(ARGS)

bench-parts: guest ## benchmarks of the parts
	$(GO) test -run '^$$' -bench . -benchtime 2s ./internal/control/ledger/... ./internal/control/census ./internal/guest/guestwire/...

FOR ?= 1m
soak: guest ## load a server with faults for as long as FOR=20m says, then look for leaks
	$(GO) test ./test/soak -run '^TestSoak$$' -v -count=1 -timeout 0 -for $(FOR)

deps:
	@scripts/deps.sh run

deps-test:
	@scripts/deps.sh run test

clean: ## remove what was built here (not the state)
	rm -rf bin .cache $(GUEST)
