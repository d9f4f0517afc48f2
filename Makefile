# Everything a contributor does, one line each: make help
#
# CLUSTER=dev       (default) a real Kubernetes made on this machine by e2e/cluster: Debian, root, Go 1.26, rustup
# CLUSTER=kind      a kind cluster, where docker and kind are installed
# CLUSTER=current   the cluster of KUBECONFIG; load or push the images of `make images` there yourself (IMAGE_PREFIX, IMAGE_TAG,
#                   and a copy of deploy/dev that names them: OVERLAY)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CLUSTER ?= dev
OVERLAY ?= deploy/dev
IMAGE_TAG ?= dev
OPERATORS := database-operator backup-scheduler-operator restore-operator
PROGRAMS := $(OPERATORS) agent
# What is shipped is one static binary an image. On arm64 this picks the other triple; that is untested.
TARGET ?= $(shell uname -m | sed s/arm64/aarch64/)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
IMAGES := $(TARGET_DIR)/images
CARGO := cargo --locked
CACHE := $(or $(HOLDFAST_CACHE),$(HOME)/.cache/holdfast)
export CLUSTER NODES
# The cluster's kubectl, and tools that were installed for this project alone.
export PATH := $(CACHE)/bin:$(PATH)
# Evaluated when a recipe runs, not when make starts: the cluster may not be there yet.
# A profile of its own: speed, not size. A simulated cluster is mostly JSON.
SWEEP = $(TARGET_DIR)/sweep/holdfast-sweep
MODEL = $(TARGET_DIR)/sweep/holdfast-model
# Together, so that what both depend on is compiled once.
SWEEP_BUILD = $(CARGO) build --profile sweep --package holdfast-sweep --package holdfast-model
E2E = KUBECONFIG="$$(e2e/cluster/kubeconfig)" $(CARGO) run --quiet --package holdfast-e2e --bin

##@ See it run
.PHONY: demo
demo: deploy ## Start a cluster with the operators in it and walk through backup, loss and restore
	$(E2E) demo

.PHONY: deploy
deploy: cluster-up images ## Load the images into the cluster, apply deploy/dev, wait until the operators are available
	e2e/cluster/deploy $(OVERLAY) $(IMAGES)

##@ The development cluster
.PHONY: cluster-up
cluster-up: ## Start the cluster (NODES=3), or leave a healthy one as it is
	e2e/cluster/up

.PHONY: cluster-down
cluster-down: ## End the cluster and everything in it
	e2e/cluster/down

.PHONY: kubeconfig
kubeconfig: ## Print where the kubeconfig is: export KUBECONFIG=$(make kubeconfig)
	@e2e/cluster/kubeconfig

.PHONY: images
images: ## Build the static binaries and pack them as images, into target/images
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --target $(TARGET) $(PROGRAMS:%=--package holdfast-%)
	e2e/cluster/images $(TARGET_DIR)/$(TARGET)/release $(IMAGES) $(IMAGE_TAG) $(PROGRAMS)

##@ Checks and tests
.PHONY: test
test: ## Every check and test; ends with one line of how many passed and failed
	e2e/test

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: lint
lint: ## Formatting, clippy, scripts
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	e2e/test scripts

.PHONY: crds
crds: ## Write deploy/crds anew from the types
	$(CARGO) run --quiet --package xtask -- crds

.PHONY: crds-check
crds-check: ## Fail when deploy/crds is not what the types say
	$(CARGO) run --quiet --package xtask -- crds --check

.PHONY: deny
deny: ## Licences, banned crates and sources of the dependencies (cargo-deny, installed if missing)
	cargo deny --version >/dev/null 2>&1 || \
	  CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root $(CACHE) cargo-deny --version '^0.20'
	cargo deny --locked check bans licenses sources

.PHONY: unit
unit: ## Unit and property tests: no cluster needed
	$(CARGO) test --workspace --no-fail-fast

.PHONY: sweep
sweep: ## The operators on an in-memory cluster, killed at every write and much more; wrong specs; programming faults seeded, to be caught
	$(SWEEP_BUILD)
	$(SWEEP) --sample 1
	$(SWEEP) --seeded
	$(SWEEP) hostile --every 29

.PHONY: model
model: ## Who is primary: the agents' own decision, explored by a model checker; mistakes made on purpose, to be caught
	$(SWEEP_BUILD)
	$(MODEL)

.PHONY: sweep-all
sweep-all: ## As sweep, with every plan of every family, and every field of every spec wrong in every way: hours
	$(SWEEP_BUILD)
	$(SWEEP) --sample 0 --pairs 200
	$(SWEEP) --seeded
	$(SWEEP) hostile

.PHONY: api-test
api-test: cluster-up ## Tests that need only the API server
	$(E2E) api-tests

.PHONY: conformance
conformance: cluster-up ## The sweep's in-memory API server and the real one, asked the same at random
	$(E2E) conformance

.PHONY: sanity
sanity: ## The development cluster's volume driver: its tests on this kernel, and csi-sanity
	e2e/cluster/sanity

.PHONY: e2e
e2e: deploy ## Tests on the whole cluster: all, or TEST=name; JOBS=N at once; AGAIN=1: a failed one once more, alone
	$(E2E) e2e -- $(if $(AGAIN),--again) $(if $(TEST),--only '$(TEST)') $(if $(JOBS),--jobs $(JOBS))

.PHONY: bench-ready
bench-ready: deploy ## Measure how long a new database takes to be ready
	$(E2E) bench-ready

.PHONY: bench-operators
bench-operators: ## Measure the operators at scale, at an API server of their own; half an hour, with QUICK=1 five minutes
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --target $(TARGET) $(OPERATORS:%=--package holdfast-%)
	$(CARGO) build --quiet --package holdfast-e2e --bin bench-operators
	e2e/cluster/bare $(OPERATORS:%=-s holdfast-system/%) $(TARGET_DIR)/debug/bench-operators $(if $(QUICK),--quick) \
	  $(TARGET_DIR)/$(TARGET)/release

.PHONY: clean
clean: cluster-down ## End the cluster and remove what cargo built; the cache of cluster parts stays
	cargo clean

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
