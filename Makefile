# From a fresh clone: `make run` measures and writes a report, `make test` runs every test. Python 3.11+ is all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: run test test-gpu check slurm-up slurm-down clean
run: $(VENV)/.installed
	$(BIN)/blockshock -m +sweep=first_picture

test: check
	$(BIN)/pytest

test-gpu: $(VENV)/.installed
	$(BIN)/pytest -m "gpu or gpus"

# A SLURM of two nodes on this machine, to try hydra/launcher=slurm (root; does nothing where a SLURM answers already).
slurm-up:
	tests/slurm.sh install
	tests/slurm.sh up

slurm-down:
	tests/slurm.sh down

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
