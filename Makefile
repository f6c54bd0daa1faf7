# ring3: the verbs for people and CI. `make` alone lists them.

# Where Go's caches cannot live below HOME they live in the checkout.
CACHE := $(shell hack/gocache)
ifneq ($(CACHE),)
export GOCACHE := $(CACHE)/go-build
export GOPATH := $(CACHE)/go
export GOMODCACHE := $(CACHE)/go/pkg/mod
export XDG_CACHE_HOME := $(CACHE)
endif
# The version comes from git describe, below; asking git again fails in a clone that is
# somebody else's.
export GOFLAGS := $(filter-out -buildvcs=%,$(shell go env GOFLAGS 2>/dev/null)) -buildvcs=false

VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)
LDFLAGS := -X github.com/ring3dev/ring3/host.Version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-long vm vm-test vm-test-arm64 golden bench bench-vm cover fuzz lint clean
.NOTPARALLEL:

help: ## list these verbs
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## install the Debian packages that are missing (QEMU, FUSE, ...)
	hack/setup

build: ## build bin/ring3: static, no cgo
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ring3 ./cmd/ring3

demo: build ## two e1000e NICs, wired, and the kernel's pktgen script on them
	hack/setup || echo 'demo: going on with what there is'
	hack/demo

# Setting up waits for the network, building and linting for the CPU.
define ready
@hack/setup & bad=0; $(MAKE) --no-print-directory build && hack/lint go || bad=1; wait $$! || bad=1; exit $$bad
hack/lint scripts
endef

test: ## every check and test that fits in CI's time (under 20 minutes)
	$(ready)
	hack/test

test-long: ## the same and the long proofs
	$(ready)
	hack/test long

vm: setup ## a shell in a VM, with ring3 and two NICs behind an IOMMU
	go run ./integration/vm/shell

vm-test: setup ## only the tests in a VM; RUN=NAME for one of them
	RING3_NEED_VM=1 go test -count=1 -timeout 40m -v -run '^TestVM$(if $(RUN),(NoIOMMU|TPM.*)?$$/$(RUN))' ./integration

vm-test-arm64: ## the same on an emulated arm64 machine (an SMMUv3 is its IOMMU)
	hack/setup arm64
	RING3_NEED_VM=1 RING3_VM_ARCH=arm64 go test -count=1 -timeout 120m -v -run '^TestVM$(if $(RUN),(NoIOMMU)?$$/$(RUN))' ./integration

golden: setup ## make again what is kept of the kernel: its pktgen's frames, its TPM's files, what its PCI Express ports do (testdata of pktgen, tpmdd, integration)
	RING3_NEED_VM=1 RING3_GOLDEN=1 go test -count=1 -timeout 40m -v -run '^TestVM(TPM.*|Ports)?$$/^TestRoot(Pktgen|TPM.*|Ports)$$' ./integration

bench: setup build ## measure everything that ring3 bench measures; BENCH='pktgen-tx -json' for less
	bin/ring3 bench $(BENCH)

bench-vm: setup ## measure ring3 over VFIO in a VM, beside the kernel's driver and DPDK; BENCH='-only ^tx -json' for less
	hack/bench-vm $(BENCH)

cover: ## coverage: of the drivers, without and with failing accesses, and of everything: bin/cover.html
	hack/cover

fuzz: ## each fuzz target for FUZZTIME (30s)
	hack/test fuzz

lint: ## gofmt, vet, staticcheck, the import rules, shellcheck
	hack/lint

clean: ## remove bin and the caches of this checkout
	rm -rf bin
	if [ -d .cache ]; then chmod -R u+w .cache && rm -rf .cache; fi
