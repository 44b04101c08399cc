# make          build bin/chancery, and bin/chancery-pkcs11 where there is a C compiler
# make demo     the fleet in a throw-away directory: three hosts, from joining to a stolen key
# make test     install what the tests need (as root) and run them, consumers included
# make check    the gate: what CI runs
# make bench    the budgets, each with a ratio against a peer or a bare limit; those of clones on one PostgreSQL, and on a cluster of three
# make chaos    three nodes and their databases killed, frozen and cut off for half an hour (CHAOS_SECONDS, CHAOS_SEED), and what came of it;
#               then the failovers of the database's layer alone (FAILOVER=, with nothing behind it, goes without); it fails where
#               anything was broken, and where a bound had no strike that stood alone to be judged by

export CGO_ENABLED = 0
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BUILD = $(GO) build -trimpath -ldflags '-s -w -X chancery/internal/run/cli.version=$(VERSION)'
FUZZTIME ?= 10s
CHAOS_SECONDS ?= 1800
CHAOS_SEED ?= 0
FAILOVER ?= TestFailover

# The helper that loads PKCS #11 libraries is a module of its own, since it needs cgo.
PKCS11 = cmd/chancery-pkcs11
CC ?= cc

.PHONY: all build pkcs11 demo packages test check fmt vet static goroutines race fuzz tidy golden bench chaos clean

all: build

build:
	$(BUILD) -o bin/chancery ./cmd/chancery
	@if command -v $(CC) >/dev/null; then $(MAKE) --no-print-directory pkcs11; \
	else echo 'without a C compiler there is no bin/chancery-pkcs11: keys in PKCS #11 tokens need it' >&2; fi

pkcs11:
	CGO_ENABLED=1 $(GO) build -C $(PKCS11) -trimpath -ldflags '-s -w' -o ../../bin/chancery-pkcs11 .

demo: build
	bin/chancery demo

packages:
	.ci/packages

# What the tests' probers saw while certificates and trust were changed is shown at the end: connections, and failures. Vet is left to
# make vet, and the test programs go without what debuggers read. One more package than there are processors is tested at a time, since many
# wait for servers and agents.
test: packages
	@mkdir -p bin && rm -f bin/probed
	CHANCERY_PROBED=$(CURDIR)/bin/probed $(GO) test -p $$(($$(nproc) + 1)) -timeout 15m -vet=off -ldflags=-w ./...
	CGO_ENABLED=1 $(GO) test -C $(PKCS11) ./...
	@[ ! -f bin/probed ] || sort bin/probed

# make chaos is the last of it: each fault that has a budget once, and what else comes within two minutes.
check: CHAOS_SECONDS = 120
check: FAILOVER =
check: packages fmt vet static goroutines tidy test race fuzz golden chaos
	@echo 'check: all passed'

fmt:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt: $$out"; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags chaos ./internal/store/db
	CGO_ENABLED=1 $(GO) vet -C $(PKCS11) ./...

bin/staticcheck: tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck

static: bin/staticcheck
	bin/staticcheck ./...
	bin/staticcheck -tags chaos ./internal/store/db
	cd $(PKCS11) && CGO_ENABLED=1 ../../bin/staticcheck ./...

# A test that ends in a goroutine that is not its own leaves another waiting for what is never sent.
goroutines:
	cd tools && $(GO) test ./testgoroutine && $(GO) build -o ../bin/testgoroutine ./testgoroutine
	$(GO) vet -vettool=$(CURDIR)/bin/testgoroutine ./...
	CGO_ENABLED=1 $(GO) vet -C $(PKCS11) -vettool=$(CURDIR)/bin/testgoroutine ./...

tidy:
	$(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff
	cd $(PKCS11) && $(GO) mod tidy -diff

# The race detector needs cgo; the released binary does not. Unit and service tests run under it; the tests that start
# programs of ours (scripts, faults, benchmark, demo) do not: other processes are what they look at.
race:
	CGO_ENABLED=1 $(GO) test -race -short -timeout 30m ./client/... ./internal/fault ./internal/pki/... ./internal/store/... ./internal/authority/... ./internal/agent/... \
		./internal/fleet/... ./internal/upkeep/... ./internal/surface/... ./internal/run/server

fuzz:
	FUZZTIME=$(FUZZTIME) .ci/fuzz

golden:
	.ci/golden

bench: build
	$(GO) build -C peers -o ../bin/step-ca github.com/smallstep/certificates/cmd/step-ca
	bin/chancery bench --profiles bin/profiles
	.ci/bench-pkcs11

# Every call is in bin/chaos.jsonl afterwards. The same seed strikes in the same order; 0 draws one, which is printed.
chaos: build
	bin/chancery bench --chaos $(CHAOS_SECONDS)s --seed $(CHAOS_SEED) --history bin/chaos.jsonl
	$(if $(FAILOVER),$(GO) test -tags chaos -count=1 -timeout 15m -v -run '$(FAILOVER)' ./internal/store/db)

clean:
	rm -rf bin
