# Two commands do everything: `make demo` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# worker processes for the tests: two need about 8 GiB
WORKERS ?= 2
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.jax_cache
export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: help install demo test test-all test-flower bench docs pictures dist lint format notebooks clean

help:
	@echo "make demo       install, then compare kernels with NUTS on real posteriors"
	@echo "make test       install, lint, run the tests, build the documentation"
	@echo "make test-all   the long statistical runs too"
	@echo "make test-flower  those of federated deployments, in a venv of their own"
	@echo "make bench      ratios against named peers, in quick form"
	@echo "make docs       the documentation in site/, links checked"
	@echo "make pictures   those of the documentation, made again"
	@echo "make notebooks  executed, and stored with their outputs"
	@echo "make dist       a wheel in dist/"
	@echo "make install    into $(VENV)"
	@echo "make lint       ruff and mypy"
	@echo "make format     ruff format"
	@echo "make clean      remove what was built"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -e; found=; \
	for python in python python3 python3.14 python3.13 python3.12; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "nutfree needs Python 3.12 or newer, and none was found: install one," \
	    "or put it first on the PATH, and run make again." >&2; exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$($$found --version)"; \
	test -x $(BIN)/python || $$found -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	@$(BIN)/nutfree compare models/galaxies.py --kernels nuts,multiscale,clc \
	  --num-warmup 500 --num-samples 1000 --out demo-output/galaxies
	@$(BIN)/nutfree compare models/eight_schools.py --kernels nuts,multiscale,mala \
	  --num-warmup 500 --num-samples 1000 --out demo-output/eight_schools
	@echo "Reports, plots and draws: demo-output/galaxies demo-output/eight_schools"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not slow"
	@$(MAKE) --no-print-directory docs

test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Flower asks for older packages than the rest, so that it has a venv of its own
test-flower: install
	test -x $(VENV)-flower/bin/python || $(BIN)/python -m venv $(VENV)-flower
	$(VENV)-flower/bin/python -m pip install --quiet --editable '.[dev,federated]'
	$(VENV)-flower/bin/python -m pytest tests/hosts/test_flower.py \
	  tests/hosts/test_flower_deployment.py

bench: install
	$(BIN)/python benchmarks/run.py all --quick

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The documentation: site/index.html"

pictures: install
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/kernel_pictures.py

notebooks: install
	$(BIN)/python docs/run_notebooks.py

dist: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-flower .jax_cache .pytest_cache .ruff_cache .mypy_cache build dist site demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
