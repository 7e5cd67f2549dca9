# Two commands: `make demo` shows what remapkit does, `make test` proves that it does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint types unit build clean

help:
	@echo "make demo   make $(VENV), install, and run the main job on a small Wan 2.2 VAE checkpoint"
	@echo "make test   install the test extras; run lint, types and tests"
	@echo "make build  a wheel and an sdist in dist/"
	@echo "make clean  remove what these made"

demo: $(VENV)/.installed
	@$(BIN)/python examples/wan_demo.py

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --durations=10

build: $(VENV)/.installed
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "remapkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins torch: a range alone would pull gigabytes of CUDA packages on a machine without a GPU.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) dist build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
