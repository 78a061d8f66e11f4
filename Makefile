# make run   : install into .venv, train the embedded default, print the held-out figures
# make test  : the same environment, then lint, types and the whole test suite

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run one by one in each of these processes.
WORKERS := --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: run test lint clean

run: $(STAMP)
	$(BIN)/python train.py $(ARGS)

test: lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow and not gpu" $(WORKERS) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and pinned: any open range would fetch the newest build with gigabytes of CUDA.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs
