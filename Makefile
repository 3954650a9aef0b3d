# Every check is a target here, and CI calls only these.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_INCREMENTAL ?= 0

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and run everything here, with a Redis of its own unless GALLEY__REDIS__URL is set; Ctrl-C stops it all
	@deploy/dev/run.sh

demo: ## The original demo: 3 producers, 2 consumers, a queue of at most 10 dishes
	@deploy/dev/demo.sh

test: ## All tests: unit, integration and black-box, on a Redis of their own
	@deploy/dev/test.sh

bench: ## Measure it on this machine: prints tables and writes bench/results (docs/performance.md)
	@deploy/dev/bench.sh

bench-quick: ## The same in under three minutes, without other systems: one round, fewer jobs
	@deploy/dev/bench.sh all --quick

bench-peers: ## Install other systems below target/dev, and measure beside them
	@deploy/dev/bench-peers.sh

chaos: ## Jobs of every kind while everything breaks, 3 seeds, under five minutes (docs/evidence.md; SEEDS=1,2,3)
	@deploy/dev/jobs-check.sh $(if $(SEEDS),--seed $(SEEDS),--runs 3)

mutants: ## Does make chaos find what it is for? Builds Galley with a mechanism switched off, four times (docs/evidence.md)
	@deploy/dev/mutants.sh

soak: ## Jobs of every kind for an hour, and whether memory, descriptors, keys or lag grow (MINUTES=n)
	@deploy/dev/jobs-check.sh soak --minutes $(or $(MINUTES),60)

guard: ## Does a job take more instructions, Redis commands or bytes than before? UPDATE=1 accepts it
	@deploy/dev/guard.sh

fuzz: ## Fuzz every parser of outside bytes for a minute each (SECONDS_EACH=N; deploy/dev/fuzz.sh)
	@deploy/dev/fuzz.sh

static: ## Build galley as one static program: target/static/galley
	@deploy/dev/static.sh

sbom: ## Write what the programs are built from as CycloneDX into target/sbom
	@deploy/dev/sbom.sh

check: ## check-fast, lints, documentation, unused dependencies, licences and bans
	@deploy/dev/check.sh

check-fast: ## What needs no build: format, retired words, spelling, scripts, layers
	@deploy/dev/check.sh fast

check-portable: ## Does it compile on this system, and for installed targets of rustup? Runs no test
	@deploy/dev/check.sh portable

docs: ## The documents as a site with a search: target/docs/index.html
	@deploy/dev/docs.sh

audit: ## Known vulnerabilities of dependencies; needs the network beyond the registry
	@deploy/dev/check.sh audit

hooks: ## Install a pre-commit hook that runs check-fast
	git config core.hooksPath deploy/dev/hooks

fmt: ## Format the code
	cargo fmt --all

up: ## docker compose up, built and healthy
	docker compose up --build --detach --wait

down: ## docker compose down, keeping the data
	docker compose down

clean: ## Remove what was built
	cargo clean

.PHONY: help run demo test bench bench-quick bench-peers chaos mutants soak guard fuzz static sbom check check-fast check-portable docs audit hooks fmt up down clean
