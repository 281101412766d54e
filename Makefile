# From a fresh clone: `make run` measures and writes a report, `make test` runs every test. Python 3.11+ is all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: run test test-gpu check figures slurm-up slurm-down clean
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

# The figures that pages show, from the committed records. Those of single runs (docs/records.md#figures-of-the-pages)
# were drawn by the run.
FIGURES = $(BIN)/blockshock-report outputs/reference/$(1) --out docs/figures/$(1) --figures
figures: $(VENV)/.installed
	$(call FIGURES,hypotheses_h200) throughput,training_step
	$(call FIGURES,bench_h200) bench_forward,bench_product,bench_all_reduce,bench_train,bench_host,bench_law
	$(call FIGURES,checkpoint_h200) pareto,recomputation_memory,recomputation_time
	$(call FIGURES,profile_h200) batch_peak_memory_resnet152,batch_step_time_resnet152
	$(call FIGURES,block_shock_h200) speedup_over_row,law,floor,training_step,drift

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
