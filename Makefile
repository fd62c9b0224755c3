# The commands of the project; `make help` lists them. Everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip's progress bars, where there is somebody to see them.
QUIET := $(shell test -t 2 || echo --quiet)
QUICK := tests/test_architecture.py tests/test_docs.py tests/test_files.py tests/optim tests/runtime \
  tests/tables tests/models/test_mobilenext.py tests/models/test_sandglass.py \
  tests/models/test_weights.py tests/training/test_run.py tests/training/test_checkpoint.py \
  tests/training/test_meter.py tests/training/test_monitor.py tests/data/test_loader.py \
  tests/data/test_decoders.py tests/data/test_sources.py tests/data/test_transforms.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-slow lint format bench tables clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml setup.py $(wildcard native/*)
	@echo "installing into $(VENV): some minutes; on Linux PyTorch's CUDA build is 3 GB to download and 6 GB on disk (for a CPU alone: README.md, Two commands)"
	$(BIN)/pip install $(QUIET) -e '.[report]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install $(QUIET) -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install $(QUIET) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed ## install, then train MobileNeXt on scanned digits (two to five minutes)
	$(BIN)/python train.py

test: $(VENV)/.installed-test ## install, then run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

test-quick: $(VENV)/.installed-test ## the tests that start no process and train little (a minute)
	$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile $(QUICK)

test-slow: $(VENV)/.installed-test ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed ## measure our training loop against a plain one
	$(BIN)/python benchmarks/loop.py

tables: $(VENV)/.installed-test ## render the docs' tables and the README's picture from the measured results
	$(BIN)/python scripts/tables.py 'update=[docs/paper.md,docs/results.md,docs/networks.md]' pictures=docs/pictures > /dev/null

clean: ## remove the environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
