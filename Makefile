# Two commands: `make demo` shows what remapkit does, `make test` proves that it does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The plainest arithmetic that torch can be held to: what any other processor may round differently from this one.
PORTABLE := OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: help demo test test-fast test-portable lint types unit docs system-deps build clean

help:
	@echo "make demo   make $(VENV), install, and run the main job on a small Wan 2.2 VAE checkpoint"
	@echo "make test   install the test extras; run lint, types and tests"
	@echo "make test-fast      the tests without those that take more than a few seconds"
	@echo "make test-portable  run the tests with torch limited to baseline CPU instructions"
	@echo "make docs   what is made for docs/: the example of a report, the picture of the folders, the tutorial's outputs"
	@echo "make system-deps    install the system programs that some tests need, or list them"
	@echo "make build  a wheel and an sdist in dist/"
	@echo "make clean  remove what these made"

demo: $(VENV)/.installed
	@$(BIN)/python examples/wan_demo.py

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=plugins $(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal --durations=10

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-portable: $(VENV)/.installed-test
	$(PORTABLE) $(BIN)/python -m pytest -q -n auto --dist worksteal

docs: $(VENV)/.installed-test
	$(BIN)/python docs/make_example_report.py
	$(BIN)/python docs/draw_house.py --write
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q -n 0 tests/tutorial

system-deps:
	@bash .ci/system-deps

build: $(VENV)/.installed
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "remapkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins torch: a range alone would pull gigabytes of CUDA packages on a machine without a GPU; and
# selenium, whose releases follow those of browsers.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) dist build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
