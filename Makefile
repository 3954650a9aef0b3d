# Every check is a target here, and CI calls only these.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_INCREMENTAL ?= 0

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and run everything here, with a Redis of its own unless GALLEY__REDIS__URL is set; Ctrl-C stops it all
	@deploy/dev/run.sh

demo: ## The kitchen: 3 chefs, 2 eaters, a queue of at most 10 dishes
	@deploy/dev/demo.sh

test: ## All tests: unit, integration and black-box, on a Redis of their own
	@deploy/dev/test.sh

bench: ## Measure it on this machine, in release: prints a table and writes bench/results (docs/performance.md)
	@deploy/dev/bench.sh

check: ## Format, lints, licences and bans, unused dependencies, documentation
	@deploy/dev/check.sh

fmt: ## Format the code
	cargo fmt --all

up: ## docker compose up, built and healthy
	docker compose up --build --detach --wait

down: ## docker compose down, keeping the data
	docker compose down

clean: ## Remove what was built
	cargo clean

.PHONY: help run demo test bench check fmt up down clean
