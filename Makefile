# Cortado. `make` alone lists the targets. Whatever needs packages sets up .venv first; no system package is touched.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo serve test quick check bench soak proto docs clean

BIN := .venv/bin
# Installing is skipped while the stamp is newer than what it depends on: after that, no network is needed.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
DEMO := .venv/.demo-installed
DEV := .venv/.dev-installed

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO) ## the whole chain on real pictures, from a fresh machine (about a minute and a half after the install)
	@$(BIN)/cortado demo

serve: demo ## the demo, and then its net behind HTTP, with a page, until Ctrl-C
	@$(BIN)/cortado serve --run demo-out/runs/lenet

test: $(DEV) ## every test but the soak runs
	$(BIN)/pytest -q -m "not soak"

quick: $(DEV) ## the tests that need no Ray session and take seconds
	$(BIN)/pytest -q -m "not ray and not slow and not soak"

check: $(DEV) ## formatting, lint, types of ops and cluster, and who may import whom
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/pytest -q tests/test_house.py

bench: $(DEV) ## every benchmark: our figure, a peer's in the same run, and the ratio
	@for bench in tests/benchmarks/bench_*.py; do \
	  $(BIN)/python -m tests.benchmarks.$$(basename $$bench .py) || exit 1; echo; \
	done

soak: $(DEV) ## long runs: killed workers, fuzzed input
	$(BIN)/pytest -q -m soak

proto: $(DEV) ## generate the Python module of ops/proto/caffe.proto anew
	$(BIN)/python -m ops.proto.generate

docs: $(DEV) ## write docs/commands.md anew from the commands themselves
	$(BIN)/python -m tests.commands_page

clean: ## remove caches, builds and the demo's output (.venv stays; delete it to install anew)
	rm -rf demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in python3.11 python3.12 python3.13 python3 python; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "making .venv with $$($$python --version)"; \
	    $$python -m venv .venv && exit 0; \
	    rm -rf .venv; \
	    echo "make: $$python cannot make a virtual environment (on Debian and Ubuntu: apt install $$(basename $$python)-venv)" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "make: no Python 3.11, 3.12 or 3.13 found (tried python3.11, python3.12, python3.13, python3, python): install one and run make again" >&2; \
	exit 1

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Cortado and what its demo needs into .venv (a few minutes, once)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Cortado and what its tests need into .venv (a few minutes, once)"
	@$(PIP) -e '.[demo,dev]'
	@touch $(DEMO) $@
