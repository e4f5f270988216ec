# Run `make` for the list of targets.

PYTHON ?= python3
VENV ?= .venv
# `make venv VENV_FLAGS=--system-site-packages` reuses a torch that the machine already has.
VENV_FLAGS ?=
TORCH ?= torch==2.13.0

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PYTEST := $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv peers test test-slow test-gpu lint format types imports docs demo tour bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  %-10s %s\n", $$1, $$2 }'

venv: $(VENV)/.dev.stamp ## build the virtual environment, or bring it up to date with pyproject.toml

# torch is pinned and goes first: left to the resolver, it may be a CUDA build of several GB.
$(VENV)/.dev.stamp: pyproject.toml
	@echo "venv: installing inlay[dev] into $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@$(PIP) install -qq --upgrade pip
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) install -qq '$(TORCH)'
	@$(PIP) install -qq --editable '.[dev]'
	@touch $@

peers: $(VENV)/.peers.stamp ## install what inlay is compared with and quantised by, for tests/peers and the benchmarks

$(VENV)/.peers.stamp: $(VENV)/.dev.stamp
	@echo "peers: installing inlay[peers] into $(VENV)"
	@$(PIP) install -qq --editable '.[peers]'
	@$(PIP) install -qq --no-deps pyreft==0.1.0 # it pins a transformers of 2024
	@touch $@

$(VENV)/.docs.stamp: $(VENV)/.dev.stamp
	@echo "docs: installing inlay[docs] into $(VENV)"
	@$(PIP) install -qq --editable '.[docs]'
	@touch $@

# Each test process uses one thread; pytest-xdist supplies the parallelism.
test test-slow test-gpu: export OMP_NUM_THREADS := 1

test: venv ## the fast tests, in two processes
	@$(PYTEST) -m 'not slow and not gpu' -n 2

# pytest exits 5 when it collects nothing. Only that is let pass: any other failure to collect shows in the real run.
test-slow: venv ## the tests marked slow
	@$(PYTEST) -m 'slow and not gpu' --collect-only -q >/dev/null 2>&1; \
	if [ $$? -eq 5 ]; then echo "test-slow: no test is marked slow"; \
	else $(PYTEST) -m 'slow and not gpu' -n 2; fi

test-gpu: venv ## the tests marked gpu, slow ones included
	@$(PYTEST) -m gpu

lint: venv ## formatting and lint, changing nothing
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

format: venv ## format, and mend what ruff can
	@$(PY) -m ruff check --fix --quiet . ; $(PY) -m ruff format .

types: venv ## mypy --strict on src
	@$(PY) -m mypy

imports: venv ## the floors of the package
	@$(VENV)/bin/lint-imports --no-logo

# The two variables silence notices about the future of MkDocs, not warnings about these pages.
docs: export NO_MKDOCS_2_WARNING := 1
docs: export DISABLE_MKDOCS_2_WARNING := true
docs: $(VENV)/.docs.stamp ## build the documentation into site/
	@$(PY) -m mkdocs build --strict

# The closed-form methods on every concept of the bundled model: the model is too small for a second thread to help.
demo: export OMP_NUM_THREADS := 1
demo: venv ## find directions of 30 concepts, judge them, write a report (2 minutes)
	@rm -rf build/demo
	@$(VENV)/bin/inlay bench run --methods diff_mean,pca,lat,lda --site resid_post.1 --site resid_post.4 \
	  --factors 0.3,0.45,0.6,0.8 --max-new-tokens 36 --out build/demo

tour: venv ## a tour of reading, steering and swapping: examples/tour.py
	@$(PY) examples/tour.py

bench: venv ## run the benchmarks
	@$(PY) benchmarks/engine.py
	@$(PY) benchmarks/directions.py
	@$(PY) benchmarks/causal.py
	@$(PY) benchmarks/train.py
	@$(PY) benchmarks/attribute.py

clean: ## remove caches and build outputs; the virtual environment stays
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
