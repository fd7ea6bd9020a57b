# Ninefold: what can be made here. `make` alone lists it.
#
# Everything but build, fuzz and clean needs root: it installs packages, makes network namespaces and starts VMs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
target := $(or $(CARGO_TARGET_DIR),target)
# Seconds that the fuzzer runs.
FUZZ_SECONDS ?= 60
# How long random faults are done, and the seed of their script (empty: one is chosen and shown).
SECONDS_OF_CHAOS = $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),600)
SEED ?=

.PHONY: help root bootstrap build guest demo test soak chaos bench fuzz simulate simulate-coverage imports schema clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28

root:
	@if [[ $$(id -u) != 0 ]]; then \
		echo "This needs root (packages, network namespaces, VMs). Try: sudo -E env PATH=\"\$$PATH\" make $(MAKECMDGOALS)" >&2; exit 1; fi

bootstrap: root ## Install what is missing on a Debian 12 or 13 machine with Rust
	@scripts/bootstrap

build: ## Build the binaries (release)
	cargo build --release --workspace --bins --locked

guest: bootstrap ## Build the test guests from Debian packages, once for each recipe
	@guest/build
	@guest/build postgres

# One after the other, whatever -j says: each needs what the one before made, and two cores are soon full.
demo: root ## Show the main job: VMs that survive their hosts, and a loss of power
	@$(MAKE) bootstrap
	@$(MAKE) build
	@$(MAKE) guest
	$(target)/release/ninefold-lab demo

test: root ## Install what is missing, then run every check and test (about 40 minutes on two cores)
	@$(MAKE) guest
	@scripts/test

soak: root ## Run the long tests: repeated faults, hundreds of failovers, then chaos
	@$(MAKE) guest
	NINEFOLD_BIN_DIR=$(abspath $(target))/release cargo test --release --locked --workspace --no-fail-fast -- --ignored --test-threads=1
	NINEFOLD_ROUNDS=8 NINEFOLD_BIN_DIR=$(abspath $(target))/release cargo test --release --locked -p ninefold-lab --no-fail-fast --test power_loss --test volumes -- --test-threads=1
	@$(MAKE) chaos

chaos: root ## Do random faults for SECONDS (600) from a SEED; what is found is kept in target/chaos
	@$(MAKE) build
	@$(MAKE) guest
	$(target)/release/ninefold-lab chaos --seconds $(SECONDS_OF_CHAOS) $(if $(SEED),--seed $(SEED)) --keep $(target)/chaos

bench: root ## Measure protected against unprotected; results in target/bench
	@$(MAKE) build
	@$(MAKE) guest
	$(target)/release/ninefold-lab bench

simulate: ## Run whole keepers' cores in a simulated world for SEEDS (1000) lives from SEED (1) on
	cargo run --release --locked -p ninefold-simulator -- --seeds $(or $(SEEDS),1000) --seed $(or $(SEED),1)

simulate-coverage: ## Say which lines of the core SEEDS (2000) such lives run through (needs the compiler's llvm-tools)
	@scripts/simulator-coverage $(or $(SEEDS),2000) $(or $(SEED),1)

fuzz: ## Fuzz the readers of streams, snapshots, logs and operations on volumes for FUZZ_SECONDS each (needs g++)
	fuzz/run $(FUZZ_SECONDS)

schema: ## Write the control API's JSON Schemas anew from its types: docs/api/*.schema.json
	NINEFOLD_WRITE_SCHEMA=1 cargo test -q --locked -p ninefold-control --features schema --test schema

imports: ## Draw which file uses which: docs/img/imports.svg
	cargo run -q --locked -p ninefold-tidy --example draw_imports docs/img/imports.svg

clean: ## Remove what was built here (not the cache with the guest)
	cargo clean
