# Bare `make` prints what there is. Only Go, git and make are needed for demo and build; `make test` installs the rest.
GO       ?= go
FUZZTIME ?= 60s
SOAKTIME ?= 10m

QUICKSTART := examples/quickstart/functions

.DEFAULT_GOAL := help
.PHONY: help demo build functions test bench fuzz soak crash release release-check fmt clean deps

help: ## print this
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## build the router and watch events go through it
	./bin/router demo

build: $(QUICKSTART)/redact.wasm ## build bin/router
	$(GO) build -trimpath -o bin/router ./cmd/router

# The demo's function is part of the binary. It is made where it is missing; `make functions` makes it anew.
$(QUICKSTART)/redact.wasm:
	cd $(QUICKSTART)/redact && GOOS=wasip1 GOARCH=wasm $(GO) build -buildmode=c-shared -trimpath -buildvcs=false -ldflags='-s -w -buildid=' -o ../redact.wasm .

functions: ## build the examples' functions from source again
	rm -f $(QUICKSTART)/redact.wasm
	$(MAKE) $(QUICKSTART)/redact.wasm

deps: ## install what the tests need (Debian packages as root, npm packages)
	./scripts/deps.sh

test: deps $(QUICKSTART)/redact.wasm ## everything that must hold: format, vet, staticcheck, all tests, race detector
	GO='$(GO)' ./scripts/test.sh

bench: build ## measure every figure beside its own limit in the same run, and print ratios
	./scripts/deps.sh bench
	$(GO) run ./bench $(BENCHFLAGS)

fuzz: ## fuzz each target for FUZZTIME (60s)
	GO='$(GO)' ./scripts/fuzz.sh $(FUZZTIME)

soak: build ## the long forms: model, kill -9, reloads, load, each load for SOAKTIME (10m)
	GO='$(GO)' ./scripts/soak.sh ./bin/router $(SOAKTIME)

crash: $(QUICKSTART)/redact.wasm ## the long crash tests
	MILLRACE_LONG=1 $(GO) test -count=1 -timeout 60m -run 'Crash|Kill|Power|Fail|Reload' ./storage/... ./engine/... ./acceptance/...

release: ## build dist/: archives for six platforms, sums, SBOMs
	$(GO) run ./scripts/release -out dist

release-check: ## build the commit twice, in two places, and compare byte for byte
	$(GO) run ./scripts/release -check here

fmt: ## format all Go files
	find . -name '*.go' -not -path '*/node_modules/*' -not -path '*/testdata/*' | xargs gofmt -w

clean: ## remove what was built
	rm -rf bin dist tmp scripts/npm/node_modules
